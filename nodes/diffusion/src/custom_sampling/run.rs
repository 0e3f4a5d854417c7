//! The nodes that sample by parts.

use node::interface::SampleCall;
use node::*;

use super::guiders::ModelGuider;
use super::noises::SeedNoise;
use crate::sampling::{Described, Rule};
use crate::sigmas::Sigmas;

/// The LATENT of a sampling and that of its last x₀.
fn sample(
    cx: &Context<'_>,
    guider: Object,
    noise: Object,
    sampler: &Sampler,
    sigmas: Sigmas,
    latent: &Latent,
) -> Result<(Latent, Latent)> {
    let described = Described::of(cx, &guider, "guider")?;
    let device = node_candle::device(&cx.device())?;
    let latent = latent.at_scale(described.scaling_factor);
    let latent = latent.map_err(|error| error.of_input("latent_image"))?;
    let latents = node_candle::import(&latent.samples()?, &device)?;
    let latents = described.fit(latents).map_err(|error| error.of_input("latent_image"))?;
    let latents = described.enter(latents).map_err(|error| error.of_input("guider"))?;
    let sigmas = sigmas.into_value().as_tensor();
    let call = SampleCall {
        guider,
        sigmas: sigmas.ok_or_else(|| Error::at("sigmas", "there is no memory for them"))?,
        latents: node_candle::export(&latents)?,
        noise,
        noise_mask: latent.noise_mask()?.map(|mask| mask.0),
        batch_index: latent.batch_index()?,
    };
    let (samples, denoised) = sampler.0.sample(cx, call)?;
    let left = |samples: Tensor| {
        let samples = node_candle::import(&samples, &device)?;
        Ok::<_, Error>(latent.with_samples(node_candle::export(&described.leave(samples)?)?))
    };
    Ok((left(samples)?, left(denoised)?))
}

/// As KSampler, along noise levels and by a sampler that are given.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling")]
pub struct SamplerCustom {
    /// What denoises.
    model: Model,
    /// Whether noise is added first; latents that come with leftover noise need none.
    #[widget(default = true)]
    add_noise: bool,
    /// What the noise is drawn from; the same seed gives the same noise as in ComfyUI on the CPU.
    #[widget(seed, default = 0)]
    noise_seed: u64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// How each step is taken.
    sampler: Sampler,
    /// The noise levels.
    sigmas: Sigmas,
    /// What is denoised: an empty latent, or a picture's.
    latent_image: Latent,
}

impl Node for SamplerCustom {
    outputs![output: Latent, denoised_output: Latent];

    fn run(self, cx: &Context) -> Result<(Latent, Latent)> {
        let sides = vec![("positive", self.positive), ("negative", self.negative)];
        let guider = ModelGuider::new(cx, self.model, sides, Rule::Cfg(self.cfg))?;
        let noise = SeedNoise { seed: self.noise_seed, adds: self.add_noise };
        let (guider, noise) = (Object::new(guider), Object::new(noise));
        sample(cx, guider, noise, &self.sampler, self.sigmas, &self.latent_image)
    }
}

/// Samples by parts that are all given.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling")]
pub struct SamplerCustomAdvanced {
    /// What is added to the latents.
    noise: Noise,
    /// What says where the noise leads.
    guider: Guider,
    /// How each step is taken.
    sampler: Sampler,
    /// The noise levels.
    sigmas: Sigmas,
    /// What is denoised: an empty latent, or a picture's.
    latent_image: Latent,
}

impl Node for SamplerCustomAdvanced {
    outputs![output: Latent, denoised_output: Latent];

    fn run(self, cx: &Context) -> Result<(Latent, Latent)> {
        let (guider, noise) = (self.guider.0, self.noise.0);
        sample(cx, guider, noise, &self.sampler, self.sigmas, &self.latent_image)
    }
}
