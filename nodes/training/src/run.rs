//! A training from its configuration to its file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::samplers::guidance::guide;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::samplers::{Schedule, ddim, ddim_timesteps};
use kosmograph_models::stable_diffusion::checkpoint::{Checkpoint, TextEncoder};
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_models::stable_diffusion::vae::Vae;
use kosmograph_models::text::clip_tokens::ClipTokenizer;

use crate::config::{Config, SamplesConfig, Task};
use crate::data::{self, Cut, Example};
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::lora::{self, Target};
use crate::noise::{add_noise, min_snr_weights, mse_of_rows, target};
use crate::optimiser::Optimiser;
use crate::parameters::{Gradients, Parameters};
use crate::state::{self, Averages};
use crate::texts::Texts;
use crate::{files, timesteps};

/// What one update came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Updates done, and how many there are to be.
    pub update: usize,
    pub updates: usize,
    pub loss: f64,
    /// The norm of the gradients before they were clipped.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// What this update took.
    pub seconds: f64,
    /// What the rest will take, as it looks now.
    pub seconds_left: f64,
}

/// Who follows a training.
pub trait Watch {
    /// After each update. An error ends the training, its state written down.
    ///
    /// # Errors
    /// Somebody asked to stop.
    fn update(&mut self, report: &Report) -> Result<()>;

    /// Something that a person ought to know; `odd` if it may be a mistake.
    fn note(&mut self, sentence: &str, odd: bool);

    /// A file was made on the way.
    fn made(&mut self, path: &Path);

    /// Whether somebody asked to stop.
    fn stopped(&self) -> bool;
}

/// Trains as `config` says, from the state on the disk where there is one, and returns the path of what was made.
///
/// # Errors
/// The configuration does not fit the model or the pictures, the output is there already, the loss is no number any
/// more, a file cannot be read or written, or somebody asked to stop; what was reached by then is on the disk.
pub fn train(config: &Config, watch: &mut dyn Watch) -> Result<PathBuf> {
    if config.output.symlink_metadata().is_ok() {
        let sentence =
            format!("{} is there already; nothing is written over", config.output.display());
        return Err(Error::Config(sentence));
    }
    let mut training = Training::prepare(config, watch)?;
    training.updates(watch)?;
    training.finish(watch)
}

struct Training<'a> {
    config: &'a Config,
    unet: UNet,
    schedule: Schedule,
    /// Only for samples.
    vae: Option<Vae>,
    texts: Texts,
    pictures: Source,
    prior: Option<Source>,
    parameters: Parameters,
    targets: Vec<Target>,
    optimiser: Optimiser,
    averages: Option<Averages>,
    state: PathBuf,
    /// Whether the state on the disk is that of the present update.
    is_written: bool,
}

/// Pictures in the order of their rounds.
struct Source {
    examples: Vec<Example>,
    seed: u64,
    batch: usize,
    round: Option<(usize, Vec<Vec<usize>>)>,
}

impl Source {
    fn new(examples: Vec<Example>, seed: u64, batch: usize) -> Source {
        Source { examples, seed, batch, round: None }
    }

    /// The pictures of pass `pass`.
    fn batch(&mut self, pass: usize) -> Vec<usize> {
        let sizes: Vec<(usize, usize)> = self.examples.iter().map(|e| e.size).collect();
        let of = |round: usize| {
            data::batches(&sizes, self.batch, &mut Draws::new(!self.seed, round as u64))
        };
        let count = match &self.round {
            Some((_, batches)) => batches.len(),
            None => of(0).len(),
        };
        let round = pass / count.max(1);
        if self.round.as_ref().is_none_or(|(other, _)| *other != round) {
            self.round = Some((round, of(round)));
        }
        self.round
            .as_ref()
            .map(|(_, batches)| batches[pass % count.max(1)].clone())
            .unwrap_or_default()
    }
}

