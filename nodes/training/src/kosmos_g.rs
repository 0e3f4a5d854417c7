//! Kosmos-G's own training: `align` and `instruct`, the paper's second and third stage, with the losses of
//! [`crate::kosmos`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::kosmos::Kosmos as Folder;
use kosmograph_models::kosmos::aligner::{Aligner, Reconstruction};
use kosmograph_models::kosmos::connector::Connector;
use kosmograph_models::kosmos::magneto::{Dropout, Dropping};
use kosmograph_models::kosmos::mllm::{ImageTokens, Mllm};
use kosmograph_models::kosmos::preprocess::{PictureTransform, resize_and_crop};
use kosmograph_models::kosmos::vit::Vit;
use kosmograph_models::samplers::Schedule;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::stable_diffusion::checkpoint::{Checkpoint, TextEncoder};
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_models::stable_diffusion::vae::Vae;
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use kosmograph_models::text::kosmos_tokens::{BOS, EOS, KosmosTokenizer, PAD, PICTURE_MARK};
use kosmograph_pixels::pillow::{Filter, Picture};

use crate::clip::vision_of;
use crate::config::{Config, SamplesConfig, Task};
use crate::diffusion::{random, save, text_encoders_of, vae_of};
use crate::documents::{Corpus, Document};
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::noise::cross_entropy;
use crate::parameters::{Gradients, Parameters};
use crate::run::{Learner, Watch};
use crate::{anew, ask_for_all, data, files, kosmos, samples};

mod parts;

use parts::{Parts, reconstruction, take_over};

/// The table of the language model, whose row of padding never learns.
const TABLE: &str = "gpt_model.decoder.embed_tokens.weight";
/// What lies in a folder of Kosmos-G beside the weights.
const BESIDE: [&str; 3] = ["config.json", "sentencepiece.bpe.model", "dict.txt"];

/// What learns, and what it learns from.
pub(crate) struct Kosmos<'a> {
    config: &'a Config,
    folder: &'a Path,
    corpus: Corpus,
    tokenizer: KosmosTokenizer,
    clip_tokenizer: ClipTokenizer,
    transform: PictureTransform,
    image_tokens: usize,
    mllm: Mllm,
    aligner: Aligner,
    stage: Stage,
    parameters: Parameters,
    /// What draws samples of `align`.
    artist: Option<Box<(UNet, Vae, Schedule)>>,
    /// Of a network that began anew, what does not learn yet.
    frozen: BTreeMap<String, Tensor>,
}

/// What only one of the stages needs.
enum Stage {
    Align(Box<Align>),
    Instruct(Box<Instruct>),
    /// What the language model sees by.
    Mllm(Box<(Vit, Connector)>),
}

struct Align {
    reconstruction: Reconstruction,
    clip: ClipText,
}

struct Instruct {
    vit: Vit,
    connector: Connector,
    unet: UNet,
    vae: Vae,
    schedule: Schedule,
    /// Where an anchor is asked for.
    clip: Option<ClipText>,
}

