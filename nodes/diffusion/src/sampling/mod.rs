//! The path that every sampler node takes: conditioning, guidance and controls around a denoiser, noise
//! from a seed, a sampler of [`kosmograph_models::samplers`] in the middle.
//!
//! The denoiser and the ControlNets are called through their interfaces, whichever library they come from.
//! [`entry`] says where and when each part of a conditioning counts, [`guided`] asks the denoiser for all
//! of them, [`inpaint`] keeps what lies outside a mask, [`extra`] feeds U-Nets of more input channels.

mod control;
mod entry;
mod extra;
mod guided;
mod inpaint;
mod noise;
mod range;
mod resize;
mod through;

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::samplers::{self, Ending, Prediction, Schedule, Step, sigmas};
use node::*;
use node_candle::{device, export, import};

use control::Controls;
use entry::{Frame, both_sides};
use extra::Extra;
use guided::{Guided, output_for_x0};
use inpaint::NoiseMask;
pub use noise::Draw;
use noise::Seeded;
pub use resize::bilinear;
use through::{into_sampler, out_of_sampler};

use crate::tiny_vae::PreviewDecoder;

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
        let described = Described::of(cx, &self.model)?;
        let latents = described.fit(import(&self.latent.samples()?, &device)?);
        let latents = latents.map_err(|error| error.of_input(self.latent_input))?;
        if matches!(self.span, Span::Denoise(denoise) if denoise <= 0.0) {
            return Ok(self.latent);
        }
        self.total_steps()?;
        // Noise, two sides of guidance, predictions, and what a multistep sampler remembers.
        let shape = [&[6], latents.dims()].concat();
        memory::ask("sampling the latents", &shape, size_of::<f32>())?;
        let latent = self.latent.with_samples(export(&latents)?);
        let at_latent = |error: Error| error.of_input(self.latent_input);
        let noise = Seeded::new(self.noise.seed, self.noise.draw, &latent, &device);
        let noise = noise.map_err(at_latent)?;
        let mask = NoiseMask::of(&latent, &device).map_err(at_latent)?;
        let guided = self.guided(cx, &described, &latents, mask.as_ref())?;
        let first = match self.noise.add {
            true => noise.first()?,
            false => latents.zeros_like()?,
        };
        let colours = described.colours()?;
        let eye = described.preview_decoder(cx, &device);
        let run =
            Run { guided: &guided, latents: &latents, noise: &noise, first, mask, colours, eye };
        let sampled = match &self.method {
            Method::Timesteps { sampler, karras } => self.by_timesteps(&run, *sampler, *karras),
            Method::Sigmas { sampler, scheduler } => self.by_sigmas(&run, sampler, scheduler),
        };
        Ok(latent.with_samples(export(&sampled?)?))
    }

    /// The denoiser with all that steers it.
    fn guided<'a>(
        &'a self,
        cx: &'a Context<'a>,
        described: &'a Described,
        latents: &Candle,
        mask: Option<&NoiseMask>,
    ) -> Result<Guided<'a>> {
        let dims = latents.dims4()?;
        let in_channels = described.in_channels.unwrap_or(dims.1);
        let extra = Extra::of_channels(in_channels, latents, mask.map(|mask| &mask.mask))?;
        let schedule = &described.schedule;
        let frame = Frame {
            device: latents.device(),
            schedule,
            dims,
            context_width: described.context_width,
            vector: described.vector,
            extra: &extra,
        };
        let mut controls = Controls::new(dims.0);
        let (mut positive, mut negative) =
            both_sides(&frame, &self.positive, &self.negative, &mut controls)?;
        // The node's own control acts wherever anything does.
        let everywhere = controls.add(self.control.clone(), schedule);
        let everywhere = everywhere.map_err(|error| error.of_input("control"))?;
        for entry in positive.iter_mut().chain(&mut negative) {
            entry.controls.extend(&everywhere);
        }
        Ok(Guided {
            cx,
            model: &self.model.0,
            schedule,
            positive,
            negative,
            cfg: self.cfg,
            controls,
            understands: &described.understands,
        })
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

    fn by_timesteps(&self, run: &Run<'_>, sampler: Published, karras: bool) -> Result<Candle> {
        let schedule = run.guided.schedule;
        let total = self.total_steps()?;
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
        run.guided.cx.progress(0, self.steps)?;
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

    fn by_sigmas(&self, run: &Run<'_>, sampler: &str, scheduler: &str) -> Result<Candle> {
        let schedule = run.guided.schedule;
        let sampler = samplers::sampler(sampler)?;
        let levels = self.levels(schedule, sampler, scheduler)?;
        let (Some(&first), true) = (levels.first(), levels.len() > 1) else {
            return Ok(run.latents.clone());
        };
        run.guided.cx.progress(0, levels.len() - 1)?;
        // At the top of the schedule the noise is what √(σ²+1) makes of it, as in training (ComfyUI).
        let whole = first >= schedule.sigma_max() * (1.0 - 1e-5);
        let scale = if whole { (1.0 + first * first).sqrt() } else { first };
        let x = (run.latents + (&run.first * scale)?)?;
        // ComfyUI's ddim is euler; what lies outside a mask has noise of its own there.
        let outside = match sampler.name {
            "ddim" => run.noise.reseeded(self.noise.seed.wrapping_add(1)).first()?,
            _ => run.first.clone(),
        };
        let mut observe = |step: Step<'_>| run.report(step);
        if let Some(on_the_cpu) = sampler.draws_on_gpu() {
            let name = sampler.name;
            run.guided.cx.info(format!(
                "{name} is {on_the_cpu} here: its noise is drawn on the CPU, where ComfyUI draws other \
                 noise of the same seed on the GPU"
            ));
        }
        let mut noise = run.noise.of_steps(sampler.noise, &x, &levels)?;
        let name = sampler.name;
        let sampled = if sampler.is_cfg_pp() {
            let mut model = |x: &Candle, sigma: f64| run.denoised_both(x, sigma, &outside);
            let (model, observe) = (&mut model, &mut observe);
            samplers::sample_guided(name, schedule, &levels, x, model, &mut noise, observe)
        } else {
            let mut model = |x: &Candle, sigma: f64| run.denoised(x, sigma, &outside);
            let (model, observe) = (&mut model, &mut observe);
            samplers::sample(name, schedule, &levels, x, model, &mut noise, observe)
        };
        let samples = sampled.map_err(out_of_sampler)?;
        match &run.mask {
            // Multistep samplers carry a little of the way into the end.
            Some(mask) if levels.last() == Some(&0.0) => Ok(mask.restore(&samples, run.latents)?),
            _ => Ok(samples),
        }
    }

    /// The noise levels to run over; one or none when there is nothing to do.
    fn levels(
        &self,
        schedule: &Schedule,
        sampler: &samplers::Sampler,
        scheduler: &str,
    ) -> Result<Vec<f64>> {
        let total = self.total_steps()?;
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
        Ok(levels)
    }
}