impl<'a> Training<'a> {
    fn prepare(config: &'a Config, watch: &mut dyn Watch) -> Result<Training<'a>> {
        let device = Device::Cpu;
        let checkpoint = Checkpoint::open(&config.model, &device)?;
        let (unet_config, scheduler, unet_weights) = checkpoint.unet()?;
        let schedule = Schedule::new(&scheduler)?;
        let mut parameters = Parameters::default();
        let mut generator = Generator::new(config.seed);
        let (mut targets, mut beside) = (Vec::new(), HashMap::new());
        if config.task == Task::Lora {
            targets = lora::targets(&unet_weights, &config.lora.layers, lora::UNET)?;
            lora::begin(&mut parameters, &targets, config.lora.rank, &mut generator)?;
            beside = lora::beside(&parameters, &targets, config.lora.alpha)?;
        }

        let Ok([encoder]) = <[TextEncoder; 1]>::try_from(checkpoint.text_encoders()?) else {
            return Err(Error::Config(format!(
                "{}: this is SDXL, whose two text encoders training does not know; a checkpoint of Stable Diffusion 1 or 2 \
                 would be right",
                config.model.display()
            )));
        };
        let TextEncoder { config: clip_config, weights: clip_weights, tokenizer } = encoder;
        let tokenizer = match tokenizer {
            Some(folder) => ClipTokenizer::read(&folder),
            None => ClipTokenizer::clip(),
        };
        let tokenizer = tokenizer.map_err(|error| Error::Config(error.to_string()))?;
        let (clip, mut clip_tensors) =
            clip_weights.load_kept(|weights| ClipText::load(&clip_config, weights))?;
        let text_layers = &config.lora.text_encoder_layers;
        let mut texts = if config.task == Task::Lora && !text_layers.is_empty() {
            let of_text = text_targets(&clip_weights, text_layers)?;
            lora::begin(&mut parameters, &of_text, config.lora.rank, &mut generator)?;
            let beside = lora::beside(&parameters, &of_text, config.lora.alpha)?;
            targets.extend(of_text);
            let tensors = std::mem::take(&mut clip_tensors);
            let weights = Weights::from_trained(clip_weights.origin(), tensors, beside, &device);
            Texts::new(ClipText::load(&clip_config, &weights)?, tokenizer, true)
        } else {
            Texts::new(clip, tokenizer, false)
        };
        if config.task == Task::Inversion {
            let start = texts.embedding(&config.inversion.start)?;
            let vectors = start.repeat((config.inversion.vectors, 1))?;
            parameters.insert("vectors".to_owned(), &vectors)?;
            if let Some(vectors) = parameters.get("vectors") {
                texts.teach(config.inversion.token.clone(), vectors.clone());
            }
        }

        if config.task == Task::Dreambooth {
            ask_for_all(&unet_weights)?;
        }

        let (vae_config, vae_weights) = checkpoint.vae()?;
        let vae = Vae::load(&vae_weights, &vae_config)?;
        let levels = unet_config.encoder.levels.len().saturating_sub(1) as u32;
        let step = vae_config.factor() << levels;
        let cut = Cut { resolution: config.resolution, buckets: config.buckets, step };
        let pictures =
            read(config, &config.pictures, config.caption.as_deref(), cut, &vae, &texts, watch)?;
        let prior = match &config.prior {
            None => None,
            Some(prior) => {
                let caption = prior.caption.as_deref();
                let examples = read(config, &prior.pictures, caption, cut, &vae, &texts, watch)?;
                Some(Source::new(examples, config.seed ^ 1, config.batch))
            }
        };
        let vae = config.samples.is_some().then_some(vae);

        let load = |weights: &Weights| UNet::load(weights, &unet_config);
        let (_, tensors) = unet_weights.load_kept(load)?;
        let tensors = match config.task {
            Task::Dreambooth => {
                parameters = Parameters::of(&tensors, |_| true)?;
                parameters.replace_in(&tensors)
            }
            _ => tensors,
        };
        let weights = Weights::from_trained(unet_weights.origin(), tensors, beside, &device);
        let unet = load(&weights)?;

        let mut optimiser = Optimiser::new(&config.optimiser);
        let state = state::path(&config.output);
        let mut averages = None;
        let mut is_written = false;
        if state.is_file() {
            let found = state::read(&state, config, &parameters, &mut optimiser)?;
            averages = config.ema.map(|_| found);
            let (done, all) = (optimiser.updates(), config.steps);
            watch.note(
                &format!("going on after {done} of {all} updates ({})", state.display()),
                false,
            );
            is_written = true;
        }
        if config.ema.is_some() && averages.as_ref().is_none_or(BTreeMap::is_empty) {
            averages = Some(parameters.values()?);
        }
        let count = parameters.count();
        watch.note(&format!("{} pictures; {count} numbers learn", pictures.len()), false);
        let pictures = Source::new(pictures, config.seed, config.batch);
        Ok(Training {
            config,
            unet,
            schedule,
            vae,
            texts,
            pictures,
            prior,
            parameters,
            targets,
            optimiser,
            averages,
            state,
            is_written,
        })
    }

    fn updates(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let config = self.config;
        let (mut recent, mut last) = (Vec::new(), Instant::now());
        while self.optimiser.updates() < config.steps {
            let ended = match self.update() {
                Ok(mut report) => {
                    self.is_written = false;
                    report.seconds = last.elapsed().as_secs_f64();
                    last = Instant::now();
                    recent.push(report.seconds);
                    let recent = &recent[recent.len().saturating_sub(20)..];
                    let mean = recent.iter().sum::<f64>() / recent.len() as f64;
                    report.seconds_left = mean * (config.steps - report.update) as f64;
                    watch.update(&report)
                }
                Err(error) => Err(error),
            };
            let stopped = watch.stopped();
            if stopped || matches!(ended, Err(Error::Cancelled)) {
                self.write_state()?;
                let (done, all) = (self.optimiser.updates(), config.steps);
                watch.note(
                    &format!(
                        "stopped after {done} of {all} updates; the same command goes on from {}",
                        self.state.display()
                    ),
                    false,
                );
                return Err(Error::Cancelled);
            }
            ended?;
            let done = self.optimiser.updates();
            if config.checkpoint_every > 0 && done.is_multiple_of(config.checkpoint_every) {
                self.write_state()?;
            }
            if let Some(samples) = &config.samples
                && done.is_multiple_of(samples.every)
            {
                self.draw(samples, done, watch)?;
                last = Instant::now();
            }
        }
        Ok(())
    }

    fn update(&mut self) -> Result<Report> {
        let config = self.config;
        let done = self.optimiser.updates();
        let (mut gradients, mut loss) = (Gradients::default(), 0.0);
        for pass in 0..config.accumulate {
            let (of_pass, found) = self.pass(done * config.accumulate + pass)?;
            loss += of_pass / config.accumulate as f64;
            gradients.add(found);
        }
        if !loss.is_finite() || !gradients.norm().is_finite() {
            let kept = match self.state.is_file() {
                true => format!(
                    "; the last state that was written down stays in {}",
                    self.state.display()
                ),
                false => String::new(),
            };
            return Err(Error::Diverged { step: done + 1, loss, kept });
        }
        gradients.scale(1.0 / config.accumulate as f64);
        let rate = config.optimiser.learning_rate * config.rate.factor(done, config.steps);
        let gradient_norm = self.optimiser.update(&self.parameters, &mut gradients, rate)?;
        if let (Some(decay), Some(averages)) = (config.ema, &mut self.averages) {
            // Few updates are averaged over few: diffusers' warm-up of the average.
            let updates = self.optimiser.updates() as f64;
            let decay = decay.min((1.0 + updates) / (10.0 + updates)) as f32;
            for (name, values) in self.parameters.values()? {
                if let Some(averages) = averages.get_mut(&name) {
                    for (average, value) in averages.iter_mut().zip(values) {
                        *average += (1.0 - decay) * (value - *average);
                    }
                }
            }
        }
        Ok(Report {
            update: self.optimiser.updates(),
            updates: config.steps,
            loss,
            gradient_norm,
            learning_rate: rate,
            seconds: 0.0,
            seconds_left: 0.0,
        })
    }

    /// The loss of pass number `pass`, and its gradients.
    fn pass(&mut self, pass: usize) -> Result<(f64, Gradients)> {
        let config = self.config;
        let mut draws = Draws::new(config.seed, pass as u64);
        let chosen = self.pictures.batch(pass);
        let of_pictures = chosen.len();
        let mut rows = Rows::default();
        rows.take(&self.pictures, &chosen, config, &mut draws, &mut self.texts)?;
        if let Some(prior) = &mut self.prior {
            let chosen = prior.batch(pass);
            rows.take(prior, &chosen, config, &mut draws, &mut self.texts)?;
        }
        let latents = Tensor::stack(&rows.latents, 0)?;
        let context = Tensor::cat(&rows.contexts, 0)?;
        let mut generator = Generator::new(draws.next_u64());
        let mut noise = random(&mut generator, latents.dims())?;
        if config.noise_offset > 0.0 {
            let (batch, channels, _, _) = latents.dims4()?;
            let offset = random(&mut generator, &[batch, channels, 1, 1])?;
            noise = noise.broadcast_add(&(offset * config.noise_offset)?)?;
        }
        let train_steps = self.schedule.train_steps();
        let t: Vec<usize> = rows.latents.iter().map(|_| draws.below(train_steps)).collect();
        let noisy = add_noise(&self.schedule, &latents, &noise, &t)?;
        let prediction = self.unet.forward(&noisy, &timesteps(&t)?, &context, None)?;
        let wanted = target(&self.schedule, &latents, &noise, &t)?;
        let mut losses = mse_of_rows(&prediction, &wanted)?;
        if let Some(gamma) = config.min_snr {
            let weights = min_snr_weights(&self.schedule, &t, gamma);
            losses = (losses * Tensor::new(weights, &Device::Cpu)?)?;
        }
        let mut loss = losses.narrow(0, 0, of_pictures)?.mean_all()?;
        if let Some(prior) = &config.prior {
            let others = losses.dim(0)? - of_pictures;
            let of_prior = losses.narrow(0, of_pictures, others)?.mean_all()?;
            loss = (loss + (of_prior * prior.weight)?)?;
        }
        let value = f64::from(loss.to_scalar::<f32>()?);
        Ok((value, Gradients::of(&self.parameters, &loss.backward()?)?))
    }

    fn write_state(&mut self) -> Result<()> {
        if self.is_written {
            return Ok(());
        }
        let averages = self.averages.as_ref();
        state::write(&self.state, self.config, &self.parameters, &self.optimiser, averages)?;
        self.is_written = true;
        Ok(())
    }

    /// Draws the samples' prompts with the parameters as they are.
    fn draw(&mut self, samples: &SamplesConfig, done: usize, watch: &mut dyn Watch) -> Result<()> {
        let Some(vae) = &self.vae else { return Ok(()) };
        let config = self.config;
        let side = config.resolution / vae.config().factor();
        let name = config.output.file_stem().unwrap_or_default().to_string_lossy();
        let folder = config.output.with_file_name(format!("{name}.samples"));
        let failed = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
        let steps = samples.steps.min(self.schedule.train_steps());
        let at = ddim_timesteps(&self.schedule, steps);
        let stride = self.schedule.train_steps() / steps;
        let negative = self.texts.encode("")?.detach();
        for (i, prompt) in samples.prompts.iter().enumerate() {
            let context = Tensor::cat(&[&negative, &self.texts.encode(prompt)?.detach()], 0)?;
            let mut generator = Generator::new(samples.seed);
            let x = random(&mut generator, &[1, vae.config().latent_channels(), side, side])?;
            let model = &mut |x: &Tensor, t: f64| {
                let both = Tensor::cat(&[x, x], 0)?;
                let t = timesteps(&[t as usize])?;
                let found = self.unet.forward(&both, &t, &context, None);
                let found = found.map_err(candle_core::Error::wrap)?.detach();
                Ok(guide(&found.narrow(0, 0, 1)?, &found.narrow(0, 1, 1)?, samples.guidance)?)
            };
            let latents = ddim(&self.schedule, &at, stride, x, model, &mut |_| Ok(()))?;
            let picture = vae.decode(&(latents / vae.config().scaling_factor())?)?;
            let path = folder.join(format!("{done:06}-{i}.png"));
            save(&picture, &path)?;
            watch.made(&path);
        }
        Ok(())
    }

    fn finish(mut self, watch: &mut dyn Watch) -> Result<PathBuf> {
        if let Some(averages) = self.averages.take() {
            for (name, values) in averages {
                self.parameters.set(&name, values)?;
            }
        }
        let config = self.config;
        let mut metadata = BTreeMap::from([
            ("ss_steps".to_owned(), config.steps.to_string()),
            ("ss_learning_rate".to_owned(), config.optimiser.learning_rate.to_string()),
        ]);
        match config.task {
            Task::Lora => {
                metadata.insert("ss_network_module".to_owned(), "networks.lora".to_owned());
                metadata.insert("ss_network_dim".to_owned(), config.lora.rank.to_string());
                metadata.insert("ss_network_alpha".to_owned(), config.lora.alpha.to_string());
                let tensors =
                    lora::file_tensors(&self.parameters, &self.targets, config.lora.alpha)?;
                files::write(&config.output, &tensors, &metadata)?;
            }
            Task::Inversion => {
                let vectors = self.parameters.iter().map(|(_, var)| var.as_detached_tensor());
                let tensors = vectors.map(|vectors| ("emb_params".to_owned(), vectors)).collect();
                files::write(&config.output, &tensors, &metadata)?;
            }
            Task::Dreambooth => self.write_unet(&metadata)?,
        }
        if let Err(error) = std::fs::remove_file(&self.state)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            watch.note(&format!("{} is needed no more: {error}", self.state.display()), true);
        }
        Ok(config.output.clone())
    }

