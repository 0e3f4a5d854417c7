//! T2I-Adapters: a hint picture → features that are added within the U-Net's contracting half. They depend on neither the latents nor
//! the timestep.
//!
//! Mou et al., "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion Models", arXiv
//! 2302.08453; computed as diffusers' `T2IAdapter` does ("full_adapter", "full_adapter_xl", "light_adapter").

use candle_core::{DType, Result as CandleResult, Tensor};

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::stable_diffusion::resnet::Conv2d;

/// What a file's shapes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct T2iAdapterConfig {
    /// Channels of the hint: 3, or 1 for sketches and outlines.
    pub in_channels: usize,
    /// Pixels of the hint to one of the first feature, along each edge: 8 for SD 1.5, 16 for SDXL.
    pub downscale: usize,
    /// Channels of each feature.
    pub channels: Vec<usize>,
    /// ResNet blocks to a feature.
    pub resnets: usize,
    pub kind: Kind,
}

/// How a level is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A convolution first, then ResNet blocks that end in a square of `kernel` pixels a side.
    Full { kernel: usize },
    /// Each level works on a quarter of its channels.
    Light,
}

/// Real files have 2 to 4; a number from a file is not more than this.
const MOST_LEVELS: usize = 8;

impl T2iAdapterConfig {
    /// Of weights under diffusers' names without `adapter.`, see [`diffusers_names`].
    ///
    /// # Errors
    /// A tensor that says a size is missing or of another number of axes, or the sizes are no adapter's.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let sides = |name: &str| match weights.shape(name).as_deref() {
            Some([output, input, kernel, _]) => Ok((*output, *input, *kernel)),
            Some(found) => Err(Error::Axes {
                file: weights.origin().to_owned(),
                name: name.to_owned(),
                axes: 4,
                found: found.to_vec(),
            }),
            None => Err(Error::MissingTensor {
                file: weights.origin().to_owned(),
                name: name.to_owned(),
                nearest: None,
            }),
        };
        let is_light = weights.shape("conv_in.weight").is_none();
        let levels =
            (0..MOST_LEVELS).take_while(|i| weights.has(&format!("body.{i}.resnets"))).count();
        let resnets =
            (0..).take_while(|j| weights.has(&format!("body.0.resnets.{j}"))).take(64).count();
        let (kind, first, name) = match is_light {
            true => (Kind::Light, sides("body.0.in_conv.weight")?, "out_conv"),
            false => {
                let (_, _, kernel) = sides("body.0.resnets.0.block2.weight")?;
                (Kind::Full { kernel }, sides("conv_in.weight")?, "resnets.0.block1")
            }
        };
        let channels = (0..levels).map(|i| Ok(sides(&format!("body.{i}.{name}.weight"))?.0));
        let channels = channels.collect::<Result<Vec<usize>>>()?;
        let (in_channels, downscale) = match first.1 {
            64 => (1, 8),
            192 => (3, 8),
            256 => (1, 16),
            768 => (3, 16),
            other => {
                let file = format!("the shapes in {}", weights.origin());
                return Err(Error::UnsupportedConfig {
                    file,
                    key: "in_channels".to_owned(),
                    found: format!("{other} after squares of pixels became channels"),
                    supported: "64 or 192 for SD 1.5, 256 or 768 for SDXL".to_owned(),
                });
            }
        };
        if matches!(kind, Kind::Full { kernel } if kernel != 1 && kernel != 3) || levels == 0 {
            return Err(Error::UnsupportedConfig {
                file: format!("the shapes in {}", weights.origin()),
                key: "adapter_type".to_owned(),
                found: format!("{kind:?} of {levels} levels"),
                supported: "full_adapter, full_adapter_xl and light_adapter".to_owned(),
            });
        }
        Ok(Self { in_channels, downscale, channels, resnets, kind })
    }

    /// Whether it is for SDXL's U-Net.
    pub fn is_xl(&self) -> bool {
        self.downscale == 16
    }

    /// Whether level `i` halves what it is given: all but the first, for SDXL the third alone.
    fn halves(&self, i: usize) -> bool {
        if self.is_xl() { i == 2 } else { i > 0 }
    }

    /// Where each feature is added, by diffusers' name of the block.
    pub fn places(&self) -> Vec<String> {
        let place = |i: usize| match self.is_xl() && i == 3 {
            true => "mid_block".to_owned(),
            false => format!("down_blocks.{i}"),
        };
        (0..self.channels.len()).map(place).collect()
    }
}

/// diffusers' names (without `adapter.`) of the tensors of a T2I-Adapter, those of TencentARC's files led to them; pairs of the new name
/// and the file's.
pub fn diffusers_names(names: &[String]) -> Vec<(String, String)> {
    let bare = |name: &str| name.strip_prefix("adapter.").unwrap_or(name).to_owned();
    let is_flat = names.iter().any(|name| bare(name).starts_with("body.0.block1."));
    // Two ResNet blocks a level there.
    let translated = |name: &str| -> Option<String> {
        let rest = name.strip_prefix("body.")?;
        let (number, rest) = rest.split_once('.')?;
        let number: usize = number.parse().ok()?;
        if let Some(rest) = rest.strip_prefix("body.") {
            return Some(format!("body.{number}.resnets.{rest}"));
        }
        if !is_flat {
            return None;
        }
        Some(match rest.starts_with("in_conv.") {
            true => format!("body.{}.{rest}", number / 2),
            false => format!("body.{}.resnets.{}.{rest}", number / 2, number % 2),
        })
    };
    let pair = |name: &String| {
        let bare = bare(name);
        (translated(&bare).unwrap_or(bare), name.clone())
    };
    names.iter().map(pair).collect()
}

/// x + block2(relu(block1(x))).
struct Resnet {
    block1: Conv2d,
    block2: Conv2d,
}

