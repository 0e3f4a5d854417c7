//! The path that every sampler node takes: conditioning, guidance and controls around a denoiser, noise
//! from a seed, a sampler of [`kosmograph_models::samplers`] in the middle.
//!
//! The denoiser and the ControlNets are called through their interfaces, whichever library they come from.
//! [`entry`] says where and when each part of a conditioning counts, [`conditioned`] asks the denoiser for all
//! of them, [`guided`] puts together what it says, [`over_sigmas`] samples over noise levels whatever guides it, [`inpaint`] keeps what lies outside a mask, [`extra`] feeds U-Nets of more input channels.

mod conditioned;
mod control;
mod described;
mod entry;
mod extra;
mod grounding;
mod guided;
mod inpaint;
mod noise;
mod over_sigmas;
mod range;
mod resize;
mod reuse;
mod through;
mod told;

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::{self, Ending, Prediction, Schedule, Step, sigmas};
use node::*;
use node_candle::{device, export, import};

use conditioned::output_for_x0;
use described::Shows;
pub use described::{Described, described_schedule, schedule_of};
pub use entry::Given;
pub use guided::{Guided, Rule};
pub use inpaint::NoiseMask;
pub use noise::{Draw, Seeded};
pub use over_sigmas::{Guide, OverSigmas, whole_scale};
pub use range::Range;
pub use resize::bilinear;
use through::{into_sampler, out_of_sampler};
pub use told::told;

/// The published Kosmos-G's samplers, which bring their own timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// DPM-Solver++, ending as diffusers 0.21.4 does, at σ of timestep 0, or as today's, at σ = 0.
    Dpms(Ending),
    Pndm,
    Ddim,
}

impl Published {
    const NAMES: [(&'static str, Published); 4] = [
        ("dpms", Published::Dpms(Ending::SigmaMin)),
        ("dpms_zero", Published::Dpms(Ending::Zero)),
        ("pndm", Published::Pndm),
        ("ddim", Published::Ddim),
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, sampler)| *sampler)
    }
}

/// The published Kosmos-G's samplers, then ComfyUI's. The one name that both have is Kosmos-G's.
pub fn kosmos_samplers() -> Vec<&'static str> {
    let own = Published::NAMES.iter().map(|(name, _)| *name);
    let comfyui = samplers::NAMES.iter().copied().filter(|name| Published::named(name).is_none());
    own.chain(comfyui).collect()
}

/// What a sampler node was given.
pub struct Sampling {
    pub model: Model,
    pub positive: Conditioning,
    pub negative: Conditioning,
    pub latent: Latent,
    /// What the node calls its `latent`.
    pub latent_input: &'static str,
    pub noise: Noise,
    pub steps: usize,
    pub cfg: f64,
    pub method: Method,
    pub span: Span,
    pub control: Option<Control>,
}

/// What is added to the latents before the first step.
pub struct Noise {
    pub seed: u64,
    pub draw: Draw,
    /// Whether the latents get any: they have theirs already when a sampling is taken up again.
    pub add: bool,
}

/// How x is integrated.
pub enum Method {
    /// In the space of the training timesteps, VP.
    Timesteps { sampler: Published, karras: bool },
    /// Over noise levels σ, VE: ComfyUI's way.
    Sigmas { sampler: String, scheduler: String },
}

/// Which part of the schedule is run.
#[derive(Clone, Copy, Debug)]
pub enum Span {
    /// The last so much of it, as many steps as are asked for: ComfyUI's `denoise`, 0..1.
    Denoise(f64),
    /// The steps from `start` to `end` of it; to σ = 0, unless the noise that is left is to stay.
    Steps { start: usize, end: usize, leftover_noise: bool },
}

/// The most steps of a whole schedule, of which the last are taken: a hundred times the most that are asked for.
const MOST_STEPS: usize = 1_000_000;

