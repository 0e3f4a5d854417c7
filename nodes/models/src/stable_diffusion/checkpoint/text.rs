//! The text encoders of a checkpoint: Stable Diffusion 1's one, SDXL's two, its refiner's one.

use std::path::PathBuf;

use super::{Checkpoint, deserialized, family, infer, json_of, open_clip};
use crate::clip::text::ClipTextConfig;
use crate::error::{Error, Result};
use crate::files::weights::{Part, Weights};
use crate::text::clip_tokens::ClipTokenizer;

/// A CLIP text encoder of a checkpoint.
pub struct TextEncoder {
    pub config: ClipTextConfig,
    /// Under transformers' names.
    pub weights: Weights,
    /// Its tokenizer, if the checkpoint brings one.
    pub tokenizer: Option<Tokenizer>,
}

/// Where a text encoder's tokenizer is.
pub enum Tokenizer {
    /// In a folder.
    Folder(PathBuf),
    /// In the header of a file: what [`ClipTokenizer::of_header`] reads, and a name for it.
    Header(serde_json::Value, String),
}

impl Tokenizer {
    /// # Errors
    /// What is there is no tokenizer.
    pub fn read(&self) -> Result<ClipTokenizer> {
        Ok(match self {
            Self::Folder(folder) => ClipTokenizer::read(folder)?,
            Self::Header(said, name) => ClipTokenizer::of_header(said, name)?,
        })
    }
}

const WHAT: &str = "a CLIP text encoder";

impl Checkpoint {
    /// The first of its text encoders: its configuration and weights.
    ///
    /// # Errors
    /// As [`Checkpoint::text_encoders`].
    pub fn clip_text(&self) -> Result<(ClipTextConfig, Weights)> {
        match self.text_encoders()?.into_iter().next() {
            Some(TextEncoder { config, weights, .. }) => Ok((config, weights)),
            None => Err(self.has_no(WHAT)),
        }
    }

    /// The CLIP text encoders, one or SDXL's two, L before G.
    ///
    /// # Errors
    /// There is none in it, or a configuration is not supported.
    pub fn text_encoders(&self) -> Result<Vec<TextEncoder>> {
        let encoders = match &self.file {
            Some((weights, _)) => self.in_file(weights)?,
            None => self.in_folder()?,
        };
        match encoders.is_empty() {
            true => Err(self.has_no(WHAT)),
            false => Ok(encoders),
        }
    }

    fn in_folder(&self) -> Result<Vec<TextEncoder>> {
        let both = ["text_encoder", "text_encoder_2"].map(|name| self.path.join(name));
        let mut folders: Vec<(PathBuf, &str)> = both
            .into_iter()
            .zip(["tokenizer", "tokenizer_2"])
            .filter(|(f, _)| f.is_dir())
            .collect();
        if folders.is_empty() {
            let folder = self.folder("text_encoder", WHAT)?;
            let second = folder.file_name().is_some_and(|name| name == "text_encoder_2");
            folders.push((folder, if second { "tokenizer_2" } else { "tokenizer" }));
        }
        let mut encoders = Vec::new();
        for (folder, tokenizer) in folders {
            let (config, file) = json_of(&folder.join("config.json"))?;
            let mut config: ClipTextConfig = deserialized(config, &file)?;
            let weights = Weights::open(&folder, &self.device)?;
            config.text_projection = projection(&weights)?;
            let inside = self.path.join(tokenizer);
            let beside = self.path.with_file_name(tokenizer);
            let tokenizer = [inside, beside].into_iter().find(|folder| folder.is_dir());
            let tokenizer = tokenizer.map(Tokenizer::Folder);
            encoders.push(TextEncoder { config, weights, tokenizer });
        }
        Ok(encoders)
    }

    fn in_file(&self, weights: &Weights) -> Result<Vec<TextEncoder>> {
        let mut encoders = Vec::new();
        let g = family::clip_g_prefix(weights);
        // Of one that is alone in its file it shows whether it is G.
        let alone = matches!(g, Some(("", _)));
        if let Some(prefix) = family::clip_text_prefix(weights).filter(|_| !alone) {
            encoders.push(self.encoder(l_names(weights.sub(prefix)), "text_encoder")?);
        }
        if let Some((prefix, is_open_clip)) = g {
            let text = weights.sub(prefix);
            let text = if is_open_clip { open_clip_names(&text) } else { g_names(&text) };
            encoders.push(self.encoder(text, "text_encoder_2")?);
        }
        Ok(encoders)
    }

    /// `weights` under transformers' names, as the part `part` of a folder.
    fn encoder(&self, weights: Weights, part: &str) -> Result<TextEncoder> {
        let projection = projection(&weights)?.filter(|_| part == "text_encoder_2");
        let inferred = infer::clip_text(&weights, part)?;
        let mut config: ClipTextConfig = deserialized(inferred, &self.shapes())?;
        config.text_projection = projection;
        let part = if part == "text_encoder_2" { "tokenizer_2" } else { "tokenizer" };
        let said = infer::with_header(serde_json::json!({}), &weights, part)?;
        let tokenizer = said.get("tokenizer.json").is_some().then(|| {
            let name = format!("kosmograph.config in the header of {}", weights.origin());
            Tokenizer::Header(said, name)
        });
        Ok(TextEncoder { config, weights, tokenizer })
    }
}

/// The text half, without what a file of the whole of CLIP has beside it: its picture half and its projections.
fn l_names(text: Weights) -> Weights {
    let names = text.names().into_iter().filter(|name| is_text(name));
    text.renamed(names.map(|name| (format!("text_model.{name}"), name)))
}

fn is_text(name: &str) -> bool {
    let parts = ["embeddings.", "encoder.layers.", "final_layer_norm."];
    parts.iter().any(|part| name.starts_with(part)) && !name.ends_with("position_ids")
}

/// The text half and its projection.
fn g_names(text: &Weights) -> Weights {
    let belongs = |name: &String| {
        name == "text_projection.weight" || name.strip_prefix("text_model.").is_some_and(is_text)
    };
    let names =
        text.names().into_iter().filter(belongs).map(|name| (name.clone(), (name, Part::Whole)));
    // ComfyUI saves it as OpenCLIP does, under transformers' names.
    let bare = text.shape("text_projection").map(|_| {
        ("text_projection.weight".to_owned(), ("text_projection".to_owned(), Part::Transposed))
    });
    text.renamed_parts(names.chain(bare))
}

fn open_clip_names(text: &Weights) -> Weights {
    let parts = text.names().into_iter().flat_map(|old| {
        let new = open_clip::text(&old).into_iter();
        new.map(move |(new, part)| (new, (old.clone(), part))).collect::<Vec<_>>()
    });
    text.renamed_parts(parts)
}

/// The width that the pooled vector is projected to.
fn projection(weights: &Weights) -> Result<Option<usize>> {
    let name = "text_projection.weight";
    match weights.shape(name) {
        None => Ok(None),
        Some(shape) => match shape[..] {
            [width, _] if width > 0 => Ok(Some(width)),
            _ => Err(Error::Axes {
                file: weights.origin().to_owned(),
                name: name.to_owned(),
                axes: 2,
                found: shape,
            }),
        },
    }
}