impl<'a> Kosmos<'a> {
    /// Reads the models and finds the documents.
    pub fn prepare(config: &'a Config, watch: &mut dyn Watch) -> Result<Kosmos<'a>> {
        let device = Device::Cpu;
        let folder = config.kosmos.as_deref().unwrap_or(Path::new(""));
        let Folder { tokenizer, transform, config: model, .. } = Folder::read(folder, &device)?;
        let is_align = config.task == Task::Align;
        let is_mllm = config.task == Task::Mllm;
        let (corpus, notes) = match config.shards.is_empty() {
            true => Corpus::of_folder(&config.pictures, is_align)?,
            false => (Corpus::of_shards(&config.shards, is_align)?, Vec::new()),
        };
        notes.iter().for_each(|note| watch.note(note, true));
        let lacking = if config.anchor > 0.0 { corpus.without_captions() } else { 0 };
        if lacking > 0 {
            let sentence = format!(
                "{lacking} of {} documents have pictures and no caption beside them (NAME.caption.txt): \"anchor\" does not hold them",
                corpus.len()
            );
            watch.note(&sentence, true);
        }

        let weights = match config.anew {
            true => {
                let recording = Weights::recording();
                Parts::load(&model, is_align, &recording)?;
                let mut tensors =
                    anew::tensors(&recording.recorded(), &mut Generator::new(config.seed))?;
                if let Some(path) = &config.vision {
                    take_over(&mut tensors, vision_of(path)?, path)?;
                }
                Weights::from_kept("the new Kosmos-G", tensors, &device)
            }
            false => Weights::open(folder, &device)?,
        };
        let (_, mut tensors) =
            weights.load_kept(|weights| Parts::load(&model, is_align, weights))?;
        if is_align && !Reconstruction::is_in(&weights.sub("aligner")) {
            let name = folder.display();
            watch.note(
                &format!("{name} has no reconstruction half, which begins anew and is written with the rest"),
                false,
            );
            tensors.extend(reconstruction(&model, &mut Generator::new(config.seed))?);
        }
        let last = model.vision.vit.layers.saturating_sub(1);
        let learns = |name: &str| {
            let of_vision = [
                "img_connector.".to_owned(),
                "img_model.visual.ln_post.".to_owned(),
                format!("img_model.visual.transformer.resblocks.{last}."),
            ];
            if is_mllm {
                return !name.starts_with("aligner.");
            }
            name.starts_with("aligner.")
                || (!is_align && name.starts_with("gpt_model."))
                || (!is_align && of_vision.iter().any(|start| name.starts_with(start)))
        };
        let shapes = tensors.iter().filter(|(name, _)| learns(name));
        ask_for_all("Kosmos-G", shapes.map(|(_, weight)| weight.dims().to_vec()))?;
        let parameters = Parameters::of(&tensors, learns)?;
        let mut frozen = BTreeMap::new();
        for (name, weight) in tensors.iter().filter(|(name, _)| config.anew && !learns(name)) {
            frozen.insert(name.clone(), weight.tensor()?);
        }
        let variables = parameters.replace_in(&tensors);
        let trained = Weights::from_kept(weights.origin(), variables, &device);
        let Parts { mllm, aligner, reconstruction, vision } =
            Parts::load(&model, is_align, &trained)?;

        let checkpoint = Checkpoint::open(&config.model, &device)?;
        let Ok([encoder]) = <[TextEncoder; 1]>::try_from(text_encoders_of(config, &checkpoint)?)
        else {
            return Err(Error::Config(format!(
                "{}: Kosmos-G speaks to the one text encoder of Stable Diffusion 1, and not to SDXL's two",
                config.model.display()
            )));
        };
        let clip_tokenizer = match &encoder.tokenizer {
            Some(tokenizer) => tokenizer.read(),
            None => ClipTokenizer::clip().map_err(Into::into),
        };
        let clip_tokenizer = clip_tokenizer.map_err(|error| Error::Config(error.to_string()))?;
        let artist = match config.samples.is_some() && is_align {
            true => {
                let (unet, scheduler, weights) = checkpoint.unet()?;
                let (unet, schedule) = (UNet::load(&weights, &unet)?, Schedule::new(&scheduler)?);
                let (vae, weights) = vae_of(config, &checkpoint)?;
                Some(Box::new((unet, Vae::load(&weights, &vae)?, schedule)))
            }
            false => None,
        };
        let stage = match (reconstruction, vision) {
            (Some(reconstruction), _) => {
                let clip = ClipText::load(&encoder.config, &encoder.weights)?;
                Stage::Align(Box::new(Align { reconstruction, clip }))
            }
            (None, Some(seeing)) if is_mllm => Stage::Mllm(Box::new(seeing)),
            (None, Some((vit, connector))) => {
                let (unet, scheduler, weights) = checkpoint.unet()?;
                let schedule = Schedule::new(&scheduler)?;
                let unet = UNet::load(&weights, &unet)?;
                let (vae, weights) = vae_of(config, &checkpoint)?;
                let vae = Vae::load(&weights, &vae)?;
                let clip = match config.anchor > 0.0 {
                    true => Some(ClipText::load(&encoder.config, &encoder.weights)?),
                    false => None,
                };
                Stage::Instruct(Box::new(Instruct { vit, connector, unet, vae, schedule, clip }))
            }
            (None, None) => return Err(Error::Config("nothing of Kosmos-G learns".to_owned())),
        };
        let count = parameters.count();
        watch.note(&format!("{} documents; {count} numbers learn", corpus.len()), false);
        let image_tokens = model.connector.latent_query_num;
        Ok(Kosmos {
            config,
            folder,
            corpus,
            tokenizer,
            clip_tokenizer,
            transform,
            image_tokens,
            mllm,
            aligner,
            stage,
            parameters,
            artist,
            frozen,
        })
    }
}

/// Prompts of one length: ids [B, T], and where image tokens stand.
struct Prompts {
    tokens: Tensor,
    mask: Tensor,
}

impl Kosmos<'_> {
    fn prompts(&self, documents: &[Document]) -> Result<Prompts> {
        let mut rows = Vec::new();
        for Document { prompt, sources, .. } in documents {
            let told = |error: &dyn std::fmt::Display| Error::Data(error.to_string());
            rows.push(match sources.is_empty() {
                // A mark in a text without pictures is characters like others.
                true => {
                    let ids = self.tokenizer.negative(prompt);
                    let mask = vec![false; ids.len()];
                    (ids, mask)
                }
                false => {
                    let laid = self.tokenizer.prompt(prompt, sources.len(), self.image_tokens);
                    let laid = laid.map_err(|error| told(&error))?;
                    (laid.ids, laid.image_mask)
                }
            });
        }
        if self.config.task == Task::Mllm {
            // A caption ends, which is to be said, too.
            for (ids, mask) in &mut rows {
                ids.push(EOS);
                mask.push(false);
            }
        }
        let length = rows.iter().map(|(ids, _)| ids.len()).max().unwrap_or_default();
        let (mut tokens, mut mask) = (Vec::new(), Vec::new());
        for (ids, of_images) in &rows {
            let filled = |filler: u32| std::iter::repeat_n(filler, length - ids.len());
            tokens.extend(ids.iter().copied().chain(filled(PAD)));
            mask.extend(of_images.iter().map(|image| u8::from(*image)));
            mask.extend(std::iter::repeat_n(0u8, length - ids.len()));
        }
        Ok(Prompts {
            tokens: Tensor::from_vec(tokens, (rows.len(), length), &Device::Cpu)?,
            mask: Tensor::from_vec(mask, (rows.len(), length), &Device::Cpu)?,
        })
    }

