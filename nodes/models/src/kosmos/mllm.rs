//! Kosmos-G's language model: tokens and image tokens → hidden states.
//!
//! A causal decoder of Magneto layers ([`crate::kosmos::magneto`]) with fairseq's fixed sinusoidal
//! positions. Follows `LMDecoder` of the authors' `unilm/models/gpt.py`: xPos is configured there
//! and its buffer is in the checkpoint, but nothing applies it; and no mask hides padding here.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::kosmos::magneto::{Dropping, LayerConfig, SelfLayer};
use crate::layers::{LayerNorm, causal_mask, embedding};
use crate::text::kosmos_tokens::PAD;

/// `mllm` of a Kosmos folder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct MllmConfig {
    /// Rows of the token embedding, V.
    pub vocab_size: usize,
    /// Width of every token, C.
    pub embed_dim: usize,
    pub layers: usize,
    pub heads: usize,
    /// Width within a feed-forward network.
    pub ffn_dim: usize,
    pub layer_norm_eps: f64,
}

/// Image tokens and the places they take.
#[derive(Clone, Debug)]
pub struct ImageTokens {
    /// The tokens of all pictures of all rows, in the order of their places, [N, C].
    pub features: Tensor,
    /// Nonzero at the N places that they take, [B, T].
    pub mask: Tensor,
}

/// The decoder.
#[derive(Clone, Debug)]
pub struct Mllm {
    embed_tokens: Tensor,
    layers: Vec<SelfLayer>,
    layer_norm: LayerNorm,
}

impl Mllm {
    /// Loads the tensors of `decoder`. The output projection is the token embedding, whatever else
    /// is in the file.
    pub fn load(config: &MllmConfig, weights: &Weights) -> Result<Mllm> {
        let dim = config.embed_dim;
        if dim < 4 {
            return Err(Error::Input(format!(
                "a language model of width {dim} has no sinusoidal positions: at least 4 would be right"
            )));
        }
        let layer = LayerConfig {
            dim,
            heads: config.heads,
            ffn_dim: config.ffn_dim,
            layer_norm_eps: config.layer_norm_eps,
        };
        let load = |index: usize| SelfLayer::load(&weights.sub(format!("layers.{index}")), layer);
        Ok(Mllm {
            embed_tokens: weights.get_kept("embed_tokens.weight", (config.vocab_size, dim))?,
            layers: (0..config.layers).map(load).collect::<Result<_>>()?,
            layer_norm: LayerNorm::load(&weights.sub("layer_norm"), dim, config.layer_norm_eps)?,
        })
    }

    /// `tokens` [B, T] → what goes into the first layer, [B, T, C]: √C · (token embedding, or image
    /// token where one stands) + position.
    ///
    /// # Errors
    /// An id is outside the vocabulary, or there are more or fewer image tokens than places for
    /// them.
    pub fn embed(&self, tokens: &Tensor, images: Option<&ImageTokens>) -> Result<Tensor> {
        let dim = self.embed_tokens.dim(1)?;
        let mut x = embedding(&self.embed_tokens, tokens)?;
        if let Some(images) = images {
            x = replace_at_mask(&x, images)?;
        }
        let positions = sinusoidal_positions(tokens, dim)?;
        Ok(((x * (dim as f64).sqrt())? + positions)?)
    }

    /// What comes out of each layer, before the last layer norm, [B, T, C] each.
    pub fn hidden_states(
        &self,
        tokens: &Tensor,
        images: Option<&ImageTokens>,
    ) -> Result<Vec<Tensor>> {
        let mut x = self.embed(tokens, images)?;
        let mask = causal_mask(x.dim(1)?, x.device())?;
        let mut states = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            x = layer.forward(&x, Some(&mask))?;
            states.push(x.clone());
        }
        Ok(states)
    }

    /// `tokens` [B, T] → hidden states after the last layer norm, [B, T, C]: what the aligner
    /// takes.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn forward(&self, tokens: &Tensor, images: Option<&ImageTokens>) -> Result<Tensor> {
        self.forward_dropping(tokens, images, Dropping::NOTHING)
    }

    /// [`Self::forward`] in a training.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn forward_dropping(
        &self,
        tokens: &Tensor,
        images: Option<&ImageTokens>,
        drop: Dropping,
    ) -> Result<Tensor> {
        let mut x = (drop.values)(&self.embed(tokens, images)?)?;
        let mask = causal_mask(x.dim(1)?, x.device())?;
        for layer in &self.layers {
            x = layer.forward_dropping(&x, Some(&mask), drop)?;
        }
        Ok(self.layer_norm.forward(&x)?)
    }

    /// The next token's logits from hidden states [B, T, C]: [B, T, V].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(kosmograph_kernels::linear(hidden, &self.embed_tokens, None)?)
    }
}

