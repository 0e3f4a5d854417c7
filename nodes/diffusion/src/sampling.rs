//! The path that every sampler node takes: conditioning, guidance and controls around a denoiser, noise
//! from a seed, a sampler of [`kosmograph_models::samplers`] in the middle.
//!
//! The denoiser and the ControlNets are called through their interfaces, whichever library they come from.

use std::cell::RefCell;

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::randn::Generator;
use kosmograph_models::samplers::{self, Ending, Prediction, Schedule, Step, sigmas};
use node::interface::ControlCall;
use node::*;
use node_candle::{device, export, import};

use crate::hint::hint_for;

/// Samplers by ComfyUI's names, over the noise levels of a scheduler.
pub const SAMPLERS: &[&str] = &["euler", "euler_ancestral", "dpmpp_2m", "ddim"];

/// Those, and first the published Kosmos-G's, which bring their own timesteps: `dpms` ends at σ of timestep
/// 0 as diffusers 0.21.4 does, `dpms_zero` at σ = 0 as today's.
pub const KOSMOS_SAMPLERS: &[&str] =
    &["dpms", "dpms_zero", "pndm", "ddim", "euler", "euler_ancestral", "dpmpp_2m"];

/// What a sampler node was given.
pub struct Sampling {
    pub model: Model,
    pub positive: Conditioning,
    pub negative: Conditioning,
    pub latent: Latent,
    pub seed: u64,
    pub steps: usize,
    pub cfg: f64,
    pub method: Method,
    pub denoise: f64,
    pub control: Option<Control>,
}

/// How x is integrated.
pub enum Method {
    /// In the space of the training timesteps, VP.
    Timesteps { sampler: String, karras: bool },
    /// Over noise levels σ, VE: ComfyUI's way.
    Sigmas { sampler: String, scheduler: String },
}

impl Sampling {
    /// Samples; the result is the given LATENT with other samples.
    pub fn run(self, cx: &Context) -> Result<Latent> {
        let device = device(&cx.device())?;
        let schedule = describe_schedule(&self.model.0.describe(cx)?)?;
        let latents = import(&self.latent.samples()?, &device)?;
        if self.denoise <= 0.0 {
            return Ok(self.latent);
        }
        let mut generator = Generator::new(self.seed);
        let noise = unit_noise(&mut generator, &latents)?;
        let controls = control_chain(self.control.as_ref(), &schedule, &latents)?;
        let failure = RefCell::new(None);
        let guided = Guided {
            cx,
            model: &self.model.0,
            positive: contexts(&self.positive, &device, "positive")?,
            negative: contexts(&self.negative, &device, "negative")?,
            cfg: self.cfg,
            controls,
            train_steps: schedule.train_steps(),
            failure: &failure,
        };
        cx.progress(0, self.steps)?;
        let sampled = match &self.method {
            Method::Timesteps { sampler, karras } => {
                self.by_timesteps(&schedule, sampler, *karras, &latents, &noise, &guided)
            }
            Method::Sigmas { sampler, scheduler } => {
                self.by_sigmas(&schedule, sampler, scheduler, &latents, &noise, &guided)
            }
        };
        // What the denoiser or the host said goes before what the sampler made of it.
        match (sampled, failure.into_inner()) {
            (Ok(samples), None) => Ok(self.latent.with_samples(export(&samples)?)),
            (_, Some(failure)) => Err(failure),
            (Err(error), None) => Err(error),
        }
    }

    /// How many steps the whole schedule would have, of which the last `steps` are taken: ComfyUI's
    /// meaning of `denoise`.
    fn total_steps(&self) -> usize {
        match self.denoise >= 0.9999 {
            true => self.steps,
            false => (self.steps as f64 / self.denoise) as usize,
        }
    }

