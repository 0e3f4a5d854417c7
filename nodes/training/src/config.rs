//! What a training is told: one JSON file. Unknown keys are refused with the nearest that there is.

mod check;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::curated::DataConfig;
use crate::documents::ShardsConfig;
use crate::error::{Error, Result};
use crate::export::ExportConfig;
use crate::keys::{fill, known_keys, without_defaults};
use crate::lora;
use crate::optimiser::OptimiserConfig;
use crate::rate::RateConfig;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Low-rank changes of layers of the U-Net, and of the text encoder if that is asked for.
    Lora,
    /// The whole U-Net (Ruiz et al., arXiv 2208.12242), with or without pictures of the class.
    Dreambooth,
    /// Vectors for a word that the text encoder does not know (Gal et al., arXiv 2208.01618).
    Inversion,
    /// A ControlNet through the frozen U-Net (Zhang et al., arXiv 2302.05543).
    Controlnet,
    /// Kosmos-G's aligner towards CLIP's text, from captions alone: the paper's second stage.
    Align,
    /// Kosmos-G through the frozen U-Net, from prompts with pictures: the paper's third stage.
    Instruct,
    /// Kosmos-G's language model, with what it sees by, speaks of pictures: word after word of prompts with pictures.
    Mllm,
    /// The autoencoder gives back pictures.
    Vae,
    /// The whole U-Net from pictures with captions, as `dreambooth` without a class.
    #[serde(rename = "text-to-picture")]
    TextToPicture,
    /// A text encoder and Kosmos-G's vision transformer find each other's captions and pictures.
    Clip,
    /// What was trained as the folders of a bundle, in f16: nothing learns.
    Export,
    /// Prompts with pictures, for `instruct`, of captioned pictures: nothing learns.
    Data,
}

impl Task {
    /// Whether it is a stage of Kosmos-G's own training.
    pub fn is_kosmos(self) -> bool {
        matches!(self, Task::Align | Task::Instruct | Task::Mllm)
    }

    /// Whether all numbers of the U-Net learn.
    pub fn is_whole_unet(self) -> bool {
        matches!(self, Task::Dreambooth | Task::TextToPicture)
    }
}

/// The whole of a training. Paths that are relative begin at the file's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub task: Task,
    /// The base: a folder in diffusers' layout, or a checkpoint file.
    pub model: PathBuf,
    /// An autoencoder in the place of the base's own.
    pub vae: Option<PathBuf>,
    /// A text encoder in the place of the base's own.
    pub text_encoder: Option<PathBuf>,
    /// A folder of pictures, each with its caption in a .txt of the same name beside it.
    pub pictures: PathBuf,
    /// What is made: a .safetensors file, or for a whole network a folder.
    pub output: PathBuf,
    /// The caption of pictures that have none beside them.
    pub caption: Option<String>,
    /// Updates.
    pub steps: usize,
    /// Pictures of one pass.
    pub batch: usize,
    /// Passes of one update.
    pub accumulate: usize,
    /// The side of the square that pictures are cut to, in pixels; with `buckets`, of the square as large as they.
    pub resolution: usize,
    /// Whether pictures keep about their shape, in sizes of about as many pixels.
    pub buckets: bool,
    /// Whether each picture is mirrored half of the time.
    pub flip: bool,
    /// The share of the time that a picture is seen without its caption.
    pub caption_dropout: f64,
    pub seed: u64,
    pub lora: LoraConfig,
    pub inversion: InversionConfig,
    /// The folder of Kosmos-G, for its own training.
    pub kosmos: Option<PathBuf>,
    /// Whether what learns begins with random numbers, and `model` or `kosmos` only says what it is like.
    pub anew: bool,
    /// Channels of each level of a U-Net that begins anew, in the place of those that `model` has.
    pub widths: Vec<usize>,
    /// Shards to learn from instead of `pictures`, for Kosmos-G's own training.
    pub shards: Vec<ShardsConfig>,
    /// The share of values that the language model loses between its layers.
    pub dropout: f64,
    /// The share of what its tokens attend to that they lose.
    pub attention_dropout: f64,
    /// What the task `clip` made, whose vision transformer the language model begins with.
    pub vision: Option<PathBuf>,
    pub clip: ClipConfig,
    pub autoencoder: AutoencoderConfig,
    /// What a ControlNet sees.
    pub control: Option<ControlConfig>,
    /// What goes where, for the task `export`.
    pub export: Option<ExportConfig>,
    /// What documents are made of, for the task `data`.
    pub data: Option<DataConfig>,
    /// Pictures of the class, that the U-Net is to go on drawing as before.
    pub prior: Option<PriorConfig>,
    pub optimiser: OptimiserConfig,
    pub rate: RateConfig,
    /// γ of min-SNR weighting.
    pub min_snr: Option<f64>,
    /// For Kosmos-G's `instruct`, the weight of the distance between the condition and what the text encoder makes of a caption that says
    /// all that a document's picture shows.
    pub anchor: f64,
    /// How much noise is added that is the same at every pixel of a channel.
    pub noise_offset: f64,
    /// How slowly the average of the parameters that is written in their stead forgets: 0.999.
    pub ema: Option<f64>,
    /// After how many updates the state is written down, to go on from; 0 for never but at an interruption.
    pub checkpoint_every: usize,
    /// Whether blocks of the U-Net are computed again for their gradients, and not kept.
    pub recompute: bool,
    pub samples: Option<SamplesConfig>,
}

