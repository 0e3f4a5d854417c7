//! Samplers: from noise to a latent, by asking a denoiser at falling noise levels.
//!
//! Each is a plain function of (model, x, noise levels) in the notation of its paper; none knows of
//! guidance, of a U-Net, or of time spent. Two spaces are in use, as in the code people compare with:
//!
//! - **VP** ("variance preserving", the papers' and diffusers'): x = √ᾱ x₀ + √(1-ᾱ) ε, noise levels are
//!   the integer timesteps of training. [`ddim()`], [`pndm()`], [`dpm_solver()`]: what Kosmos-G publishes.
//! - **VE** ("variance exploding", k-diffusion's and ComfyUI's): x = x₀ + σ ε, noise levels are σ from
//!   [`sigmas`]. [`euler()`], [`euler_ancestral()`], [`dpmpp_2m()`].
//!
//! A model is a closure, so that every sampler runs on a closed-form denoiser in tests. After each step
//! `observe` is told of it and may end the sampling by an error, which the sampler passes on.

mod ddim;
pub mod diffusers;
mod dpm_solver;
mod dpmpp_2m;
mod euler;
mod pndm;
mod schedule;
pub mod sigmas;

use candle_core::{Result, Tensor};

pub use ddim::{ddim, ddim_stochastic, ddim_timesteps};
pub use dpm_solver::{Ending, dpm_solver, dpm_timesteps, dpm_timesteps_karras};
pub use dpmpp_2m::dpmpp_2m;
pub use euler::{euler, euler_ancestral};
pub use pndm::{pndm, pndm_timesteps, repeat_second};
pub use schedule::{Prediction, Schedule, SchedulerConfig};

/// What `observe` is told after a step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Steps done, 1 … `steps`.
    pub done: usize,
    pub steps: usize,
    /// The sample after the step, [B, C, H, W], in the sampler's own space.
    pub x: &'a Tensor,
    /// The model's present belief of x₀.
    pub x0: &'a Tensor,
}

/// Told of every step; an error ends the sampling.
pub type Observe<'a> = dyn FnMut(Step<'_>) -> Result<()> + 'a;

/// Σ aᵢ xᵢ over tensors of one shape; at least one.
fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let Some(((a, x), rest)) = terms.split_first() else {
        candle_core::bail!("a sum of no tensors has no shape");
    };
    rest.iter().try_fold((*x * *a)?, |sum, (a, x)| sum + (*x * *a)?)
}