impl Sampling {
    /// Samples; the result is the given LATENT with other samples.
    pub fn run(self, cx: &Context) -> Result<Latent> {
        let device = device(&cx.device())?;
        let described = Described::of(cx, &self.model.0, "model")?;
        let given = self.latent.at_scale(described.scaling_factor);
        let given = given.map_err(|error| error.of_input(self.latent_input))?;
        let latents = described.fit(import(&given.samples()?, &device)?);
        let latents = latents.map_err(|error| error.of_input(self.latent_input))?;
        let given_latents = latents.clone();
        let latents = described.enter(latents).map_err(|error| error.of_input("model"))?;
        if matches!(self.span, Span::Denoise(denoise) if denoise <= 0.0) {
            return Ok(self.latent);
        }
        self.total_steps()?;
        ask_memory(&latents)?;
        let latent = given.with_samples(export(&given_latents)?);
        let at_latent = |error: Error| error.of_input(self.latent_input);
        let noise = Seeded::new(self.noise.seed, self.noise.draw, &latent, &device);
        let noise = noise.map_err(at_latent)?;
        let mask = NoiseMask::of(&latent, &device).map_err(at_latent)?;
        let sides = [
            Given { input: "positive", conditioning: &self.positive },
            Given { input: "negative", conditioning: &self.negative },
        ];
        let rule = Rule::Cfg(self.cfg);
        let control = self.control.clone();
        let (model, mask_of) = (&self.model.0, mask.as_ref().map(|mask| &mask.mask));
        let guided = Guided::new(
            cx,
            model,
            &described,
            &sides,
            rule,
            control,
            (&latents, mask_of, self.noise.seed),
        )?;
        let first = match self.noise.add {
            true => noise.first()?,
            false => latents.zeros_like()?,
        };
        let shows = described.shows(cx, &device)?;
        let sampled = match &self.method {
            Method::Timesteps { sampler, karras } => {
                let (guided, latents) = (&guided, &latents);
                let run = ByTimesteps { cx, guided, latents, first, mask, shows };
                self.by_timesteps(&run, *sampler, *karras)
            }
            Method::Sigmas { sampler, scheduler } => {
                let method = samplers::Method::named(sampler)?;
                let levels = self.levels(&guided.schedule, &method, scheduler)?;
                if levels.len() < 2 {
                    return Ok(latent);
                }
                let run = OverSigmas {
                    guide: &guided,
                    method: &method,
                    latents: &latents,
                    first,
                    noise: &noise,
                    mask: mask.as_ref(),
                    differential: described.differential,
                    shows: &shows,
                };
                run.run(cx, &levels).map(|sampled| sampled.latents)
            }
        };
        Ok(latent.with_samples(export(&described.leave(sampled?)?)?))
    }

    /// How many steps the whole schedule would have, of which the last `steps` are taken.
    ///
    /// # Errors
    /// More than [`MOST_STEPS`].
    fn total_steps(&self) -> Result<usize> {
        let Span::Denoise(denoise) = self.span else { return Ok(self.steps) };
        if denoise > 0.9999 {
            return Ok(self.steps);
        }
        let total = self.steps as f64 / denoise;
        if total > MOST_STEPS as f64 {
            return Err(Error::at(
                "denoise",
                format!(
                    "{denoise} of a schedule for {} steps makes it one of {total:.3e} steps in all, more \
                     than {MOST_STEPS}; at least {} would be right, or 0, which changes nothing",
                    self.steps,
                    self.steps as f64 / MOST_STEPS as f64
                ),
            ));
        }
        Ok(total as usize)
    }

    fn by_timesteps(
        &self,
        run: &ByTimesteps<'_>,
        sampler: Published,
        karras: bool,
    ) -> Result<Candle> {
        let schedule = &run.guided.schedule;
        let total = self.total_steps()?;
        if schedule.prediction == Prediction::Edm {
            return Err(Error::at(
                "sampler",
                "the published Kosmos-G's samplers do not know networks of EDM's kind (Playground 2.5); another one, as \"dpmpp_2m\", \
                 would be right",
            ));
        }
        if total > schedule.train_steps() {
            return Err(Error::at(
                "steps",
                format!(
                    "{total} steps are more than the {} timesteps that the model knows; fewer steps, \
                     or a larger denoise, would be right",
                    schedule.train_steps()
                ),
            ));
        }
        run.cx.progress(0, self.steps)?;
        let stride = schedule.train_steps() / total;
        let last = |timesteps: Vec<usize>| timesteps[timesteps.len() - self.steps..].to_vec();
        // The sample at the first timestep: pure noise when the whole schedule is run, as diffusers does.
        let start = |timestep: usize| -> Result<Candle> {
            if total == self.steps {
                return Ok(run.first.clone());
            }
            Ok(schedule.add_noise(run.latents, &run.first, timestep)?)
        };
        let mut observe = |step: Step<'_>| run.report(step);
        let mut model = |x: &Candle, t: f64| run.output(x, t);
        let sampled = match sampler {
            Published::Ddim => {
                let timesteps = last(samplers::ddim_timesteps(schedule, total));
                let x = start(timesteps[0])?;
                samplers::ddim(schedule, &timesteps, stride, x, &mut model, &mut observe)
            }
            Published::Pndm => {
                let mut timesteps = last(samplers::ddim_timesteps(schedule, total));
                let x = start(timesteps[0])?;
                samplers::repeat_second(&mut timesteps);
                samplers::pndm(schedule, &timesteps, stride, x, &mut model, &mut observe)
            }
            Published::Dpms(ending) => {
                let mut levels = match (karras, ending) {
                    (false, _) => at_timesteps(schedule, samplers::dpm_timesteps(schedule, total)),
                    (true, Ending::Zero) => samplers::dpm_timesteps_karras(schedule, total),
                    (true, Ending::SigmaMin) => {
                        let levels = samplers::dpm_timesteps_karras(schedule, total);
                        let mut timesteps: Vec<usize> =
                            levels.iter().map(|level| level.0).collect();
                        timesteps.dedup();
                        at_timesteps(schedule, timesteps)
                    }
                };
                let scheduled = levels.len();
                levels.drain(..scheduled.saturating_sub(self.steps));
                let x = start(levels[0].0)?;
                let (model, observe) = (&mut model, &mut observe);
                samplers::dpm_solver(schedule, &levels, scheduled, ending, x, model, observe)
            }
        };
        let samples = sampled.map_err(out_of_sampler)?;
        match &run.mask {
            Some(mask) => Ok(mask.restore(&samples, run.latents)?),
            None => Ok(samples),
        }
    }

