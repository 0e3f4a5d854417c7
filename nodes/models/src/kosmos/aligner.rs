//! Kosmos-G's aligner: the language model's hidden states → a condition in the place of CLIP's text
//! embedding.
//!
//! The encoder half (`AlignerNet`) compresses any number of hidden states into 77 vectors; the
//! reconstruction half, used in training only, goes back to them, so that nothing is lost on the
//! way. Both are Magneto layers. Pan et al., arXiv 2310.02992, §2.2; follows the authors'
//! `unilm/models/aligner.py`.

use candle_core::Tensor;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::kosmos::magneto::{CrossLayer, LayerConfig, SelfLayer};
use crate::layers::{LayerNorm, Linear, padding_mask};

/// Learned positions are counted from here: fairseq's first position behind the padding's.
const FIRST_POSITION: usize = 2;

/// `aligner` of a Kosmos folder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct AlignerConfig {
    /// Width of the condition, D: 768 for Stable Diffusion 1.5.
    pub dim: usize,
    /// Layers without cross-attention: of `encoder_proj` and of `decoder_proj`.
    pub encoder_layers: usize,
    /// Layers with cross-attention: of `encoder` and of `decoder`.
    pub decoder_layers: usize,
    pub heads: usize,
    /// Width within a feed-forward network.
    pub ffn_dim: usize,
    /// Rows of the learned positions; the longest prompt has two tokens less.
    pub max_positions: usize,
    /// Vectors of the condition, Q: 77.
    pub queries: usize,
    pub layer_norm_eps: f64,
}

impl AlignerConfig {
    fn layer(&self) -> LayerConfig {
        LayerConfig {
            dim: self.dim,
            heads: self.heads,
            ffn_dim: self.ffn_dim,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}

/// torchscale's `Encoder` without an embedding of its own: learned positions, layers, a last layer
/// norm.
#[derive(Clone, Debug)]
struct Encoder {
    embed_positions: Tensor,
    layers: Vec<SelfLayer>,
    layer_norm: LayerNorm,
}

impl Encoder {
    fn load(config: &AlignerConfig, weights: &Weights) -> Result<Encoder> {
        let layer =
            |index: usize| SelfLayer::load(&weights.sub(format!("layers.{index}")), config.layer());
        Ok(Encoder {
            embed_positions: weights
                .get("embed_positions.weight", (config.max_positions, config.dim))?,
            layers: (0..config.encoder_layers).map(layer).collect::<Result<_>>()?,
            layer_norm: LayerNorm::load(
                &weights.sub("layer_norm"),
                config.dim,
                config.layer_norm_eps,
            )?,
        })
    }

    /// `x` [B, T, D] → [B, T, D]; `padding` [B, T] is nonzero where a position is to be ignored.
    fn forward(&self, x: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
        let (length, rows) = (x.dim(1)?, self.embed_positions.dim(0)?);
        if length + FIRST_POSITION > rows {
            return Err(Error::Input(format!(
                "{length} tokens are too long for this aligner, which has positions for {}",
                rows.saturating_sub(FIRST_POSITION)
            )));
        }
        let positions = self.embed_positions.narrow(0, FIRST_POSITION, length)?;
        let mut x = x.broadcast_add(&positions)?;
        let mut mask = None;
        if let Some(padding) = padding {
            let zero = x.zeros_like()?;
            x = padding.unsqueeze(2)?.broadcast_as(x.shape())?.where_cond(&zero, &x)?;
            mask = Some(padding_mask(padding)?);
        }
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref())?;
        }
        Ok(self.layer_norm.forward(&x)?)
    }
}

/// torchscale's `Decoder` over learned queries: layers with cross-attention, not causal, a last
/// layer norm.
#[derive(Clone, Debug)]
struct Decoder {
    layers: Vec<CrossLayer>,
    layer_norm: LayerNorm,
}

impl Decoder {
    fn load(config: &AlignerConfig, weights: &Weights) -> Result<Decoder> {
        let layer = |index: usize| {
            CrossLayer::load(&weights.sub(format!("layers.{index}")), config.layer())
        };
        Ok(Decoder {
            layers: (0..config.decoder_layers).map(layer).collect::<Result<_>>()?,
            layer_norm: LayerNorm::load(
                &weights.sub("layer_norm"),
                config.dim,
                config.layer_norm_eps,
            )?,
        })
    }

