//! Where the noise of a stochastic sampler's steps comes from.
//!
//! A seed gives the numbers that it gives in ComfyUI on the CPU: [`TorchNoise`] draws the whole batch at
//! once, from a torch generator one seed further on, or from a Brownian tree ([`BrownianTree`]).

use candle_core::{Device, Shape, Tensor};

use super::Result;
use super::brownian::BrownianTree;
use super::randn::Generator;

/// k-diffusion's `noise_sampler`: noise for the steps of a sampler, of the shape of its x.
pub trait NoiseSampler {
    /// Noise of variance 1 for the step from `sigma` to `next`.
    ///
    /// # Errors
    /// There is no noise left, or no memory for it.
    fn sample(&mut self, sigma: f64, next: f64) -> Result<Tensor>;
}

/// What a sampler's steps add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepNoise {
    /// Nothing: the sampler follows the ODE.
    Nothing,
    /// Independent values, whichever levels they are asked for.
    Fresh,
    /// Increments of one Brownian motion over the noise levels, scaled to variance 1: those of overlapping
    /// intervals are correlated.
    Brownian,
}

/// ComfyUI's noise for the steps of a whole batch.
pub struct TorchNoise {
    shape: Shape,
    device: Device,
    source: Source,
}

enum Source {
    Fresh(Box<Generator>),
    Brownian(BrownianTree),
}

impl TorchNoise {
    /// For latents like `x` [B, C, H, W], sampled over `sigmas` with the node's `seed`.
    pub fn new(noise: StepNoise, seed: u64, x: &Tensor, sigmas: &[f64]) -> Self {
        let source = match noise {
            StepNoise::Brownian => {
                Source::Brownian(BrownianTree::over(sigmas, x.elem_count(), seed))
            }
            // k-diffusion's default noise sampler: one seed further on where x is on the CPU.
            _ => Source::Fresh(Box::new(Generator::new(seed.wrapping_add(1)))),
        };
        TorchNoise { shape: x.shape().clone(), device: x.device().clone(), source }
    }
}

impl NoiseSampler for TorchNoise {
    fn sample(&mut self, sigma: f64, next: f64) -> Result<Tensor> {
        let values = match &mut self.source {
            Source::Fresh(generator) => generator.randn(self.shape.elem_count()),
            Source::Brownian(tree) => tree.between(sigma, next),
        };
        Ok(Tensor::from_vec(values, &self.shape, &self.device)?)
    }
}