    /// The losses of a batch of documents, and how many rows a gradient is divided by.
    fn loss(&self, documents: &[Document], draws: &mut Draws) -> Result<(Tensor, usize)> {
        let Prompts { tokens, mask } = self.prompts(documents)?;
        let padding = kosmos::padding(&tokens)?;
        let generator = RefCell::new(Generator::new(draws.next_u64()));
        let of_values = |x: &Tensor| dropped(x, self.config.dropout, &mut generator.borrow_mut());
        let of_attention =
            |x: &Tensor| dropped(x, self.config.attention_dropout, &mut generator.borrow_mut());
        let drops_attention = self.config.attention_dropout > 0.0;
        let drop = Dropping {
            values: &of_values,
            attention: drops_attention.then_some(&of_attention as &Dropout),
        };
        match &self.stage {
            Stage::Align(parts) => {
                let Align { reconstruction, clip } = &**parts;
                let hidden = self.mllm.forward_dropping(&tokens, None, drop)?.detach();
                let prompts: Vec<&str> =
                    documents.iter().map(|document| &*document.prompt).collect();
                let target = self.read(clip, &prompts)?;
                let [mse, rec] = kosmos::align_losses(
                    &self.aligner,
                    reconstruction,
                    &hidden,
                    &padding,
                    &target,
                )?;
                Ok(((mse + rec)?, 1))
            }
            Stage::Mllm(seeing) => {
                let (vit, connector) = &**seeing;
                let images = self.seen(vit, connector, documents, mask.clone())?;
                let hidden = self.mllm.forward_dropping(&tokens, images.as_ref(), drop)?;
                let (rows, length, width) = hidden.dims3()?;
                let said =
                    hidden.narrow(1, 0, length - 1)?.reshape((rows * (length - 1), width))?;
                let logits = self.mllm.logits(&said.contiguous()?)?;
                let (tokens, mask) = (tokens.to_vec2::<u32>()?, mask.to_vec2::<u8>()?);
                let wanted = tokens.iter().zip(&mask).flat_map(|(tokens, mask)| {
                    let pairs = tokens.iter().zip(mask).skip(1);
                    pairs.map(|(token, image)| self.asked_for(*token, *image))
                });
                let wanted: Vec<i64> = wanted.collect();
                let (sum, kept) = cross_entropy(&logits, &wanted, 0.0)?;
                if kept == 0 {
                    let sentence = "a batch has no word to learn: the prompts are empty";
                    return Err(Error::Data(sentence.to_owned()));
                }
                Ok(((sum / kept as f64)?, 1))
            }
            Stage::Instruct(parts) => {
                let Instruct { vit, connector, unet, vae, schedule, clip } = &**parts;
                let images = self.seen(vit, connector, documents, mask)?;
                let hidden = self.mllm.forward_dropping(&tokens, images.as_ref(), drop)?;
                let any = padding.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? > 0;
                let condition = self.aligner.forward(&hidden, any.then_some(&padding))?;
                let anchor = match clip {
                    Some(clip) => self.anchor(clip, documents, &condition)?,
                    None => None,
                };
                let nothing = Tensor::new(&[[BOS]], &Device::Cpu)?;
                let nothing = self.mllm.forward_dropping(&nothing, None, drop)?;
                let null = self.aligner.forward(&nothing, None)?;
                let chance: Vec<f32> = documents.iter().map(|_| draws.share() as f32).collect();
                let condition = kosmos::drop_conditions(&condition, &null, &chance)?;
                let latents: Vec<Tensor> = documents
                    .iter()
                    .map(|document| self.latents(vae, document, draws))
                    .collect::<Result<_>>()?;
                let latents = Tensor::stack(&latents, 0)?;
                let mut generator = Generator::new(draws.next_u64());
                let noise = random(&mut generator, latents.dims())?;
                let steps = schedule.train_steps();
                let t: Vec<usize> = documents.iter().map(|_| draws.below(steps)).collect();
                let gamma = self.config.min_snr;
                let loss =
                    kosmos::instruct_loss(unet, schedule, &latents, &noise, &t, &condition, gamma)?;
                let loss = match anchor {
                    Some(anchor) => (loss + (anchor * self.config.anchor)?)?,
                    None => loss,
                };
                Ok((loss, documents.len()))
            }
        }
    }