/// `x` [B, T, C] with the rows of `images.features` at the places of `images.mask`.
fn replace_at_mask(x: &Tensor, images: &ImageTokens) -> Result<Tensor> {
    let (batch, length, dim) = x.dims3()?;
    if images.mask.dims2()? != (batch, length) || images.features.dims2()?.1 != dim {
        return Err(Error::Input(format!(
            "image tokens {:?} with the mask {:?} do not fit embeddings {:?}",
            images.features.dims(),
            images.mask.dims(),
            x.dims()
        )));
    }
    let mask = images.mask.flatten_all()?.to_dtype(DType::U8)?.to_vec1::<u8>()?;
    let (places, given) = (mask.iter().filter(|m| **m != 0).count(), images.features.dim(0)?);
    if places != given {
        return Err(Error::Input(format!(
            "the prompt has places for {places} image tokens, but the pictures give {given}"
        )));
    }
    // One table of text and image tokens, and for each place the row to take from it.
    let table = Tensor::cat(&[&x.reshape((batch * length, dim))?, &images.features], 0)?;
    let mut image_rows = (batch * length) as u32..;
    let rows = (0u32..).zip(&mask).map(|(row, mask)| match mask {
        0 => row,
        _ => image_rows.next().unwrap_or(row),
    });
    let rows = Tensor::from_vec(rows.collect::<Vec<u32>>(), batch * length, x.device())?;
    Ok(table.index_select(&rows, 0)?.reshape((batch, length, dim))?)
}

/// fairseq's positions for `tokens` [B, T]: [B, T, dim]. Counting begins at 2; padding has a row of
/// zeros and is not counted.
///
/// A row is [sin(p·f) ‖ cos(p·f)] with f from 1 down to 1/10000, both ends included. All in f32, as
/// there.
fn sinusoidal_positions(tokens: &Tensor, dim: usize) -> Result<Tensor> {
    let (batch, length) = tokens.dims2()?;
    let half = dim / 2;
    let step = (10_000f64.ln() / (half - 1) as f64) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * -step).exp()).collect();
    let mut out = vec![0f32; batch * length * dim];
    let ids = tokens.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    for (row, ids) in ids.chunks(length.max(1)).enumerate() {
        let real = ids.iter().enumerate().filter(|(_, id)| **id != PAD);
        for (position, (column, _)) in (PAD + 1..).zip(real) {
            let start = (row * length + column) * dim;
            let (sines, cosines) = out[start..start + 2 * half].split_at_mut(half);
            for ((sine, cosine), frequency) in sines.iter_mut().zip(cosines).zip(&frequencies) {
                (*sine, *cosine) = (position as f32 * frequency).sin_cos();
            }
        }
    }
    Ok(Tensor::from_vec(out, (batch, length, dim), &Device::Cpu)?.to_device(tokens.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_no_position_and_is_not_counted() -> Result<()> {
        let tokens = Tensor::new(&[[PAD, 5, PAD, 6]], &Device::Cpu)?;
        let rows = sinusoidal_positions(&tokens, 4)?.squeeze(0)?.to_vec2::<f32>()?;
        assert_eq!(rows[0], [0.0; 4]);
        assert_eq!(rows[2], [0.0; 4]);
        let row = |p: f32| [p.sin(), (p * 1e-4).sin(), p.cos(), (p * 1e-4).cos()];
        for (found, expected) in [(&rows[1], row(2.0)), (&rows[3], row(3.0))] {
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{found:?} {expected:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn image_tokens_take_their_places_in_order() -> Result<()> {
        let device = Device::Cpu;
        let x = Tensor::zeros((2, 3, 1), DType::F32, &device)?;
        let mask = Tensor::new(&[[0u8, 1, 0], [1, 0, 1]], &device)?;
        let features = Tensor::new(&[[1f32], [2.], [3.]], &device)?;
        let out = replace_at_mask(&x, &ImageTokens { features, mask: mask.clone() })?;
        assert_eq!(out.flatten_all()?.to_vec1::<f32>()?, [0., 1., 0., 2., 0., 3.]);
        let features = Tensor::new(&[[1f32], [2.]], &device)?;
        let error = replace_at_mask(&x, &ImageTokens { features, mask }).unwrap_err().to_string();
        assert!(error.contains("places for 3 image tokens, but the pictures give 2"), "{error}");
        Ok(())
    }
}
