//! SwinIR: a transformer whose attention looks within windows, which every second block shifts by half a window.
//!
//! Liang et al., "SwinIR: Image Restoration Using Swin Transformer", arXiv 2108.10257; windows and shifts are those of Liu et al.,
//! "Swin Transformer", arXiv 2103.14030. Field names are the published files'.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use kosmograph_kernels::bounds::larger;

use super::pixels::{leaky_relu, pad_to_multiple, shuffle};
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};
use crate::stable_diffusion::resnet::Conv2d;

/// The mean of the pictures that the networks were trained on, of each channel.
const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];

/// What is added to the scores of pixels that are neighbours only since the picture was shifted around its edge.
const APART: f32 = -100.0;

const EPS: f64 = 1e-5;

/// The sizes of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwinIrConfig {
    /// Numbers of each pixel between the layers.
    pub channels: usize,
    /// Side of a window.
    pub window: usize,
    pub heads: usize,
    /// Width within an MLP.
    pub hidden: usize,
    /// Blocks of each of the layers.
    pub depths: Vec<usize>,
    /// Whether a layer ends in three convolutions, of which the middle ones are narrow.
    pub three_convolutions: bool,
    pub enlarging: Enlarging,
}

/// How features become the larger picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enlarging {
    /// "pixelshuffle", for the best numbers: `features` channels become pixels, by 2 as often as it takes or by 3 once.
    Shuffle { features: usize, scale: usize },
    /// "pixelshuffledirect", the small one: in one step.
    Direct { scale: usize },
    /// "nearest+conv", for real photographs: doubled, and convolved.
    Nearest { features: usize, doublings: usize },
    /// Not at all: what is taken away is found (noise, the marks of JPEG).
    Nothing,
}

impl SwinIrConfig {
    pub fn scale(&self) -> usize {
        match self.enlarging {
            Enlarging::Shuffle { scale, .. } | Enlarging::Direct { scale } => scale,
            Enlarging::Nearest { doublings, .. } => 1 << doublings,
            Enlarging::Nothing => 1,
        }
    }

    /// For each pixel of the picture, numbers that lie between the layers at once: in a block, or where it is enlarged.
    pub(super) fn between_layers(&self) -> usize {
        let scale = self.scale();
        let enlarged = match self.enlarging {
            Enlarging::Shuffle { features, .. } | Enlarging::Nearest { features, .. } => {
                2 * features
            }
            Enlarging::Direct { .. } | Enlarging::Nothing => 6,
        };
        (6 * self.channels + self.hidden).max(enlarged.saturating_mul(scale * scale))
    }
}

/// Attention within windows.
struct WindowAttention {
    qkv: Linear,
    proj: Linear,
    /// What the places of two pixels in a window add to their score, [1, heads, N, N].
    bias: Tensor,
    heads: usize,
}

impl WindowAttention {
    fn load(weights: &Weights, config: &SwinIrConfig) -> Result<Self> {
        let SwinIrConfig { channels, window, heads, .. } = *config;
        let rows = (2 * window - 1).pow(2);
        let table = weights.get("relative_position_bias_table", (rows, heads))?;
        let side = |pixel: usize| ((pixel / window) as i64, (pixel % window) as i64);
        let pixels = window * window;
        let last = window as i64 - 1;
        let row = |pair: usize| {
            let ((y, x), (to_y, to_x)) = (side(pair / pixels), side(pair % pixels));
            ((y - to_y + last) * (2 * last + 1) + x - to_x + last) as u32
        };
        let rows: Vec<u32> = (0..pixels * pixels).map(row).collect();
        let bias = table.contiguous()?.index_select(&Tensor::new(rows, table.device())?, 0)?;
        let bias = bias.reshape((pixels, pixels, heads))?.permute((2, 0, 1))?.unsqueeze(0)?;
        Ok(Self {
            qkv: Linear::load(&weights.sub("qkv"), channels, 3 * channels)?,
            proj: Linear::load(&weights.sub("proj"), channels, channels)?,
            bias: bias.contiguous()?,
            heads,
        })
    }

