//! SAMPLER: the ways from noise to a latent, with their settings.

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::{
    self, Adaptive, Kind, Method, NoiseScale, Schedule, SecondOrder, Settings, Tolerance,
};
use node::interface::{self, GuideCall, SampleCall, marker};
use node::*;
use node_candle::{device, export, import};

use crate::sampling::{
    Described, Draw, Guide, NoiseMask, OverSigmas, Seeded, ask_memory, schedule_of,
};
use crate::sigmas::Sigmas;

/// A sampler over noise levels.
pub struct OverLevels {
    method: Method,
}

impl Export for OverLevels {
    const TYPE: &'static str = "SAMPLER";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![OverLevels: marker::Sampler];
}

impl interface::SampleLatents for OverLevels {
    fn sample(&self, cx: &Context<'_>, call: &SampleCall) -> Result<(Tensor, Tensor)> {
        let device = device(&cx.device())?;
        let described = Described::of(cx, &call.guider, "guider")?;
        let levels = <Sigmas as Socket>::from_value(call.sigmas.clone().into_value());
        let levels = levels.map_err(|error| error.of_input("sigmas"))?;
        let levels: Vec<f64> = levels.0.iter().map(|&level| f64::from(level)).collect();
        let latents = import(&call.latents, &device)?;
        let shape = call.latents.shape();
        if levels.is_empty() {
            return Ok((call.latents.clone(), call.latents.clone()));
        }
        ask_memory(&latents)?;
        let places = call.batch_index.as_deref();
        let (first, seed) = call.noise.make_noise(cx, call.latents.clone(), places)?;
        let noise = Seeded::of_shape(seed, Draw::Batch, &shape, places, &device)?;
        let mask = call.noise_mask.as_ref();
        let mask = mask.map(|mask| NoiseMask::for_shape(mask, &shape, &device)).transpose()?;
        let guide = Given { call, schedule: &described.schedule };
        let shows = described.shows(cx, &device)?;
        let run = OverSigmas {
            guide: &guide,
            method: &self.method,
            latents: &latents,
            first: import(&first, &device)?,
            noise: &noise,
            mask: mask.as_ref(),
            differential: described.differential,
            shows: &shows,
        };
        let sampled = run.run(cx, &levels)?;
        let latents = export(&sampled.latents)?;
        let denoised = match &sampled.x0 {
            Some(x0) => export(x0)?,
            None => latents.clone(),
        };
        Ok((latents, denoised))
    }
}

/// The GUIDER of a call.
struct Given<'a> {
    call: &'a SampleCall,
    schedule: &'a Schedule,
}

impl Guide for Given<'_> {
    fn schedule(&self) -> &Schedule {
        self.schedule
    }

    fn x0(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        sigma: f64,
        both: bool,
    ) -> Result<(Candle, Option<Candle>)> {
        let call = GuideCall {
            x: export(x)?,
            sigma,
            latents: Some(self.call.latents.clone()),
            noise_mask: self.call.noise_mask.clone(),
            wants_unconditional: both,
        };
        let (x0, uncond) = self.call.guider.guide(cx, call)?;
        let uncond = uncond.map(|uncond| import(&uncond, x.device())).transpose()?;
        Ok((import(&x0, x.device())?, uncond))
    }
}

fn sampler(method: Method) -> Result<Sampler> {
    Ok(Sampler(Object::new(OverLevels { method })))
}

/// A method whose noise ComfyUI draws where `noise_device` says.
fn drawn(kind: Kind, s_noise: f64, noise_device: &str) -> Method {
    Method { gpu_noise: noise_device == "gpu", ..Method::new(kind, s_noise) }
}

/// A sampler by the name that KSampler has for it.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct KSamplerSelect {
    /// How each step is taken.
    #[widget(choices = samplers::NAMES, default = "euler")]
    sampler_name: String,
}

impl Node for KSamplerSelect {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        sampler(Method::named(&self.sampler_name)?)
    }
}

/// euler_ancestral with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerEulerAncestral {
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
}

impl Node for SamplerEulerAncestral {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        sampler(Method::new(Kind::EulerAncestral { eta: self.eta }, self.s_noise))
    }
}

/// euler_ancestral_cfg_pp with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerEulerAncestralCFGPP {
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    s_noise: f64,
}

impl Node for SamplerEulerAncestralCFGPP {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        sampler(Method::new(Kind::EulerAncestralCfgPp { eta: self.eta }, self.s_noise))
    }
}