/// A sampling under way.
struct Run<'a> {
    guided: &'a Guided<'a>,
    /// [B, C, H, W], as they were given.
    latents: &'a Candle,
    noise: &'a Seeded,
    /// What was added to them, of unit variance, or zeros.
    first: Candle,
    mask: Option<NoiseMask>,
    /// The colour of each channel [C, 3], and what is added to their sum \[3\].
    colours: Option<[Tensor; 2]>,
    /// What shows x₀ better than colours do.
    eye: Option<PreviewDecoder>,
}

impl Run<'_> {
    /// The network's guided output at x in VP, whatever the mask.
    fn predict(&self, x: &Candle, timestep: f64, sigma: f64) -> samplers::Result<Candle> {
        self.guided.predict(x, timestep, sigma).map_err(into_sampler)
    }

    /// The network's guided output at x in VP.
    fn output(&self, x: &Candle, timestep: f64) -> samplers::Result<Candle> {
        let schedule = self.guided.schedule;
        let sigma = schedule.sigma(timestep);
        let Some(mask) = &self.mask else { return self.predict(x, timestep, sigma) };
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let known = ((self.latents * alpha)? + (&self.first * (sigma * alpha))?)?;
        let x = mask.mix(x, &known)?;
        let output = self.predict(&x, timestep, sigma)?;
        Ok(mask.mix(&output, &output_for_x0(schedule, &x, self.latents, sigma)?)?)
    }

    /// x₀ at x in VE, where σ · `outside` is the noise outside the mask.
    fn denoised(&self, x: &Candle, sigma: f64, outside: &Candle) -> samplers::Result<Candle> {
        let x = self.seen(x, sigma, outside)?;
        let mut network = |x: &Candle, timestep| self.predict(x, timestep, sigma);
        let x0 = self.guided.schedule.denoised(&x, sigma, &mut network)?;
        self.masked(x0)
    }

    /// As [`Run::denoised`], and x₀ without guidance, which stays as the network has it outside the mask, too
    /// (ComfyUI).
    fn denoised_both(
        &self,
        x: &Candle,
        sigma: f64,
        outside: &Candle,
    ) -> samplers::Result<samplers::Guided> {
        let x = self.seen(x, sigma, outside)?;
        let mut network = |x: &Candle, timestep| {
            self.guided.predict_both(x, timestep, sigma).map_err(into_sampler)
        };
        let [x0, uncond] = self.guided.schedule.denoised_each(&x, sigma, &mut network)?;
        Ok(samplers::Guided { x0: self.masked(x0)?, uncond })
    }

    /// What the network sees of x in VE: outside the mask the given latents with their noise.
    fn seen(&self, x: &Candle, sigma: f64, outside: &Candle) -> samplers::Result<Candle> {
        match &self.mask {
            Some(mask) => Ok(mask.mix(x, &(self.latents + (outside * sigma)?)?)?),
            None => Ok(x.clone()),
        }
    }

    /// x₀, outside the mask the given latents.
    fn masked(&self, x0: Candle) -> samplers::Result<Candle> {
        match &self.mask {
            Some(mask) => Ok(mask.mix(&x0, self.latents)?),
            None => Ok(x0),
        }
    }

    /// Tells the host of a step.
    fn report(&self, step: Step<'_>) -> samplers::Result<()> {
        let told = self.guided.cx.progress(step.done, step.steps).and_then(|()| self.show(step));
        told.map_err(into_sampler)
    }

    /// Shows x₀ of a step to whoever looks, where the model says what its latents look like.
    fn show(&self, step: Step<'_>) -> Result<()> {
        if let Some(eye) = &self.eye {
            let picture = Preview::Image(eye.picture(&step.x0.narrow(0, 0, 1)?)?);
            return self.guided.cx.preview(step.done, step.steps, picture);
        }
        let Some([rgb, bias]) = self.colours.as_ref().filter(|_| self.guided.cx.wants_previews())
        else {
            return Ok(());
        };
        let picture = Preview::Latents {
            latents: export(&step.x0.narrow(0, 0, 1)?)?,
            rgb: rgb.clone(),
            bias: bias.clone(),
        };
        self.guided.cx.preview(step.done, step.steps, picture)
    }
}

