//! CLIP anew or further: a vision transformer and a text encoder learn to find each other's pictures and captions.
//!
//! The transformer is Kosmos-G's, the encoder Stable Diffusion's; what is seen is the class token and the mean of the
//! others together, what is read the first end token, and a layer without a bias brings each to the space that they share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::{Device, IndexOp, Tensor};
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::kosmos::Kosmos as Folder;
use kosmograph_models::kosmos::preprocess::PictureTransform;
use kosmograph_models::kosmos::vit::Vit;
use kosmograph_models::layers::l2_normalize;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::stable_diffusion::checkpoint::{Checkpoint, TextEncoder};
use kosmograph_models::text::clip_tokens::{ClipTokenizer, ClipTokensError};
use kosmograph_models::{Weight, Weights};

use crate::config::{Config, SamplesConfig};
use crate::contrast::{SCALE, both_ways, first_of, scale};
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::kosmos_g::view;
use crate::parameters::{Gradients, Parameters};
use crate::run::{Learner, Watch};
use crate::{anew, ask_for_all, data, files, lora};

/// Where the transformer's tensors are in a folder of Kosmos-G, and what the two layers and the scale are called.
const VISION: &str = "img_model.visual.";
const LAYERS: [&str; 2] = ["visual_projection.weight", "text_projection.weight"];
const LOGIT_SCALE: &str = "logit_scale";
/// What the parameters of the text encoder begin with, so that they are not taken for others.
const TEXT: &str = "text_encoder.";
/// The end of the file beside a picture whose first line is right of it and whose others are wrong.
const CHOICES: &str = "choices.txt";

/// What learns, and what it learns from.
pub(crate) struct Clip<'a> {
    config: &'a Config,
    vit: Vit,
    text: ClipText,
    tokenizer: ClipTokenizer,
    transform: PictureTransform,
    parameters: Parameters,
    pictures: Vec<Captioned>,
    /// The text encoder's config.json.
    described: Vec<u8>,
}

struct Captioned {
    path: PathBuf,
    caption: String,
    /// The first is right.
    choices: Vec<String>,
}

