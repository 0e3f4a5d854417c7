//! The Inception v3 that FID is measured with (Szegedy et al., arXiv 1512.00567, in the variant of Heusel et al., arXiv
//! 1706.08500): average pools that leave the padding out, and a last block that pools by the maximum. Names are those of
//! the published file `pt_inception-2015-12-05`; every channel count stands in the shapes.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use kosmograph_pixels::pillow::Picture;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::measures::pixels::of_three_channels;

const BATCH_NORM_EPS: f64 = 1e-3;
/// The side of the picture that the network takes.
pub const SIZE: usize = 299;

/// relu(batch_norm(conv(x))), the norm's statistics and the bias folded into the weight.
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    /// Above and below, left and right.
    padding: [usize; 2],
}

impl Conv {
    fn load(weights: &Weights, name: &str, stride: usize, padding: [usize; 2]) -> Result<Conv> {
        let weights = weights.sub(name);
        let shape = weights.shape("conv.weight").ok_or_else(|| {
            Error::Input(format!(
                "{} is no Inception: it has no `{name}.conv.weight`",
                weights.origin()
            ))
        })?;
        // A kernel that is none, or larger than what it looks at, would have no result.
        let fits = |side: &usize| (1..=7).contains(side);
        let [output, _, height, width] = shape[..] else { return Err(no_kernel(&weights)) };
        if output == 0 || !fits(&height) || !fits(&width) {
            return Err(no_kernel(&weights));
        }
        let weight = weights.get("conv.weight", shape)?;
        let norm = |name: &str| weights.get(&format!("bn.{name}"), output);
        let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
        let scale = (norm("weight")? / (variance + BATCH_NORM_EPS)?.sqrt()?)?;
        let bias = (norm("bias")? - (mean * &scale)?)?;
        let weight = weight.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?;
        Ok(Conv { weight, bias, stride, padding })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let [rows, columns] = self.padding;
        let y = match rows == columns {
            true => kernels::conv2d(x, &self.weight, Some(&self.bias), self.stride, rows)?,
            false => {
                let x = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
                kernels::conv2d(&x, &self.weight, Some(&self.bias), self.stride, 0)?
            }
        };
        y.relu()
    }
}

fn no_kernel(weights: &Weights) -> Error {
    Error::Input(format!("a convolution of {} is none of an Inception", weights.origin()))
}

/// What one branch of a block does.
enum Branch {
    Convs(Vec<Conv>),
    /// Some convolutions, and then two side by side.
    Split(Vec<Conv>, [Conv; 2]),
    /// The mean of 3 × 3 without the padding, then a convolution.
    Mean(Conv),
    /// The maximum of 3 × 3, then a convolution.
    Maximum(Conv),
    /// The maximum of 3 × 3, every other pixel.
    Shrink,
}

impl Branch {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let run = |convs: &[Conv]| convs.iter().try_fold(x.clone(), |x, conv| conv.forward(&x));
        match self {
            Branch::Convs(convs) => run(convs),
            Branch::Split(convs, [a, b]) => {
                let x = run(convs)?;
                Tensor::cat(&[a.forward(&x)?, b.forward(&x)?], 1)
            }
            Branch::Mean(conv) => conv.forward(&mean_3x3(x)?),
            Branch::Maximum(conv) => {
                // All values are at least 0 behind a relu, so zeros around them are no maximum.
                let around = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
                conv.forward(&around.max_pool2d_with_stride(3, 1)?)
            }
            Branch::Shrink => x.max_pool2d_with_stride(3, 2),
        }
    }
}

fn mean_3x3(x: &Tensor) -> CandleResult<Tensor> {
    let pool = |x: &Tensor| {
        x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?.avg_pool2d_with_stride(3, 1)
    };
    let (_, _, height, width) = x.dims4()?;
    let share = pool(&Tensor::ones((1, 1, height, width), DType::F32, x.device())?)?;
    pool(x)?.broadcast_div(&share)
}

/// What each stage gives.
enum Stage {
    Conv(Conv),
    Shrink,
    Block(Vec<Branch>),
}

impl Stage {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        match self {
            Stage::Conv(conv) => conv.forward(x),
            Stage::Shrink => x.max_pool2d_with_stride(3, 2),
            Stage::Block(branches) => {
                let branches = branches.iter().map(|branch| branch.forward(x));
                Tensor::cat(&branches.collect::<CandleResult<Vec<_>>>()?, 1)
            }
        }
    }
}

