//! Kosmos-G's vision transformer: a picture → one normalised vector a patch.
//!
//! CLIP's ViT-L/14 as open_clip builds it, with two changes of the authors'
//! (`unilm/models/vl/clip.py`): `ln_post` is applied to all tokens and there is no projection; and
//! attention is stored split, under `ts_attn`.

use candle_core::Tensor;
use kosmograph_kernels as kernels;
use serde::Deserialize;

use crate::clip::vision::{embed_patches, token_count};
use crate::error::Result;
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear, MultiheadAttention, l2_normalize};

const LAYER_NORM_EPS: f64 = 1e-5;

/// `vision` of a Kosmos folder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct VitConfig {
    /// The side of the picture, in pixels.
    pub image_size: usize,
    /// The side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of every token, C.
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    /// Width within an MLP, in widths of a token.
    pub mlp_ratio: f64,
}

impl VitConfig {
    /// Tokens of one picture: its patches and the class token.
    pub fn tokens(&self) -> Result<usize> {
        token_count(self.image_size, self.patch_size)
    }
}

/// A pre-norm block.
#[derive(Clone, Debug)]
struct ResidualAttentionBlock {
    ln_1: LayerNorm,
    ts_attn: MultiheadAttention,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

impl ResidualAttentionBlock {
    fn load(weights: &Weights, config: &VitConfig) -> Result<ResidualAttentionBlock> {
        let dim = config.width;
        let mlp = (dim as f64 * config.mlp_ratio) as usize;
        Ok(ResidualAttentionBlock {
            ln_1: LayerNorm::load(&weights.sub("ln_1"), dim, LAYER_NORM_EPS)?,
            ts_attn: MultiheadAttention::load(&weights.sub("ts_attn"), dim, config.heads)?,
            ln_2: LayerNorm::load(&weights.sub("ln_2"), dim, LAYER_NORM_EPS)?,
            c_fc: Linear::load(&weights.sub("mlp.c_fc"), dim, mlp)?,
            c_proj: Linear::load(&weights.sub("mlp.c_proj"), mlp, dim)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.ln_1.forward(x)?;
        let x = kernels::add(x, &self.ts_attn.forward(&normed, &normed, None)?)?;
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x)?)?;
        Ok(kernels::add(&x, &self.c_proj.forward(&kernels::quick_gelu(&hidden)?)?)?)
    }
}

/// The vision transformer.
#[derive(Clone, Debug)]
pub struct Vit {
    conv1: Tensor,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    ln_pre: LayerNorm,
    resblocks: Vec<ResidualAttentionBlock>,
    ln_post: LayerNorm,
}

impl Vit {
    /// Loads the tensors of `visual`.
    pub fn load(config: &VitConfig, weights: &Weights) -> Result<Vit> {
        let (dim, patch) = (config.width, config.patch_size);
        let block = |index: usize| {
            let name = format!("transformer.resblocks.{index}");
            ResidualAttentionBlock::load(&weights.sub(&name), config)
        };
        Ok(Vit {
            conv1: weights.get("conv1.weight", (dim, 3, patch, patch))?,
            class_embedding: weights.get("class_embedding", dim)?,
            positional_embedding: weights.get("positional_embedding", (config.tokens()?, dim))?,
            ln_pre: LayerNorm::load(&weights.sub("ln_pre"), dim, LAYER_NORM_EPS)?,
            resblocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            ln_post: LayerNorm::load(&weights.sub("ln_post"), dim, LAYER_NORM_EPS)?,
        })
    }

    /// Normalised pixels [B, 3, S, S] → what goes into the first block and what comes out of each,
    /// [B, T, C] each.
    pub fn hidden_states(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let x =
            embed_patches(pixels, &self.conv1, &self.class_embedding, &self.positional_embedding)?;
        let mut x = self.ln_pre.forward(&x)?;
        let mut states = vec![x.clone()];
        for block in &self.resblocks {
            x = block.forward(&x)?;
            states.push(x.clone());
        }
        Ok(states)
    }

    /// Normalised pixels [B, 3, S, S] → every token after `ln_post`, [B, T, C].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let x =
            embed_patches(pixels, &self.conv1, &self.class_embedding, &self.positional_embedding)?;
        let mut x = self.ln_pre.forward(&x)?;
        for block in &self.resblocks {
            x = block.forward(&x)?;
        }
        Ok(self.ln_post.forward(&x)?)
    }

    /// What Kosmos-G takes: [`Self::forward`] with every token, the class token too, of length one.
    /// [B, T, C].
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(l2_normalize(&self.forward(pixels)?)?)
    }
}