    /// `queries` [T, D], the same for every row, attend to `context` [B, S, D]: [B, T, D].
    fn forward(
        &self,
        queries: &Tensor,
        context: &Tensor,
        padding: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (length, dim) = queries.dims2()?;
        let mask = padding.map(padding_mask).transpose()?;
        let mut x = queries.broadcast_as((context.dim(0)?, length, dim))?.contiguous()?;
        for layer in &self.layers {
            x = layer.forward(&x, context, mask.as_ref())?;
        }
        Ok(self.layer_norm.forward(&x)?)
    }
}

/// The encoder half.
#[derive(Clone, Debug)]
pub struct Aligner {
    embed_tokens: Linear,
    encoder_proj: Encoder,
    encoder_query: Tensor,
    encoder: Decoder,
}

impl Aligner {
    /// Loads the tensors of `aligner`; `input` is the language model's width, C.
    pub fn load(config: &AlignerConfig, input: usize, weights: &Weights) -> Result<Aligner> {
        let encoder_proj = weights.sub("encoder_proj");
        Ok(Aligner {
            embed_tokens: Linear::load(&encoder_proj.sub("embed_tokens"), input, config.dim)?,
            encoder_proj: Encoder::load(config, &encoder_proj)?,
            encoder_query: weights.get("encoder_query", (config.queries, config.dim))?,
            encoder: Decoder::load(config, &weights.sub("encoder"))?,
        })
    }

    /// The language model's hidden states [B, T, C] → [B, T, D], what the queries attend to.
    pub fn project(&self, hidden: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
        self.encoder_proj.forward(&self.embed_tokens.forward(hidden)?, padding)
    }

    /// The language model's hidden states [B, T, C] → the condition [B, Q, D]. `padding` [B, T] is
    /// nonzero at padding tokens.
    ///
    /// # Errors
    /// The rows are longer than the aligner's positions.
    pub fn forward(&self, hidden: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
        let context = self.project(hidden, padding)?;
        self.encoder.forward(&self.encoder_query, &context, padding)
    }
}

/// The reconstruction half, of checkpoints from the first stage of training.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    decoder_query: Tensor,
    decoder: Decoder,
    decoder_proj: Encoder,
    output_projection: Linear,
}

impl Reconstruction {
    /// Whether `weights`, those of `aligner`, have this half.
    pub fn is_in(weights: &Weights) -> bool {
        weights.has("decoder_query")
    }

    /// Loads the tensors of `aligner`; `output` is the language model's width, C.
    pub fn load(
        config: &AlignerConfig,
        output: usize,
        weights: &Weights,
    ) -> Result<Reconstruction> {
        let decoder_proj = weights.sub("decoder_proj");
        let output_projection = decoder_proj.sub("output_projection");
        Ok(Reconstruction {
            decoder_query: weights.get("decoder_query", (config.max_positions, config.dim))?,
            decoder: Decoder::load(config, &weights.sub("decoder"))?,
            decoder_proj: Encoder::load(config, &decoder_proj)?,
            output_projection: Linear::load(&output_projection, config.dim, output)?,
        })
    }

    /// The condition [B, Q, D] → `length` vectors of its width, [B, length, D].
    pub fn decode(&self, condition: &Tensor, length: usize) -> Result<Tensor> {
        let longest = self.decoder_query.dim(0)?;
        if length > longest {
            return Err(Error::Input(format!(
                "{length} hidden states cannot be reconstructed: this aligner has {longest} queries"
            )));
        }
        self.decoder.forward(&self.decoder_query.narrow(0, 0, length)?, condition, None)
    }

    /// What [`Self::decode`] gave, [B, T, D] → the language model's hidden states, [B, T, C].
    pub fn project(&self, decoded: &Tensor) -> Result<Tensor> {
        Ok(self.output_projection.forward(&self.decoder_proj.forward(decoded, None)?)?)
    }
}

/// The alignment loss: the mean squared difference of condition and CLIP's text embedding, both [B,
/// Q, D]. A scalar.
pub fn alignment_loss(condition: &Tensor, clip_embedding: &Tensor) -> Result<Tensor> {
    Ok((condition - clip_embedding)?.sqr()?.mean_all()?)
}

/// The reconstruction loss: the mean squared difference of hidden states [B, T, C] × Q/T, `queries`
/// being Q. A scalar. Padding counts.
pub fn reconstruction_loss(
    reconstruction: &Tensor,
    hidden: &Tensor,
    queries: usize,
) -> Result<Tensor> {
    let length = hidden.dim(1)?;
    Ok(((reconstruction - hidden)?.sqr()?.mean_all()? * (queries as f64 / length as f64))?)
}
