//! Samplers: from noise to a latent, by asking a denoiser at falling noise levels.
//!
//! Each is a plain function of (model, x, noise levels) in the notation of its paper; none knows of
//! guidance, of a U-Net, or of time spent. Two spaces are in use, as in the code people compare with:
//!
//! - **VP** ("variance preserving", the papers' and diffusers'): x = √ᾱ x₀ + √(1-ᾱ) ε, noise levels are
//!   the integer timesteps of training. [`ddim()`], [`pndm()`], [`dpm_solver()`]: what Kosmos-G publishes.
//! - **VE** ("variance exploding", k-diffusion's and ComfyUI's): x = x₀ + σ ε, noise levels are σ from
//!   [`sigmas`]. [`sample`] knows them by ComfyUI's names, [`NAMES`].
//!
//! The values are those of k-diffusion and ComfyUI for the same inputs, unless a sampler says otherwise.
//! A model is a closure, so that every sampler runs on a closed-form denoiser in tests. After each step
//! `observe` is told of it and may end the sampling by an error, which the sampler passes on.

mod brownian;
mod ddim;
mod ddpm;
mod deis;
pub mod diffusers;
mod dpm_2;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2s;
mod dpmpp_sde;
mod euler;
mod heun;
mod ipndm;
mod lcm;
mod lms;
pub mod noise;
mod pndm;
mod schedule;
pub mod sigmas;
mod uni_pc;

use candle_core::{Result, Tensor};

pub use brownian::BrownianTree;
pub use ddim::{ddim, ddim_stochastic, ddim_timesteps};
pub use ddpm::ddpm;
pub use deis::deis;
pub use dpm_2::{dpm_2, dpm_2_ancestral};
pub use dpm_solver::{Ending, dpm_solver, dpm_solver_sde, dpm_timesteps, dpm_timesteps_karras};
pub use dpmpp_2m::dpmpp_2m;
pub use dpmpp_2s::dpmpp_2s_ancestral;
pub use dpmpp_sde::{dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde};
pub use euler::{euler, euler_ancestral};
pub use heun::heun;
pub use ipndm::ipndm;
pub use lcm::{lcm, lcm_by_timesteps, lcm_timesteps};
pub use lms::lms;
pub use noise::{Noise, PerItemNoise, TorchNoise};
pub use pndm::{pndm, pndm_timesteps, repeat_second};
pub use schedule::{Prediction, Schedule, SchedulerConfig};
pub use uni_pc::{Variant, uni_pc, uni_pc_by_timesteps};

/// The samplers that [`sample`] knows: ComfyUI's `sampler_name`, in its order.
pub const NAMES: &[&str] = &[
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "ddpm",
    "lcm",
    "ipndm",
    "deis",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
];

/// Whether ComfyUI asks the scheduler for one step more for this sampler and leaves the last σ above 0
/// out ([`sigmas::for_sampler`]).
pub fn discards_penultimate_sigma(name: &str) -> bool {
    matches!(name, "dpm_2" | "dpm_2_ancestral" | "uni_pc" | "uni_pc_bh2")
}

/// Runs the VE sampler of that name, with the settings that ComfyUI's KSampler has (η = 1).
///
/// `model(x, σ)` gives x₀ for x [B, C, H, W]. `sigmas` fall; they may start below the schedule's highest
/// and end above 0. Fewer than two leave x as it is; one equal to that before it is no step. The schedule is
/// the model's; these samplers need no more of it than the noise levels.
///
/// # Errors
/// An unknown name, noise levels that rise or are not numbers, and what `model`, `noise` and `observe`
/// report.
pub fn sample(
    name: &str,
    _schedule: &Schedule,
    sigmas: &[f64],
    x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    const ETA: f64 = 1.0;
    let mut levels = sigmas.to_vec();
    levels.dedup();
    if !levels.iter().all(|sigma| sigma.is_finite() && *sigma >= 0.0)
        || !levels.is_sorted_by(|a, b| a > b)
    {
        candle_core::bail!("noise levels must fall and not be negative; these are {sigmas:?}");
    }
    let sigmas = &levels[..];
    match name {
        "euler" | "ddim" => euler(sigmas, x, model, observe),
        "euler_ancestral" => euler_ancestral(sigmas, ETA, x, model, noise, observe),
        "heun" => heun(sigmas, x, model, observe),
        "dpm_2" => dpm_2(sigmas, x, model, observe),
        "dpm_2_ancestral" => dpm_2_ancestral(sigmas, ETA, x, model, noise, observe),
        "lms" => lms(sigmas, x, model, observe),
        "dpmpp_2s_ancestral" => dpmpp_2s_ancestral(sigmas, ETA, x, model, noise, observe),
        "dpmpp_sde" => dpmpp_sde(sigmas, ETA, x, model, noise, observe),
        "dpmpp_2m" => dpmpp_2m(sigmas, x, model, observe),
        "dpmpp_2m_sde" => dpmpp_2m_sde(sigmas, ETA, x, model, noise, observe),
        "dpmpp_3m_sde" => dpmpp_3m_sde(sigmas, ETA, x, model, noise, observe),
        "ddpm" => ddpm(sigmas, x, model, noise, observe),
        "lcm" => lcm(sigmas, x, model, noise, observe),
        "ipndm" => ipndm(sigmas, x, model, observe),
        "deis" => deis(sigmas, x, model, observe),
        "uni_pc" => uni_pc(sigmas, Variant::Bh1, x, model, observe),
        "uni_pc_bh2" => uni_pc(sigmas, Variant::Bh2, x, model, observe),
        other => {
            candle_core::bail!("there is no sampler \"{other}\"; there are {}", NAMES.join(", "))
        }
    }
}

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

/// x₀ for x [B, C, H, W] at σ, in VE.
pub type Denoiser<'a> = dyn FnMut(&Tensor, f64) -> Result<Tensor> + 'a;

/// An ancestral step from σ to `next` goes down to the first value without noise, then up by noise of the
/// second: σ'² = σ_down² + σ_up². `eta` scales the noise.
fn ancestral_step(sigma: f64, next: f64, eta: f64) -> (f64, f64) {
    let share = 1.0 - (next / sigma).powi(2);
    let up = (eta * next * share.max(0.0).sqrt()).min(next);
    ((next * next - up * up).max(0.0).sqrt(), up)
}

/// Σ aᵢ xᵢ over tensors of one shape; at least one.
fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let Some(((a, x), rest)) = terms.split_first() else {
        candle_core::bail!("a sum of no tensors has no shape");
    };
    rest.iter().try_fold((*x * *a)?, |sum, (a, x)| sum + (*x * *a)?)
}
