//! CLIP's vision transformer with its projection: a picture → one vector in the space that it
//! shares with text.
//!
//! The measure of CLIP-I and CLIP-T, and the picture encoder of IP-Adapters. Layers, names and
//! configuration are those of transformers' `CLIPVisionModelWithProjection`; Kosmos-G's own vision
//! transformer is [`crate::kosmos::vit`].

use candle_core::{IndexOp, Tensor};
use serde::Deserialize;

use crate::clip::text::{Activation, EncoderLayer};
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};

/// `config.json` of a `CLIPVisionModelWithProjection`; what is left out has transformers' default.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipVisionConfig {
    /// Width of every token, C.
    pub hidden_size: usize,
    /// Width within an MLP.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// The side of the picture, in pixels.
    pub image_size: usize,
    /// The side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of the shared space, P.
    pub projection_dim: usize,
    #[serde(default = "quick_gelu")]
    pub hidden_act: Activation,
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
}

fn quick_gelu() -> Activation {
    Activation::QuickGelu
}

fn layer_norm_eps() -> f64 {
    1e-5
}

impl ClipVisionConfig {
    /// The configuration of a file that has none beside it, from the shapes of its tensors.
    ///
    /// The number of heads and the activation leave no trace in them; they are those of the published
    /// model of that width: OpenAI's ViT-B and ViT-L, OpenCLIP's ViT-H and ViT-bigG.
    ///
    /// # Errors
    /// The file is not a `CLIPVisionModelWithProjection`, or of none of these widths.
    pub fn from_weights(weights: &Weights) -> Result<ClipVisionConfig> {
        let vision = weights.sub("vision_model");
        let shape = |weights: &Weights, name: &str| {
            let shape = weights.shape(name);
            shape.ok_or_else(|| {
                Error::Input(format!(
                    "{} is not CLIP's picture half: it has no `{name}`",
                    weights.origin()
                ))
            })
        };
        let side = |shape: &[usize], axis: usize| shape.get(axis).copied().unwrap_or(0);
        let patches = shape(&vision, "embeddings.patch_embedding.weight")?;
        let positions = shape(&vision, "embeddings.position_embedding.weight")?;
        let mlp = shape(&vision, "encoder.layers.0.mlp.fc1.weight")?;
        let projection = shape(weights, "visual_projection.weight")?;
        let (hidden_size, patch_size) = (side(&patches, 0), side(&patches, 3));
        let (num_attention_heads, hidden_act) = match hidden_size {
            768 => (12, Activation::QuickGelu),
            1024 => (16, Activation::QuickGelu),
            1280 | 1664 => (16, Activation::Gelu),
            _ => {
                return Err(Error::Input(format!(
                    "{} is {hidden_size} wide, and no CLIP of 768, 1024, 1280 or 1664: a config.json \
                     beside the weights would say how many heads it has",
                    weights.origin()
                )));
            }
        };
        let layer =
            |index: &usize| vision.has(&format!("encoder.layers.{index}.layer_norm1.weight"));
        let grid = side(&positions, 0).saturating_sub(1).isqrt();
        Ok(ClipVisionConfig {
            hidden_size,
            intermediate_size: side(&mlp, 0),
            num_hidden_layers: (0..).take_while(layer).count(),
            num_attention_heads,
            image_size: grid.saturating_mul(patch_size),
            patch_size,
            projection_dim: side(&projection, 0),
            hidden_act,
            layer_norm_eps: layer_norm_eps(),
        })
    }
}

/// The vision transformer and its projection.
#[derive(Clone, Debug)]
pub struct ClipVision {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
}

impl ClipVision {
    /// Loads `vision_model.…` and `visual_projection`.
    pub fn load(config: &ClipVisionConfig, weights: &Weights) -> Result<ClipVision> {
        let vision = weights.sub("vision_model");
        let embeddings = vision.sub("embeddings");
        let (dim, patch, eps) = (config.hidden_size, config.patch_size, config.layer_norm_eps);
        let tokens = token_count(config.image_size, patch)?;
        let layer = |index: usize| {
            EncoderLayer::load(
                &vision.sub(format!("encoder.layers.{index}")),
                dim,
                config.intermediate_size,
                config.num_attention_heads,
                config.hidden_act,
                eps,
            )
        };
        Ok(ClipVision {
            class_embedding: embeddings.get("class_embedding", dim)?,
            patch_embedding: embeddings.get("patch_embedding.weight", (dim, 3, patch, patch))?,
            position_embedding: embeddings.get("position_embedding.weight", (tokens, dim))?,
            // The name is misspelled in every checkpoint.
            pre_layernorm: LayerNorm::load(&vision.sub("pre_layrnorm"), dim, eps)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            post_layernorm: LayerNorm::load(&vision.sub("post_layernorm"), dim, eps)?,
            visual_projection: Linear::load_without_bias(
                &weights.sub("visual_projection"),
                dim,
                config.projection_dim,
            )?,
        })
    }