    /// A folder in diffusers' layout, with the configuration of the base beside the weights.
    fn write_unet(&self, metadata: &BTreeMap<String, String>) -> Result<()> {
        let config = self.config;
        let tensors = self.parameters.iter();
        let tensors: BTreeMap<String, Tensor> =
            tensors.map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let failed = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        let folder = files::folder_of(&config.output);
        std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
        let unfinished = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(&folder)
            .map_err(|source| failed(&folder, source))?;
        let weights = unfinished.path().join("diffusion_pytorch_model.safetensors");
        files::write(&weights, &tensors, metadata)?;
        for from in [config.model.join("unet/config.json"), config.model.join("config.json")] {
            if from.is_file() {
                let to = unfinished.path().join("config.json");
                std::fs::copy(&from, &to).map_err(|source| failed(&to, source))?;
                break;
            }
        }
        let path = unfinished.keep();
        std::fs::rename(&path, &config.output).map_err(|source| failed(&config.output, source))
    }
}

/// Whether there is memory for every number of a network, its gradient and two moments.
fn ask_for_all(weights: &Weights) -> Result<()> {
    let shapes = weights.names().into_iter().filter_map(|name| weights.shape(&name));
    let count: u128 =
        shapes.map(|shape| shape.iter().map(|side| *side as u128).product::<u128>()).sum();
    let bytes = count * 4 * size_of::<f32>() as u128;
    let sum = format!("{count} numbers, their gradients and two moments of each");
    Ok(kosmograph_memory::ask_bytes("a training of the whole U-Net", bytes, &sum)?)
}