    /// The noise levels to run over; one or none when there is nothing to do.
    fn levels(
        &self,
        schedule: &Schedule,
        method: &samplers::Method,
        scheduler: &str,
    ) -> Result<Vec<f64>> {
        let total = self.total_steps()?;
        let sampler = samplers::sampler(method.name())?;
        let levels = sigmas::for_sampler(sampler, scheduler, schedule, total);
        interrupt::check()?;
        let mut levels = levels.filter(|levels| !levels.is_empty()).ok_or_else(|| {
            Error::at("scheduler", format!("there is no scheduler \"{scheduler}\""))
        })?;
        match self.span {
            Span::Denoise(denoise) if denoise <= 0.9999 => {
                levels.drain(..levels.len().saturating_sub(self.steps + 1));
            }
            Span::Denoise(_) => {}
            Span::Steps { start, end, leftover_noise } => {
                if end + 1 < levels.len() {
                    levels.truncate(end + 1);
                    if !leftover_noise {
                        levels[end] = 0.0;
                    }
                }
                levels.drain(..start.min(levels.len() - 1));
            }
        }
        // As SIGMAS carry them, and ComfyUI: the same levels by BasicScheduler give the same picture.
        levels.iter_mut().for_each(|level| *level = f64::from(*level as f32));
        Ok(levels)
    }
}

/// Refuses latents that there is no memory to sample.
pub fn ask_memory(latents: &Candle) -> Result<()> {
    // Noise, two sides of guidance, predictions, and what a multistep sampler remembers.
    let shape = [&[6], latents.dims()].concat();
    Ok(memory::ask("sampling the latents", &shape, size_of::<f32>())?)
}

/// A sampling in the space of the training timesteps under way.
struct ByTimesteps<'a> {
    cx: &'a Context<'a>,
    guided: &'a Guided,
    /// [B, C, H, W], as they were given.
    latents: &'a Candle,
    /// What was added to them, of unit variance, or zeros.
    first: Candle,
    mask: Option<NoiseMask>,
    shows: Shows,
}

impl ByTimesteps<'_> {
    /// The network's guided output at x in VP, whatever the mask.
    fn predict(&self, x: &Candle, timestep: f64, sigma: f64) -> samplers::Result<Candle> {
        self.guided.predict(self.cx, x, timestep, sigma).map_err(into_sampler)
    }

    /// The network's guided output at x in VP.
    fn output(&self, x: &Candle, timestep: f64) -> samplers::Result<Candle> {
        let schedule = &self.guided.schedule;
        let sigma = schedule.sigma(timestep);
        let Some(mask) = &self.mask else { return self.predict(x, timestep, sigma) };
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let known = ((self.latents * alpha)? + (&self.first * (sigma * alpha))?)?;
        let x = mask.mix(x, &known)?;
        let output = self.predict(&x, timestep, sigma)?;
        Ok(mask.mix(&output, &output_for_x0(schedule, &x, self.latents, sigma)?)?)
    }

    /// Tells the host of a step.
    fn report(&self, step: Step<'_>) -> samplers::Result<()> {
        let told = self.cx.progress(step.done, step.steps);
        told.and_then(|()| self.shows.show(self.cx, step)).map_err(into_sampler)
    }
}

/// σ of each timestep beside it.
fn at_timesteps(schedule: &Schedule, timesteps: Vec<usize>) -> Vec<(usize, f64)> {
    timesteps.into_iter().map(|t| (t, schedule.sigma_at(t))).collect()
}