    /// `windows` [W, N, C]; `apart` [W, 1, N, N], where they were shifted.
    fn forward(&self, windows: &Tensor, apart: Option<&Tensor>) -> CandleResult<Tensor> {
        let (count, pixels, channels) = windows.dims3()?;
        let width = channels / self.heads;
        let qkv = self.qkv.forward(windows)?.reshape((count, pixels, 3, self.heads, width))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let mask = match apart {
            Some(apart) => self.bias.broadcast_add(apart)?,
            None => self.bias.clone(),
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let heads = kernels::attention(&q, &k, &v, Some(&mask), (width as f64).powf(-0.5))?;
        self.proj.forward(&heads.transpose(1, 2)?.reshape((count, pixels, channels))?)
    }
}

/// A block of the transformer.
struct Block {
    norm1: LayerNorm,
    attn: WindowAttention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn load(weights: &Weights, config: &SwinIrConfig) -> Result<Self> {
        let SwinIrConfig { channels, hidden, .. } = *config;
        let mlp = weights.sub("mlp");
        Ok(Self {
            norm1: LayerNorm::load(&weights.sub("norm1"), channels, EPS)?,
            attn: WindowAttention::load(&weights.sub("attn"), config)?,
            norm2: LayerNorm::load(&weights.sub("norm2"), channels, EPS)?,
            fc1: Linear::load(&mlp.sub("fc1"), channels, hidden)?,
            fc2: Linear::load(&mlp.sub("fc2"), hidden, channels)?,
        })
    }

    /// `x` [B, H, W, C]; shifted by half a window where `apart` says which pixels do not see each other then.
    fn forward(&self, x: &Tensor, window: usize, apart: Option<&Tensor>) -> CandleResult<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let shift = if apart.is_some() { window / 2 } else { 0 };
        let shifted = rolled(&self.norm1.forward(x)?, shift)?;
        let attended = self.attn.forward(&windows(&shifted, window)?, apart)?;
        let attended = together(&attended, window, (height, width))?;
        let x = (x + rolled_back(&attended, shift)?)?;
        let inner = kernels::gelu_erf(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        &x + self.fc2.forward(&inner)?
    }
}

/// The convolutions that a layer, or all of them, end in.
struct Ending(Vec<Conv2d>);

impl Ending {
    fn load(weights: &Weights, config: &SwinIrConfig) -> Result<Self> {
        let channels = config.channels;
        if !config.three_convolutions {
            return Ok(Self(vec![Conv2d::load_3x3(weights, channels, channels)?]));
        }
        let narrow = channels / 4;
        Ok(Self(vec![
            Conv2d::load_3x3(&weights.sub("0"), channels, narrow)?,
            Conv2d::load_1x1(&weights.sub("2"), narrow, narrow)?,
            Conv2d::load_3x3(&weights.sub("4"), narrow, channels)?,
        ]))
    }

    /// [B, C, H, W].
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let mut x = x.clone();
        for (i, convolution) in self.0.iter().enumerate() {
            if i > 0 {
                x = leaky_relu(&x)?;
            }
            x = convolution.forward(&x)?;
        }
        Ok(x)
    }
}

/// A residual layer of Swin transformer blocks.
struct Layer {
    blocks: Vec<Block>,
    conv: Ending,
}

/// The network.
pub struct SwinIr {
    conv_first: Conv2d,
    /// Before the layers, where the file has it.
    patch_norm: Option<LayerNorm>,
    layers: Vec<Layer>,
    norm: LayerNorm,
    conv_after_body: Ending,
    enlarge: Enlarge,
    config: SwinIrConfig,
}

enum Enlarge {
    Shuffle { before: Conv2d, steps: Vec<(Conv2d, usize)>, last: Conv2d },
    Direct { step: Conv2d, scale: usize },
    Nearest { before: Conv2d, doublings: Vec<Conv2d>, hr: Conv2d, last: Conv2d },
    Nothing { last: Conv2d },
}

