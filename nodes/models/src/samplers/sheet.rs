//! The sheet of samplers: ComfyUI's names, how they differ, and the function that each is.
//!
//! To σ = 0 all go by taking x₀, but for `dpm_fast` and `dpm_adaptive`, which stay at the last level above.

use candle_core::Tensor;

use super::StepNoise::{Brownian, Fresh, Nothing};
use super::*;

/// One row of the sheet.
pub struct Sampler {
    /// ComfyUI's `sampler_name`.
    pub name: &'static str,
    /// How often a step asks the model.
    pub asks: &'static str,
    /// The power of the step's length with which the error at the end falls, on the ODE, as
    /// `tests/samplers.rs` measures it; empty where there is no ODE that it follows.
    pub order: &'static str,
    /// What each step adds.
    pub noise: StepNoise,
    pub how: &'static str,
    pub(super) run: Run,
}

impl Sampler {
    /// Whether the sampler wants to know what the model says without guidance, too (CFG++, arXiv
    /// 2406.08070): [`sample`] does not run these, [`sample_guided`] does.
    pub fn is_cfg_pp(&self) -> bool {
        matches!(self.run, Run::Guided(_))
    }

    /// The sampler whose noise ComfyUI draws on the GPU for this one, and on the CPU here: the same method
    /// with other noise of the same seed.
    pub fn draws_on_gpu(&self) -> Option<&'static str> {
        self.name.strip_suffix("_gpu")
    }

    /// Whether ComfyUI asks the scheduler for one step more and leaves the last σ above 0 out
    /// ([`sigmas::for_sampler`]).
    pub fn discards_penultimate_sigma(&self) -> bool {
        matches!(self.name, "dpm_2" | "dpm_2_ancestral" | "uni_pc" | "uni_pc_bh2")
    }
}

/// The sampler of that name.
///
/// # Errors
/// There is none.
pub fn sampler(name: &str) -> Result<&'static Sampler> {
    let found = SAMPLERS.iter().find(|sampler| sampler.name == name);
    found.ok_or_else(|| Error::Unknown(name.to_owned()))
}

/// Where a sampler starts, and whom it tells.
pub(super) struct Start<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) sigmas: &'a [f64],
    pub(super) x: Tensor,
    pub(super) noise: &'a mut dyn NoiseSampler,
    pub(super) observe: &'a mut Observe<'a>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a sampler asks the model for.