    /// What the text encoder makes of texts, [B, Q, D].
    fn read(&self, clip: &ClipText, texts: &[&str]) -> Result<Tensor> {
        let length = clip.max_length()?;
        let rows = texts.iter().map(|text| {
            let row = self.clip_tokenizer.encode_row(text, length);
            row.map_err(|error| Error::Data(error.to_string()))
        });
        let rows: Vec<u32> = rows.collect::<Result<Vec<_>>>()?.concat();
        let rows = Tensor::from_vec(rows, (texts.len(), length), &Device::Cpu)?;
        Ok(clip.forward(&rows)?.detach())
    }

    /// How far the conditions are from the captions of those documents that have one; a prompt without pictures is its own.
    fn anchor(
        &self,
        clip: &ClipText,
        documents: &[Document],
        condition: &Tensor,
    ) -> Result<Option<Tensor>> {
        let said = (0u32..).zip(documents).filter_map(|(row, document)| {
            let prompt = document.sources.is_empty().then_some(&document.prompt);
            Some((row, &**prompt.or(document.caption.as_ref())?))
        });
        let (rows, captions): (Vec<u32>, Vec<&str>) = said.unzip();
        match rows.is_empty() {
            true => Ok(None),
            false => Ok(Some(kosmos::anchor_loss(condition, &self.read(clip, &captions)?, &rows)?)),
        }
    }

