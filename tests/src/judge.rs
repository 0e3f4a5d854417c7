//! The judge of the bundled model (`models/tiny/train/classifier.py`), which says what is on a picture.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use kosmograph_models::Weights;

/// How many there are of each attribute: shape, colour, pattern, eyes, accessory.
const SIZES: [usize; 5] = [8, 9, 4, 4, 7];
const WIDTHS: [usize; 5] = [16, 32, 48, 64, 96];
/// The side of what it looks at.
pub const SIDE: usize = 128;

/// The network.
pub struct Judge {
    weights: Weights,
}

/// What it sees on a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether there are two monsters.
    pub is_pair: bool,
    /// Of the one monster: shape, colour, pattern, eyes, accessory.
    pub monster: [usize; 5],
}

impl Judge {
    /// The bundled one, of `models/tiny/evaluate`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(repository: &Path) -> Result<Judge> {
        let path = repository.join("models/tiny/evaluate/classifier.safetensors");
        Ok(Judge { weights: Weights::open(&path, &Device::Cpu)? })
    }

    /// Looks at a picture file.
    ///
    /// # Errors
    /// It cannot be read, or has another size.
    pub fn look(&self, path: &Path) -> Result<Seen> {
        let picture = image::open(path).with_context(|| path.display().to_string())?.into_rgb8();
        ensure!(picture.width() as usize == SIDE && picture.height() as usize == SIDE);
        let pixels = Tensor::from_slice(picture.as_raw(), (1, SIDE, SIDE, 3), &Device::Cpu)?;
        let pixels = pixels.permute((0, 3, 1, 2))?.to_dtype(DType::F32)?.contiguous()?;
        let mut x = ((pixels / 127.5)? - 1.0)?;
        for (number, width) in WIDTHS.into_iter().enumerate() {
            let (first, groups) = (6 * number, if width < 64 { 1 } else { 4 });
            x = self.conv(&x, first, if number == 0 { 1 } else { 2 }, 1)?;
            x = self.conv(&x, first + 3, 1, groups)?;
        }
        let rows = |from: usize| -> Result<Tensor> { pooled(&x.narrow(2, from, 4)?) };
        let whole = pooled(&x)?;
        let scene = self.linear(&whole, "scene")?.flatten_all()?.to_vec1::<f32>()?;
        let one = Tensor::cat(&[&whole, &rows(0)?, &rows(4)?], 1)?;
        let one = self.linear(&self.linear(&one, "one.0")?.silu()?, "one.2")?;
        let (mut monster, mut at) = ([0; 5], 0);
        for (place, size) in monster.iter_mut().zip(SIZES) {
            let best = one.narrow(1, at, size)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            (*place, at) = (best[0] as usize, at + size);
        }
        Ok(Seen { is_pair: scene[1] > scene[0], monster })
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        let shape = self.weights.shape(name).with_context(|| format!("the judge has no {name}"))?;
        Ok(self.weights.get(name, shape)?.to_dtype(DType::F32)?)
    }

    /// A convolution, the norm of four groups behind it, and SiLU.
    fn conv(&self, x: &Tensor, number: usize, stride: usize, groups: usize) -> Result<Tensor> {
        let of = |number: usize, name: &str| self.get(&format!("body.{number}.{name}"));
        let bias = of(number, "bias")?;
        let channels = bias.dim(0)?;
        let per_channel = |t: Tensor| t.reshape((1, channels, 1, 1));
        let x = x.conv2d(&of(number, "weight")?, 1, stride, 1, groups)?;
        let x = x.broadcast_add(&per_channel(bias)?)?;
        let (batch, _, height, width) = x.dims4()?;
        let grouped = x.reshape((batch, 4, channels / 4 * height * width))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?;
        let x = centred.broadcast_div(&deviation)?.reshape((batch, channels, height, width))?;
        let x = x.broadcast_mul(&per_channel(of(number + 1, "weight")?)?)?;
        Ok(x.broadcast_add(&per_channel(of(number + 1, "bias")?)?)?.silu()?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.get(&format!("{name}.weight"))?;
        Ok(x.matmul(&weight.t()?)?.broadcast_add(&self.get(&format!("{name}.bias"))?)?)
    }
}

/// Mean and maximum over space, [B, 2C].
fn pooled(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_from(2)?;
    Ok(Tensor::cat(&[flat.mean(2)?, flat.max(2)?], 1)?)
}
