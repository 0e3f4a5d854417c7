//! ESRGAN's generator: a convolution, residual-in-residual dense blocks, enlargement, two convolutions.
//!
//! Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", arXiv 1809.00219, §3.1; with pixels moved to
//! channels first for small factors: Wang et al., "Real-ESRGAN", arXiv 2107.10833, §4.1. Tensors have Real-ESRGAN's names.

use candle_core::{DType, Result as CandleResult, Tensor};

use super::pixels::{leaky_relu, pad_to_multiple, unshuffle};
use crate::error::Result;
use crate::files::weights::Weights;
use crate::stable_diffusion::resnet::Conv2d;

/// What residuals are multiplied by before they are added.
const RESIDUAL: f64 = 0.2;

/// The sizes of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RrdbConfig {
    /// Channels between the blocks.
    pub filters: usize,
    /// Channels that each convolution of a dense block adds.
    pub growth: usize,
    /// Residual-in-residual dense blocks.
    pub blocks: usize,
    /// Enlargements by two.
    pub doublings: usize,
    /// Squares of so many pixels a side become channels first; 1 where none do.
    pub unshuffle: usize,
}

impl RrdbConfig {
    pub fn scale(&self) -> usize {
        (1 << self.doublings) / self.unshuffle
    }

    /// For each pixel of the picture, numbers that lie between the layers at once: two tensors of the last convolutions, or what
    /// a dense block has gathered and the copy that is convolved.
    pub(super) fn between_layers(&self) -> usize {
        let last = 2 * self.filters * self.scale() * self.scale();
        let dense = 2 * (self.filters + 4 * self.growth) / (self.unshuffle * self.unshuffle);
        last.max(dense)
    }
}

/// Five convolutions, each of which sees all before it.
struct DenseBlock {
    convolutions: Vec<Conv2d>,
    last: Conv2d,
}

impl DenseBlock {
    fn load(weights: &Weights, filters: usize, growth: usize) -> Result<Self> {
        let conv = |i: usize, output: usize| {
            let input = filters + (i - 1) * growth;
            Conv2d::load_3x3(&weights.sub(format!("conv{i}")), input, output)
        };
        Ok(Self {
            convolutions: (1..5).map(|i| conv(i, growth)).collect::<Result<_>>()?,
            last: conv(5, filters)?,
        })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let mut gathered = x.clone();
        for convolution in &self.convolutions {
            let grown = leaky_relu(&convolution.forward(&gathered)?)?;
            gathered = Tensor::cat(&[gathered, grown], 1)?;
        }
        x + (self.last.forward(&gathered)? * RESIDUAL)?
    }
}

/// The network.
pub struct RrdbNet {
    conv_first: Conv2d,
    body: Vec<[DenseBlock; 3]>,
    conv_body: Conv2d,
    conv_up: Vec<Conv2d>,
    conv_hr: Conv2d,
    conv_last: Conv2d,
    unshuffle: usize,
}

impl RrdbNet {
    /// Reads the tensors that `config` asks for.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &RrdbConfig) -> Result<Self> {
        let RrdbConfig { filters, growth, unshuffle, .. } = *config;
        let conv = |name: &str| Conv2d::load_3x3(&weights.sub(name), filters, filters);
        let block = |i: usize| -> Result<[DenseBlock; 3]> {
            let dense = |j: usize| {
                DenseBlock::load(&weights.sub(format!("body.{i}.rdb{j}")), filters, growth)
            };
            Ok([dense(1)?, dense(2)?, dense(3)?])
        };
        let input = 3 * unshuffle * unshuffle;
        Ok(Self {
            conv_first: Conv2d::load_3x3(&weights.sub("conv_first"), input, filters)?,
            body: (0..config.blocks).map(block).collect::<Result<_>>()?,
            conv_body: conv("conv_body")?,
            conv_up: (1..=config.doublings)
                .map(|i| conv(&format!("conv_up{i}")))
                .collect::<Result<_>>()?,
            conv_hr: conv("conv_hr")?,
            conv_last: Conv2d::load_3x3(&weights.sub("conv_last"), filters, 3)?,
            unshuffle,
        })
    }

    /// [B, 3, H, W] → [B, 3, s·H, s·W], in f32.
    pub fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        let (_, _, height, width) = image.dims4()?;
        let x = match self.unshuffle {
            1 => image.clone(),
            r => unshuffle(&pad_to_multiple(image, r)?, r)?,
        };
        let first = self.conv_first.forward(&x.to_dtype(self.conv_first.activations())?)?;
        let mut x = first.clone();
        for block in &self.body {
            let mut y = x.clone();
            for dense in block {
                y = dense.forward(&y)?;
            }
            x = (x + (y * RESIDUAL)?)?;
        }
        let mut x = (first + self.conv_body.forward(&x)?)?;
        for conv_up in &self.conv_up {
            x = leaky_relu(&conv_up.forward_doubled(&x)?)?;
        }
        let x = self.conv_last.forward(&leaky_relu(&self.conv_hr.forward(&x)?)?)?;
        // What was mirrored beyond the picture's edges is cut off again.
        let scale = x.dim(2)? / height.next_multiple_of(self.unshuffle);
        let x = x.narrow(2, 0, height * scale)?.narrow(3, 0, width * scale)?;
        x.contiguous()?.to_dtype(DType::F32)
    }
}
