//! The "Magneto" transformer layers of Kosmos-G's language model and aligner.
//!
//! Pre-norm layers with a second layer norm inside each part ("sub-LN"): in self-attention before
//! the output projection, in the feed-forward network before `fc2`. Wang et al., "Magneto: A
//! Foundation Transformer", arXiv 2210.06423; names follow torchscale.

use candle_core::{Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

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

/// Where a training takes values out.
#[derive(Clone, Copy)]
pub struct Dropping<'a> {
    /// Of the embedding, and of what each part of a layer adds.
    pub values: &'a Dropout<'a>,
    /// Of what each token attends to, [B, heads, T, T].
    pub attention: Option<&'a Dropout<'a>>,
}

impl Dropping<'_> {
    /// Nowhere.
    pub const NOTHING: Dropping<'static> = Dropping { values: &|x| Ok(x.clone()), attention: None };
}

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

    fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        drop: Option<&Dropout>,
    ) -> CandleResult<Tensor> {
        let heads = match drop {
            Some(drop) => self.attention.attend_dropping(x, mask, drop)?,
            None => self.attention.attend(x, x, mask)?,
        };
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
        let hidden = kernels::gelu_erf(&self.fc1.forward(x)?)?;
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
        self.forward_dropping(x, mask, Dropping::NOTHING)
    }

    /// The same in a training.
    pub fn forward_dropping(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        drop: Dropping,
    ) -> CandleResult<Tensor> {
        let normed = self.self_attn_layer_norm.forward(x)?;
        let attended = self.self_attn.forward(&normed, mask, drop.attention)?;
        let x = kernels::add(x, &(drop.values)(&attended)?)?;
        kernels::add(&x, &(drop.values)(&self.ffn.forward(&self.final_layer_norm.forward(&x)?)?)?)
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
        let normed = self.self_attn_layer_norm.forward(x)?;
        let x = kernels::add(x, &self.self_attn.forward(&normed, None, None)?)?;
        let queries = self.encoder_attn_layer_norm.forward(&x)?;
        let x = kernels::add(&x, &self.encoder_attn.forward(&queries, context, mask)?)?;
        kernels::add(&x, &self.ffn.forward(&self.final_layer_norm.forward(&x)?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::layers::causal_mask;

    fn layer(device: &Device) -> Result<SelfLayer> {
        let config = LayerConfig { dim: 24, heads: 3, ffn_dim: 40, layer_norm_eps: 1e-5 };
        let recording = Weights::recording();
        SelfLayer::load(&recording, config)?;
        let random = |(name, shape): (String, Vec<usize>)| {
            Ok((name, Tensor::randn(0f32, 0.3, shape, device)?))
        };
        let tensors = recording.recorded().into_iter().map(random);
        let tensors = tensors.collect::<Result<_>>()?;
        SelfLayer::load(&Weights::from_tensors("the test", tensors, device), config)
    }

    /// With and without a kernel, values and gradients; and half of the softmax lost is another result.
    #[test]
    fn a_softmax_that_loses_nothing_is_attention() -> Result<()> {
        let dev = Device::Cpu;
        let layer = layer(&dev)?;
        let x = Var::randn(0f32, 1., (2, 9, 24), &dev)?;
        let mask = causal_mask(9, &dev)?;
        let through = |drop: Dropping| -> Result<(Tensor, Tensor)> {
            let y = layer.forward_dropping(&x, Some(&mask), drop)?;
            let gradients = y.sqr()?.sum_all()?.backward()?;
            Ok((y.detach(), gradients.get(&x).expect("a gradient").clone()))
        };
        let apart = |a: &Tensor, b: &Tensor| -> Result<f32> {
            let largest = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? / largest)
        };
        let keep: &Dropout = &|x| Ok(x.clone());
        let (want, of_want) = through(Dropping::NOTHING)?;
        let (found, of_found) = through(Dropping { attention: Some(keep), ..Dropping::NOTHING })?;
        assert!(apart(&found, &want)? < 1e-5);
        assert!(apart(&of_found, &of_want)? < 1e-4);
        // Every other key, at twice its share.
        let half: &Dropout = &|x| {
            let (_, _, _, keys) = x.dims4()?;
            let kept: Vec<f32> = (0..keys).map(|key| [2., 0.][key % 2]).collect();
            x.broadcast_mul(&Tensor::new(kept, x.device())?.to_dtype(DType::F32)?)
        };
        let (other, _) = through(Dropping { attention: Some(half), ..Dropping::NOTHING })?;
        assert!(apart(&other, &want)? > 1e-2);
        Ok(())
    }
}
