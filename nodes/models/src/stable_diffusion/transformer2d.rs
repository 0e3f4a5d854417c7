//! The transformer within a U-Net level: pixels attend to each other, then to the context (the
//! text). Rombach et al., arXiv 2112.10752, §3.3; names are diffusers' `Transformer2DModel`.

use std::sync::Arc;

use candle_core::{D, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::Result;
use crate::files::weights::{LowRank, Weight, Weights};
use crate::layers::{LayerNorm, Linear};
use crate::stable_diffusion::resnet::GroupNorm;
use crate::stable_diffusion::shared_rows::repeated;
use crate::stable_diffusion::steering::{Attends, Context, KeysValues};
use crate::stable_diffusion::text_keys::TextKeys;

/// ε of the GroupNorm before the projection; not the ResNet blocks' 1e-5.
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Transformer2DConfig {
    pub(crate) channels: usize,
    pub(crate) heads: usize,
    /// Blocks in a row.
    pub(crate) layers: usize,
    /// Width of the context.
    pub(crate) cross_attention_dim: usize,
    pub(crate) groups: usize,
    /// `proj_in` and `proj_out` are linear (SD 2) rather than 1 × 1 convolutions (SD 1). The same
    /// computation; only the shape in the file differs.
    pub(crate) use_linear_projection: bool,
}

/// Attention whose queries, keys and values have no bias.
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    /// Of a cross-attention.
    text_keys: TextKeys,
}

impl Attention {
    pub(crate) fn load(
        weights: &Weights,
        channels: usize,
        context: usize,
        heads: usize,
    ) -> Result<Self> {
        Ok(Attention {
            to_q: Linear::load_without_bias(&weights.sub("to_q"), channels, channels)?,
            to_k: Linear::load_without_bias(&weights.sub("to_k"), context, channels)?,
            to_v: Linear::load_without_bias(&weights.sub("to_v"), context, channels)?,
            to_out: Linear::load(&weights.sub("to_out.0"), channels, channels)?,
            heads,
            text_keys: TextKeys::default(),
        })
    }

    /// `x` [B, L, C] to `context` [B, S, D], itself where it is self-attention, whose values are made of `values_of`; and to
    /// further keys and values [B, K, C] that are projected already → [B, L, C].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        (context, values_of): (&Tensor, &Tensor),
        further: Option<(&Tensor, &Tensor)>,
    ) -> CandleResult<Tensor> {
        let (mut k, mut v) = (self.to_k.forward(context)?, self.to_v.forward(values_of)?);
        if let Some((keys, values)) = further {
            (k, v) = (Tensor::cat(&[&k, keys], 1)?, Tensor::cat(&[&v, values], 1)?);
        }
        self.to_out.forward(&self.attended(&self.to_q.forward(x)?, &k, &v)?)
    }

    /// How much each token of `x` [B, L, C] attends to each of `context` [B, S, D], for A heads: [B, A, L, S], sums of 1.
    ///
    /// # Errors
    /// The shapes do not fit, or there is no memory for them.
    pub fn weights(&self, x: &Tensor, context: &Tensor) -> crate::Result<Tensor> {
        let (batch, length, channels) = x.dims3()?;
        let head_dim = channels / self.heads;
        let split = |x: Tensor| x.reshape((batch, (), self.heads, head_dim))?.transpose(1, 2);
        let shape = [batch, self.heads, length, context.dim(1)?];
        kosmograph_memory::ask("the weights of an attention", &shape, size_of::<f32>())?;
        let q = split((self.to_q.forward(x)? * (head_dim as f64).powf(-0.5))?)?.contiguous()?;
        let k = split(self.to_k.forward(context)?)?.transpose(2, 3)?.contiguous()?;
        let scores = q.matmul(&k)?;
        let raised = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        Ok(raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)?)
    }

    /// `x` [B, L, C] to itself → [B, L, C].
    fn to_itself(&self, x: &Tensor) -> CandleResult<Tensor> {
        let q = self.to_q.forward(x)?;
        self.to_out.forward(&self.attended(&q, &self.to_k.forward(x)?, &self.to_v.forward(x)?)?)
    }

    /// `x` [B, L, C], or fewer rows that repeat, whose tokens lie in a picture as `size`, to the context; this is the layer `path`
    /// → [B, L, C].
    fn to_context(
        &self,
        x: &Tensor,
        context: &Context<'_>,
        path: &str,
        size: (usize, usize),
    ) -> CandleResult<Tensor> {
        let (rows, text) = (context.text.dim(0)?, context.text);
        let q = repeated(&self.to_q.forward(x)?, rows)?;
        let project = || Ok((self.to_k.forward(text)?, self.to_v.forward(text)?));
        let (k, v) = self.text_keys.of(text, project)?;
        let mut y = self.attended(&q, &k, &v)?;
        for extra in context.extra_tokens {
            let (keys, values) = match &extra.keys_values {
                KeysValues::Tokens(tokens) => {
                    let tokens = repeated(tokens, rows)?.to_dtype(x.dtype())?;
                    (self.to_k.forward(&tokens)?, self.to_v.forward(&tokens)?)
                }
                KeysValues::Projected(layers) => match layers.get(path) {
                    Some((keys, values)) => (
                        repeated(keys, rows)?.to_dtype(x.dtype())?,
                        repeated(values, rows)?.to_dtype(x.dtype())?,
                    ),
                    None => continue,
                },
            };
            if keys.dim(2)? != x.dim(2)? {
                candle_core::bail!(
                    "{path} takes keys of {} numbers, but {} were given: they are of another family of models",
                    x.dim(2)?,
                    keys.dim(2)?
                )
            }
            y = (y + extra.weighted(self.attended(&q, &keys, &values)?, size)?)?;
        }
        self.to_out.forward(&y)
    }

    /// Queries [B, L, C] to keys and values [B, S, C], head by head → [B, L, C].
    fn attended(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> CandleResult<Tensor> {
        let scale = ((q.dim(2)? / self.heads) as f64).powf(-0.5);
        kernels::attention_of_projections(q, k, v, self.heads, None, scale)
    }
}