pub(super) enum Run {
    /// x₀ alone.
    Plain(fn(Start<'_>, &mut Denoiser<'_>) -> Result<Tensor>),
    /// x₀ with guidance and without.
    Guided(fn(Start<'_>, &mut GuidedDenoiser<'_>) -> Result<Tensor>),
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

/// The names of [`SAMPLERS`]: ComfyUI's `sampler_name`, in its order.
pub const NAMES: &[&str] = &{
    let mut names = [""; SAMPLERS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = SAMPLERS[i].name;
        i += 1;
    }
    names
};

/// How strong the noise of a stochastic sampler is: ComfyUI's KSampler always has 1.
const ETA: f64 = 1.0;

/// Rows as `kind name, asks, order, noise, how, function of where it starts and of the model;`.
macro_rules! sheet {
    ($($kind:ident $name:literal, $asks:literal, $order:literal, $noise:ident, $how:literal, $run:expr;)*) => {
        &[$(Sampler {
            name: $name,
            asks: $asks,
            order: $order,
            noise: $noise,
            how: $how,
            run: Run::$kind($run),
        }),*]
    };
}

/// All of them, in ComfyUI's order.
#[rustfmt::skip] // a row is a line or two
pub const SAMPLERS: &[Sampler] = sheet![
    Plain "euler", "1", "1", Nothing, "the slope here for the whole step",
        |s, model| euler(s.sigmas, s.x, model, s.observe);
    Guided "euler_cfg_pp", "1", "1", Nothing, "euler, guidance for x₀ alone, the way from the model unguided",
        |s, model| euler_ancestral_cfg_pp(s.sigmas, 0.0, s.x, model, s.noise, s.observe);
    Plain "euler_ancestral", "1", "1", Fresh, "euler further down, then up by noise",
        |s, model| euler_ancestral(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Guided "euler_ancestral_cfg_pp", "1", "1", Fresh, "euler_ancestral, guidance for x₀ alone",
        |s, model| euler_ancestral_cfg_pp(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "heun", "2", "2", Nothing, "the mean of the slopes at both ends",
        |s, model| heun(s.sigmas, s.x, model, s.observe);
    Plain "heunpp2", "3", "1", Nothing, "slopes at three levels, weighted by σ",
        |s, model| heunpp2(s.sigmas, s.x, model, s.observe);
    Plain "dpm_2", "2", "2", Nothing, "the slope in the middle of log σ",
        |s, model| dpm_2(s.sigmas, s.x, model, s.observe);
    Plain "dpm_2_ancestral", "2", "2", Fresh, "dpm_2 further down, then up by noise",
        |s, model| dpm_2_ancestral(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "lms", "1", "4", Nothing, "Adams-Bashforth in σ, for uneven steps",
        |s, model| lms(s.sigmas, 4, s.x, model, s.observe);
    Plain "dpm_fast", "3, less at the end", "2 or 3, the last step decides", Nothing, "exponential in log σ; ends above 0",
        |s, model| dpm_fast(s.sigmas, s.x, model, s.observe);
    Plain "dpm_adaptive", "3 a try", "chooses its steps", Nothing, "as dpm_fast; the levels' ends alone count",
        |s, model| dpm_adaptive(s.sigmas, &Adaptive::default(), s.x, model, s.noise, s.observe);
    Plain "dpmpp_2s_ancestral", "2", "2", Fresh, "exponential in log σ, the middle asked too; then up by noise",
        |s, model| dpmpp_2s_ancestral(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Guided "dpmpp_2s_ancestral_cfg_pp", "2", "2", Fresh, "dpmpp_2s_ancestral, guidance for x₀ alone",
        |s, model| dpmpp_2s_ancestral_cfg_pp(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "dpmpp_sde", "2", "2", Brownian, "the diffusion SDE, the middle asked too",
        |s, model| dpmpp_sde(s.sigmas, ETA, 0.5, s.x, model, s.noise, s.observe);
    Plain "dpmpp_sde_gpu", "2", "2", Brownian, "dpmpp_sde",
        |s, model| dpmpp_sde(s.sigmas, ETA, 0.5, s.x, model, s.noise, s.observe);
    Plain "dpmpp_2m", "1", "2", Nothing, "exponential in log σ, x₀ from the last two",
        |s, model| dpmpp_2m(s.sigmas, s.x, model, s.observe);
    Guided "dpmpp_2m_cfg_pp", "1", "2", Nothing, "dpmpp_2m, guidance for x₀ alone",
        |s, model| dpmpp_2m_cfg_pp(s.sigmas, s.x, model, s.observe);
    Plain "dpmpp_2m_sde", "1", "2", Brownian, "the SDE, x₀ from the last two",
        |s, model| dpmpp_2m_sde(s.sigmas, ETA, SecondOrder::Midpoint, s.x, model, s.noise, s.observe);
    Plain "dpmpp_2m_sde_gpu", "1", "2", Brownian, "dpmpp_2m_sde",
        |s, model| dpmpp_2m_sde(s.sigmas, ETA, SecondOrder::Midpoint, s.x, model, s.noise, s.observe);
    Plain "dpmpp_2m_sde_heun", "1", "2", Brownian, "dpmpp_2m_sde, the second order after Heun",
        |s, model| dpmpp_2m_sde(s.sigmas, ETA, SecondOrder::Heun, s.x, model, s.noise, s.observe);
    Plain "dpmpp_2m_sde_heun_gpu", "1", "2", Brownian, "dpmpp_2m_sde_heun",
        |s, model| dpmpp_2m_sde(s.sigmas, ETA, SecondOrder::Heun, s.x, model, s.noise, s.observe);
    Plain "dpmpp_3m_sde", "1", "2", Brownian, "the SDE, x₀ from the last three",
        |s, model| dpmpp_3m_sde(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "dpmpp_3m_sde_gpu", "1", "2", Brownian, "dpmpp_3m_sde",
        |s, model| dpmpp_3m_sde(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "ddpm", "1", "", Fresh, "the training's own steps",
        |s, model| ddpm(s.sigmas, s.x, model, s.noise, s.observe);
    Plain "lcm", "1", "", Fresh, "x₀ and fresh noise",
        |s, model| lcm(s.sigmas, s.x, model, s.noise, s.observe);
    Plain "ipndm", "1", "4 on even steps", Nothing, "Adams-Bashforth for even steps",
        |s, model| ipndm(s.sigmas, s.x, model, s.observe);
    Plain "ipndm_v", "1", "2 to 3", Nothing, "nearly Adams-Bashforth for uneven steps",
        |s, model| ipndm_v(s.sigmas, s.x, model, s.observe);
    Plain "deis", "1", "3", Nothing, "exponential Adams-Bashforth in VP's time",
        |s, model| deis(s.sigmas, s.x, model, s.observe);
    Plain "res_multistep", "1", "2", Nothing, "as dpmpp_2m, other coefficients of the same order",
        |s, model| res_multistep(s.sigmas, 0.0, s.x, &mut unguided(model), s.noise, s.observe);
    Guided "res_multistep_cfg_pp", "1", "2", Nothing, "res_multistep, guidance for x₀ alone",
        |s, model| res_multistep(s.sigmas, 0.0, s.x, model, s.noise, s.observe);
    Plain "res_multistep_ancestral", "1", "2", Fresh, "res_multistep further down, then up by noise",
        |s, model| res_multistep(s.sigmas, ETA, s.x, &mut unguided(model), s.noise, s.observe);
    Guided "res_multistep_ancestral_cfg_pp", "1", "2", Fresh, "res_multistep_ancestral, guidance for x₀ alone",
        |s, model| res_multistep(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "gradient_estimation", "1", "1", Nothing, "euler, the change of the slope once more",
        |s, model| gradient_estimation(s.sigmas, s.x, &mut unguided(model), s.observe);
    Guided "gradient_estimation_cfg_pp", "1", "1", Nothing, "gradient_estimation, guidance for x₀ alone",
        |s, model| gradient_estimation(s.sigmas, s.x, model, s.observe);
    Plain "er_sde", "1", "", Fresh, "an SDE with a noise scale of its own, x₀ from the last three",
        |s, model| er_sde(s.sigmas, NoiseScale::Fast, 3, s.x, model, s.noise, s.observe);
    Plain "seeds_2", "2", "2", Fresh, "the SDE, a place between asked; noise for each place",
        |s, model| seeds_2(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "seeds_3", "3", "3", Fresh, "the SDE, two places between asked; noise for each place",
        |s, model| seeds_3(s.sigmas, ETA, s.x, model, s.noise, s.observe);
    Plain "sa_solver", "1", "4", Fresh, "Adams predictor and corrector; noise between 20 % and 80 % of the schedule",
        |s, model| sa_solver(s.sigmas, &Settings::of_schedule(s.schedule, false), s.x, model, s.noise, s.observe);
    Plain "sa_solver_pece", "2", "4", Fresh, "sa_solver, the corrected place asked again",
        |s, model| sa_solver(s.sigmas, &Settings::of_schedule(s.schedule, true), s.x, model, s.noise, s.observe);
    Plain "ddim", "1", "1", Nothing, "euler, as ComfyUI has it",
        |s, model| euler(s.sigmas, s.x, model, s.observe);
    Plain "uni_pc", "1", "2, the last step decides", Nothing, "exponential predictor and corrector, B(h) = h",
        |s, model| uni_pc(s.sigmas, Variant::Bh1, s.x, model, s.observe);
    Plain "uni_pc_bh2", "1", "2, the last step decides", Nothing, "uni_pc, B(h) = e^h - 1",
        |s, model| uni_pc(s.sigmas, Variant::Bh2, s.x, model, s.observe);
];