impl Resnet {
    fn load(weights: &Weights, channels: usize, kernel: usize) -> Result<Self> {
        let block2 = &weights.sub("block2");
        Ok(Self {
            block1: Conv2d::load_3x3(&weights.sub("block1"), channels, channels)?,
            block2: Conv2d::load(block2, channels, channels, kernel, 1, kernel / 2)?,
        })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        x + self.block2.forward(&self.block1.forward(x)?.relu()?)?
    }
}

struct Level {
    halves: bool,
    in_conv: Option<Conv2d>,
    resnets: Vec<Resnet>,
    out_conv: Option<Conv2d>,
}

impl Level {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let mut x = if self.halves { halved(x)? } else { x.clone() };
        if let Some(in_conv) = &self.in_conv {
            x = in_conv.forward(&x)?;
        }
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        match &self.out_conv {
            Some(out_conv) => out_conv.forward(&x),
            None => Ok(x),
        }
    }
}

/// The mean of each square of four pixels; of what there is of one at an odd end.
fn halved(x: &Tensor) -> CandleResult<Tensor> {
    let mut x = x.clone();
    for axis in [2, 3] {
        let length = x.dim(axis)?;
        let last = x.narrow(axis, length - 1, 1)?;
        if length % 2 == 1 {
            x = Tensor::cat(&[&x, &last], axis)?;
        }
    }
    x.avg_pool2d(2)
}

/// Squares of pixels to channels: channel c·r² + i·r + j is row i, column j of each. A picture that is no multiple of `r` repeats its
/// edge.
fn unshuffled(x: &Tensor, r: usize) -> CandleResult<Tensor> {
    let mut x = x.clone();
    for axis in [2, 3] {
        let length = x.dim(axis)?;
        let missing = length.next_multiple_of(r) - length;
        if missing > 0 {
            let last = x.narrow(axis, length - 1, 1)?;
            let mut parts = vec![&x];
            parts.extend(std::iter::repeat_n(&last, missing));
            x = Tensor::cat(&parts, axis)?;
        }
    }
    let (batch, channels, height, width) = x.dims4()?;
    x.reshape(&[batch, channels, height / r, r, width / r, r][..])?
        .permute(vec![0, 1, 3, 5, 2, 4])?
        .reshape((batch, channels * r * r, height / r, width / r))
}

/// The adapter.
pub struct T2iAdapter {
    conv_in: Option<Conv2d>,
    levels: Vec<Level>,
    config: T2iAdapterConfig,
}

impl T2iAdapter {
    /// Reads the tensors that `config` asks for, under diffusers' names without `adapter.`.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &T2iAdapterConfig) -> Result<Self> {
        let pixels = config.in_channels * config.downscale * config.downscale;
        let mut input = pixels;
        let mut levels = Vec::new();
        for (i, &output) in config.channels.iter().enumerate() {
            let weights = weights.sub(format!("body.{i}"));
            let (inside, kernel, in_conv, out_conv) = match config.kind {
                Kind::Full { kernel } => {
                    let input = if i == 0 { output } else { input };
                    let in_conv = (input != output).then_some((input, output));
                    (output, kernel, in_conv, None)
                }
                Kind::Light => {
                    (output / 4, 3, Some((input, output / 4)), Some((output / 4, output)))
                }
            };
            let conv_1x1 = |name: &str, sides: Option<(usize, usize)>| {
                let load = |(input, output)| Conv2d::load_1x1(&weights.sub(name), input, output);
                sides.map(load).transpose()
            };
            let resnet =
                |j: usize| Resnet::load(&weights.sub(format!("resnets.{j}")), inside, kernel);
            levels.push(Level {
                halves: config.halves(i),
                in_conv: conv_1x1("in_conv", in_conv)?,
                resnets: (0..config.resnets).map(resnet).collect::<Result<_>>()?,
                out_conv: conv_1x1("out_conv", out_conv)?,
            });
            input = output;
        }
        let conv_in = match config.kind {
            Kind::Full { .. } => {
                let first = config.channels.first().copied().unwrap_or(0);
                Some(Conv2d::load_3x3(&weights.sub("conv_in"), pixels, first)?)
            }
            Kind::Light => None,
        };
        Ok(Self { conv_in, levels, config: config.clone() })
    }

    pub fn config(&self) -> &T2iAdapterConfig {
        &self.config
    }

    /// The features of `hint` [B, 3, H, W] in 0..1, in the order of [`T2iAdapterConfig::places`]. An adapter of one channel takes the
    /// mean of the three.
    ///
    /// # Errors
    /// The hint has another number of channels, or no pixels.
    pub fn forward(&self, hint: &Tensor) -> Result<Vec<Tensor>> {
        match hint.dims() {
            [_, 3, height, width] if *height > 0 && *width > 0 => {}
            shape => {
                return Err(Error::Input(format!(
                    "the T2I-Adapter's hint is {shape:?}, expected [batch, 3, height, width]"
                )));
            }
        }
        let hint = match self.config.in_channels {
            1 => hint.mean_keepdim(1)?,
            _ => hint.clone(),
        };
        Ok(self.features(&hint)?)
    }

    fn features(&self, hint: &Tensor) -> CandleResult<Vec<Tensor>> {
        let mut x = unshuffled(hint, self.config.downscale)?;
        if let Some(conv_in) = &self.conv_in {
            x = conv_in.forward(&x.to_dtype(conv_in.activations())?)?;
        } else if let Some(Level { in_conv: Some(in_conv), .. }) = self.levels.first() {
            x = x.to_dtype(in_conv.activations())?;
        }
        let mut features = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            x = level.forward(&x)?;
            features.push(x.to_dtype(DType::F32)?);
        }
        Ok(features)
    }
}