/// `lora`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    pub kind: lora::Kind,
    pub rank: usize,
    /// The change is scaled by alpha / rank.
    pub alpha: f64,
    /// How the names of the U-Net's layers end; linear layers and convolutions.
    pub layers: Vec<String>,
    /// The same of the text encoder; none leave it as it is.
    pub text_encoder_layers: Vec<String>,
    /// What the file calls the matrices.
    pub naming: lora::Naming,
}

/// `clip`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipConfig {
    /// How many of the wrong captions in the `.choices.txt` beside a picture are read with it.
    pub choices: usize,
}

/// `autoencoder`: what the task `vae` is helped by where updates are few. Without, its loss is the mean distance of the
/// pixels and the latents' from normal ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderConfig {
    /// The side of the squares that are cut out of pictures by chance, as many more as make a batch's pixels; 0 for whole
    /// pictures.
    pub crop: usize,
    /// The share of the updates, from the first on, that see such squares.
    pub cropped: f64,
    /// What the square of a pixel's distance counts beside the distance.
    pub square: f64,
    /// What the distance of a pixel's difference from its neighbours counts.
    pub edges: f64,
    /// What the distance of the mean of four by four pixels counts, and twice that the square of its colour's: colour comes
    /// last by itself.
    pub colour: f64,
}

/// `inversion`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InversionConfig {
    /// The word in the captions that the vectors stand for.
    pub token: String,
    pub vectors: usize,
    /// The word whose embedding they begin with.
    pub start: String,
}

/// `control`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// A folder with the hint of each picture, under the picture's name.
    pub hints: PathBuf,
    /// A ControlNet to begin with, in diffusers' layout; else it begins as the U-Net's first half, and gives nothing.
    pub start: Option<PathBuf>,
    /// The widths of what brings hints to the latents' size, of a ControlNet that begins; none are diffusers' own.
    pub widths: Vec<usize>,
}

/// `prior`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriorConfig {
    pub pictures: PathBuf,
    /// The caption of those that have none beside them: "a photo of a dog".
    pub caption: Option<String>,
    pub weight: f64,
}

/// `samples`: pictures drawn on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplesConfig {
    /// After how many updates.
    pub every: usize,
    pub prompts: Vec<String>,
    /// For each prompt the pictures of its `<i>` marks, where Kosmos-G learns.
    pub pictures: Vec<Vec<PathBuf>>,
    pub steps: usize,
    pub guidance: f64,
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            task: Task::Lora,
            model: PathBuf::new(),
            vae: None,
            text_encoder: None,
            pictures: PathBuf::new(),
            output: PathBuf::new(),
            caption: None,
            steps: 1000,
            batch: 1,
            accumulate: 1,
            resolution: 512,
            buckets: false,
            flip: false,
            caption_dropout: 0.0,
            seed: 0,
            lora: LoraConfig::default(),
            inversion: InversionConfig::default(),
            kosmos: None,
            anew: false,
            widths: Vec::new(),
            shards: Vec::new(),
            dropout: 0.0,
            attention_dropout: 0.0,
            vision: None,
            clip: ClipConfig::default(),
            autoencoder: AutoencoderConfig::default(),
            control: None,
            export: None,
            data: None,
            prior: None,
            optimiser: OptimiserConfig::default(),
            rate: RateConfig::default(),
            min_snr: None,
            anchor: 0.0,
            noise_offset: 0.0,
            ema: None,
            checkpoint_every: 100,
            recompute: false,
            samples: None,
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            kind: lora::Kind::Lora,
            rank: 16,
            alpha: 16.0,
            layers: lora::ATTENTION.map(str::to_owned).to_vec(),
            text_encoder_layers: Vec::new(),
            naming: lora::Naming::default(),
        }
    }
}

impl Default for InversionConfig {
    fn default() -> Self {
        InversionConfig { token: "sks".to_owned(), vectors: 1, start: "object".to_owned() }
    }
}

impl Default for PriorConfig {
    fn default() -> Self {
        PriorConfig { pictures: PathBuf::new(), caption: None, weight: 1.0 }
    }
}