/// The network, and the last layer of its classifier.
pub struct Inception {
    stages: Vec<(&'static str, Stage)>,
    fc_weight: Tensor,
    fc_bias: Tensor,
}

impl Inception {
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights) -> Result<Inception> {
        let stem = |name, stride, padding| -> Result<(&'static str, Stage)> {
            Ok((name, Stage::Conv(Conv::load(weights, name, stride, [padding; 2])?)))
        };
        let mut stages = vec![
            stem("Conv2d_1a_3x3", 2, 0)?,
            stem("Conv2d_2a_3x3", 1, 0)?,
            stem("Conv2d_2b_3x3", 1, 1)?,
            ("MaxPool_1", Stage::Shrink),
            stem("Conv2d_3b_1x1", 1, 0)?,
            stem("Conv2d_4a_3x3", 1, 0)?,
            ("MaxPool_2", Stage::Shrink),
        ];
        type Make = fn(&Weights) -> Result<Vec<Branch>>;
        let blocks: [(&str, Make); 11] = [
            ("Mixed_5b", block_a),
            ("Mixed_5c", block_a),
            ("Mixed_5d", block_a),
            ("Mixed_6a", block_b),
            ("Mixed_6b", block_c),
            ("Mixed_6c", block_c),
            ("Mixed_6d", block_c),
            ("Mixed_6e", block_c),
            ("Mixed_7a", block_d),
            ("Mixed_7b", |weights| block_e(weights, Branch::Mean)),
            ("Mixed_7c", |weights| block_e(weights, Branch::Maximum)),
        ];
        for (name, make) in blocks {
            stages.push((name, Stage::Block(make(&weights.sub(name))?)));
        }
        let shape = weights.shape("fc.weight").unwrap_or_default();
        let [classes, features] = shape[..] else {
            let sentence = format!("{} has no `fc.weight` of an Inception", weights.origin());
            return Err(Error::Input(sentence));
        };
        Ok(Inception {
            stages,
            fc_weight: weights.get("fc.weight", (classes, features))?,
            fc_bias: weights.get("fc.bias", classes)?,
        })
    }

    /// Pixels [B, 3, 299, 299] of [`pixels`] → what comes out of the stages, by their names.
    ///
    /// # Errors
    /// The pixels are too few.
    pub fn stages(&self, pixels: &Tensor) -> Result<Vec<(&'static str, Tensor)>> {
        let mut x = pixels.clone();
        let mut found = Vec::new();
        for (name, stage) in &self.stages {
            x = stage.forward(&x)?;
            found.push((*name, x.clone()));
        }
        Ok(found)
    }

    /// Pixels [B, 3, 299, 299] → the features of FID, [B, 2048].
    ///
    /// # Errors
    /// As [`Inception::stages`].
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = pixels.clone();
        for (_, stage) in &self.stages {
            x = stage.forward(&x)?;
        }
        Ok(mean_over_space(&x)?)
    }

    /// The classifier's logits of features [B, 2048], with its bias or without.
    ///
    /// # Errors
    /// The features have another width.
    pub fn logits(&self, features: &Tensor, biased: bool) -> Result<Tensor> {
        Ok(kernels::linear(features, &self.fc_weight, biased.then_some(&self.fc_bias))?)
    }
}

/// [B, C, H, W] → [B, C].
pub fn mean_over_space(x: &Tensor) -> CandleResult<Tensor> {
    x.flatten_from(2)?.mean(2)
}

const NONE: [usize; 2] = [0, 0];

fn chain(weights: &Weights, convs: &[(&str, [usize; 2])]) -> Result<Vec<Conv>> {
    convs.iter().map(|(name, padding)| Conv::load(weights, name, 1, *padding)).collect()
}

/// The same with a last one that takes every other pixel.
fn shrinking(weights: &Weights, convs: &[(&str, [usize; 2])], last: &str) -> Result<Branch> {
    let mut convs = chain(weights, convs)?;
    convs.push(Conv::load(weights, last, 2, NONE)?);
    Ok(Branch::Convs(convs))
}

fn block_a(weights: &Weights) -> Result<Vec<Branch>> {
    Ok(vec![
        Branch::Convs(chain(weights, &[("branch1x1", NONE)])?),
        Branch::Convs(chain(weights, &[("branch5x5_1", NONE), ("branch5x5_2", [2, 2])])?),
        Branch::Convs(chain(
            weights,
            &[("branch3x3dbl_1", NONE), ("branch3x3dbl_2", [1, 1]), ("branch3x3dbl_3", [1, 1])],
        )?),
        Branch::Mean(Conv::load(weights, "branch_pool", 1, NONE)?),
    ])
}

fn block_b(weights: &Weights) -> Result<Vec<Branch>> {
    Ok(vec![
        shrinking(weights, &[], "branch3x3")?,
        shrinking(
            weights,
            &[("branch3x3dbl_1", NONE), ("branch3x3dbl_2", [1, 1])],
            "branch3x3dbl_3",
        )?,
        Branch::Shrink,
    ])
}

