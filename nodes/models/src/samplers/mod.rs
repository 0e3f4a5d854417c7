//! Samplers: from noise to a latent, by asking a denoiser at falling noise levels.
//!
//! Each is a plain function of (model, x, noise levels) in the notation of its paper; none knows of
//! guidance, of a U-Net, or of time spent. Two spaces are in use, as in the code people compare with:
//!
//! - **VP** ("variance preserving", the papers' and diffusers'): x = √ᾱ x₀ + √(1-ᾱ) ε, noise levels are
//!   the integer timesteps of training. [`ddim()`], [`pndm()`], [`dpm_solver()`]: what Kosmos-G publishes.
//! - **VE** ("variance exploding", k-diffusion's and ComfyUI's): x = x₀ + σ ε, noise levels are σ from
//!   [`sigmas`]. [`sample`] and [`sample_guided`] know them by ComfyUI's names, [`NAMES`].
//!
//! The values are those of k-diffusion and ComfyUI for the same inputs, unless a sampler says otherwise.
//! A model is a closure, so that every sampler runs on a closed-form denoiser in tests. After each step
//! `observe` is told of it and may end the sampling by an error, which the sampler passes on.
//!
//! # How they differ
//!
//! "Asks" is how often a step asks the model; "order" the power of the step's length with which the error at
//! the end falls, on the ODE, as `tests/samplers.rs` measures it; "noise" what each step adds: none, fresh
//! values (unit), or increments of one Brownian motion over σ (Brownian).
//!
//! | name | asks | order | noise | how |
//! |---|---|---|---|---|
//! | `euler`, `ddim` | 1 | 1 | none | the slope here for the whole step |
//! | `heun` | 2 | 2 | none | the mean of the slopes at both ends |
//! | `heunpp2` | 3 | 1 | none | slopes at three levels, weighted by σ |
//! | `dpm_2` | 2 | 2 | none | the slope in the middle of log σ |
//! | `lms` | 1 | 4 | none | Adams-Bashforth in σ, for uneven steps |
//! | `ipndm` | 1 | 4 on even steps | none | Adams-Bashforth for even steps |
//! | `ipndm_v` | 1 | 2 to 3 | none | nearly Adams-Bashforth for uneven steps |
//! | `deis` | 1 | 3 | none | exponential Adams-Bashforth in VP's time |
//! | `dpmpp_2m` | 1 | 2 | none | exponential in log σ, x₀ from the last two |
//! | `res_multistep` | 1 | 2 | none | as `dpmpp_2m`, other coefficients of the same order |
//! | `gradient_estimation` | 1 | 1 | none | `euler`, the change of the slope once more |
//! | `uni_pc`, `uni_pc_bh2` | 1 | 2, the last step decides | none | exponential predictor and corrector |
//! | `dpm_fast` | 3, less at the end | 2 or 3, the last step decides | none | exponential in log σ; ends above 0 |
//! | `dpm_adaptive` | 3 a try | chooses its steps | none | as `dpm_fast`; the levels' ends alone count |
//! | `euler_ancestral` | 1 | 1 | unit | `euler` further down, then up by noise |
//! | `dpm_2_ancestral`, `dpmpp_2s_ancestral` | 2 | 2 | unit | likewise, of second order |
//! | `res_multistep_ancestral` | 1 | 2 | unit | likewise, from `res_multistep` |
//! | `dpmpp_sde` | 2 | 2 | Brownian | the diffusion SDE, the middle asked too |
//! | `dpmpp_2m_sde`, `dpmpp_2m_sde_heun`, `dpmpp_3m_sde` | 1 | 2 | Brownian | the SDE, x₀ from the last two or three |
//! | `seeds_2`, `seeds_3` | 2, 3 | 2, 3 | unit, for each place | the SDE, places between asked |
//! | `er_sde` | 1 | | unit | an SDE with a noise scale of its own, x₀ from the last three |
//! | `sa_solver`, `sa_solver_pece` | 1, 2 | 4 | unit, between 20 % and 80 % | Adams predictor and corrector |
//! | `ddpm`, `lcm` | 1 | | unit | the training's own steps; x₀ and fresh noise |
//! | `…_cfg_pp` | as without | as without | as without | guidance for x₀ alone, the way from the model unguided |
//! | `…_gpu` | as without | as without | as without | the same here: see [`draws_on_gpu`] |
//!
//! To σ = 0 all go by taking x₀, but for `dpm_fast` and `dpm_adaptive`, which stay at the last level above.

