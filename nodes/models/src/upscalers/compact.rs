//! Real-ESRGAN's compact network: convolutions at the picture's own size, then channels become pixels, and the enlarged picture is
//! added. Wang et al., "Real-ESRGAN", arXiv 2107.10833 (its published models "animevideov3" and "general-x4v3").

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use kosmograph_kernels::bounds::at_most;

use super::pixels::shuffle;
use crate::error::Result;
use crate::files::weights::Weights;
use crate::stable_diffusion::resnet::Conv2d;

/// The sizes of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactConfig {
    /// Channels between the convolutions.
    pub features: usize,
    /// Convolutions between the first and the last.
    pub convolutions: usize,
    pub scale: usize,
}

impl CompactConfig {
    /// For each pixel of the picture, numbers that lie between the layers at once: what a convolution takes and gives.
    pub(super) fn between_layers(&self) -> usize {
        (2 * self.features).max(6 * self.scale * self.scale)
    }
}

/// A convolution and the slope of each channel below 0.
struct Layer {
    convolution: Conv2d,
    slope: Tensor,
}

impl Layer {
    fn load(weights: &Weights, i: usize, input: usize, output: usize) -> Result<Self> {
        let slope = weights.sub(format!("body.{}", 2 * i + 1)).get("weight", output)?;
        Ok(Self {
            convolution: Conv2d::load_3x3(&weights.sub(format!("body.{}", 2 * i)), input, output)?,
            slope: slope.reshape((1, output, 1, 1))?,
        })
    }

    /// The convolution, then max(x, 0) + slope · min(x, 0).
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let x = self.convolution.forward(x)?;
        let below = at_most(&x, 0.0)?.broadcast_mul(&self.slope.to_dtype(x.dtype())?)?;
        x.relu()? + below
    }
}

/// The network.
pub struct Compact {
    layers: Vec<Layer>,
    last: Conv2d,
    scale: usize,
}

impl Compact {
    /// Reads the tensors that `config` asks for.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &CompactConfig) -> Result<Self> {
        let CompactConfig { features, convolutions, scale } = *config;
        let layer = |i: usize| Layer::load(weights, i, if i == 0 { 3 } else { features }, features);
        let last = weights.sub(format!("body.{}", 2 * (convolutions + 1)));
        Ok(Self {
            layers: (0..=convolutions).map(layer).collect::<Result<_>>()?,
            last: Conv2d::load_3x3(&last, features, 3 * scale * scale)?,
            scale,
        })
    }

    /// [B, 3, H, W] → [B, 3, s·H, s·W], in f32.
    pub fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        let (_, _, height, width) = image.dims4()?;
        let mut x = image.to_dtype(self.last.activations())?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let x = shuffle(&self.last.forward(&x)?, self.scale)?.to_dtype(DType::F32)?;
        x + kernels::upsample_nearest2d(
            &image.contiguous()?,
            height * self.scale,
            width * self.scale,
        )?
    }
}
