//! A sampler with settings of its own, where [`sample`](super::sample) has those of ComfyUI's KSampler.

use candle_core::Tensor;

use super::sheet::{Run, Start};
use super::*;

/// How x is integrated.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// As the sheet has it.
    Sheet(&'static Sampler),
    EulerAncestral {
        eta: f64,
    },
    EulerAncestralCfgPp {
        eta: f64,
    },
    /// The other form of Euler's method with CFG++.
    EulerPp,
    Lms {
        order: usize,
    },
    DpmAdaptive(Adaptive),
    Dpmpp2sAncestral {
        eta: f64,
    },
    /// `r` within 0..1.
    DpmppSde {
        eta: f64,
        r: f64,
    },
    Dpmpp2mSde {
        eta: f64,
        form: SecondOrder,
    },
    Dpmpp3mSde {
        eta: f64,
    },
    ErSde {
        noise_scale: NoiseScale,
        stages: usize,
    },
    SaSolver(Settings),
}

/// A sampler and its settings.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    pub kind: Kind,
    /// What the noise of each step is multiplied by; 1 is right where x is Gaussian.
    pub s_noise: f64,
    /// Whether ComfyUI would draw that noise on the GPU.
    pub gpu_noise: bool,
}

impl Method {
    /// The sampler of that name, with KSampler's settings.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        let sampler = sampler(name)?;
        let gpu_noise = sampler.draws_on_gpu().is_some();
        Ok(Self { kind: Kind::Sheet(sampler), s_noise: 1.0, gpu_noise })
    }

    /// One whose noise is drawn on the CPU.
    pub fn new(kind: Kind, s_noise: f64) -> Self {
        Self { kind, s_noise, gpu_noise: false }
    }

    /// The row of the sheet that it is a form of.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sheet(sampler) => sampler.name,
            Kind::EulerAncestral { .. } => "euler_ancestral",
            Kind::EulerAncestralCfgPp { .. } => "euler_ancestral_cfg_pp",
            Kind::EulerPp => "euler_cfg_pp",
            Kind::Lms { .. } => "lms",
            Kind::DpmAdaptive(_) => "dpm_adaptive",
            Kind::Dpmpp2sAncestral { .. } => "dpmpp_2s_ancestral",
            Kind::DpmppSde { .. } => "dpmpp_sde",
            Kind::Dpmpp2mSde { form: SecondOrder::Midpoint, .. } => "dpmpp_2m_sde",
            Kind::Dpmpp2mSde { form: SecondOrder::Heun, .. } => "dpmpp_2m_sde_heun",
            Kind::Dpmpp3mSde { .. } => "dpmpp_3m_sde",
            Kind::ErSde { .. } => "er_sde",
            Kind::SaSolver(Settings { evaluate_again: false, .. }) => "sa_solver",
            Kind::SaSolver(_) => "sa_solver_pece",
        }
    }

    /// What each step adds.
    pub fn noise(&self) -> StepNoise {
        match self.kind {
            Kind::Sheet(sampler) => sampler.noise,
            Kind::EulerPp | Kind::Lms { .. } => StepNoise::Nothing,
            Kind::DpmppSde { .. } | Kind::Dpmpp2mSde { .. } | Kind::Dpmpp3mSde { .. } => {
                StepNoise::Brownian
            }
            _ => StepNoise::Fresh,
        }
    }

    /// Whether it wants to know what the model says without guidance, too.
    pub fn is_cfg_pp(&self) -> bool {
        match self.kind {
            Kind::Sheet(sampler) => sampler.is_cfg_pp(),
            Kind::EulerAncestralCfgPp { .. } | Kind::EulerPp => true,
            _ => false,
        }
    }

    /// Whether it follows an ODE, which can be gone along in either direction, level by level.
    fn goes_back(&self) -> bool {
        self.noise() == StepNoise::Nothing && !matches!(self.name(), "dpm_fast" | "dpm_adaptive")
    }
}

/// As [`sample_guided`], by a sampler with its settings. Where it follows an ODE the levels may rise, too: from a
/// picture back to its noise.
///
/// # Errors
/// As [`sample`].
pub fn sample_by(
    method: &Method,
    schedule: &Schedule,
    sigmas: &[f64],
    x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let levels = match method.goes_back() && rises(sigmas) {
        true => sigmas.to_vec(),
        false => falling(sigmas)?,
    };
    let levels = &levels[..];
    let mut scaled = Scaled { noise, by: method.s_noise };
    let noise = &mut scaled;
    let mut plain = |x: &Tensor, sigma: f64| Ok(model(x, sigma)?.x0);
    match method.kind {
        Kind::Sheet(sampler) => {
            let start = Start { schedule, sigmas: levels, x, noise, observe };
            match sampler.run {
                Run::Plain(run) => run(start, &mut plain),
                Run::Guided(run) => run(start, model),
            }
        }
        Kind::EulerAncestral { eta } => euler_ancestral(levels, eta, x, &mut plain, noise, observe),
        Kind::EulerAncestralCfgPp { eta } => {
            euler_ancestral_cfg_pp(levels, eta, x, model, noise, observe)
        }
        Kind::EulerPp => euler_pp(levels, x, model, observe),
        Kind::Lms { order } => lms(levels, order, x, &mut plain, observe),
        Kind::DpmAdaptive(settings) => {
            dpm_adaptive(levels, &settings, x, &mut plain, noise, observe)
        }
        Kind::Dpmpp2sAncestral { eta } => {
            dpmpp_2s_ancestral(levels, eta, x, &mut plain, noise, observe)
        }
        Kind::DpmppSde { eta, r } => dpmpp_sde(levels, eta, r, x, &mut plain, noise, observe),
        Kind::Dpmpp2mSde { eta, form } => {
            dpmpp_2m_sde(levels, eta, form, x, &mut plain, noise, observe)
        }
        Kind::Dpmpp3mSde { eta } => dpmpp_3m_sde(levels, eta, x, &mut plain, noise, observe),
        Kind::ErSde { noise_scale, stages } => {
            er_sde(levels, noise_scale, stages, x, &mut plain, noise, observe)
        }
        Kind::SaSolver(settings) => sa_solver(levels, &settings, x, &mut plain, noise, observe),
    }
}

/// Whether the levels rise, from above 0.
fn rises(sigmas: &[f64]) -> bool {
    sigmas.len() > 1
        && sigmas.is_sorted_by(|a, b| a < b)
        && sigmas.iter().all(|sigma| sigma.is_finite() && *sigma > 0.0)
}

/// Noise, multiplied.
struct Scaled<'a> {
    noise: &'a mut dyn NoiseSampler,
    by: f64,
}

impl NoiseSampler for Scaled<'_> {
    fn sample(&mut self, sigma: f64, next: f64) -> Result<Tensor> {
        let noise = self.noise.sample(sigma, next)?;
        match self.by == 1.0 {
            true => Ok(noise),
            false => Ok((noise * self.by)?),
        }
    }
}
