//! CLIP's vision transformer with its projection: a picture → one vector in the space that it
//! shares with text.
//!
//! The measure of CLIP-I and CLIP-T, and the picture encoder of IP-Adapters. Layers, names and
//! configuration are those of transformers' `CLIPVisionModelWithProjection`; Kosmos-G's own vision
//! transformer is [`crate::vit`].

use candle_core::{IndexOp, Tensor};
use serde::Deserialize;

use crate::clip_text::{Activation, EncoderLayer};
use crate::error::{Error, Result};
use crate::layers::{LayerNorm, Linear};
use crate::weights::Weights;

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
        let x = embed_patches(
            pixels,
            &self.patch_embedding,
            &self.class_embedding,
            &self.position_embedding,
        )?;
        let mut x = self.pre_layernorm.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(&x, None)?;
        }
        Ok(x)
    }

    /// Normalised pixels [B, 3, S, S] → `image_embeds` [B, P], not normalised.
    pub fn image_embeds(&self, pixels: &Tensor) -> Result<Tensor> {
        let class = self.last_hidden_state(pixels)?.i((.., 0))?;
        Ok(self.visual_projection.forward(&self.post_layernorm.forward(&class)?)?)
    }
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