    /// Normalised pixels [B, 3, S, S] → the tokens of the last layer, before `post_layernorm`, [B,
    /// 1 + (S/P)², C].
    pub fn last_hidden_state(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.forward(pixels)?.last_hidden_state)
    }

    /// Normalised pixels [B, 3, S, S] → `image_embeds` [B, P], not normalised.
    pub fn image_embeds(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.forward(pixels)?.image_embeds)
    }

    /// Normalised pixels [B, 3, S, S] → everything that is taken from this model.
    pub fn forward(&self, pixels: &Tensor) -> Result<VisionStates> {
        let x = embed_patches(
            pixels,
            &self.patch_embedding,
            &self.class_embedding,
            &self.position_embedding,
        )?;
        let mut x = self.pre_layernorm.forward(&x)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x;
            x = layer.forward(&penultimate, None)?;
        }
        let class = self.post_layernorm.forward(&x.i((.., 0))?)?;
        Ok(VisionStates {
            image_embeds: self.visual_projection.forward(&class)?,
            class,
            last_hidden_state: x,
            penultimate_hidden_states: penultimate,
        })
    }
}

/// What [`ClipVision::forward`] gives.
#[derive(Clone, Debug)]
pub struct VisionStates {
    /// The tokens of the last layer, before `post_layernorm`, [B, 1 + (S/P)², C].
    pub last_hidden_state: Tensor,
    /// The tokens of the layer before it.
    pub penultimate_hidden_states: Tensor,
    /// The class token of the last layer in the shared space, [B, P], not normalised.
    pub image_embeds: Tensor,
    /// The class token of the last layer behind its norm, [B, C].
    pub class: Tensor,
}

/// One token for each patch and one for the class.
pub(crate) fn token_count(image_size: usize, patch_size: usize) -> Result<usize> {
    if patch_size == 0 || image_size < patch_size {
        return Err(Error::Input(format!(
            "a picture of {image_size} pixels cannot be cut into patches of {patch_size} pixels"
        )));
    }
    Ok((image_size / patch_size).pow(2) + 1)
}

/// Cuts pixels [B, 3, S, S] into patches and embeds them, the class token in front, positions
/// added: [B, 1 + (S/P)², C].
pub(crate) fn embed_patches(
    pixels: &Tensor,
    patch_embedding: &Tensor,
    class_embedding: &Tensor,
    position_embedding: &Tensor,
) -> Result<Tensor> {
    let (dim, _, patch, _) = patch_embedding.dims4()?;
    let patches = kosmograph_kernels::conv2d(pixels, patch_embedding, None, patch, 0)?;
    let patches = patches.flatten_from(2)?.transpose(1, 2)?;
    let class = class_embedding.broadcast_as((patches.dim(0)?, 1, dim))?;
    let tokens = Tensor::cat(&[&class, &patches], 1)?;
    let (found, expected) = (tokens.dim(1)?, position_embedding.dim(0)?);
    if found != expected {
        return Err(Error::Input(format!(
            "pictures of {:?} give {found} tokens; this vision transformer has positions for {expected}",
            pixels.dims()
        )));
    }
    Ok(tokens.broadcast_add(position_embedding)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::collections::HashMap;

    /// A checkpoint of that width with the values 0.
    fn weights(width: usize) -> Weights {
        let config: ClipVisionConfig = serde_json::from_value(serde_json::json!({
            "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 1, "image_size": 12, "patch_size": 4, "projection_dim": 6,
        }))
        .unwrap();
        let recording = Weights::recording();
        ClipVision::load(&config, &recording).unwrap();
        let zeros = |shape: Vec<usize>| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
        let tensors: HashMap<String, Tensor> = recording
            .recorded()
            .into_iter()
            .map(|(name, shape)| (name, zeros(shape).unwrap()))
            .collect();
        Weights::from_tensors("test", tensors, &Device::Cpu)
    }

    #[test]
    fn a_file_tells_its_sizes() {
        let config = ClipVisionConfig::from_weights(&weights(768)).unwrap();
        assert_eq!(
            (config.hidden_size, config.intermediate_size, config.num_hidden_layers),
            (768, 8, 2)
        );
        assert_eq!((config.image_size, config.patch_size, config.projection_dim), (12, 4, 6));
        assert_eq!((config.num_attention_heads, config.hidden_act), (12, Activation::QuickGelu));
        let other = ClipVisionConfig::from_weights(&weights(96)).unwrap_err().to_string();
        assert!(other.contains("96 wide"), "{other}");
        let none = Weights::from_tensors("test", HashMap::new(), &Device::Cpu);
        let none = ClipVisionConfig::from_weights(&none).unwrap_err().to_string();
        assert!(none.contains("not CLIP's picture half"), "{none}");
    }

    #[test]
    fn the_penultimate_layer_is_the_one_before_the_last() {
        let weights = weights(768);
        let config = ClipVisionConfig::from_weights(&weights).unwrap();
        let model = ClipVision::load(&config, &weights).unwrap();
        let pixels = Tensor::ones((2, 3, 12, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
        let states = model.forward(&pixels).unwrap();
        assert_eq!(states.penultimate_hidden_states.dims(), [2, 10, 768]);
        assert_eq!(states.last_hidden_state.dims(), [2, 10, 768]);
        assert_eq!(states.image_embeds.dims(), [2, 6]);
    }
}