impl Enlarge {
    fn load(weights: &Weights, config: &SwinIrConfig) -> Result<Self> {
        let channels = config.channels;
        let conv = |name: &str, input: usize, output: usize| {
            Conv2d::load_3x3(&weights.sub(name), input, output)
        };
        Ok(match config.enlarging {
            Enlarging::Shuffle { features, scale } => {
                let by = if scale == 3 { vec![3] } else { vec![2; scale.ilog2() as usize] };
                let step = |(i, by): (usize, usize)| {
                    Ok((conv(&format!("upsample.{}", 2 * i), features, by * by * features)?, by))
                };
                Enlarge::Shuffle {
                    before: conv("conv_before_upsample.0", channels, features)?,
                    steps: by.into_iter().enumerate().map(step).collect::<Result<_>>()?,
                    last: conv("conv_last", features, 3)?,
                }
            }
            Enlarging::Direct { scale } => {
                Enlarge::Direct { step: conv("upsample.0", channels, 3 * scale * scale)?, scale }
            }
            Enlarging::Nearest { features, doublings } => {
                let double = |i: usize| conv(&format!("conv_up{i}"), features, features);
                Enlarge::Nearest {
                    before: conv("conv_before_upsample.0", channels, features)?,
                    doublings: (1..=doublings).map(double).collect::<Result<_>>()?,
                    hr: conv("conv_hr", features, features)?,
                    last: conv("conv_last", features, 3)?,
                }
            }
            Enlarging::Nothing => Enlarge::Nothing { last: conv("conv_last", channels, 3)? },
        })
    }

    /// Features [B, C, H, W] of `image` [B, 3, H, W].
    fn forward(&self, features: &Tensor, image: &Tensor) -> CandleResult<Tensor> {
        // torch's own slope, not ESRGAN's.
        let before = |conv: &Conv2d| {
            let x = conv.forward(features)?;
            larger(&x, &(&x * 0.01)?)
        };
        match self {
            Enlarge::Shuffle { before: first, steps, last } => {
                let mut x = before(first)?;
                for (step, by) in steps {
                    x = shuffle(&step.forward(&x)?, *by)?;
                }
                last.forward(&x)
            }
            Enlarge::Direct { step, scale } => shuffle(&step.forward(features)?, *scale),
            Enlarge::Nearest { before: first, doublings, hr, last } => {
                let mut x = before(first)?;
                for double in doublings {
                    x = leaky_relu(&double.forward_doubled(&x)?)?;
                }
                last.forward(&leaky_relu(&hr.forward(&x)?)?)
            }
            Enlarge::Nothing { last } => image + last.forward(features)?,
        }
    }
}

impl SwinIr {
    /// Reads the tensors that `config` asks for.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged; the sizes do not fit each other.
    pub fn load(weights: &Weights, config: &SwinIrConfig) -> Result<Self> {
        let SwinIrConfig { channels, heads, window, .. } = *config;
        if heads == 0 || window < 2 || channels == 0 || channels % heads != 0 {
            return Err(Error::Input(format!(
                "{} has {heads} heads in windows of {window} for {channels} channels; heads that divide the channels, and windows of \
                 at least 2 pixels a side, would be right",
                weights.origin()
            )));
        }
        let layer = |i: usize, depth: usize| {
            let weights = weights.sub(format!("layers.{i}"));
            let block =
                |j: usize| Block::load(&weights.sub(format!("residual_group.blocks.{j}")), config);
            Ok(Layer {
                blocks: (0..depth).map(block).collect::<Result<_>>()?,
                conv: Ending::load(&weights.sub("conv"), config)?,
            })
        };
        let layers = config.depths.iter().enumerate().map(|(i, depth)| layer(i, *depth));
        let patch = weights.sub("patch_embed.norm");
        let patch_norm =
            patch.has("weight").then(|| LayerNorm::load(&patch, channels, EPS)).transpose()?;
        Ok(Self {
            conv_first: Conv2d::load_3x3(&weights.sub("conv_first"), 3, channels)?,
            patch_norm,
            layers: layers.collect::<Result<_>>()?,
            norm: LayerNorm::load(&weights.sub("norm"), channels, EPS)?,
            conv_after_body: Ending::load(&weights.sub("conv_after_body"), config)?,
            enlarge: Enlarge::load(weights, config)?,
            config: config.clone(),
        })
    }