fn block_c(weights: &Weights) -> Result<Vec<Branch>> {
    let (wide, high) = ([0, 3], [3, 0]);
    Ok(vec![
        Branch::Convs(chain(weights, &[("branch1x1", NONE)])?),
        Branch::Convs(chain(
            weights,
            &[("branch7x7_1", NONE), ("branch7x7_2", wide), ("branch7x7_3", high)],
        )?),
        Branch::Convs(chain(
            weights,
            &[
                ("branch7x7dbl_1", NONE),
                ("branch7x7dbl_2", high),
                ("branch7x7dbl_3", wide),
                ("branch7x7dbl_4", high),
                ("branch7x7dbl_5", wide),
            ],
        )?),
        Branch::Mean(Conv::load(weights, "branch_pool", 1, NONE)?),
    ])
}

fn block_d(weights: &Weights) -> Result<Vec<Branch>> {
    Ok(vec![
        shrinking(weights, &[("branch3x3_1", NONE)], "branch3x3_2")?,
        shrinking(
            weights,
            &[("branch7x7x3_1", NONE), ("branch7x7x3_2", [0, 3]), ("branch7x7x3_3", [3, 0])],
            "branch7x7x3_4",
        )?,
        Branch::Shrink,
    ])
}

fn block_e(weights: &Weights, pool: fn(Conv) -> Branch) -> Result<Vec<Branch>> {
    let (wide, high) = ([0, 1], [1, 0]);
    let two = |a: &str, b: &str| -> Result<[Conv; 2]> {
        Ok([Conv::load(weights, a, 1, wide)?, Conv::load(weights, b, 1, high)?])
    };
    Ok(vec![
        Branch::Convs(chain(weights, &[("branch1x1", NONE)])?),
        Branch::Split(
            chain(weights, &[("branch3x3_1", NONE)])?,
            two("branch3x3_2a", "branch3x3_2b")?,
        ),
        Branch::Split(
            chain(weights, &[("branch3x3dbl_1", NONE), ("branch3x3dbl_2", [1, 1])])?,
            two("branch3x3dbl_3a", "branch3x3dbl_3b")?,
        ),
        pool(Conv::load(weights, "branch_pool", 1, NONE)?),
    ])
}

/// A picture in 0..1 as bytes, as torchmetrics makes them: cut off, not rounded.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().map(|value| (value * 255.0) as u8).collect()
}

/// A picture in RGB as bytes [1, 3, H, W].
///
/// # Errors
/// It has no pixels, or not three channels.
pub fn planes(picture: Picture) -> Result<Tensor> {
    of_three_channels(picture)?;
    let Picture { pixels, width, height, .. } = picture;
    let planes = (0..3).flat_map(|channel| pixels[channel..].iter().step_by(3).copied());
    Ok(Tensor::from_vec(planes.collect::<Vec<u8>>(), (1, 3, height, width), &Device::Cpu)?)
}

/// Bytes [B, 3, H, W] → the network's pixels [B, 3, 299, 299]: TensorFlow 1's bilinear resize, whose pixel i is at
/// i · old / new without a half pixel, and (x − 128) / 128.
///
/// # Errors
/// The picture has no pixels.
pub fn pixels(bytes: &Tensor) -> Result<Tensor> {
    Ok(((resize(bytes)? - 128.0)? / 128.0)?)
}

/// The resize alone, in 0..255.
///
/// # Errors
/// As [`pixels`].
pub fn resize(bytes: &Tensor) -> Result<Tensor> {
    resize_to(bytes, SIZE, SIZE)
}

/// The same resize to any size, [B, C, H, W] → [B, C, `to_height`, `to_width`] in f32.
///
/// # Errors
/// As [`pixels`].
pub fn resize_to(bytes: &Tensor, to_height: usize, to_width: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = bytes.dims4()?;
    if bytes.elem_count() == 0 {
        return Err(Error::Input("a picture without pixels".to_owned()));
    }
    let values = bytes.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let (rows, columns) = (taps(height, to_height), taps(width, to_width));
    let mut out = Vec::with_capacity(batch * channels * to_height * to_width);
    for plane in values.chunks_exact(height * width) {
        for &(top, bottom, down) in &rows {
            let (top, bottom) = (&plane[top * width..][..width], &plane[bottom * width..][..width]);
            out.extend(columns.iter().map(|&(left, right, along)| {
                let above = top[left] + (top[right] - top[left]) * along;
                let below = bottom[left] + (bottom[right] - bottom[left]) * along;
                above + (below - above) * down
            }));
        }
    }
    Ok(Tensor::from_vec(out, (batch, channels, to_height, to_width), &Device::Cpu)?)
}

/// Of each pixel the two that it lies between, and how far it is from the first.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = (from as f64 / to as f64) as f32;
    let tap = |i: usize| {
        let at = i as f32 * scale;
        let first = (at as usize).min(from - 1);
        (first, (first + 1).min(from - 1), at - first as f32)
    };
    (0..to).map(tap).collect()
}
