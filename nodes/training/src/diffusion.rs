//! What is trained through a U-Net: a LoRA, the U-Net itself, the vectors of a word, a ControlNet.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use kosmograph_kernels::bounds::between;
use kosmograph_models::Weights;
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::samplers::Schedule;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::stable_diffusion::checkpoint::{Checkpoint, TextEncoder};
use kosmograph_models::stable_diffusion::recompute::{Tape, record};
use kosmograph_models::stable_diffusion::steering::Steering;
use kosmograph_models::stable_diffusion::unet::{Condition, Residuals, UNet, UNetConfig};
use kosmograph_models::stable_diffusion::vae::{Vae, VaeConfig};
use kosmograph_models::text::clip_tokens::ClipTokenizer;

use crate::config::{Config, SamplesConfig, Task};
use crate::control::Control;
use crate::data::{self, Cut, Example};
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::lora::{self, Target};
use crate::noise::{add_noise, min_snr_weights, mse_of_rows, target};
use crate::parameters::{Gradients, Parameters};
use crate::run::{Learner, Watch};
use crate::texts::{Encoder, Text, Texts};
use crate::{anew, ask_for_all, files, samples, timesteps};

/// Sizes that SDXL's base is told of each picture.
const SIZES: usize = 6;

/// What learns through a U-Net, and what it learns from.
pub(crate) struct Diffusion<'a> {
    config: &'a Config,
    unet: UNet,
    control: Option<Control>,
    schedule: Schedule,
    /// Only for samples.
    vae: Option<Vae>,
    texts: Texts,
    pictures: Source,
    prior: Option<Source>,
    parameters: Parameters,
    targets: Vec<Target>,
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

    /// The hint of a sample, where pictures have hints; one after the other.
    fn hint(&self, sample: usize) -> Result<Vec<Tensor>> {
        let example = &self.examples[sample % self.examples.len()];
        let Some(hint) = &example.hint else { return Ok(Vec::new()) };
        let planes = data::planes(hint, example.size, false)?;
        Ok(vec![planes.clone(), planes])
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

impl<'a> Diffusion<'a> {
    /// Reads the model and the pictures.
    pub(crate) fn prepare(config: &'a Config, watch: &mut dyn Watch) -> Result<Diffusion<'a>> {
        let device = Device::Cpu;
        let checkpoint = Checkpoint::open(&config.model, &device)?;
        let (mut unet_config, scheduler, unet_weights) = checkpoint.unet()?;
        if !config.widths.is_empty() {
            let (described, file) = described(config)?.ok_or_else(|| {
                Error::Config(format!(
                    "\"widths\" are those of a U-Net like {}, which has no config.json that says what it is like otherwise; a \
                     folder in diffusers' layout would be right",
                    config.model.display()
                ))
            })?;
            unet_config = UNetConfig::from_json(&described, &file)?;
        }
        let schedule = Schedule::new(&scheduler)?;
        let vector = unet_config.encoder.vector;
        let is_xl = vector.is_some();
        if is_xl && config.task != Task::Lora {
            return Err(Error::Config(format!(
                "{}: this is SDXL, of which a LoRA alone is trained; \"task\": \"lora\", or a checkpoint of Stable Diffusion 1 \
                 or 2, would be right",
                config.model.display()
            )));
        }
        let mut parameters = Parameters::default();
        let mut generator = Generator::new(config.seed);
        let (mut targets, mut beside) = (Vec::new(), HashMap::new());
        let kind_and_rank = (config.lora.kind, config.lora.rank);
        let kind_and_alpha = (config.lora.kind, config.lora.alpha);
        if config.task == Task::Lora {
            targets = lora::targets(&unet_weights, &config.lora.layers, lora::UNET)?;
            if is_xl {
                lora::name_as_sdxl(&mut targets, &unet_weights.names());
            }
            lora::begin(&mut parameters, &targets, kind_and_rank, &mut generator)?;
            beside = lora::beside(&parameters, &targets, kind_and_alpha)?;
        }

        let encoders = text_encoders_of(config, &checkpoint)?;
        let wanted = if is_xl { 2 } else { 1 };
        if encoders.len() != wanted || vector.is_some_and(|vector| vector.sizes != SIZES) {
            return Err(Error::Config(format!(
                "{}: a U-Net with {} is trained, and {} were found; a checkpoint of Stable Diffusion 1 or 2, or of SDXL's \
                 base, would be right",
                config.model.display(),
                if is_xl { "two text encoders and six sizes (SDXL's)" } else { "one text encoder" },
                encoders.len()
            )));
        }
        let text_layers = &config.lora.text_encoder_layers;
        let texts_learn = config.task == Task::Lora && !text_layers.is_empty();
        let prefixes = match is_xl {
            true => &lora::TEXT_ENCODERS_OF_SDXL[..],
            false => &[lora::TEXT_ENCODER],
        };
        let mut loaded = Vec::new();
        for (encoder, prefix) in encoders.into_iter().zip(prefixes) {
            let TextEncoder { config: clip_config, weights: clip_weights, tokenizer } = encoder;
            let tokenizer = match tokenizer {
                Some(tokenizer) => tokenizer.read(),
                None => ClipTokenizer::clip().map_err(Into::into),
            };
            let tokenizer = tokenizer.map_err(|error| Error::Config(error.to_string()))?;
            // G was trained with rows that are filled with 0.
            let tokenizer = if clip_config.is_g() { tokenizer.or_pad(0) } else { tokenizer };
            let (mut clip, clip_tensors) =
                clip_weights.load_kept(|weights| ClipText::load(&clip_config, weights))?;
            if texts_learn {
                let of_text = text_targets(&clip_weights, text_layers, prefix)?;
                lora::begin(&mut parameters, &of_text, kind_and_rank, &mut generator)?;
                let beside = lora::beside(&parameters, &of_text, kind_and_alpha)?;
                targets.extend(of_text);
                let origin = clip_weights.origin();
                let weights = Weights::from_trained(origin, clip_tensors, beside, &device);
                clip = ClipText::load(&clip_config, &weights)?;
            }
            loaded.push(Encoder { clip, tokenizer });
        }
        let mut texts = Texts::new(loaded, texts_learn);
        if config.task == Task::Inversion {
            let start = texts.embedding(&config.inversion.start)?;
            let vectors = start.repeat((config.inversion.vectors, 1))?;
            parameters.insert("vectors".to_owned(), &vectors)?;
            if let Some(vectors) = parameters.get("vectors") {
                texts.teach(config.inversion.token.clone(), vectors.clone());
            }
        }

        if config.task.is_whole_unet() {
            let shapes =
                unet_weights.names().into_iter().filter_map(|name| unet_weights.shape(&name));
            ask_for_all("the whole U-Net", shapes)?;
        }

        let control = match &config.control {
            Some(_) if config.task == Task::Controlnet => {
                let control = Control::begin(config, &unet_weights, &mut generator)?;
                parameters = control.parameters.clone();
                Some(control)
            }
            _ => None,
        };

        let (vae_config, vae_weights) = vae_of(config, &checkpoint)?;
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
        let tensors = match config.anew {
            true => {
                let recording = Weights::recording();
                load(&recording)?;
                anew::tensors(&recording.recorded(), &mut generator)?
            }
            false => unet_weights.load_kept(load)?.1,
        };
        let tensors = match config.task {
            Task::Dreambooth | Task::TextToPicture => {
                parameters = Parameters::of(&tensors, |_| true)?;
                parameters.replace_in(&tensors)
            }
            _ => tensors,
        };
        let weights = Weights::from_trained(unet_weights.origin(), tensors, beside, &device);
        let unet = load(&weights)?;

        let count = parameters.count();
        watch.note(&format!("{} pictures; {count} numbers learn", pictures.len()), false);
        let pictures = Source::new(pictures, config.seed, config.batch);
        Ok(Diffusion {
            config,
            unet,
            control,
            schedule,
            vae,
            texts,
            pictures,
            prior,
            parameters,
            targets,
        })
    }
}

impl Learner for Diffusion<'_> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The loss of pass number `pass`, and its gradients.
    fn pass(&mut self, pass: usize) -> Result<(f64, Gradients)> {
        let blocks = self.config.recompute.then(Tape::default);
        let (loss, recorded) = record(|| self.loss(pass, blocks.as_ref()));
        let loss = loss?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let found = self.unet.backward(recorded, blocks.as_ref(), &loss)?;
        Ok((value, Gradients::of(&self.parameters, &found)?))
    }

    /// Draws the samples' prompts with the parameters as they are.
    fn draw(&mut self, samples: &SamplesConfig, done: usize, watch: &mut dyn Watch) -> Result<()> {
        let Some(vae) = &self.vae else { return Ok(()) };
        let config = self.config;
        let folder = files::samples_folder(&config.output)?;
        let negative = self.texts.encode("")?;
        let side = config.resolution as f32;
        for (i, prompt) in samples.prompts.iter().enumerate() {
            let mut both = Told::default();
            for text in [negative.clone(), self.texts.encode(prompt)?] {
                both.take(text, [side, side, 0.0, 0.0, side, side])?;
            }
            let (context, vector) = both.rows()?;
            let context = context.detach();
            let hints = self.pictures.hint(i)?;
            let mut predict = |both: &Tensor, t: &Tensor| {
                let residuals = self.residuals(both, t, &context, &hints)?;
                let condition = of_vector(&context, vector.as_ref());
                Ok(self.unet.forward(both, t, condition, residuals.as_ref())?)
            };
            let by = (&self.schedule, vae);
            let picture = samples::draw(by, config.resolution, samples, &mut predict)?;
            let path = folder.join(format!("{done:06}-{i}.png"));
            save(&picture, &path)?;
            watch.made(&path);
        }
        Ok(())
    }

    fn write(&self, mut metadata: BTreeMap<String, String>) -> Result<()> {
        let config = self.config;
        match config.task {
            Task::Lora => {
                let (module, arguments) = config.lora.kind.module();
                metadata.insert("ss_network_module".to_owned(), module.to_owned());
                if let Some(arguments) = arguments {
                    metadata.insert("ss_network_args".to_owned(), arguments.to_owned());
                }
                metadata.insert("ss_network_dim".to_owned(), config.lora.rank.to_string());
                metadata.insert("ss_network_alpha".to_owned(), config.lora.alpha.to_string());
                let kind_and_alpha = (config.lora.kind, config.lora.alpha);
                let tensors = lora::file_tensors(&self.parameters, &self.targets, kind_and_alpha)?;
                let tensors =
                    config.lora.naming.named(tensors, &self.targets, config.lora.alpha)?;
                files::write(&config.output, &tensors, &metadata)
            }
            Task::Inversion => {
                let vectors = self.parameters.iter().map(|(_, var)| var.as_detached_tensor());
                let tensors = vectors.map(|vectors| ("emb_params".to_owned(), vectors)).collect();
                files::write(&config.output, &tensors, &metadata)
            }
            Task::Controlnet => {
                let described = self.control.as_ref().map(|control| control.described.as_str());
                self.write_folder(described, &metadata)
            }
            Task::Dreambooth | Task::TextToPicture => {
                let described = described(config)?.map(|(described, _)| described);
                self.write_folder(described.as_deref(), &metadata)
            }
            // Other learners'.
            Task::Align
            | Task::Instruct
            | Task::Mllm
            | Task::Vae
            | Task::Clip
            | Task::Export
            | Task::Data => Ok(()),
        }
    }
}

impl Diffusion<'_> {
    /// The loss of pass number `pass`, whose U-Net has its blocks on `blocks` where they are computed again.
    fn loss(&mut self, pass: usize, blocks: Option<&Tape>) -> Result<Tensor> {
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
        let (context, vector) = rows.told.rows()?;
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
        let residuals = self.residuals(&noisy, &timesteps(&t)?, &context, &rows.hints)?;
        let steering =
            Steering { residuals: residuals.as_ref(), tape: blocks, ..Steering::default() };
        let (t_of_rows, probe) = (timesteps(&t)?, &mut |_: &str, _: &Tensor| {});
        let condition = of_vector(&context, vector.as_ref());
        let prediction =
            self.unet.forward_steered(&noisy, &t_of_rows, condition, steering, probe)?;
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
        Ok(loss)
    }

    /// A folder in diffusers' layout, with its config.json beside the weights.
    fn write_folder(
        &self,
        described: Option<&str>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let tensors = self.parameters.iter();
        let tensors: BTreeMap<String, Tensor> =
            tensors.map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let name = "diffusion_pytorch_model.safetensors";
        let described = described.map(|text| ("config.json", text.as_bytes().to_vec()));
        let beside: Vec<_> = described.into_iter().collect();
        files::write_folder(&self.config.output, name, &tensors, metadata, &beside)
    }

    /// What the ControlNet that learns gives the U-Net, if one does.
    fn residuals(
        &self,
        noisy: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        hints: &[Tensor],
    ) -> Result<Option<Residuals>> {
        let Some(Control { network, .. }) = &self.control else { return Ok(None) };
        let hint = network.embed_hint(&Tensor::stack(hints, 0)?)?;
        Ok(Some(network.forward(noisy, timesteps, context, &hint)?))
    }
}