    fn by_timesteps(
        &self,
        schedule: &Schedule,
        sampler: &str,
        karras: bool,
        latents: &Candle,
        noise: &Candle,
        guided: &Guided<'_>,
    ) -> Result<Candle> {
        let total = self.total_steps();
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
        let stride = schedule.train_steps() / total;
        let last = |timesteps: Vec<usize>| timesteps[timesteps.len() - self.steps..].to_vec();
        // The sample at the first timestep: pure noise when the whole schedule is run, as diffusers does.
        let start = |timestep: usize| -> Result<Candle> {
            if total == self.steps {
                return Ok(noise.clone());
            }
            let alpha = schedule.alphas_cumprod[timestep];
            Ok(((latents * alpha.sqrt())? + (noise * (1.0 - alpha).sqrt())?)?)
        };
        let (cx, failure) = (guided.cx, guided.failure);
        let mut observe = |step: Step<'_>| report(cx, failure, step);
        let mut model = |x: &Candle, t: f64| guided.predict(x, t);
        match sampler {
            "ddim" => {
                let timesteps = last(samplers::ddim_timesteps(schedule, total));
                let x = start(timesteps[0])?;
                Ok(samplers::ddim(schedule, &timesteps, stride, x, &mut model, &mut observe)?)
            }
            "pndm" => {
                let mut timesteps = last(samplers::ddim_timesteps(schedule, total));
                let x = start(timesteps[0])?;
                samplers::repeat_second(&mut timesteps);
                Ok(samplers::pndm(schedule, &timesteps, stride, x, &mut model, &mut observe)?)
            }
            _ => {
                let ending = if sampler == "dpms" { Ending::SigmaMin } else { Ending::Zero };
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
                levels.drain(..levels.len().saturating_sub(self.steps));
                let x = start(levels[0].0)?;
                let levels = &levels;
                Ok(samplers::dpm_solver(schedule, levels, ending, x, &mut model, &mut observe)?)
            }
        }
    }

    fn by_sigmas(
        &self,
        schedule: &Schedule,
        sampler: &str,
        scheduler: &str,
        latents: &Candle,
        noise: &Candle,
        guided: &Guided<'_>,
    ) -> Result<Candle> {
        let unknown = || Error::at("scheduler", format!("there is no scheduler \"{scheduler}\""));
        let levels =
            sigmas::by_name(scheduler, schedule, self.total_steps()).ok_or_else(unknown)?;
        let levels = &levels[levels.len().saturating_sub(self.steps + 1)..];
        let first = levels[0];
        // At the top of the schedule the noise is what √(σ²+1) makes of it, as in training (ComfyUI).
        let whole = first >= schedule.sigma_max() * (1.0 - 1e-5);
        let scale = if whole { (1.0 + first * first).sqrt() } else { first };
        let x = (latents + (noise * scale)?)?;
        let (cx, failure) = (guided.cx, guided.failure);
        let mut observe = |step: Step<'_>| report(cx, failure, step);
        let mut network = |x: &Candle, t: f64| guided.predict(x, t);
        let mut model = |x: &Candle, sigma: f64| schedule.denoised(x, sigma, &mut network);
        Ok(match sampler {
            "euler" | "ddim" => samplers::euler(levels, x, &mut model, &mut observe)?,
            "dpmpp_2m" => samplers::dpmpp_2m(levels, x, &mut model, &mut observe)?,
            "euler_ancestral" => {
                // ComfyUI seeds a generator of its own for the noise of the steps, one further on.
                let mut generator = Generator::new(self.seed.wrapping_add(1));
                let mut noise = || {
                    let values = generator.randn(latents.elem_count());
                    Candle::from_vec(values, latents.shape(), latents.device())
                };
                samplers::euler_ancestral(levels, x, &mut model, &mut noise, &mut observe)?
            }
            other => return Err(Error::new(format!("there is no sampler \"{other}\""))),
        })
    }
}

/// σ of each timestep beside it.
fn at_timesteps(schedule: &Schedule, timesteps: Vec<usize>) -> Vec<(usize, f64)> {
    timesteps.into_iter().map(|t| (t, schedule.sigma_at(t))).collect()
}

