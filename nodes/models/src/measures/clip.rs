//! CLIP's two halves side by side (Radford et al., arXiv 2103.00020), whose features pictures and texts are compared by.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::clip::text::{ClipText, ClipTextConfig};
use crate::clip::vision::{ClipVision, ClipVisionConfig};
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::text::clip_tokens::ClipTokenizer;

/// CLIP as transformers' `CLIPModel` saves it: `vision_model.…`, `text_model.…` and a projection of each.
pub struct Clip {
    vision: ClipVision,
    text: ClipText,
    tokenizer: ClipTokenizer,
    device: Device,
}

impl Clip {
    /// Of `weights`, whose sizes stand in their shapes; `config` is their config.json, or null, and `folder` what may
    /// hold a vocabulary.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged; the configuration or the vocabulary is.
    pub fn load(weights: &Weights, config: &Value, folder: Option<&Path>) -> Result<Clip> {
        let vision = vision_config(weights, &config["vision_config"])?;
        let text = text_config(weights, &config["text_config"])?;
        let told = |error: &dyn std::fmt::Display| Error::Input(error.to_string());
        let tokenizer = match folder.filter(|folder| folder.join("vocab.json").is_file()) {
            Some(folder) => ClipTokenizer::read(folder),
            None => ClipTokenizer::clip(),
        };
        let tokenizer = tokenizer.map_err(|error| told(&error))?;
        let clip = Clip {
            vision: ClipVision::load(&vision, weights)?,
            text: ClipText::load(&text, weights)?,
            tokenizer,
            device: weights.device().clone(),
        };
        weights.finish(&["logit_scale", "*.position_ids"])?;
        Ok(clip)
    }

    /// Normalised pixels [B, 3, S, S] → features [B, P], not normalised.
    ///
    /// # Errors
    /// The pixels are of another size than the network is for.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vision.image_embeds(pixels)
    }

    /// A text → its features [1, P], not normalised. What is longer than the network takes is cut off, as the authors'
    /// processor does.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn text_features(&self, text: &str) -> Result<Tensor> {
        let row = self.tokenizer.encode_row(text, self.text.max_length()?);
        let row = row.map_err(|error| Error::Input(error.to_string()))?;
        self.token_features(&Tensor::new(row, &self.device)?.unsqueeze(0)?)
    }

    /// Token ids [B, T] → features [B, P].
    ///
    /// # Errors
    /// A row is too long, or an id is outside the vocabulary.
    pub fn token_features(&self, ids: &Tensor) -> Result<Tensor> {
        self.text.project(&self.text.pool(ids, &self.text.forward(ids)?)?)
    }
}

/// The shape of a tensor that CLIP has, of so many axes.
fn shape<const AXES: usize>(weights: &Weights, name: &str) -> Result<[usize; AXES]> {
    let shape = weights.shape(name).and_then(|shape| <[usize; AXES]>::try_from(shape).ok());
    let origin = weights.origin();
    shape.ok_or_else(|| {
        Error::Input(format!("{origin} is no CLIP of two halves: `{name}` is not there"))
    })
}

fn layers(weights: &Weights, half: &str) -> usize {
    let layer = |i: &usize| weights.has(&format!("{half}.encoder.layers.{i}.layer_norm1.weight"));
    (0..).take_while(layer).count()
}

/// What leaves no trace in the shapes, where the configuration says it.
fn said(mut sizes: Value, config: &Value, names: &[&str]) -> Value {
    for name in names {
        if let Some(value) = config.get(*name) {
            sizes[*name] = value.clone();
        }
    }
    sizes
}

const UNSEEN: [&str; 4] = ["num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id"];

fn vision_config(weights: &Weights, config: &Value) -> Result<ClipVisionConfig> {
    if config.get("num_attention_heads").is_none() {
        return ClipVisionConfig::from_weights(weights);
    }
    let [width, _, _, patch] = shape(weights, "vision_model.embeddings.patch_embedding.weight")?;
    let [positions, _] = shape(weights, "vision_model.embeddings.position_embedding.weight")?;
    let [inner, _] = shape(weights, "vision_model.encoder.layers.0.mlp.fc1.weight")?;
    let [projection, _] = shape(weights, "visual_projection.weight")?;
    let sizes = json!({
        "hidden_size": width, "intermediate_size": inner, "patch_size": patch, "projection_dim": projection,
        "num_hidden_layers": layers(weights, "vision_model"),
        "image_size": positions.saturating_sub(1).isqrt().saturating_mul(patch),
    });
    read(said(sizes, config, &UNSEEN), weights)
}

fn text_config(weights: &Weights, config: &Value) -> Result<ClipTextConfig> {
    let [vocabulary, width] = shape(weights, "text_model.embeddings.token_embedding.weight")?;
    let [positions, _] = shape(weights, "text_model.embeddings.position_embedding.weight")?;
    let [inner, _] = shape(weights, "text_model.encoder.layers.0.mlp.fc1.weight")?;
    let [projection, _] = shape(weights, "text_projection.weight")?;
    let sizes = json!({
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers(weights, "text_model"), "max_position_embeddings": positions,
        // Every published one has heads of 64.
        "num_attention_heads": (width / 64).max(1),
    });
    let mut text: ClipTextConfig = read(said(sizes, config, &UNSEEN), weights)?;
    text.text_projection = Some(projection);
    Ok(text)
}

fn read<T: serde::de::DeserializeOwned>(config: Value, weights: &Weights) -> Result<T> {
    serde_json::from_value(config).map_err(|error| {
        Error::Input(format!("the configuration of {}: {error}", weights.origin()))
    })
}
