//! NOISE: what a sampling begins with.

use node::interface::{self, marker};
use node::*;
use node_candle::{device, export, import};

use crate::sampling::{Described, Draw, Seeded};
use crate::sigmas::Sigmas;

/// Noise of a seed: torch's, so that a seed gives the picture that it gives in ComfyUI on the CPU.
pub struct SeedNoise {
    pub seed: u64,
    /// Whether there is any; without, the seed is for the sampler's steps alone.
    pub adds: bool,
}

impl Export for SeedNoise {
    const TYPE: &'static str = "NOISE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![SeedNoise: marker::Noise];
}

impl interface::MakeNoise for SeedNoise {
    fn noise(
        &self,
        cx: &Context<'_>,
        latents: &Tensor,
        batch_index: Option<&[i64]>,
    ) -> Result<Tensor> {
        let (device, shape) = (device(&cx.device())?, latents.shape());
        let seeded = Seeded::of_shape(self.seed, Draw::Batch, &shape, batch_index, &device)?;
        memory::ask("the noise of the latents", &shape, size_of::<f32>())?;
        match self.adds {
            true => export(&seeded.first()?),
            false => {
                let zeros = candle_core::Tensor::zeros(shape, candle_core::DType::F32, &device)?;
                export(&zeros)
            }
        }
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}

/// Noise of a seed.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/noise")]
pub struct RandomNoise {
    /// What the noise is drawn from; the same seed gives the same noise as in ComfyUI on the CPU.
    #[widget(seed, default = 0)]
    noise_seed: u64,
}

impl Node for RandomNoise {
    outputs![NOISE: Noise];

    fn run(self, _cx: &Context) -> Result<Noise> {
        Ok(Noise(Object::new(SeedNoise { seed: self.noise_seed, adds: true })))
    }
}

/// No noise: for latents that come with theirs.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/noise")]
pub struct DisableNoise {}

impl Node for DisableNoise {
    outputs![NOISE: Noise];

    fn run(self, _cx: &Context) -> Result<Noise> {
        Ok(Noise(Object::new(SeedNoise { seed: 0, adds: false })))
    }
}

/// Latents with the noise of a step added: what a sampler takes up there.
#[derive(Inputs)]
#[node(category = "_for_testing/custom_sampling/noise")]
pub struct AddNoise {
    /// Whose latents they are.
    model: Model,
    /// What is added.
    noise: Noise,
    /// As much as lies between the first level and the last; the level, where there is one alone.
    sigmas: Sigmas,
    /// What it is added to.
    latent_image: Latent,
}

impl Node for AddNoise {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let described = Described::of(cx, &self.model.0, "model")?;
        let levels = &self.sigmas.0;
        let scale = match levels[..] {
            [] => return Ok(self.latent_image),
            [level] => level,
            [first, .., last] => (first - last).abs(),
        };
        let latent = self.latent_image.at_scale(described.scaling_factor);
        let latent = latent.map_err(|error| error.of_input("latent_image"))?;
        let samples = latent.samples()?;
        let device = device(&cx.device())?;
        let places = latent.batch_index()?;
        let (noise, _) = self.noise.0.make_noise(cx, samples.clone(), places.as_deref())?;
        let latents = import(&samples, &device)?;
        let noisy = (latents + (import(&noise, &device)? * f64::from(scale))?)?;
        let values: Vec<f32> = noisy.flatten_all()?.to_vec1()?;
        let noisy = match values.iter().all(|value| value.is_finite()) {
            true => noisy,
            false => {
                let finite = |value: f32| if value.is_finite() { value } else { 0.0 };
                let values: Vec<f32> = values.into_iter().map(finite).collect();
                candle_core::Tensor::from_vec(values, noisy.shape(), &device)?
            }
        };
        Ok(latent.with_samples(export(&noisy)?))
    }
}
