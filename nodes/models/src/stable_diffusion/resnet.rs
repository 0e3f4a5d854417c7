//! The convolutional half of Stable Diffusion's networks, as U-Net, ControlNet and VAE share it:
//! ResNet blocks and the resampling between levels. Field names are diffusers' checkpoint names.

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::Result;
use crate::files::weights::{LowRank, Weight, Weights};
use crate::layers::Linear;

/// A convolution with a bias; the stride and padding are the caller's.
pub(crate) struct Conv2d {
    weight: Weight,
    bias: Tensor,
    stride: usize,
    padding: usize,
    low_rank: Option<LowRank>,
}

impl Conv2d {
    /// 3 × 3, keeping the size.
    pub(crate) fn load_3x3(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        Conv2d::load(weights, input, output, 3, 1, 1)
    }

    /// 1 × 1.
    pub(crate) fn load_1x1(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        Conv2d::load(weights, input, output, 1, 1, 0)
    }

    pub(crate) fn load(
        weights: &Weights,
        input: usize,
        output: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        Ok(Conv2d {
            weight: weights.get_weight("weight", (output, input, kernel, kernel))?,
            bias: weights.get("bias", output)?,
            stride,
            padding,
            low_rank: weights.low_rank("weight"),
        })
    }

    /// The number type of the activations of a network that begins with this layer: f32 on the CPU,
    /// whose kernels compute in nothing else, and the weights' own on a GPU. Sums are f32 on both.
    pub(crate) fn activations(&self) -> DType {
        #[cfg(test)]
        if half_precision::is_asked_for() {
            return self.weight.dtype();
        }
        if self.weight.device().is_cpu() { DType::F32 } else { self.weight.dtype() }
    }

    /// [B, input, H, W] → [B, output, H', W'].
    pub(crate) fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let y = kernels::conv2d(
            x,
            &self.weight.tensor()?,
            Some(&self.bias),
            self.stride,
            self.padding,
        )?;
        match &self.low_rank {
            None => Ok(y),
            Some(low_rank) => kernels::add(&y, &low_rank.conv2d(x, self.stride, self.padding)?),
        }
    }

    /// [`Self::forward`], and `added` [B, output], each number to all values of its channel.
    pub(crate) fn forward_and_add(&self, x: &Tensor, added: &Tensor) -> CandleResult<Tensor> {
        if self.low_rank.is_some() {
            return kernels::add_to_channels(&self.forward(x)?, added);
        }
        kernels::conv2d_add_to_channels(
            x,
            &self.weight.tensor()?,
            Some(&self.bias),
            added,
            self.stride,
            self.padding,
        )
    }

    /// [B, input, H, W] → [B, output, 2 H, 2 W], of `x` made twice as large, nearest pixels; the layer is a 3 × 3 that keeps the size.
    pub(crate) fn forward_doubled(&self, x: &Tensor) -> CandleResult<Tensor> {
        if self.low_rank.is_none() && (self.stride, self.padding) == (1, 1) {
            return kernels::conv2d_of_doubled(x, &self.weight.tensor()?, Some(&self.bias));
        }
        let (_, _, height, width) = x.dims4()?;
        self.forward(&kernels::upsample_nearest2d(x, 2 * height, 2 * width)?)
    }
}

/// Group normalisation of [B, C, ...].
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn load(
        weights: &Weights,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Result<Self> {
        Ok(GroupNorm {
            weight: weights.get("weight", channels)?,
            bias: weights.get("bias", channels)?,
            groups,
            eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        kernels::group_norm(x, &self.weight, &self.bias, self.groups, self.eps)
    }

    /// SiLU of the normalised.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> CandleResult<Tensor> {
        kernels::group_norm_silu(x, &self.weight, &self.bias, self.groups, self.eps)
    }
}

/// What all ResNet blocks of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetConfig {
    /// Groups of every GroupNorm.
    pub(crate) groups: usize,
    /// ε of every GroupNorm: 1e-5 in the U-Net, 1e-6 in the VAE.
    pub(crate) eps: f64,
    /// Width of the time embedding; 0 without one (the VAE).
    pub(crate) time_embedding: usize,
}

/// x + conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(silu(temb))))), the x through a 1 × 1
/// convolution where the channels change.
pub(crate) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock2D {
    pub(crate) fn load(
        weights: &Weights,
        input: usize,
        output: usize,
        config: ResnetConfig,
    ) -> Result<Self> {
        let ResnetConfig { groups, eps, time_embedding } = config;
        let time_emb_proj = match time_embedding {
            0 => None,
            width => Some(Linear::load(&weights.sub("time_emb_proj"), width, output)?),
        };
        let conv_shortcut = if input == output {
            None
        } else {
            Some(Conv2d::load_1x1(&weights.sub("conv_shortcut"), input, output)?)
        };
        Ok(ResnetBlock2D {
            norm1: GroupNorm::load(&weights.sub("norm1"), input, groups, eps)?,
            conv1: Conv2d::load_3x3(&weights.sub("conv1"), input, output)?,
            time_emb_proj,
            norm2: GroupNorm::load(&weights.sub("norm2"), output, groups, eps)?,
            conv2: Conv2d::load_3x3(&weights.sub("conv2"), output, output)?,
            conv_shortcut,
        })
    }

    /// `x` [B, input, H, W], `temb` [B, time_embedding] after its SiLU → [B, output, H, W].
    pub(crate) fn forward(&self, x: &Tensor, temb: Option<&Tensor>) -> CandleResult<Tensor> {
        // What is normalised is let go of as soon as it is convolved: at an autoencoder's end it is a quarter of a gigabyte.
        let h = {
            let h = self.norm1.forward_silu(x)?;
            match (&self.time_emb_proj, temb) {
                (Some(time_emb_proj), Some(temb)) => {
                    self.conv1.forward_and_add(&h, &time_emb_proj.forward(temb)?)?
                }
                _ => self.conv1.forward(&h)?,
            }
        };
        let h = self.conv2.forward(&self.norm2.forward_silu(&h)?)?;
        match &self.conv_shortcut {
            Some(conv_shortcut) => kernels::add(&conv_shortcut.forward(x)?, &h),
            None => kernels::add(x, &h),
        }
    }
}

/// Nearest-neighbour upsampling to a given size, then a 3 × 3 convolution.
pub(crate) struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    pub(crate) fn load(weights: &Weights, channels: usize) -> Result<Self> {
        Ok(Upsample2D { conv: Conv2d::load_3x3(&weights.sub("conv"), channels, channels)? })
    }

    /// [B, C, H, W] → [B, C, height, width].
    pub(crate) fn forward(&self, x: &Tensor, height: usize, width: usize) -> CandleResult<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        match (height, width) == (2 * h, 2 * w) {
            true => self.conv.forward_doubled(x),
            false => self.conv.forward(&kernels::upsample_nearest2d(x, height, width)?),
        }
    }
}

/// Makes the networks of this thread compute on the CPU as they do on a GPU, in the type of their weights, so that a
/// test sees whether types meet that do not go together.
#[cfg(test)]
pub(crate) mod half_precision {
    use std::cell::Cell;

    thread_local!(static ASKED_FOR: Cell<bool> = const { Cell::new(false) });

    pub(crate) fn is_asked_for() -> bool {
        ASKED_FOR.get()
    }

    pub(crate) fn ask_for<T>(run: impl FnOnce() -> T) -> T {
        ASKED_FOR.set(true);
        let result = run();
        ASKED_FOR.set(false);
        result
    }
}
