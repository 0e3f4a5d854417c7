//! The sampler nodes.

use kosmograph_models::samplers::{self, sigmas};
use node::*;

use crate::sampling::{Draw, Method, Noise, Published, Sampling, Span, kosmos_samplers};

/// Denoises latents step by step, steered by two conditionings: ComfyUI's sampler.
#[derive(Inputs)]
#[node(category = "sampling")]
pub struct KSampler {
    /// What denoises.
    pub model: Model,
    /// What the noise is drawn from; the same seed gives the same noise as in ComfyUI on the CPU.
    #[widget(seed, default = 0)]
    pub seed: u64,
    /// Steps from noise to picture.
    #[widget(default = 20, min = 1, max = 10000)]
    pub steps: i64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    pub cfg: f64,
    /// How each step is taken.
    #[widget(choices = samplers::NAMES, default = "euler")]
    pub sampler_name: String,
    /// How the noise falls over the steps.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    pub scheduler: String,
    /// What the picture should show.
    pub positive: Conditioning,
    /// What it should not.
    pub negative: Conditioning,
    /// What is denoised: an empty latent, or a picture's.
    pub latent_image: Latent,
    /// How much of the schedule is run: below 1, the picture keeps some of `latent_image`.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    pub denoise: f64,
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
            latent_input: "latent_image",
            noise: Noise { seed: self.seed, draw: Draw::Batch, add: true },
            steps: self.steps as usize,
            cfg: self.cfg,
            method,
            span: Span::Denoise(self.denoise),
            control: None,
        }
        .run(cx)
    }
}

/// As KSampler, over a part of the schedule: a sampling can be left at one step and taken up by another
/// sampler.
#[derive(Inputs)]
#[node(category = "sampling")]
pub struct KSamplerAdvanced {
    /// What denoises.
    model: Model,
    /// Whether noise is added first; latents that come with leftover noise need none.
    #[widget(choices = ["enable", "disable"], default = "enable")]
    add_noise: String,
    /// What the noise is drawn from; the same seed gives the same noise as in ComfyUI on the CPU.
    #[widget(seed, default = 0)]
    noise_seed: u64,
    /// Steps of the whole schedule.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// How each step is taken.
    #[widget(choices = samplers::NAMES, default = "euler")]
    sampler_name: String,
    /// How the noise falls over the steps.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// What is denoised.
    latent_image: Latent,
    /// The first step that is taken.
    #[widget(default = 0, min = 0, max = 10000)]
    start_at_step: i64,
    /// The first step that is not.
    #[widget(default = 10000, min = 0, max = 10000)]
    end_at_step: i64,
    /// Whether the noise that is left at the end stays; disabled, the last step takes all of it away.
    #[widget(choices = ["disable", "enable"], default = "disable")]
    return_with_leftover_noise: String,
}

impl Node for KSamplerAdvanced {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let method = Method::Sigmas { sampler: self.sampler_name, scheduler: self.scheduler };
        let span = Span::Steps {
            start: self.start_at_step as usize,
            end: self.end_at_step as usize,
            leftover_noise: self.return_with_leftover_noise == "enable",
        };
        let add = self.add_noise == "enable";
        Sampling {
            model: self.model,
            positive: self.positive,
            negative: self.negative,
            latent: self.latent_image,
            latent_input: "latent_image",
            noise: Noise { seed: self.noise_seed, draw: Draw::Batch, add },
            steps: self.steps as usize,
            cfg: self.cfg,
            method,
            span,
            control: None,
        }
        .run(cx)
    }
}

/// Denoises latents with a Stable Diffusion U-Net, steered by what Kosmos-G or CLIP made of text and
/// pictures, and by ControlNets.
///
/// Kosmos-G's authors draw four pictures at once in their demo (one with a ControlNet), in 50 steps with
/// guidance 6, and dpms: app.py and controlnet/ in github.com/microsoft/unilm, kosmos-g, as of f058c91; its
/// first version had 20 steps and guidance 7.5. The guidance and the sampler are theirs here. The steps are
/// 20, since each costs seconds on a CPU and dpms gains little by more: set 50 to draw as they do. The
/// pictures are as many as the latent has: one by default, as in ComfyUI, or `batch_size` 4 of EmptyLatentImage.
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
    /// Steps from noise to picture; the authors of Kosmos-G take 50.
    #[widget(default = 20, min = 1, max = 1000)]
    steps: i64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 6.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// How each step is taken. dpms, pndm and ddim are Kosmos-G's own and bring their timesteps: dpms ends
    /// as diffusers 0.21.4 does, dpms_zero as today's.
    #[widget(choices = kosmos_samplers(), default = "dpms")]
    sampler: String,
    /// How the noise falls over the steps. dpms knows normal and karras; pndm and ddim normal alone.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// How much of the schedule is run: below 1, the picture keeps some of `latent`.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
    /// ControlNets that steer too.
    control: Option<Control>,
    /// How the noise of several pictures is drawn: at once for the whole batch, or, per item, for picture i
    /// what the seed + i gives a single one.
    #[widget(choices = Draw::NAMES, default = "batch")]
    noise: String,
}

impl Node for UNetSample {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let method = match (Published::named(&self.sampler), self.scheduler.as_str()) {
            (Some(sampler @ Published::Dpms(_)), "normal" | "karras") => {
                Method::Timesteps { karras: self.scheduler == "karras", sampler }
            }
            (Some(sampler), "normal") => Method::Timesteps { karras: false, sampler },
            (Some(_), scheduler) => {
                return Err(Error::at(
                    "scheduler",
                    format!(
                        "{} brings its own timesteps and does not run on \"{scheduler}\": \
                         \"normal\" would be right, or, for dpms, \"karras\"",
                        self.sampler
                    ),
                ));
            }
            (None, _) => Method::Sigmas { sampler: self.sampler, scheduler: self.scheduler },
        };
        Sampling {
            model: self.model,
            positive: self.positive,
            negative: self.negative,
            latent: self.latent,
            latent_input: "latent",
            noise: Noise { seed: self.seed, draw: Draw::named(&self.noise), add: true },
            steps: self.steps as usize,
            cfg: self.cfg,
            method,
            span: Span::Denoise(self.denoise),
            control: self.control,
        }
        .run(cx)
    }
}