/// The autoencoder that the configuration names; else the base's own.
pub(crate) fn vae_of(config: &Config, checkpoint: &Checkpoint) -> Result<(VaeConfig, Weights)> {
    Ok(match &config.vae {
        Some(path) => Checkpoint::open(path, &Device::Cpu)?.vae()?,
        None => checkpoint.vae()?,
    })
}

/// The text encoder that the configuration names; else the base's own.
pub(crate) fn text_encoders_of(
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<Vec<TextEncoder>> {
    Ok(match &config.text_encoder {
        Some(path) => Checkpoint::open(path, &Device::Cpu)?.text_encoders()?,
        None => checkpoint.text_encoders()?,
    })
}

/// What the config.json of the U-Net that learns says, and whose it is; none where `model` has none. One that begins anew has
/// the widths that it is to have, and nothing that previews are drawn by: that was of other latents.
fn described(config: &Config) -> Result<Option<(String, String)>> {
    let beside = ["unet/config.json", "config.json"].map(|name| config.model.join(name));
    let Some(path) = beside.iter().find(|path| path.is_file()) else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    let file = path.display().to_string();
    if !config.anew {
        return Ok(Some((text, file)));
    }
    let json: Result<serde_json::Map<_, _>, _> = serde_json::from_str(&text);
    let mut json = json.map_err(|error| Error::Data(format!("{file}: {error}")))?;
    json.shift_remove("latent_rgb");
    json.shift_remove("latent_rgb_bias");
    if !config.widths.is_empty() {
        json.insert("block_out_channels".to_owned(), config.widths.clone().into());
    }
    Ok(Some((format!("{:#}\n", serde_json::Value::Object(json)), file)))
}

/// The layers of the text encoder, whose modules kohya's files call `text_model_…` also where the weights go without.
fn text_targets(weights: &Weights, layers: &[String], prefix: &str) -> Result<Vec<Target>> {
    let mut targets = lora::targets(weights, layers, prefix)?;
    for target in &mut targets {
        if let Some(rest) = target.module.strip_prefix(prefix)
            && !rest.starts_with("text_model_")
        {
            target.module = format!("{prefix}text_model_{rest}");
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
    // Pictures of the class have none.
    let hints = config.control.as_ref().filter(|_| folder == config.pictures.as_path());
    let hints = hints.map(|control| control.hints.as_path());
    let read = data::read(folder, given.as_deref(), cut, config.flip, hints, vae, watch)?;
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

/// Latents [C, h, w], what is told and hints [3, H, W] of a pass.
#[derive(Default)]
struct Rows {
    latents: Vec<Tensor>,
    told: Told,
    hints: Vec<Tensor>,
}

/// What the U-Net is told of rows: contexts [1, T, C], and where they have a pooled vector [1, P] that and the sizes.
#[derive(Default)]
struct Told {
    contexts: Vec<Tensor>,
    pooled: Vec<Tensor>,
    sizes: Vec<[f32; SIZES]>,
}

impl Told {
    fn take(&mut self, text: Text, sizes: [f32; SIZES]) -> Result<()> {
        self.contexts.push(text.context);
        if let Some(pooled) = text.pooled {
            self.pooled.push(pooled);
            self.sizes.push(sizes);
        }
        Ok(())
    }

    /// The context [B, T, C], and of SDXL the pooled vectors [B, P] and sizes [B, 6].
    fn rows(&self) -> Result<(Tensor, Option<[Tensor; 2]>)> {
        let context = Tensor::cat(&self.contexts, 0)?;
        if self.pooled.is_empty() {
            return Ok((context, None));
        }
        let (rows, sizes) = (self.sizes.len(), self.sizes.concat());
        let sizes = Tensor::from_vec(sizes, (rows, SIZES), &Device::Cpu)?;
        Ok((context, Some([Tensor::cat(&self.pooled, 0)?, sizes])))
    }
}

fn of_vector<'a>(context: &'a Tensor, vector: Option<&'a [Tensor; 2]>) -> Condition<'a> {
    let [pooled, sizes] = [0, 1].map(|i| vector.map(|vector| &vector[i]));
    Condition { context, pooled, sizes }
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
            let side = draws.below(example.latents.len());
            let [mean, std] = &example.latents[side];
            if let Some(hint) = &example.hint {
                self.hints.push(data::planes(hint, example.size, side == 1)?);
            }
            let mut generator = Generator::new(draws.next_u64());
            let noise = random(&mut generator, mean.dims())?;
            self.latents.push((mean + (std * noise)?)?);
            let is_dropped = draws.share() < config.caption_dropout;
            let caption = if is_dropped { "" } else { &*example.caption };
            self.told.take(texts.encode(caption)?, example.sizes)?;
        }
        Ok(())
    }
}

pub(crate) fn random(generator: &mut Generator, shape: &[usize]) -> Result<Tensor> {
    let values = generator.randn(shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// [1, 3, H, W] in −1..1 as a PNG.
pub(crate) fn save(picture: &Tensor, path: &Path) -> Result<()> {
    let (_, _, height, width) = picture.dims4()?;
    let pixels = ((between(picture, -1.0, 1.0)? + 1.0)? * 127.5)?.squeeze(0)?.permute((1, 2, 0))?;
    let pixels = pixels.flatten_all()?.to_vec1::<f32>()?;
    let pixels: Vec<u8> = pixels.into_iter().map(|value| value.round() as u8).collect();
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let size = (width as u32, height as u32);
    kosmograph_picture_files::save(path, &pixels, size, image::ExtendedColorType::Rgb8)
        .map_err(|error| failed(std::io::Error::other(error)))
}