/// The layers of the text encoder, whose modules kohya's files call `text_model_…` also where the weights go without.
fn text_targets(weights: &Weights, layers: &[String]) -> Result<Vec<Target>> {
    let mut targets = lora::targets(weights, layers, lora::TEXT_ENCODER)?;
    for target in &mut targets {
        if let Some(rest) = target.module.strip_prefix(lora::TEXT_ENCODER)
            && !rest.starts_with("text_model_")
        {
            target.module = format!("{}text_model_{rest}", lora::TEXT_ENCODER);
        }
    }
    Ok(targets)
}

fn read(
    config: &Config,
    folder: &Path,
    caption: Option<&str>,
    cut: Cut,
    vae: &Vae,
    texts: &Texts,
    watch: &mut dyn Watch,
) -> Result<Vec<Example>> {
    let word = (config.task == Task::Inversion).then_some(&*config.inversion.token);
    let given = match (caption, word) {
        (None, Some(word)) => Some(format!("a picture of {word}")),
        (caption, _) => caption.map(str::to_owned),
    };
    let read = data::read(folder, given.as_deref(), cut, config.flip, vae)?;
    read.notes.iter().for_each(|note| watch.note(note, true));
    let mut examples = read.examples;
    for example in &mut examples {
        if let Some(note) = texts.too_long(&example.caption)? {
            watch.note(&format!("{}: {note}", example.path.display()), true);
        }
        if let Some(word) = word
            && !example.caption.contains(word)
        {
            let path = example.path.display();
            watch.note(
                &format!("{path}: its caption does not say \"{word}\", which is put before it"),
                true,
            );
            example.caption = format!("{word} {}", example.caption);
        }
    }
    Ok(examples)
}