impl Default for SamplesConfig {
    fn default() -> Self {
        SamplesConfig {
            every: 100,
            prompts: Vec::new(),
            pictures: Vec::new(),
            steps: 20,
            guidance: 7.0,
            seed: 0,
        }
    }
}

impl Config {
    /// Reads the JSON text `text`; relative paths begin at `folder`.
    ///
    /// # Errors
    /// It is no JSON, a key is unknown or missing, or a value is outside of what it can be.
    pub fn read(text: &str, folder: &Path) -> Result<Config> {
        let json: Value = serde_json::from_str(text)
            .map_err(|error| Error::Config(format!("the configuration is no JSON: {error}")))?;
        Config::of_json(json, folder)
    }

    /// [`Config::read`] of JSON that is read already.
    ///
    /// # Errors
    /// As there.
    pub fn of_json(mut json: Value, folder: &Path) -> Result<Config> {
        let example = Config {
            control: Some(ControlConfig::default()),
            export: Some(ExportConfig::default()),
            data: Some(DataConfig::default()),
            prior: Some(PriorConfig::default()),
            samples: Some(SamplesConfig::default()),
            ..Config::default()
        };
        let example =
            serde_json::to_value(example).map_err(|error| Error::Config(error.to_string()))?;
        known_keys(&json, &example, "")?;
        for needed in ["task", "model", "pictures", "output"] {
            let is_replaced = match needed {
                "pictures" => json.get("shards").is_some() || json["task"] == "export",
                "model" => json["task"] == "export" || json["task"] == "data",
                _ => false,
            };
            if json.get(needed).is_none() && !is_replaced {
                return Err(Error::Config(format!("the configuration has no \"{needed}\"")));
            }
        }
        if json["task"] == "align" || json["task"] == "instruct" {
            fill(&mut json, &authors_defaults());
        }
        let mut config: Config = serde_path_to_error::deserialize(json).map_err(|error| {
            let (path, what) = (error.path().to_string(), error.inner());
            match path == "." {
                true => Error::Config(format!("the configuration: {what}")),
                false => Error::Config(format!("\"{path}\": {what}")),
            }
        })?;
        let from = |path: &mut PathBuf| *path = folder.join(&*path);
        from(&mut config.model);
        from(&mut config.pictures);
        from(&mut config.output);
        let others =
            [&mut config.kosmos, &mut config.vae, &mut config.text_encoder, &mut config.vision];
        others.into_iter().flatten().for_each(from);
        config.export.iter_mut().flat_map(ExportConfig::paths).for_each(from);
        config.data.iter_mut().flat_map(DataConfig::paths).for_each(from);
        config.shards.iter_mut().flat_map(|shards| &mut shards.files).for_each(from);
        if let Some(samples) = &mut config.samples {
            samples.pictures.iter_mut().flatten().for_each(from);
        }
        if let Some(prior) = &mut config.prior {
            from(&mut prior.pictures);
        }
        if let Some(control) = &mut config.control {
            from(&mut control.hints);
            control.start.iter_mut().for_each(from);
        }
        config.check()?;
        Ok(config)
    }

    /// # Errors
    /// There is something where the output is to be.
    pub(crate) fn output_is_free(&self) -> Result<()> {
        match self.output.symlink_metadata() {
            Ok(_) => {
                let output = self.output.display();
                Err(Error::Config(format!("{output} is there already; nothing is written over")))
            }
            Err(_) => Ok(()),
        }
    }

    /// Whether somebody who looks at pictures is needed: [`crate::curate`] takes one, [`crate::train`] has none.
    pub fn wants_eyes(&self) -> bool {
        self.data.as_ref().is_some_and(DataConfig::wants_eyes)
    }

    /// What must be the same for a training to be gone on with: all but what changes no number of it, and what is as by
    /// default, so that a key that is new changes no older state.
    pub fn identity(&self) -> Value {
        Config::identity_of(serde_json::to_value(self).unwrap_or_default())
    }

    /// The same of what an older program wrote down.
    pub(crate) fn identity_of(mut json: Value) -> Value {
        without_defaults(&mut json, &serde_json::to_value(Config::default()).unwrap_or_default());
        if let Some(json) = json.as_object_mut() {
            for key in ["output", "checkpoint_every", "recompute", "samples"] {
                json.shift_remove(key);
            }
        }
        json
    }
}

/// What the authors of Kosmos-G train both stages with.
fn authors_defaults() -> Value {
    json!({
        "optimiser": {
            "method": "fairseq_adam", "learning_rate": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6,
            "weight_decay": 0.01, "clip_norm": 2.0,
        },
        "rate": {"course": "linear", "warmup": 375},
        // The architecture's, which their command leaves as they are.
        "dropout": 0.1, "attention_dropout": 0.1,
    })
}

fn refuse(sentence: String) -> Result<()> {
    Err(Error::Config(sentence))
}

#[cfg(test)]
mod tests;