    /// What the U-Net is steered by for a prompt and the pictures of its marks, [1, Q, C].
    fn condition(&self, prompt: &str, sources: Vec<image::RgbImage>) -> Result<Tensor> {
        let document = Document { prompt: prompt.to_owned(), sources, target: None, caption: None };
        let documents = [document];
        let Prompts { tokens, mask } = self.prompts(&documents)?;
        let images = match &self.stage {
            Stage::Instruct(parts) => self.seen(&parts.vit, &parts.connector, &documents, mask)?,
            _ => None,
        };
        let hidden = self.mllm.forward(&tokens, images.as_ref())?;
        Ok(self.aligner.forward(&hidden, None)?.detach())
    }

    /// The pictures of all marks as image tokens; `None` where there are none.
    fn seen(
        &self,
        vit: &Vit,
        connector: &Connector,
        documents: &[Document],
        mask: Tensor,
    ) -> Result<Option<ImageTokens>> {
        let sources: Vec<Tensor> = documents
            .iter()
            .flat_map(|document| &document.sources)
            .map(|picture| Ok(self.transform.pixels(view(picture))?))
            .collect::<Result<_>>()?;
        if sources.is_empty() {
            return Ok(None);
        }
        let features = vit.features(&Tensor::stack(&sources, 0)?)?;
        let features = connector.forward(&features)?.flatten_to(1)?;
        Ok(Some(ImageTokens { features, mask }))
    }

    /// The token as what is to be said next; −1 where nothing is asked: padding, tokens of pictures and the marks around them.
    fn asked_for(&self, token: u32, image: u8) -> i64 {
        let marks = ["<image>", "</image>"].map(|mark| self.tokenizer.id(mark));
        match image != 0 || token == PAD || marks.contains(&token) {
            true => -1,
            false => i64::from(token),
        }
    }

    /// A sample of what the autoencoder makes of the target, cut as the authors do it: the short side to the resolution,
    /// the middle.
    fn latents(&self, vae: &Vae, document: &Document, draws: &mut Draws) -> Result<Tensor> {
        let Some(target) = &document.target else {
            return Err(Error::Data("a document has no picture to draw".to_owned()));
        };
        let side = self.config.resolution;
        let pixels = resize_and_crop(view(target), side, Filter::Bilinear);
        let pixels = pixels.map_err(|error| Error::Data(error.to_string()))?;
        let [mean, std] = data::encode(vae, &pixels, (side, side), false)?;
        let noise = random(&mut Generator::new(draws.next_u64()), mean.dims())?;
        Ok((mean + (std * noise)?)?)
    }
}

pub(crate) fn view(picture: &image::RgbImage) -> Picture<'_> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Picture { pixels: picture.as_raw(), width, height, channels: 3 }
}

/// `x` with a share of its values out by chance, the others larger by as much.
fn dropped(x: &Tensor, rate: f64, generator: &mut Generator) -> CandleResult<Tensor> {
    if rate == 0.0 {
        return Ok(x.clone());
    }
    let mut draws = Draws::new(u64::from(generator.randn(1)[0].to_bits()), x.elem_count() as u64);
    let kept = (1.0 / (1.0 - rate)) as f32;
    let values = (0..x.elem_count()).map(|_| if draws.share() < rate { 0.0 } else { kept });
    let mask = Tensor::from_vec(values.collect::<Vec<f32>>(), x.shape(), x.device())?;
    x * mask
}