    /// [B, 3, H, W] in 0..1 → [B, 3, s·H, s·W], in f32.
    pub fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        let (_, _, height, width) = image.dims4()?;
        let window = self.config.window;
        let mean = Tensor::new(&MEAN, image.device())?.reshape((1, 3, 1, 1))?;
        let padded = pad_to_multiple(image, window)?.broadcast_sub(&mean)?;
        let padded = padded.to_dtype(self.conv_first.activations())?;
        let (_, _, rows, columns) = padded.dims4()?;
        let apart = apart(&padded, window, (rows, columns))?;
        let first = self.conv_first.forward(&padded)?;
        let mut x = in_rows(&first)?;
        if let Some(norm) = &self.patch_norm {
            x = norm.forward(&x)?;
        }
        for layer in &self.layers {
            let mut inner = x.clone();
            for (j, block) in layer.blocks.iter().enumerate() {
                inner = block.forward(&inner, window, (j % 2 == 1).then_some(&apart))?;
            }
            let convolved = layer.conv.forward(&in_planes(&inner)?)?;
            x = (in_rows(&convolved)? + x)?;
        }
        let body = self.conv_after_body.forward(&in_planes(&self.norm.forward(&x)?)?)?;
        let larger = self.enlarge.forward(&(body + first)?, &padded)?.to_dtype(DType::F32)?;
        let scale = self.config.scale();
        let larger = larger.broadcast_add(&mean)?;
        larger.narrow(2, 0, height * scale)?.narrow(3, 0, width * scale)?.contiguous()
    }
}

/// [B, C, H, W] → [B, H, W, C].
fn in_rows(x: &Tensor) -> CandleResult<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// [B, H, W, C] → [B, C, H, W].
fn in_planes(x: &Tensor) -> CandleResult<Tensor> {
    x.permute((0, 3, 1, 2))?.contiguous()
}

/// [B, H, W, C] → [B · windows, N, C]; both sides are multiples of the window's.
fn windows(x: &Tensor, window: usize) -> CandleResult<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let shape = [batch, height / window, window, width / window, window, channels];
    x.reshape(&shape[..])?
        .permute(vec![0, 1, 3, 2, 4, 5])?
        .reshape(((), window * window, channels))?
        .contiguous()
}

/// [`windows`] the other way.
fn together(x: &Tensor, window: usize, (height, width): (usize, usize)) -> CandleResult<Tensor> {
    let channels = x.dim(2)?;
    let (down, across) = (height / window, width / window);
    let batch = x.dim(0)? / (down * across);
    x.reshape(&[batch, down, across, window, window, channels][..])?
        .permute(vec![0, 1, 3, 2, 4, 5])?
        .reshape((batch, height, width, channels))?
        .contiguous()
}

/// [B, H, W, C] with every pixel `shift` up and to the left, around the edge.
fn rolled(x: &Tensor, shift: usize) -> CandleResult<Tensor> {
    if shift == 0 {
        return Ok(x.clone());
    }
    let mut x = x.clone();
    for axis in [1, 2] {
        let length = x.dim(axis)?;
        let (first, rest) = (x.narrow(axis, 0, shift)?, x.narrow(axis, shift, length - shift)?);
        x = Tensor::cat(&[rest, first], axis)?;
    }
    Ok(x)
}

/// [`rolled`] the other way.
fn rolled_back(x: &Tensor, shift: usize) -> CandleResult<Tensor> {
    if shift == 0 {
        return Ok(x.clone());
    }
    let mut x = x.clone();
    for axis in [1, 2] {
        let length = x.dim(axis)?;
        let rest = x.narrow(axis, 0, length - shift)?;
        x = Tensor::cat(&[x.narrow(axis, length - shift, shift)?, rest], axis)?;
    }
    Ok(x)
}

/// Which pixels of a shifted window come from different sides of the picture, [B · windows, 1, N, N]: 0 or [`APART`].
fn apart(image: &Tensor, window: usize, (height, width): (usize, usize)) -> CandleResult<Tensor> {
    let shift = window / 2;
    // Of the last window, what stood there before and what came around the edge.
    let side = |place: usize, length: usize| match place {
        _ if place + window < length => 0,
        _ if place + shift < length => 1,
        _ => 2u32,
    };
    let part = |i: usize| (side(i / width, height) * 3 + side(i % width, width)) as f32;
    let parts: Vec<f32> = (0..height * width).map(part).collect();
    let parts = Tensor::from_vec(parts, (1, height, width, 1), &Device::Cpu)?;
    // [W, N, 1]
    let parts = windows(&parts, window)?;
    let other = parts.broadcast_ne(&parts.transpose(1, 2)?.contiguous()?)?.to_dtype(DType::F32)?;
    let apart = (other * f64::from(APART))?.unsqueeze(1)?.to_device(image.device())?;
    let batch = image.dim(0)?;
    Tensor::cat(&vec![&apart; batch], 0)
}