impl<'a> Clip<'a> {
    /// Reads the networks and finds the pictures.
    pub fn prepare(config: &'a Config, watch: &mut dyn Watch) -> Result<Clip<'a>> {
        let device = Device::Cpu;
        let folder = config.kosmos.as_deref().unwrap_or(Path::new(""));
        let Folder { transform, config: model, .. } = Folder::read(folder, &device)?;
        let vit_config = &model.vision.vit;
        let checkpoint = Checkpoint::open(&config.model, &device)?;
        let Ok([encoder]) = <[TextEncoder; 1]>::try_from(checkpoint.text_encoders()?) else {
            return Err(Error::Config(format!(
                "{}: the task clip trains the one text encoder of Stable Diffusion 1, and not SDXL's two",
                config.model.display()
            )));
        };
        let path = config.model.join("text_encoder/config.json");
        let described = std::fs::read(&path).map_err(|source| Error::Read { path, source })?;
        let tokenizer = match &encoder.tokenizer {
            Some(tokenizer) => tokenizer.read(),
            None => ClipTokenizer::clip().map_err(Into::into),
        };
        let tokenizer = tokenizer.map_err(|error| Error::Config(error.to_string()))?;

        let load_text = |weights: &Weights| ClipText::load(&encoder.config, weights);
        let load_vit = |weights: &Weights| Vit::load(vit_config, &weights.sub("img_model.visual"));
        let mut generator = Generator::new(config.seed);
        let mut tensors: HashMap<String, Weight> = HashMap::new();
        let (of_text, of_vision) = match config.anew {
            true => {
                let recordings = [Weights::recording(), Weights::recording()];
                load_text(&recordings[0])?;
                load_vit(&recordings[1])?;
                let [text, vision] = recordings.map(|recording| recording.recorded());
                (anew::tensors(&text, &mut generator)?, anew::tensors(&vision, &mut generator)?)
            }
            false => {
                let kosmos = Weights::open(folder, &device)?;
                (encoder.weights.load_kept(load_text)?.1, kosmos.load_kept(load_vit)?.1)
            }
        };
        tensors.extend(of_text.into_iter().map(|(name, weight)| (format!("{TEXT}{name}"), weight)));
        tensors.extend(of_vision);
        let width = encoder.config.hidden_size;
        for (name, inputs) in LAYERS.into_iter().zip([vit_config.width, width]) {
            let layer = lora::evenly(&mut generator, &[width, inputs], inputs)?;
            tensors.insert(name.to_owned(), layer.into());
        }
        let begin = Tensor::new(SCALE[0] as f32, &device)?;
        tensors.insert(LOGIT_SCALE.to_owned(), begin.into());
        ask_for_all("CLIP", tensors.values().map(|weight| weight.dims().to_vec()))?;
        let parameters = Parameters::of(&tensors, |_| true)?;
        let variables = parameters.replace_in(&tensors);
        let own = |start: &str| {
            let own = variables.iter().filter_map(|(name, weight)| {
                let own = name.strip_prefix(start)?;
                Some((own.to_owned(), weight.clone()))
            });
            Weights::from_kept("the CLIP that learns", own.collect(), &device)
        };
        let (text, vit) = (load_text(&own(TEXT))?, load_vit(&own(""))?);

        let pictures = captioned(config, watch)?;
        let count = parameters.count();
        watch.note(&format!("{} pictures; {count} numbers learn", pictures.len()), false);
        Ok(Clip { config, vit, text, tokenizer, transform, parameters, pictures, described })
    }

    fn layer(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let layer = self.parameters.get(name).ok_or_else(|| Error::NoParameter(name.to_owned()))?;
        Ok(l2_normalize(&x.matmul(&layer.t()?.contiguous()?)?)?)
    }

    /// Pictures in the shared space, [B, C] of length one.
    fn see(&self, pictures: &[image::RgbImage]) -> Result<Tensor> {
        let pixels: Vec<Tensor> = pictures
            .iter()
            .map(|picture| Ok(self.transform.pixels(view(picture))?))
            .collect::<Result<_>>()?;
        let tokens = self.vit.forward(&Tensor::stack(&pixels, 0)?)?;
        let patches = tokens.dim(1)? - 1;
        let seen = (tokens.i((.., 0))? + tokens.narrow(1, 1, patches)?.mean(1)?)?;
        self.layer(LAYERS[0], &seen)
    }

    /// Texts in the shared space, [B, C] of length one.
    fn read(&self, texts: &[&str]) -> Result<Tensor> {
        let told = |error: ClipTokensError| Error::Data(error.to_string());
        let most = self.text.max_length()?;
        let tokens: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| self.tokenizer.tokens(text).map_err(told))
            .collect::<Result<_>>()?;
        // A token sees those before it alone: rows as long as the longest give what longer ones would.
        let longest = tokens.iter().map(Vec::len).max().unwrap_or_default() + 2;
        let length = longest.min(most);
        let (mut rows, mut ends) = (Vec::new(), Vec::new());
        for (number, tokens) in tokens.iter().enumerate() {
            rows.extend(self.tokenizer.row(tokens, length).map_err(told)?);
            ends.push((number * length + tokens.len().min(length.saturating_sub(2)) + 1) as u32);
        }
        let rows = Tensor::from_vec(rows, (texts.len(), length), &Device::Cpu)?;
        let states = self.text.forward(&rows)?.flatten(0, 1)?;
        let ends = Tensor::new(ends, &Device::Cpu)?;
        self.layer(LAYERS[1], &states.index_select(&ends, 0)?)
    }
}

/// The pictures of the configuration's folder with their captions; what does not fit is left out and told.
fn captioned(config: &Config, watch: &mut dyn Watch) -> Result<Vec<Captioned>> {
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    let wrong = config.clip.choices;
    for path in data::pictures(&config.pictures)? {
        let given = data::read_caption(&path, &mut notes).or_else(|| config.caption.clone());
        let Some(caption) = given else {
            notes.push(format!("{} is left out: it has no caption beside it", path.display()));
            continue;
        };
        let mut choices = Vec::new();
        if wrong > 0 {
            let text = data::caption_beside(&path, &[CHOICES], &mut notes).unwrap_or_default();
            choices = text.lines().map(str::to_owned).collect();
            if choices.len() <= wrong {
                let (count, beside) = (choices.len(), path.with_extension(CHOICES));
                notes.push(format!(
                    "{} is left out: {} has {count} lines, where a right caption and {wrong} wrong ones or more would be right",
                    path.display(),
                    beside.display()
                ));
                continue;
            }
        }
        found.push(Captioned { path, caption, choices });
    }
    notes.iter().for_each(|note| watch.note(note, true));
    if found.is_empty() {
        let sentence = format!("{} holds no pictures with captions", config.pictures.display());
        return Err(Error::Data(sentence));
    }
    Ok(found)
}