/// One torch `randn` over the whole batch.
fn unit_noise(generator: &mut Generator, latents: &Candle) -> Result<Candle> {
    let values = generator.randn(latents.elem_count());
    Ok(Candle::from_vec(values, latents.shape(), latents.device())?)
}

/// Tells the host of a step. The samplers know candle's errors alone, so the wish to stop is left in
/// `failure`.
fn report(
    cx: &Context,
    failure: &RefCell<Option<Error>>,
    step: Step<'_>,
) -> candle_core::Result<()> {
    cx.progress(step.done, step.steps).map_err(|error| leave(failure, error))
}

/// Leaves `error` where [`Sampling::run`] finds it; candle's own error only unwinds the sampler.
fn leave(failure: &RefCell<Option<Error>>, error: Error) -> candle_core::Error {
    let sentence = error.to_string();
    *failure.borrow_mut() = Some(error);
    candle_core::Error::Msg(sentence)
}

/// The noise schedule that a MODEL describes.
fn describe_schedule(description: &serde_json::Value) -> Result<Schedule> {
    let numbers = description["alphas_cumprod"].as_array().map(Vec::as_slice).unwrap_or_default();
    let alphas_cumprod: Vec<f64> = numbers.iter().filter_map(serde_json::Value::as_f64).collect();
    let prediction = match description["prediction"].as_str() {
        Some("epsilon") => Prediction::Epsilon,
        Some("v_prediction") => Prediction::VPrediction,
        Some("sample") => Prediction::Sample,
        other => {
            return Err(Error::at(
                "model",
                format!("the model predicts {other:?}; epsilon, v_prediction or sample is known"),
            ));
        }
    };
    Schedule::from_alphas_cumprod(alphas_cumprod, prediction)
        .map_err(|error| Error::from(error).of_input("model"))
}

/// The contexts [1, T, D] of a conditioning.
fn contexts(conditioning: &Conditioning, device: &Device, input: &str) -> Result<Vec<Candle>> {
    let tensors = conditioning.contexts().map_err(|error| error.of_input(input))?;
    tensors.iter().map(|tensor| import(tensor, device)).collect()
}

/// A ControlNet in its place in the schedule.
struct ActiveControl {
    control_net: node::ControlNet,
    /// [1, 3, 8H, 8W] in 0..1.
    hint: Tensor,
    strength: f64,
    /// Acts while the timestep is at most this …
    from: f64,
    /// … and at least this.
    to: f64,
}

/// The chain of a CONTROL, each hint scaled to the latents.
fn control_chain(
    control: Option<&Control>,
    schedule: &Schedule,
    latents: &Candle,
) -> Result<Vec<ActiveControl>> {
    let (batch, _, height, width) = latents.dims4()?;
    let last = (schedule.train_steps() - 1) as f64;
    let mut chain = Vec::new();
    let mut next = control.cloned();
    while let Some(control) = next {
        chain.push(ActiveControl {
            control_net: control.control_net().map_err(|error| error.of_input("control"))?,
            hint: hint_for(&control.hint()?, batch, height * 8, width * 8)?,
            strength: control.strength(),
            from: (1.0 - control.start()) * last,
            to: (1.0 - control.end()) * last,
        });
        next = control.previous()?;
    }
    Ok(chain)
}

/// A denoiser under guidance: eps = uncond + cfg · (cond - uncond) (Ho & Salimans, arXiv 2207.12598).
struct Guided<'a> {
    cx: &'a Context<'a>,
    model: &'a Object,
    positive: Vec<Candle>,
    negative: Vec<Candle>,
    cfg: f64,
    controls: Vec<ActiveControl>,
    train_steps: usize,
    /// Why a call across the boundary failed: candle's error type has no place for it.
    failure: &'a RefCell<Option<Error>>,
}