/// euler_cfg_pp, or another form of Euler's method with CFG++.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerEulerCFGpp {
    /// alternative goes along the slope from twice x₀ with guidance less x₀ without.
    #[widget(choices = ["regular", "alternative"], default = "regular")]
    version: String,
}

impl Node for SamplerEulerCFGpp {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        match self.version.as_str() {
            "alternative" => sampler(Method::new(Kind::EulerPp, 1.0)),
            _ => sampler(Method::named("euler_cfg_pp")?),
        }
    }
}

/// lms with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerLMS {
    /// The slopes at how many levels make a step.
    #[widget(default = 4, min = 1, max = 100)]
    order: i64,
}

impl Node for SamplerLMS {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        sampler(Method::new(Kind::Lms { order: self.order as usize }, 1.0))
    }
}

/// dpmpp_2s_ancestral with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
#[allow(non_camel_case_types, reason = "ComfyUI's name")]
pub struct SamplerDPMPP_2S_Ancestral {
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
}

impl Node for SamplerDPMPP_2S_Ancestral {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        sampler(Method::new(Kind::Dpmpp2sAncestral { eta: self.eta }, self.s_noise))
    }
}

/// dpmpp_sde with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
#[allow(non_camel_case_types, reason = "ComfyUI's name")]
pub struct SamplerDPMPP_SDE {
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
    /// Where in a step, as a share of it in log σ, the model is asked a second time; above 0 and at most 1.
    #[widget(default = 0.5, min = 0.0, max = 100.0, step = 0.01)]
    r: f64,
    /// Where ComfyUI would draw the noise; here it is drawn on the CPU.
    #[widget(choices = ["gpu", "cpu"], default = "gpu")]
    noise_device: String,
}

impl Node for SamplerDPMPP_SDE {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        if self.r <= 0.0 || self.r > 1.0 {
            return Err(Error::at(
                "r",
                format!(
                    "{} is no place within a step; more than 0 and at most 1 would be right",
                    self.r
                ),
            ));
        }
        let kind = Kind::DpmppSde { eta: self.eta, r: self.r };
        sampler(drawn(kind, self.s_noise, &self.noise_device))
    }
}

/// dpmpp_2m_sde or dpmpp_2m_sde_heun with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
#[allow(non_camel_case_types, reason = "ComfyUI's name")]
pub struct SamplerDPMPP_2M_SDE {
    /// The form of second order.
    #[widget(choices = ["midpoint", "heun"], default = "midpoint")]
    solver_type: String,
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
    /// Where ComfyUI would draw the noise; here it is drawn on the CPU.
    #[widget(choices = ["gpu", "cpu"], default = "gpu")]
    noise_device: String,
}

impl Node for SamplerDPMPP_2M_SDE {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        let form = match self.solver_type.as_str() {
            "heun" => SecondOrder::Heun,
            _ => SecondOrder::Midpoint,
        };
        let kind = Kind::Dpmpp2mSde { eta: self.eta, form };
        sampler(drawn(kind, self.s_noise, &self.noise_device))
    }
}

/// dpmpp_3m_sde with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
#[allow(non_camel_case_types, reason = "ComfyUI's name")]
pub struct SamplerDPMPP_3M_SDE {
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
    /// Where ComfyUI would draw the noise; here it is drawn on the CPU.
    #[widget(choices = ["gpu", "cpu"], default = "gpu")]
    noise_device: String,
}

impl Node for SamplerDPMPP_3M_SDE {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        let kind = Kind::Dpmpp3mSde { eta: self.eta };
        sampler(drawn(kind, self.s_noise, &self.noise_device))
    }
}

/// dpm_adaptive with its settings: the steps are as long as their errors let them be.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerDPMAdaptative {
    /// Of the steps; their error is told by those of one order less.
    #[widget(default = 3, min = 2, max = 3)]
    order: i64,
    /// The error of a step, as a share of what it is the error of.
    #[widget(default = 0.05, min = 0.0, max = 100.0, step = 0.01)]
    rtol: f64,
    /// The error of a step of what is small.
    #[widget(default = 0.0078, min = 0.0, max = 100.0, step = 0.01)]
    atol: f64,
    /// The first step, in log σ.
    #[widget(default = 0.05, min = 0.0, max = 100.0, step = 0.01)]
    h_init: f64,
    /// How much the error itself counts for the next step's length.
    #[widget(default = 0.0, min = 0.0, max = 100.0, step = 0.01)]
    pcoeff: f64,
    /// How much the sum of errors counts.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    icoeff: f64,
    /// How much their change counts.
    #[widget(default = 0.0, min = 0.0, max = 100.0, step = 0.01)]
    dcoeff: f64,
    /// A step after which the next would have to be shorter than by this factor is taken back.
    #[widget(default = 0.81, min = 0.0, max = 100.0, step = 0.01)]
    accept_safety: f64,
    /// How strong the noise of each step is; 0 is none.
    #[widget(default = 0.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
}

