//! A sampling over noise levels σ, in VE, of whatever guides it.

use std::cell::RefCell;

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::{self, Method, Schedule, Step};
use node::*;

use super::described::Shows;
use super::inpaint::NoiseMask;
use super::noise::Seeded;
use super::through::{into_sampler, out_of_sampler};

/// What says x₀ to a sampler.
pub trait Guide {
    /// The noise schedule that the model was trained on.
    fn schedule(&self) -> &Schedule;

    /// x₀ at x [B, C, H, W], in VE, of the noise level σ; and x₀ without guidance where `both` are asked for.
    ///
    /// # Errors
    /// What the model reports.
    fn x0(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        sigma: f64,
        both: bool,
    ) -> Result<(Candle, Option<Candle>)>;
}

/// What is to be sampled, and how.
pub struct OverSigmas<'a> {
    pub guide: &'a dyn Guide,
    pub method: &'a Method,
    /// [B, C, H, W], as they were given.
    pub latents: &'a Candle,
    /// What is added to them, of unit variance, or zeros.
    pub first: Candle,
    /// What else is drawn.
    pub noise: &'a Seeded,
    pub mask: Option<&'a NoiseMask>,
    /// How much of the mask follows the steps that are left, 0..1.
    pub differential: f64,
    pub shows: &'a Shows,
}

/// What a sampling ends with, [B, C, H, W] each.
pub struct Sampled {
    pub latents: Candle,
    /// The model's last x₀; `None` where it was not asked.
    pub x0: Option<Candle>,
}

impl OverSigmas<'_> {
    /// Samples over `levels`. Of one alone the latents are given its noise; of none they stay what they are.
    ///
    /// # Errors
    /// What the guide and the host say, and levels that the sampler cannot go along.
    pub fn run(&self, cx: &Context<'_>, levels: &[f64]) -> Result<Sampled> {
        let Some(&first) = levels.first() else {
            return Ok(Sampled { latents: self.latents.clone(), x0: None });
        };
        let (schedule, method) = (self.guide.schedule(), self.method);
        cx.progress(0, levels.len() - 1)?;
        let scale = whole_scale(schedule, first);
        let x = (self.latents + (&self.first * scale)?)?;
        // ComfyUI's ddim is euler; what lies outside a mask has noise of its own there.
        let outside = match method.name() {
            "ddim" => self.noise.one_further()?,
            _ => self.first.clone(),
        };
        if method.gpu_noise {
            let name = method.name();
            let on_the_cpu = name.strip_suffix("_gpu").unwrap_or(name);
            cx.info(format!(
                "{on_the_cpu}_gpu is {on_the_cpu} here: its noise is drawn on the CPU, where ComfyUI draws other \
                 noise of the same seed on the GPU"
            ));
        }
        let mut noise = self.noise.of_steps(method.noise(), &x, levels)?;
        let last = RefCell::new(None);
        let mut observe = |step: Step<'_>| {
            *last.borrow_mut() = Some(step.x0.clone());
            let told = cx.progress(step.done, step.steps);
            told.and_then(|()| self.shows.show(cx, step)).map_err(into_sampler)
        };
        let both = method.is_cfg_pp();
        let mut model = |x: &Candle, sigma: f64| {
            let now = match self.mask {
                Some(mask) if self.differential > 0.0 => {
                    Some(mask.at(share_left(schedule, levels, sigma), self.differential)?)
                }
                _ => None,
            };
            let mask = now.as_ref().or(self.mask);
            self.x0(cx, x, sigma, (&outside, mask), both)
        };
        let (model, noise, observe) = (&mut model, &mut noise, &mut observe);
        let sampled = samplers::sample_by(method, schedule, levels, x, model, noise, observe);
        let samples = sampled.map_err(out_of_sampler)?;
        let latents = match self.mask {
            // Multistep samplers carry a little of the way into the end.
            Some(mask) if levels.last() == Some(&0.0) => mask.restore(&samples, self.latents)?,
            _ => samples,
        };
        Ok(Sampled { latents, x0: last.into_inner() })
    }

    /// x₀ at x, where σ · `outside` is the noise outside the mask. Without guidance it stays as the network has it
    /// there, too (ComfyUI).
    fn x0(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        sigma: f64,
        (outside, mask): (&Candle, Option<&NoiseMask>),
        both: bool,
    ) -> samplers::Result<samplers::Guided> {
        // What the network sees of x: outside the mask the given latents with their noise.
        let x = match mask {
            Some(mask) => mask.mix(x, &(self.latents + (outside * sigma)?)?)?,
            None => x.clone(),
        };
        let (x0, uncond) = self.guide.x0(cx, &x, sigma, both).map_err(into_sampler)?;
        let x0 = match mask {
            Some(mask) => mask.mix(&x0, self.latents)?,
            None => x0,
        };
        Ok(samplers::Guided { uncond: uncond.unwrap_or_else(|| x0.clone()), x0 })
    }
}

/// What unit noise is multiplied by at the `first` level of a sampling.
pub fn whole_scale(schedule: &Schedule, first: f64) -> f64 {
    // At the top of the schedule it is what √(σ²+1) makes of it, as in training (ComfyUI).
    let is_top = first >= schedule.sigma_max() * (1.0 - 1e-5);
    if is_top { (1.0 + first * first).sqrt() } else { first }
}

/// How much of the way from the first level to the last is left at σ, in the training's timesteps.
fn share_left(schedule: &Schedule, levels: &[f64], sigma: f64) -> f64 {
    let (first, last) = (levels.first().copied(), levels.last().copied());
    let to = schedule.timestep(last.unwrap_or(0.0).max(schedule.sigma_min()));
    let from = schedule.timestep(first.unwrap_or(0.0));
    if from <= to {
        // One step alone is the whole way.
        return 1.0;
    }
    (schedule.timestep(sigma) - to) / (from - to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use kosmograph_models::samplers::SchedulerConfig;

    #[test]
    fn a_mask_is_taken_up_step_by_step() -> Result<()> {
        let schedule = Schedule::new(&SchedulerConfig::default())?;
        // The levels of the timesteps 999, 499 and 99, and the end.
        let mut levels: Vec<f64> = [999, 499, 99].map(|t| schedule.sigma_at(t)).into();
        levels.push(0.0);
        let shares = [0, 1, 2].map(|i| share_left(&schedule, &levels, levels[i]));
        // The end is where the schedule does, at timestep 0.
        for (share, timestep) in shares.iter().zip([999.0, 499.0, 99.0]) {
            assert!((share - timestep / 999.0).abs() < 1e-9, "{shares:?}");
        }
        assert_eq!(share_left(&schedule, &levels[..1], levels[0]), 1.0);
        let mask = Tensor::from_f32(&[1, 1, 4], vec![0.0, 0.3, 0.6, 1.0])?;
        let mask = NoiseMask::for_shape(&mask, &[1, 4, 1, 4], &Device::Cpu)?;
        let at = |share, strength| -> Result<Vec<f32>> {
            Ok(mask.at(share, strength)?.mask.flatten_all()?.to_vec1()?)
        };
        assert_eq!(at(shares[0], 1.0)?, [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(at(shares[1], 1.0)?, [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(at(shares[2], 1.0)?, [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(at(shares[1], 0.5)?, [0.0, 0.15, 0.8, 1.0]);
        Ok(())
    }
}
