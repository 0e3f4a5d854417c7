//! The "Magneto" transformer layers of Kosmos-G's language model and aligner.
//!
//! Pre-norm layers with a second layer norm inside each part ("sub-LN"): in self-attention before
//! the output projection, in the feed-forward network before `fc2`. Wang et al., "Magneto: A
//! Foundation Transformer", arXiv 2210.06423; names follow torchscale.

use candle_core::{Result as CandleResult, Tensor};

use crate::error::Result;
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear, MultiheadAttention};

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    /// Width of every token, C.
    pub dim: usize,
    pub heads: usize,
    /// Width within the feed-forward network.
    pub ffn_dim: usize,
    pub layer_norm_eps: f64,
}

/// Takes values out by chance in a training (Srivastava et al., JMLR 2014); elsewhere what goes in comes out.
pub type Dropout<'a> = dyn Fn(&Tensor) -> CandleResult<Tensor> + 'a;

#[derive(Clone, Debug)]
struct SelfAttention {
    attention: MultiheadAttention,
    inner_attn_ln: LayerNorm,
}

impl SelfAttention {
    fn load(weights: &Weights, config: LayerConfig) -> Result<SelfAttention> {
        let inner = weights.sub("inner_attn_ln");
        Ok(SelfAttention {
            attention: MultiheadAttention::load(weights, config.dim, config.heads)?,
            inner_attn_ln: LayerNorm::load(&inner, config.dim, config.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> CandleResult<Tensor> {
        let heads = self.attention.attend(x, x, mask)?;
        self.attention.project(&self.inner_attn_ln.forward(&heads)?)
    }
}

#[derive(Clone, Debug)]
struct FeedForward {
    fc1: Linear,
    ffn_layernorm: LayerNorm,
    fc2: Linear,
}

impl FeedForward {
    fn load(weights: &Weights, config: LayerConfig) -> Result<FeedForward> {
        let inner = weights.sub("ffn_layernorm");
        Ok(FeedForward {
            fc1: Linear::load(&weights.sub("fc1"), config.dim, config.ffn_dim)?,
            ffn_layernorm: LayerNorm::load(&inner, config.ffn_dim, config.layer_norm_eps)?,
            fc2: Linear::load(&weights.sub("fc2"), config.ffn_dim, config.dim)?,
        })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let hidden = kosmograph_kernels::gelu_erf(&self.fc1.forward(x)?)?;
        self.fc2.forward(&self.ffn_layernorm.forward(&hidden)?)
    }
}

/// Self-attention and feed-forward: torchscale's encoder layer, and its decoder layer where there
/// is nothing to cross-attend to.
#[derive(Clone, Debug)]
pub struct SelfLayer {
    self_attn_layer_norm: LayerNorm,
    self_attn: SelfAttention,
    final_layer_norm: LayerNorm,
    ffn: FeedForward,
}

impl SelfLayer {
    /// Loads the tensors of one layer.
    pub fn load(weights: &Weights, config: LayerConfig) -> Result<SelfLayer> {
        let norm =
            |name: &str| LayerNorm::load(&weights.sub(name), config.dim, config.layer_norm_eps);
        Ok(SelfLayer {
            self_attn_layer_norm: norm("self_attn_layer_norm")?,
            self_attn: SelfAttention::load(&weights.sub("self_attn"), config)?,
            final_layer_norm: norm("final_layer_norm")?,
            ffn: FeedForward::load(&weights.sub("ffn"), config)?,
        })
    }

    /// [B, T, C] → [B, T, C]; `mask` broadcasts to [B, heads, T, T].
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> CandleResult<Tensor> {
        self.forward_dropping(x, mask, &|x| Ok(x.clone()))
    }

    /// The same in a training, where `drop` takes values out of what each part adds.
    pub fn forward_dropping(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        drop: &Dropout,
    ) -> CandleResult<Tensor> {
        let attended = self.self_attn.forward(&self.self_attn_layer_norm.forward(x)?, mask)?;
        let x = (x + drop(&attended)?)?;
        &x + drop(&self.ffn.forward(&self.final_layer_norm.forward(&x)?)?)?
    }
}

/// Self-attention, cross-attention, feed-forward: torchscale's decoder layer. Cross-attention has
/// no inner layer norm.
#[derive(Clone, Debug)]
pub struct CrossLayer {
    self_attn_layer_norm: LayerNorm,
    self_attn: SelfAttention,
    encoder_attn_layer_norm: LayerNorm,
    encoder_attn: MultiheadAttention,
    final_layer_norm: LayerNorm,
    ffn: FeedForward,
}

impl CrossLayer {
    /// Loads the tensors of one layer.
    pub fn load(weights: &Weights, config: LayerConfig) -> Result<CrossLayer> {
        let norm =
            |name: &str| LayerNorm::load(&weights.sub(name), config.dim, config.layer_norm_eps);
        let encoder_attn = weights.sub("encoder_attn");
        Ok(CrossLayer {
            self_attn_layer_norm: norm("self_attn_layer_norm")?,
            self_attn: SelfAttention::load(&weights.sub("self_attn"), config)?,
            encoder_attn_layer_norm: norm("encoder_attn_layer_norm")?,
            encoder_attn: MultiheadAttention::load(&encoder_attn, config.dim, config.heads)?,
            final_layer_norm: norm("final_layer_norm")?,
            ffn: FeedForward::load(&weights.sub("ffn"), config)?,
        })
    }

    /// `x` [B, T, C] attends to itself, not causally, and to `context` [B, S, C]; `mask` broadcasts
    /// to [B, heads, T, S].
    pub fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&Tensor>,
    ) -> CandleResult<Tensor> {
        let x = (x + self.self_attn.forward(&self.self_attn_layer_norm.forward(x)?, None)?)?;
        let queries = self.encoder_attn_layer_norm.forward(&x)?;
        let x = (&x + self.encoder_attn.forward(&queries, context, mask)?)?;
        &x + self.ffn.forward(&self.final_layer_norm.forward(&x)?)?
    }
}