impl Node for SamplerDPMAdaptative {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        if self.h_init <= 0.0 {
            return Err(Error::at("h_init", "a first step of 0 comes nowhere; 0.05 is usual"));
        }
        if self.accept_safety >= Adaptive::MOST_GROWTH {
            return Err(Error::at(
                "accept_safety",
                format!(
                    "no step grows by {}, so that none would be taken; less than {:.2} would be right",
                    self.accept_safety,
                    Adaptive::MOST_GROWTH
                ),
            ));
        }
        let settings = Adaptive {
            tolerance: Tolerance { relative: self.rtol, absolute: self.atol },
            third_order: self.order == 3,
            first: self.h_init,
            proportional: self.pcoeff,
            integral: self.icoeff,
            derivative: self.dcoeff,
            accepted: self.accept_safety,
            eta: self.eta,
        };
        sampler(Method::new(Kind::DpmAdaptive(settings), self.s_noise))
    }
}

/// er_sde with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
#[allow(non_camel_case_types, reason = "ComfyUI's name")]
pub struct SamplerER_SDE {
    /// How the noise falls.
    #[widget(choices = ["ER-SDE", "Reverse-time SDE", "ODE"], default = "ER-SDE")]
    solver_type: String,
    /// From how many levels x₀ is taken.
    #[widget(default = 3, min = 1, max = 3)]
    max_stage: i64,
    /// How strong the noise of the reverse-time SDE is; 0 is the ODE.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    eta: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
}

impl Node for SamplerER_SDE {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        let (eta, stages) = (self.eta, self.max_stage as usize);
        let (noise_scale, s_noise) = match self.solver_type.as_str() {
            "ER-SDE" => (NoiseScale::Fast, self.s_noise),
            "Reverse-time SDE" if eta > 0.0 => (NoiseScale::Power { eta }, self.s_noise),
            _ => (NoiseScale::Power { eta: 0.0 }, 0.0),
        };
        sampler(Method::new(Kind::ErSde { noise_scale, stages }, s_noise))
    }
}

/// sa_solver with its settings.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerSASolver {
    /// Whose schedule says where there is noise.
    model: Model,
    /// How strong the noise is; 0 is none.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    eta: f64,
    /// From which share of the schedule on there is noise.
    #[widget(default = 0.2, min = 0.0, max = 1.0, step = 0.001)]
    sde_start_percent: f64,
    /// Up to which.
    #[widget(default = 0.8, min = 0.0, max = 1.0, step = 0.001)]
    sde_end_percent: f64,
    /// What that noise is multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    s_noise: f64,
    /// Earlier levels that a step is predicted from.
    #[widget(default = 3, min = 1, max = 6)]
    predictor_order: i64,
    /// Levels that it is corrected by; 0 corrects nothing.
    #[widget(default = 4, min = 0, max = 6)]
    corrector_order: i64,
    /// Whether the model is asked again at the corrected place.
    #[widget(default = false)]
    use_pece: bool,
    /// Whether steps of second order have the paper's simpler coefficients.
    #[widget(default = false)]
    simple_order_2: bool,
}

impl Node for SamplerSASolver {
    outputs![SAMPLER: Sampler];

    fn run(self, cx: &Context) -> Result<Sampler> {
        let schedule = schedule_of(cx, &self.model)?;
        let level = |percent| schedule.sigma_of_percent(percent);
        let settings = Settings {
            eta: self.eta,
            noisy: (level(self.sde_start_percent), level(self.sde_end_percent)),
            predictor: self.predictor_order as usize,
            corrector: self.corrector_order as usize,
            evaluate_again: self.use_pece,
            simple_second: self.simple_order_2,
        };
        sampler(Method::new(Kind::SaSolver(settings), self.s_noise))
    }
}
