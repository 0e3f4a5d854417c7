//! Samplers: from noise to a latent, by asking a denoiser at falling noise levels.
//!
//! Each is a plain function of (model, x, noise levels) in the notation of its paper; none knows of
//! guidance, of a U-Net, or of time spent. Two spaces are in use, as in the code people compare with:
//!
//! - **VP** ("variance preserving", the papers' and diffusers'): x = √ᾱ x₀ + √(1-ᾱ) ε, noise levels are
//!   the integer timesteps of training. [`ddim()`], [`pndm()`], [`dpm_solver()`]: what Kosmos-G publishes.
//! - **VE** ("variance exploding", k-diffusion's and ComfyUI's): x = x₀ + σ ε, noise levels are σ from
//!   [`sigmas`]. [`sample`] and [`sample_guided`] know them by ComfyUI's names; [`SAMPLERS`] is the sheet on
//!   which they stand, with how they differ.
//!
//! The values are those of k-diffusion and ComfyUI for the same inputs, unless a sampler says otherwise.
//! A model is a closure, so that every sampler runs on a closed-form denoiser in tests. After each step
//! `observe` is told of it and may end the sampling by an error, which the sampler passes on as it is
//! ([`Error::Caller`]).

mod brownian;
mod cfg_pp;
mod ddim;
mod ddpm;
mod deis;
mod dpm_2;
mod dpm_singlestep;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2s;
mod dpmpp_sde;
mod er_sde;
mod error;
mod euler;
mod gradient_estimation;
pub mod guidance;
mod heun;
mod heunpp2;
mod ipndm;
mod lcm;
mod lms;
mod method;
mod noise;
mod pndm;
pub mod randn;
mod res_multistep;
mod sa_solver;
mod schedule;
mod scheduler_config;
mod seeds;
mod sheet;
pub mod sigmas;
mod steps;
pub mod uni_pc;

use candle_core::Tensor;

pub use brownian::BrownianTree;
pub use cfg_pp::{dpmpp_2m_cfg_pp, dpmpp_2s_ancestral_cfg_pp, euler_ancestral_cfg_pp, euler_pp};
pub use ddim::{ddim, ddim_timesteps};
pub use ddpm::ddpm;
pub use deis::deis;
pub use dpm_2::{dpm_2, dpm_2_ancestral};
pub use dpm_singlestep::{Adaptive, Tolerance, dpm_adaptive, dpm_fast};
pub use dpm_solver::{Ending, dpm_solver, dpm_timesteps, dpm_timesteps_karras};
pub use dpmpp_2m::dpmpp_2m;
pub use dpmpp_2s::dpmpp_2s_ancestral;
pub use dpmpp_sde::{SecondOrder, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde};
pub use er_sde::{NoiseScale, er_sde};
pub use error::{Error, Result};
pub use euler::{euler, euler_ancestral};
pub use gradient_estimation::gradient_estimation;
pub use heun::heun;
pub use heunpp2::heunpp2;
pub use ipndm::{ipndm, ipndm_v};
pub use lcm::lcm;
pub use lms::lms;
pub use method::{Kind, Method, sample_by};
pub use noise::{NoiseSampler, StepNoise, TorchNoise};
pub use pndm::{pndm, repeat_second};
pub use res_multistep::res_multistep;
pub use sa_solver::{Settings, sa_solver};
pub use schedule::{Schedule, Timesteps, zero_terminal_snr};
pub use scheduler_config::{LatentSpace, Prediction, SchedulerConfig};
pub use seeds::{seeds_2, seeds_3};
pub use sheet::{NAMES, SAMPLERS, Sampler, sampler};
pub use uni_pc::{Variant, uni_pc};

use sheet::{Run, Start};
use steps::{SdeStep, ancestral, combine, down_and_up, noised, toward};

/// Runs the VE sampler of that name, with the settings that ComfyUI's KSampler has (η = 1).
///
/// `model(x, σ)` gives x₀ for x [B, C, H, W]. `sigmas` fall; they may start below the schedule's highest
/// and end above 0. Fewer than two leave x as it is; one equal to that before it is no step. `schedule` is
/// the model's; `sa_solver` takes the part of it from there that has noise. `noise` is of the kind that the
/// sheet names ([`Sampler::noise`]).
///
/// # Errors
/// An unknown name or one of CFG++, noise levels that rise or are not numbers, and what `model`, `noise` and
/// `observe` report.
pub fn sample(
    name: &str,
    schedule: &Schedule,
    sigmas: &[f64],
    x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let (sampler, levels) = (sampler(name)?, falling(sigmas)?);
    let start = Start { schedule, sigmas: &levels, x, noise, observe };
    match sampler.run {
        Run::Plain(run) => run(start, model),
        Run::Guided(_) => Err(Error::AsksForBoth(sampler.name)),
    }
}

/// As [`sample`], for every sampler of the sheet: those of CFG++ ask `model` for both halves.
///
/// # Errors
/// As [`sample`].
pub fn sample_guided(
    name: &str,
    schedule: &Schedule,
    sigmas: &[f64],
    x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let (sampler, levels) = (sampler(name)?, falling(sigmas)?);
    let start = Start { schedule, sigmas: &levels, x, noise, observe };
    match sampler.run {
        Run::Plain(run) => run(start, &mut |x, sigma| Ok(model(x, sigma)?.x0)),
        Run::Guided(run) => run(start, model),
    }
}

/// The levels without those that are no step.
fn falling(sigmas: &[f64]) -> Result<Vec<f64>> {
    let mut levels = sigmas.to_vec();
    levels.dedup();
    if !levels.iter().all(|sigma| sigma.is_finite() && *sigma >= 0.0)
        || !levels.is_sorted_by(|a, b| a > b)
    {
        return Err(Error::Levels(sigmas.to_vec()));
    }
    Ok(levels)
}

/// What `observe` is told after a step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Steps done, 1 … `steps`.
    pub done: usize,
    /// How many there are; of `dpm_adaptive`, as it looks now.
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

/// What the model says of x₀ at one place, [B, C, H, W] each.
pub struct Guided {
    /// With guidance.
    pub x0: Tensor,
    /// Without: what the negative conditioning alone gives.
    pub uncond: Tensor,
}

/// x₀ with guidance and without for x [B, C, H, W] at σ, in VE.
pub type GuidedDenoiser<'a> = dyn FnMut(&Tensor, f64) -> Result<Guided> + 'a;
