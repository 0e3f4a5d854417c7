//! Pictures drawn on the way, by DDIM.

use candle_core::Tensor;
use kosmograph_models::samplers::guidance::guide;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::samplers::{Schedule, ddim, ddim_timesteps};
use kosmograph_models::stable_diffusion::vae::Vae;

use crate::config::SamplesConfig;
use crate::diffusion::random;
use crate::error::Result;
use crate::timesteps;

/// A picture [1, 3, H, W] in −1..1 of `resolution` pixels a side. `predict` is given latents in two rows, of which the first is
/// guided away from, and their timestep.
pub(crate) fn draw(
    (schedule, vae): (&Schedule, &Vae),
    resolution: usize,
    samples: &SamplesConfig,
    predict: &mut dyn FnMut(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let side = resolution / vae.config().factor();
    let steps = samples.steps.min(schedule.train_steps());
    let at = ddim_timesteps(schedule, steps);
    let stride = schedule.train_steps() / steps;
    let mut generator = Generator::new(samples.seed);
    let x = random(&mut generator, &[1, vae.config().latent_channels(), side, side])?;
    let model = &mut |x: &Tensor, t: f64| {
        let both = Tensor::cat(&[x, x], 0)?;
        let found = predict(&both, &timesteps(&[t as usize])?);
        let found = found.map_err(candle_core::Error::wrap)?.detach();
        Ok(guide(&found.narrow(0, 0, 1)?, &found.narrow(0, 1, 1)?, samples.guidance)?)
    };
    let latents = ddim(schedule, &at, stride, x, model, &mut |_| Ok(()))?;
    Ok(vae.decode(&(latents / vae.config().scaling_factor())?)?.detach())
}