mod brownian;
mod cfg_pp;
mod ddim;
mod ddpm;
mod deis;
pub mod diffusers;
mod dpm_2;
mod dpm_singlestep;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2s;
mod dpmpp_sde;
mod er_sde;
mod euler;
mod gradient_estimation;
pub mod guidance;
mod heun;
mod heunpp2;
mod ipndm;
mod lcm;
mod lms;
pub mod noise;
mod pndm;
pub mod randn;
mod res_multistep;
mod sa_solver;
mod schedule;
mod seeds;
pub mod sigmas;
mod uni_pc;

use candle_core::{Result, Tensor};

pub use brownian::BrownianTree;
pub use cfg_pp::{dpmpp_2m_cfg_pp, dpmpp_2s_ancestral_cfg_pp, euler_ancestral_cfg_pp};
pub use ddim::{ddim, ddim_stochastic, ddim_timesteps};
pub use ddpm::ddpm;
pub use deis::deis;
pub use dpm_2::{dpm_2, dpm_2_ancestral};
pub use dpm_singlestep::{Tolerance, dpm_adaptive, dpm_fast};
pub use dpm_solver::{Ending, dpm_solver, dpm_solver_sde, dpm_timesteps, dpm_timesteps_karras};
pub use dpmpp_2m::dpmpp_2m;
pub use dpmpp_2s::dpmpp_2s_ancestral;
pub use dpmpp_sde::{SecondOrder, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde};
pub use er_sde::er_sde;
pub use euler::{euler, euler_ancestral};
pub use gradient_estimation::gradient_estimation;
pub use heun::heun;
pub use heunpp2::heunpp2;
pub use ipndm::{ipndm, ipndm_v};
pub use lcm::{lcm, lcm_by_timesteps, lcm_timesteps};
pub use lms::lms;
pub use noise::{Noise, PerItemNoise, TorchNoise};
pub use pndm::{pndm, pndm_timesteps, repeat_second};
pub use res_multistep::res_multistep;
pub use sa_solver::{Settings, sa_solver, tau_within};
pub use schedule::{Prediction, Schedule, SchedulerConfig};
pub use seeds::{seeds_2, seeds_3};
pub use uni_pc::{Variant, uni_pc, uni_pc_by_timesteps};

/// The samplers that [`sample_guided`] knows: ComfyUI's `sampler_name`, in its order.
pub const NAMES: &[&str] = &[
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
];

/// The sampler whose noise ComfyUI draws on the GPU for the sampler `name`, and on the CPU here: the same
/// method with other noise of the same seed.
pub fn draws_on_gpu(name: &str) -> Option<&str> {
    name.strip_suffix("_gpu").filter(|_| NAMES.contains(&name))
}

/// Whether the sampler wants to know what the model says without guidance, too (CFG++, arXiv 2406.08070):
/// [`sample`] does not know these, [`sample_guided`] does.
pub fn is_cfg_pp(name: &str) -> bool {
    name.ends_with("_cfg_pp")
}

/// Whether ComfyUI asks the scheduler for one step more for this sampler and leaves the last σ above 0
/// out ([`sigmas::for_sampler`]).
pub fn discards_penultimate_sigma(name: &str) -> bool {
    matches!(name, "dpm_2" | "dpm_2_ancestral" | "uni_pc" | "uni_pc_bh2")
}

/// How strong the noise of a stochastic sampler is: ComfyUI's KSampler always has 1.
const ETA: f64 = 1.0;