/// Latents [C, h, w] and contexts [1, T, C] of a pass.
#[derive(Default)]
struct Rows {
    latents: Vec<Tensor>,
    contexts: Vec<Tensor>,
}

impl Rows {
    fn take(
        &mut self,
        source: &Source,
        chosen: &[usize],
        config: &Config,
        draws: &mut Draws,
        texts: &mut Texts,
    ) -> Result<()> {
        for &index in chosen {
            let example = &source.examples[index];
            let [mean, std] = &example.latents[draws.below(example.latents.len())];
            let mut generator = Generator::new(draws.next_u64());
            let noise = random(&mut generator, mean.dims())?;
            self.latents.push((mean + (std * noise)?)?);
            let is_dropped = draws.share() < config.caption_dropout;
            let caption = if is_dropped { "" } else { &*example.caption };
            self.contexts.push(texts.encode(caption)?);
        }
        Ok(())
    }
}

fn random(generator: &mut Generator, shape: &[usize]) -> Result<Tensor> {
    let values = generator.randn(shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// [1, 3, H, W] in −1..1 as a PNG.
fn save(picture: &Tensor, path: &Path) -> Result<()> {
    let (_, _, height, width) = picture.dims4()?;
    let pixels = ((picture.clamp(-1f32, 1f32)? + 1.0)? * 127.5)?.squeeze(0)?.permute((1, 2, 0))?;
    let pixels = pixels.flatten_all()?.to_vec1::<f32>()?;
    let pixels: Vec<u8> = pixels.into_iter().map(|value| value.round() as u8).collect();
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let (width, height) = (width as u32, height as u32);
    image::save_buffer(path, &pixels, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|error| failed(std::io::Error::other(error)))
}