impl Guided<'_> {
    /// The guided output for x [B, C, H, W] in VP at `timestep`.
    fn predict(&self, x: &Candle, timestep: f64) -> candle_core::Result<Candle> {
        let timestep = timestep.clamp(0.0, (self.train_steps - 1) as f64);
        self.guided(x, timestep).map_err(|error| leave(self.failure, error))
    }

    fn guided(&self, x: &Candle, timestep: f64) -> Result<Candle> {
        // Without guidance the unconditional half is not asked for.
        if self.cfg == 1.0 {
            return self.mean(&self.positive, x, timestep);
        }
        let (uncond, cond) = match (&self.negative[..], &self.positive[..]) {
            // One batch of rows [uncond, cond] where the contexts are equally long.
            ([negative], [positive]) if negative.dims()[1..] == positive.dims()[1..] => {
                let batch = x.dim(0)?;
                let rows = Candle::cat(&[repeat(negative, batch)?, repeat(positive, batch)?], 0)?;
                let output = self.output(&Candle::cat(&[x, x], 0)?, &rows, timestep)?;
                (output.narrow(0, 0, batch)?, output.narrow(0, batch, batch)?)
            }
            (negative, positive) => {
                (self.mean(negative, x, timestep)?, self.mean(positive, x, timestep)?)
            }
        };
        Ok((&uncond + ((cond - &uncond)? * self.cfg)?)?)
    }

    /// The mean over several contexts, each of which asks for the whole picture.
    fn mean(&self, contexts: &[Candle], x: &Candle, timestep: f64) -> Result<Candle> {
        let mut sum: Option<Candle> = None;
        for context in contexts {
            let output = self.output(x, &repeat(context, x.dim(0)?)?, timestep)?;
            sum = Some(match sum {
                None => output,
                Some(sum) => (sum + output)?,
            });
        }
        let sum = sum.ok_or_else(|| Error::new("the conditioning has no entry"))?;
        Ok((sum / contexts.len() as f64)?)
    }

    /// The network's output for as many rows as x has.
    fn output(&self, x: &Candle, context: &Candle, timestep: f64) -> Result<Candle> {
        let rows = x.dim(0)?;
        let timesteps = Candle::full(timestep as f32, rows, x.device())?;
        let (x_, t_, context_) = (export(x)?, export(&timesteps)?, export(context)?);
        let mut residuals: Vec<Candle> = Vec::new();
        for control in &self.controls {
            if timestep > control.from || timestep < control.to || control.strength == 0.0 {
                continue;
            }
            let call = ControlCall {
                x: x_.clone(),
                timestep: t_.clone(),
                context: context_.clone(),
                hint: control.hint.clone(),
                strength: control.strength,
                guess: false,
            };
            let added = control.control_net.0.control(self.cx, call)?;
            let added = added.iter().map(|tensor| import(tensor, x.device()));
            let added: Vec<Candle> = added.collect::<Result<_>>()?;
            residuals = if residuals.is_empty() {
                added
            } else if residuals.len() == added.len() {
                residuals.iter().zip(&added).map(|(a, b)| a + b).collect::<Result<_, _>>()?
            } else {
                return Err(Error::at(
                    "control",
                    "the chained ControlNets are of different families and cannot act together",
                ));
            };
        }
        let residuals = residuals.iter().map(export).collect::<Result<_>>()?;
        let output = self.model.denoise(self.cx, x_, t_, context_, residuals)?;
        let shape = output.shape();
        if shape != x.dims() {
            return Err(Error::at(
                "model",
                format!("the denoiser answered {shape:?} for latents of {:?}", x.dims()),
            ));
        }
        import(&output, x.device())
    }
}

/// A context [1, T, D] for `rows` rows.
fn repeat(context: &Candle, rows: usize) -> candle_core::Result<Candle> {
    match context.dim(0)? {
        1 => context.repeat((rows, 1, 1)),
        _ => Ok(context.clone()),
    }
}
