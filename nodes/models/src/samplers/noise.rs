//! Where the noise of a stochastic sampler's steps comes from.
//!
//! A seed gives the numbers that it gives in ComfyUI on the CPU: [`TorchNoise`] draws the whole batch at
//! once, from a torch generator one seed further on, or from a Brownian tree ([`BrownianTree`]).
//! [`PerItemNoise`] gives every item of a batch the noise that it would have alone, as a list of
//! generators does in diffusers.

use candle_core::{Device, Result, Shape, Tensor};

use super::brownian::BrownianTree;
use crate::samplers::randn::Generator;

/// Noise for the steps of a sampler, of the shape of its x.
pub trait Noise {
    /// Independent values of N(0, 1).
    ///
    /// # Errors
    /// There is no noise left, or no memory for it.
    fn unit(&mut self) -> Result<Tensor>;

    /// The increment of one Brownian motion over the noise levels between `sigma` and `next`, scaled to
    /// variance 1: increments of overlapping intervals are correlated.
    ///
    /// # Errors
    /// As [`Noise::unit`].
    fn between(&mut self, sigma: f64, next: f64) -> Result<Tensor>;
}

/// ComfyUI's noise for the steps of a whole batch.
pub struct TorchNoise {
    shape: Shape,
    device: Device,
    generator: Generator,
    tree: BrownianTree,
}

impl TorchNoise {
    /// For latents like `x` [B, C, H, W], sampled over `sigmas` with the node's `seed`.
    pub fn new(seed: u64, x: &Tensor, sigmas: &[f64]) -> Self {
        TorchNoise {
            shape: x.shape().clone(),
            device: x.device().clone(),
            // k-diffusion's default noise sampler: one seed further on where x is on the CPU.
            generator: Generator::new(seed.wrapping_add(1)),
            tree: BrownianTree::over(sigmas, x.elem_count(), seed),
        }
    }
}

impl Noise for TorchNoise {
    fn unit(&mut self) -> Result<Tensor> {
        let values = self.generator.randn(self.shape.elem_count());
        Tensor::from_vec(values, &self.shape, &self.device)
    }

    fn between(&mut self, sigma: f64, next: f64) -> Result<Tensor> {
        Tensor::from_vec(self.tree.between(sigma, next), &self.shape, &self.device)
    }
}

/// Noise of its own for every item of a batch.
pub struct PerItemNoise {
    items: Vec<TorchNoise>,
}

impl PerItemNoise {
    /// For latents like `x` [B, C, H, W]; item i has what [`TorchNoise`] gives for it alone with the seed
    /// `seed` + i.
    ///
    /// # Errors
    /// x has no first dimension.
    pub fn new(seed: u64, x: &Tensor, sigmas: &[f64]) -> Result<Self> {
        let item = |i: usize| {
            let x = x.narrow(0, i, 1)?;
            Ok(TorchNoise::new(seed.wrapping_add(i as u64), &x, sigmas))
        };
        Ok(PerItemNoise { items: (0..x.dim(0)?).map(item).collect::<Result<_>>()? })
    }
}

impl Noise for PerItemNoise {
    fn unit(&mut self) -> Result<Tensor> {
        let items: Vec<Tensor> = self.items.iter_mut().map(Noise::unit).collect::<Result<_>>()?;
        Tensor::cat(&items, 0)
    }

    fn between(&mut self, sigma: f64, next: f64) -> Result<Tensor> {
        let items = self.items.iter_mut().map(|item| item.between(sigma, next));
        Tensor::cat(&items.collect::<Result<Vec<_>>>()?, 0)
    }
}

/// The noise that sampling starts from: one `torch.randn` over the whole batch, of the shape of `x`.
///
/// # Errors
/// No memory on x's device.
pub fn initial(seed: u64, x: &Tensor) -> Result<Tensor> {
    let values = Generator::new(seed).randn(x.elem_count());
    Tensor::from_vec(values, x.shape(), x.device())
}

/// As [`initial`], each item i drawn for itself with the seed `seed` + i.
///
/// # Errors
/// x has no first dimension, or no memory on its device.
pub fn initial_per_item(seed: u64, x: &Tensor) -> Result<Tensor> {
    let count = x.elem_count() / x.dim(0)?.max(1);
    let item = |i: usize| Generator::new(seed.wrapping_add(i as u64)).randn(count);
    let values: Vec<f32> = (0..x.dim(0)?).flat_map(item).collect();
    Tensor::from_vec(values, x.shape(), x.device())
}