/// Self-attention, cross-attention, GEGLU feed-forward, each on the normalised and added to it.
struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Arc<Attention>,
    norm2: LayerNorm,
    attn2: Arc<Attention>,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
    /// Its own, by diffusers' names, and its cross-attention's.
    own_path: String,
    path: String,
}

impl BasicTransformerBlock {
    fn load(weights: &Weights, config: Transformer2DConfig) -> Result<Self> {
        let Transformer2DConfig { channels, heads, cross_attention_dim, .. } = config;
        let norm = |name| LayerNorm::load(&weights.sub(name), channels, LAYER_NORM_EPS);
        let hidden = 4 * channels;
        Ok(BasicTransformerBlock {
            norm1: norm("norm1")?,
            attn1: Attention::load(&weights.sub("attn1"), channels, channels, heads)?.into(),
            norm2: norm("norm2")?,
            attn2: Attention::load(&weights.sub("attn2"), channels, cross_attention_dim, heads)?
                .into(),
            norm3: norm("norm3")?,
            ff_in: Linear::load(&weights.sub("ff.net.0.proj"), channels, 2 * hidden)?,
            ff_out: Linear::load(&weights.sub("ff.net.2"), hidden, channels)?,
            own_path: String::new(),
            path: String::new(),
        })
    }

    /// `x` [B, L, C], or fewer rows that repeat until they read the context → [B, L, C].
    fn forward(
        &self,
        x: &Tensor,
        context: &Context<'_>,
        size: (usize, usize),
    ) -> CandleResult<Tensor> {
        let x = kernels::add(x, &self.to_itself(&self.norm1.forward(x)?, context, size)?)?;
        let x = match context.hooks {
            Some(hooks) => hooks.between(&self.own_path, size, x)?,
            None => x,
        };
        let normed = self.norm2.forward(&x)?;
        let x = repeated(&x, context.text.dim(0)?)?;
        let x = kernels::add(&x, &self.to_context(&normed, context, size)?)?;
        let hidden = self.ff_in.forward_geglu(&self.norm3.forward(&x)?)?;
        kernels::add(&x, &self.ff_out.forward(&hidden)?)
    }
}