impl Learner for Kosmos<'_> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn pass(&mut self, pass: usize) -> Result<(f64, Gradients)> {
        let mut draws = Draws::new(self.config.seed, pass as u64);
        let mut documents: Vec<Document> = (0..self.config.batch)
            .map(|_| self.corpus.document(&mut draws, &self.clip_tokenizer, &self.tokenizer))
            .collect::<Result<_>>()?;
        if self.config.task == Task::Mllm {
            // A caption without marks is of its own picture.
            for document in documents.iter_mut().filter(|document| document.sources.is_empty()) {
                if let Some(target) = document.target.take() {
                    document.prompt = format!("{PICTURE_MARK} {}", document.prompt);
                    document.sources.push(target);
                }
            }
        }
        let mut rows = 1;
        let (sum, mut gradients) = Gradients::of_loss(&self.parameters, || {
            let (loss, divided_by) = self.loss(&documents, &mut draws)?;
            rows = divided_by;
            Ok(loss)
        })?;
        let value = sum / rows as f64;
        if let Some(table) = self.parameters.get(TABLE) {
            gradients.freeze_row(TABLE, PAD as usize, table.dim(1)?);
        }
        gradients.scale(1.0 / rows as f64);
        Ok((value, gradients))
    }

    fn draw(&mut self, samples: &SamplesConfig, done: usize, watch: &mut dyn Watch) -> Result<()> {
        let (unet, vae, schedule) = match (&self.stage, &self.artist) {
            (Stage::Instruct(parts), _) => (&parts.unet, &parts.vae, &parts.schedule),
            (_, Some(artist)) => (&artist.0, &artist.1, &artist.2),
            // Config::read refuses samples of the task mllm.
            (_, None) => return Ok(()),
        };
        let folder = files::samples_folder(&self.config.output)?;
        let null = self.condition("", Vec::new())?;
        for (number, prompt) in samples.prompts.iter().enumerate() {
            let paths = samples.pictures.get(number).map(Vec::as_slice).unwrap_or_default();
            let open = |path: &std::path::PathBuf| {
                data::open(path)
                    .map_err(|reason| Error::Data(format!("{}: {reason}", path.display())))
            };
            let sources = paths.iter().map(open).collect::<Result<_>>()?;
            let context = Tensor::cat(&[&null, &self.condition(prompt, sources)?], 0)?;
            let mut predict =
                |both: &Tensor, t: &Tensor| Ok(unet.forward(both, t, &context, None)?);
            let by = (schedule, vae);
            let picture = samples::draw(by, self.config.resolution, samples, &mut predict)?;
            let path = folder.join(format!("{done:06}-{number}.png"));
            save(&picture, &path)?;
            watch.made(&path);
        }
        Ok(())
    }

    /// A folder of Kosmos-G: what learnt, and the rest as it was.
    fn write(&self, metadata: BTreeMap<String, String>) -> Result<()> {
        let mut tensors = self.frozen.clone();
        if !self.config.anew {
            let weights = Weights::open(self.folder, &Device::Cpu)?;
            for name in weights.names() {
                let shape = weights.shape(&name).unwrap_or_default();
                tensors.insert(name.clone(), weights.get(&name, shape)?);
            }
        }
        for (name, var) in self.parameters.iter() {
            tensors.insert(name.clone(), var.as_detached_tensor());
        }
        let beside = BESIDE.map(|name| {
            let path = self.folder.join(name);
            let bytes = std::fs::read(&path).map_err(|source| Error::Read { path, source })?;
            Ok((name, bytes))
        });
        let beside = beside.into_iter().collect::<Result<Vec<_>>>()?;
        let name = "model.safetensors";
        files::write_folder(&self.config.output, name, &tensors, &metadata, &beside)
    }
}
