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
        // At the top of the schedule the noise is what √(σ²+1) makes of it, as in training (ComfyUI).
        let whole = first >= schedule.sigma_max() * (1.0 - 1e-5);
        let scale = if whole { (1.0 + first * first).sqrt() } else { first };
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
        let mut model = |x: &Candle, sigma: f64| self.x0(cx, x, sigma, &outside, both);
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
        outside: &Candle,
        both: bool,
    ) -> samplers::Result<samplers::Guided> {
        // What the network sees of x: outside the mask the given latents with their noise.
        let x = match self.mask {
            Some(mask) => mask.mix(x, &(self.latents + (outside * sigma)?)?)?,
            None => x.clone(),
        };
        let (x0, uncond) = self.guide.x0(cx, &x, sigma, both).map_err(into_sampler)?;
        let x0 = match self.mask {
            Some(mask) => mask.mix(&x0, self.latents)?,
            None => x0,
        };
        Ok(samplers::Guided { uncond: uncond.unwrap_or_else(|| x0.clone()), x0 })
    }
}