/// σ of each timestep beside it.
fn at_timesteps(schedule: &Schedule, timesteps: Vec<usize>) -> Vec<(usize, f64)> {
    timesteps.into_iter().map(|t| (t, schedule.sigma_at(t))).collect()
}

/// The noise schedule that a MODEL was trained on.
///
/// # Errors
/// It does not describe itself as node.h says.
pub fn schedule_of(cx: &Context<'_>, model: &Model) -> Result<Schedule> {
    Ok(Described::of(cx, model)?.schedule)
}

/// What a MODEL says of itself, "describe/1".
struct Described {
    schedule: Schedule,
    in_channels: Option<usize>,
    /// The latents'.
    out_channels: Option<usize>,
    context_width: Option<usize>,
    /// "pooled_width" and "sizes", of a model that says both.
    vector: Option<(usize, usize)>,
    /// "latent_rgb" and "latent_rgb_bias".
    latent_rgb: Vec<[f32; 3]>,
    latent_rgb_bias: [f32; 3],
    /// The name of a file that decodes its latents quickly, "preview_decoder".
    preview_decoder: Option<String>,
    /// The optional keys of "denoiser/1" that the model makes use of.
    understands: Vec<String>,
}

impl Described {
    fn of(cx: &Context<'_>, model: &Model) -> Result<Self> {
        let json = model.0.describe(cx).map_err(|error| error.of_input("model"))?;
        let number = |key: &str| json[key].as_u64().and_then(|number| usize::try_from(number).ok());
        let numbers = json["alphas_cumprod"].as_array().map(Vec::as_slice).unwrap_or_default();
        let alphas_cumprod = numbers.iter().filter_map(serde_json::Value::as_f64).collect();
        let prediction = match json["prediction"].as_str() {
            Some("epsilon") => Prediction::Epsilon,
            Some("v_prediction") => Prediction::VPrediction,
            Some("sample") => Prediction::Sample,
            other => {
                return Err(Error::at(
                    "model",
                    format!(
                        "the model predicts {other:?}; epsilon, v_prediction or sample is known"
                    ),
                ));
            }
        };
        let schedule = Schedule::from_alphas_cumprod(alphas_cumprod, prediction)
            .map_err(|error| Error::from(error).of_input("model"))?;
        Ok(Self {
            schedule,
            in_channels: number("in_channels"),
            out_channels: number("out_channels"),
            context_width: number("context_width"),
            vector: number("pooled_width").zip(number("sizes")),
            // A model need not say it, and what cannot be read is as good as nothing.
            latent_rgb: serde_json::from_value(json["latent_rgb"].clone()).unwrap_or_default(),
            latent_rgb_bias: serde_json::from_value(json["latent_rgb_bias"].clone())
                .unwrap_or_default(),
            preview_decoder: json["preview_decoder"].as_str().map(str::to_owned),
            understands: serde_json::from_value(json["understands"]["denoiser/1"].clone())
                .unwrap_or_default(),
        })
    }

