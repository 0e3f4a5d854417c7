//! The sampler nodes.

use kosmograph_models::samplers::sigmas;
use node::*;

use crate::sampling::{KOSMOS_SAMPLERS, Method, SAMPLERS, Sampling};

/// Denoises latents step by step, steered by two conditionings: ComfyUI's sampler.
#[derive(Inputs)]
#[node(category = "sampling")]
pub struct KSampler {
    /// What denoises.
    model: Model,
    /// What the noise is drawn from; the same seed gives the same noise as in ComfyUI on the CPU.
    #[widget(seed, default = 0)]
    seed: u64,
    /// Steps from noise to picture.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// How each step is taken.
    #[widget(choices = SAMPLERS, default = "euler")]
    sampler_name: String,
    /// How the noise falls over the steps.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// What is denoised: an empty latent, or a picture's.
    latent_image: Latent,
    /// How much of the schedule is run: below 1, the picture keeps some of `latent_image`.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
}

impl Node for KSampler {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let method = Method::Sigmas { sampler: self.sampler_name, scheduler: self.scheduler };
        Sampling {
            model: self.model,
            positive: self.positive,
            negative: self.negative,
            latent: self.latent_image,
            seed: self.seed,
            steps: self.steps as usize,
            cfg: self.cfg,
            method,
            denoise: self.denoise,
            control: None,
        }
        .run(cx)
    }
}

/// Denoises latents with a Stable Diffusion U-Net, steered by what Kosmos-G or CLIP made of text and
/// pictures, and by ControlNets.
#[derive(Inputs)]
#[node(category = "kosmograph")]
pub struct UNetSample {
    /// What denoises.
    model: Model,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// What is denoised: an empty latent, or a picture's.
    latent: Latent,
    /// What the noise is drawn from; the same seed gives the same noise as in diffusers on the CPU.
    #[widget(seed, default = 0)]
    seed: u64,
    /// Steps from noise to picture.
    #[widget(default = 20, min = 1, max = 1000)]
    steps: i64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 6.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// How each step is taken. dpms, pndm and ddim are Kosmos-G's own and bring their timesteps: dpms ends
    /// as diffusers 0.21.4 does, dpms_zero as today's.
    #[widget(choices = KOSMOS_SAMPLERS, default = "dpms")]
    sampler: String,
    /// How the noise falls over the steps. dpms knows normal and karras; pndm and ddim normal alone.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// How much of the schedule is run: below 1, the picture keeps some of `latent`.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
    /// ControlNets that steer too.
    control: Option<Control>,
}

impl Node for UNetSample {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let method = match (self.sampler.as_str(), self.scheduler.as_str()) {
            ("dpms" | "dpms_zero", "normal" | "karras") => {
                Method::Timesteps { karras: self.scheduler == "karras", sampler: self.sampler }
            }
            ("pndm" | "ddim", "normal") => {
                Method::Timesteps { karras: false, sampler: self.sampler }
            }
            (sampler @ ("dpms" | "dpms_zero" | "pndm" | "ddim"), scheduler) => {
                return Err(Error::at(
                    "scheduler",
                    format!(
                        "{sampler} brings its own timesteps and does not run on \"{scheduler}\": \
                         \"normal\" would be right, or, for dpms, \"karras\""
                    ),
                ));
            }
            _ => Method::Sigmas { sampler: self.sampler, scheduler: self.scheduler },
        };
        Sampling {
            model: self.model,
            positive: self.positive,
            negative: self.negative,
            latent: self.latent,
            seed: self.seed,
            steps: self.steps as usize,
            cfg: self.cfg,
            method,
            denoise: self.denoise,
            control: self.control,
        }
        .run(cx)
    }
}