impl Learner for Clip<'_> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn pass(&mut self, pass: usize) -> Result<(f64, Gradients)> {
        const TRIES: usize = 1000;
        let mut draws = Draws::new(self.config.seed, pass as u64);
        let (batch, wrong) = (self.config.batch, self.config.clip.choices);
        let (mut pictures, mut captions, mut choices) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tries, mut last, mut used) = (0, String::new(), HashSet::new());
        while pictures.len() < batch {
            let number = draws.below(self.pictures.len());
            // The same picture twice in a batch would have to be told from itself.
            if !used.insert(number) && used.len() < self.pictures.len() {
                continue;
            }
            let chosen = &self.pictures[number];
            match data::open(&chosen.path) {
                Ok(picture) => pictures.push(picture),
                Err(reason) => last = format!("{}: {reason}", chosen.path.display()),
            }
            tries += 1;
            if tries == TRIES + batch {
                return Err(Error::Data(format!("no picture can be read; the last is {last}")));
            }
            if captions.len() == pictures.len() {
                continue;
            }
            captions.push(&*chosen.caption);
            if let [right, others @ ..] = &chosen.choices[..] {
                let mut others: Vec<&str> = others.iter().map(String::as_str).collect();
                draws.shuffle(&mut others);
                choices.push(&**right);
                choices.extend(others.into_iter().take(wrong));
            }
        }
        let logit_scale = self.parameters.get(LOGIT_SCALE);
        let logit_scale = logit_scale.ok_or_else(|| Error::NoParameter(LOGIT_SCALE.to_owned()))?;
        Gradients::of_loss(&self.parameters, || {
            let scale = scale(logit_scale)?;
            let seen = self.see(&pictures)?;
            let mut loss = both_ways(&seen, &self.read(&captions)?, &scale)?;
            if wrong > 0 {
                let read = self.read(&choices)?;
                let width = read.dim(1)?;
                let own = first_of(&seen, &read.reshape((batch, wrong + 1, width))?, &scale)?;
                loss = (loss + own)?;
            }
            Ok(loss)
        })
    }

    /// `Config::read` refuses samples of this task.
    fn draw(&mut self, _: &SamplesConfig, _: usize, _: &mut dyn Watch) -> Result<()> {
        Ok(())
    }

    /// The text encoder's folder, and in it `vision`: the transformer under Kosmos-G's names, with the two layers and the
    /// scale.
    fn write(&self, metadata: BTreeMap<String, String>) -> Result<()> {
        let (mut text, mut vision) = (BTreeMap::new(), BTreeMap::new());
        for (name, var) in self.parameters.iter() {
            let tensor = var.as_detached_tensor();
            match name.strip_prefix(TEXT) {
                Some(name) => text.insert(name.to_owned(), tensor),
                None => vision.insert(name.clone(), tensor),
            };
        }
        let name = "model.safetensors";
        files::whole_folder(&self.config.output, |folder| {
            files::write(&folder.join(name), &text, &metadata)?;
            files::write(&folder.join("vision").join(name), &vision, &metadata)?;
            let path = folder.join("config.json");
            let written = std::fs::write(&path, &self.described);
            written.map_err(|source| Error::Write { path, source })
        })
    }
}

/// The vision transformer that the task clip wrote at `folder`, under Kosmos-G's names.
///
/// # Errors
/// It cannot be read, or has none.
pub(crate) fn vision_of(folder: &Path) -> Result<HashMap<String, Weight>> {
    let inside = folder.join("vision");
    let weights = Weights::open(if inside.is_dir() { &inside } else { folder }, &Device::Cpu)?;
    let mut tensors = HashMap::new();
    for name in weights.names().into_iter().filter(|name| name.starts_with(VISION)) {
        let shape = weights.shape(&name).unwrap_or_default();
        tensors.insert(name.clone(), weights.get(&name, shape)?.into());
    }
    if tensors.is_empty() {
        return Err(Error::Config(format!(
            "\"vision\": {} has no vision transformer; what the task clip makes would be right",
            folder.display()
        )));
    }
    Ok(tensors)
}