/// Runs the VE sampler of that name, with the settings that ComfyUI's KSampler has (η = 1).
///
/// `model(x, σ)` gives x₀ for x [B, C, H, W]. `sigmas` fall; they may start below the schedule's highest
/// and end above 0. Fewer than two leave x as it is; one equal to that before it is no step. `schedule` is
/// the model's; `sa_solver` takes the part of it from there that has noise.
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
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let levels = falling(sigmas)?;
    let sigmas = &levels[..];
    match draws_on_gpu(name).unwrap_or(name) {
        "euler" | "ddim" => euler(sigmas, x, model, observe),
        "euler_ancestral" => euler_ancestral(sigmas, ETA, x, model, noise, observe),
        "heun" => heun(sigmas, x, model, observe),
        "heunpp2" => heunpp2(sigmas, x, model, observe),
        "dpm_2" => dpm_2(sigmas, x, model, observe),
        "dpm_2_ancestral" => dpm_2_ancestral(sigmas, ETA, x, model, noise, observe),
        "lms" => lms(sigmas, x, model, observe),
        "dpm_fast" => dpm_fast(sigmas, x, model, observe),
        "dpm_adaptive" => dpm_adaptive(sigmas, Tolerance::default(), x, model, observe),
        "dpmpp_2s_ancestral" => dpmpp_2s_ancestral(sigmas, ETA, x, model, noise, observe),
        "dpmpp_sde" => dpmpp_sde(sigmas, ETA, x, model, noise, observe),
        "dpmpp_2m" => dpmpp_2m(sigmas, x, model, observe),
        "dpmpp_2m_sde" => {
            dpmpp_2m_sde(sigmas, ETA, SecondOrder::Midpoint, x, model, noise, observe)
        }
        "dpmpp_2m_sde_heun" => {
            dpmpp_2m_sde(sigmas, ETA, SecondOrder::Heun, x, model, noise, observe)
        }
        "dpmpp_3m_sde" => dpmpp_3m_sde(sigmas, ETA, x, model, noise, observe),
        "ddpm" => ddpm(sigmas, x, model, noise, observe),
        "lcm" => lcm(sigmas, x, model, noise, observe),
        "ipndm" => ipndm(sigmas, x, model, observe),
        "ipndm_v" => ipndm_v(sigmas, x, model, observe),
        "deis" => deis(sigmas, x, model, observe),
        "res_multistep" => res_multistep(sigmas, 0.0, x, &mut unguided(model), noise, observe),
        "res_multistep_ancestral" => {
            res_multistep(sigmas, ETA, x, &mut unguided(model), noise, observe)
        }
        "gradient_estimation" => gradient_estimation(sigmas, x, &mut unguided(model), observe),
        "er_sde" => er_sde(sigmas, x, model, noise, observe),
        "seeds_2" => seeds_2(sigmas, ETA, x, model, noise, observe),
        "seeds_3" => seeds_3(sigmas, ETA, x, model, noise, observe),
        "sa_solver" | "sa_solver_pece" => {
            let tau = &tau_within(schedule);
            let settings = Settings { tau, evaluate_again: name == "sa_solver_pece" };
            sa_solver(sigmas, &settings, x, model, noise, observe)
        }
        "uni_pc" => uni_pc(sigmas, Variant::Bh1, x, model, observe),
        "uni_pc_bh2" => uni_pc(sigmas, Variant::Bh2, x, model, observe),
        other if is_cfg_pp(other) && NAMES.contains(&other) => {
            candle_core::bail!("{other} asks for what the model says without guidance, too")
        }
        other => {
            candle_core::bail!("there is no sampler \"{other}\"; there are {}", NAMES.join(", "))
        }
    }
}

/// As [`sample`], for every name of [`NAMES`]: those of CFG++ ask `model` for both halves.
///
/// # Errors
/// As [`sample`].
pub fn sample_guided(
    name: &str,
    schedule: &Schedule,
    sigmas: &[f64],
    x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let levels = falling(sigmas)?;
    let levels = &levels[..];
    match name {
        "euler_cfg_pp" => euler_ancestral_cfg_pp(levels, 0.0, x, model, noise, observe),
        "euler_ancestral_cfg_pp" => euler_ancestral_cfg_pp(levels, ETA, x, model, noise, observe),
        "dpmpp_2s_ancestral_cfg_pp" => {
            dpmpp_2s_ancestral_cfg_pp(levels, ETA, x, model, noise, observe)
        }
        "dpmpp_2m_cfg_pp" => dpmpp_2m_cfg_pp(levels, x, model, observe),
        "res_multistep_cfg_pp" => res_multistep(levels, 0.0, x, model, noise, observe),
        "res_multistep_ancestral_cfg_pp" => res_multistep(levels, ETA, x, model, noise, observe),
        "gradient_estimation_cfg_pp" => gradient_estimation(levels, x, model, observe),
        _ => {
            let mut x0 = |x: &Tensor, sigma: f64| Ok(model(x, sigma)?.x0);
            sample(name, schedule, sigmas, x, &mut x0, noise, observe)
        }
    }
}

/// `model` where guidance makes no difference: the forms of CFG++ are the plain ones then.
fn unguided<'a, 'b>(
    model: &'a mut Denoiser<'b>,
) -> impl FnMut(&Tensor, f64) -> Result<Guided> + use<'a, 'b> {
    |x, sigma| {
        let x0 = model(x, sigma)?;
        Ok(Guided { uncond: x0.clone(), x0 })
    }
}

/// The levels without those that are no step.
fn falling(sigmas: &[f64]) -> Result<Vec<f64>> {
    let mut levels = sigmas.to_vec();
    levels.dedup();
    if !levels.iter().all(|sigma| sigma.is_finite() && *sigma >= 0.0)
        || !levels.is_sorted_by(|a, b| a > b)
    {
        candle_core::bail!("noise levels must fall and not be negative; these are {sigmas:?}");
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