impl BasicTransformerBlock {
    fn to_itself(
        &self,
        x: &Tensor,
        context: &Context<'_>,
        size: (usize, usize),
    ) -> CandleResult<Tensor> {
        let hooked = context.hooks.map(|hooks| {
            hooks.attention(Attends::Itself, &self.own_path, size, (x, x), &self.attn1)
        });
        match hooked.transpose()?.flatten() {
            Some(y) => Ok(y),
            None => self.attn1.to_itself(x),
        }
    }

    fn to_context(
        &self,
        x: &Tensor,
        context: &Context<'_>,
        size: (usize, usize),
    ) -> CandleResult<Tensor> {
        let layer = &self.attn2;
        let hooked = context.hooks.map(|hooks| {
            hooks.attention(Attends::Context, &self.own_path, size, (x, context.text), layer)
        });
        let hooked = hooked.transpose()?.flatten();
        if let Some(y) = hooked.as_ref().filter(|_| context.extra_tokens.is_empty()) {
            return Ok(y.clone());
        }
        let whole = layer.to_context(x, context, &self.path, size)?;
        match hooked {
            None => Ok(whole),
            // What the extra tokens add is the same, whatever the text gives.
            Some(y) => y + (whole - layer.forward(x, (context.text, context.text), None)?)?,
        }
    }
}

/// The path of the cross-attention of block `i` of the transformer at `path`.
pub(crate) fn cross_attention(path: &str, i: usize) -> String {
    format!("{path}.transformer_blocks.{i}.attn2")
}

pub(crate) struct Transformer2D {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Projection,
}

impl Transformer2D {
    pub(crate) fn load(weights: &Weights, config: Transformer2DConfig) -> Result<Self> {
        let Transformer2DConfig { channels, groups, use_linear_projection, .. } = config;
        let projection =
            |name| Projection::load(&weights.sub(name), channels, use_linear_projection);
        Ok(Transformer2D {
            norm: GroupNorm::load(&weights.sub("norm"), channels, groups, GROUP_NORM_EPS)?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..config.layers)
                .map(|i| {
                    let weights = weights.sub(format!("transformer_blocks.{i}"));
                    BasicTransformerBlock::load(&weights, config)
                })
                .collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// The same at the place `path` of the U-Net, by diffusers' names: `down_blocks.0.attentions.0`.
    pub(crate) fn at(mut self, path: &str) -> Self {
        for (i, block) in self.transformer_blocks.iter_mut().enumerate() {
            block.path = cross_attention(path, i);
            block.own_path = format!("{path}.transformer_blocks.{i}");
        }
        self
    }

    /// `x` [B, C, H, W], or fewer rows that repeat until they read the context [B, T, D] → [B, C, H, W].
    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> CandleResult<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let tokens = kernels::pixels_to_tokens(&self.norm.forward(x)?)?;
        let mut hidden_states = self.proj_in.forward(&tokens)?;
        for block in &self.transformer_blocks {
            hidden_states = block.forward(&hidden_states, context, (height, width))?;
        }
        let tokens = self.proj_out.forward(&hidden_states)?;
        let x = repeated(x, tokens.dim(0)?)?;
        kernels::add(&x, &kernels::tokens_to_pixels(&tokens, height, width)?)
    }
}

/// A linear layer over channels, stored as one or as a 1 × 1 convolution.
struct Projection {
    weight: Weight,
    bias: Tensor,
    low_rank: Option<LowRank>,
}

impl Projection {
    fn load(weights: &Weights, channels: usize, is_linear: bool) -> Result<Self> {
        let weight = if is_linear {
            weights.get_weight("weight", (channels, channels))?
        } else {
            weights
                .get_weight("weight", (channels, channels, 1, 1))?
                .reshape((channels, channels))?
        };
        let low_rank = weights.low_rank("weight");
        Ok(Projection { weight, bias: weights.get("bias", channels)?, low_rank })
    }

    /// [B, L, C] → [B, L, C].
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (weight, bias) = (self.weight.tensor()?, Some(&self.bias));
        match &self.low_rank {
            None => kernels::linear(x, &weight, bias),
            Some(low_rank) => low_rank.linear(x, &weight, bias),
        }
    }
}