    /// What makes a picture of latents, [C, 3] and \[3\].
    fn colours(&self) -> Result<Option<[Tensor; 2]>> {
        if self.latent_rgb.is_empty() || self.out_channels != Some(self.latent_rgb.len()) {
            return Ok(None);
        }
        let rgb = Tensor::from_f32(&[self.latent_rgb.len(), 3], self.latent_rgb.concat())?;
        let bias = Tensor::from_f32(&[3], self.latent_rgb_bias.to_vec())?;
        Ok(Some([rgb, bias]))
    }

    /// The decoder that shows latents, where somebody looks and its file is there. One that cannot be used is told, and costs no more
    /// than the better picture.
    fn preview_decoder(&self, cx: &Context<'_>, device: &Device) -> Option<PreviewDecoder> {
        if !cx.wants_previews() {
            return None;
        }
        let path = cx.property(&format!("preview_file:{}", self.preview_decoder.as_ref()?))?;
        match PreviewDecoder::open(path.as_ref(), self.out_channels?, device) {
            Ok(decoder) => Some(decoder),
            Err(error) => {
                cx.warn(format!("{error}; previews are made of colours instead"));
                None
            }
        }
    }

    /// The latents with the model's channels. Empty ones have no picture to lose and take as many as the
    /// model wants.
    fn fit(&self, latents: Candle) -> Result<Candle> {
        let (batch, channels, height, width) = latents.dims4()?;
        let Some(wanted) = self.out_channels.filter(|wanted| *wanted != channels) else {
            return Ok(latents);
        };
        let empty = latents.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0;
        if empty && wanted <= 64 {
            let shape = (batch, wanted, height, width);
            return Ok(Candle::zeros(shape, DType::F32, &Device::Cpu)?.to_device(latents.device())?);
        }
        Err(Error::new(format!(
            "the latents have {channels} channels, but the model denoises {wanted}: they were made for \
             another family of models"
        )))
    }
}
