//! A prompt's rows through CLIP's text encoder, weighted as ComfyUI weights them for Stable
//! Diffusion 1.5: each token's vector is moved from where the empty prompt has it.
//!
//! z' = z₀ + w (z − z₀), place by place, where z₀ is the encoding of the empty prompt by the same
//! layer. A weight of 0 puts the empty prompt there; the encoder itself sees the words unweighted.

use candle_core::{DType, Tensor};

use crate::clip::text::{ClipText, ContextLayer};
use crate::error::{Error, Result};
use crate::text::clip_prompt_tokens::{PromptRows, Slot, empty_row};
use crate::text::clip_tokens::ClipTokenizer;

/// A prompt as the denoiser takes it.
#[derive(Clone, Debug)]
pub struct EncodedPrompt {
    /// The rows one after the other, [1, rows · T, D].
    pub context: Tensor,
    /// The last layer's vector at the first end of the first row, unweighted, and projected where the encoder has a
    /// projection, [1, D].
    pub pooled: Tensor,
}

/// The rows that go through the encoder at once: a prompt of two thousand words.
const ROWS: usize = 32;

impl ClipText {
    /// Encodes a prompt; a number as `layer` counts as in [`ClipText::forward_skip`].
    ///
    /// # Errors
    /// An embedding has another width than the encoder, or what [`ClipText::forward_skip`] reports.
    pub fn encode_prompt(
        &self,
        prompt: &PromptRows,
        tokenizer: &ClipTokenizer,
        layer: impl Into<ContextLayer>,
    ) -> Result<EncodedPrompt> {
        let layer = layer.into();
        let length = prompt.rows.first().map_or(0, Vec::len);
        let token = |(slot, _): &(Slot, f64)| match slot {
            Slot::Token(token) => *token,
            // Its vector is put in below; no end, at which a row would be pooled.
            Slot::Vector { .. } => tokenizer.start_id(),
        };
        let mut ids: Vec<u32> = prompt.rows.iter().flatten().map(token).collect();
        let weighted = prompt.rows.iter().flatten().any(|(_, weight)| *weight != 1.0);
        let mut rows = prompt.rows.len();
        if weighted {
            ids.extend(empty_row(tokenizer, length)?);
            rows += 1;
        }
        let device = self.device();
        let ids = Tensor::from_vec(ids, (rows, length), device)?;
        let embeddings = self.put_vectors(self.embed(&ids)?, prompt)?;
        // In portions, so that what lies between the layers does not grow with the prompt.
        let mut hidden = Vec::new();
        let mut pooled = None;
        for first in (0..rows).step_by(ROWS) {
            let portion = embeddings.narrow(0, first, ROWS.min(rows - first))?;
            let states = self.forward_embeddings(&portion, layer)?;
            if pooled.is_none() {
                let last = states.last.narrow(0, 0, 1)?;
                pooled = Some(self.project(&self.pool(&ids.narrow(0, 0, 1)?, &last)?)?);
            }
            hidden.push(states.hidden);
        }
        let no_rows = || Error::Input("a prompt without rows was given".to_owned());
        let pooled = pooled.ok_or_else(no_rows)?;
        let mut hidden = match &hidden[..] {
            [whole] => whole.clone(),
            portions => Tensor::cat(portions, 0)?,
        };
        let rows = prompt.rows.len();
        if weighted {
            let weights = prompt.rows.iter().flatten().map(|(_, weight)| *weight as f32);
            let weights = Tensor::from_iter(weights, device)?.reshape((rows, length, 1))?;
            let empty = hidden.narrow(0, rows, 1)?;
            let words = hidden.narrow(0, 0, rows)?;
            let moved = words.broadcast_sub(&empty)?.broadcast_mul(&weights)?;
            let moved = moved.broadcast_add(&empty)?;
            // A weight of 1 leaves a vector as it is, to its last bit.
            let plain = weights.eq(1f32)?.broadcast_as(words.shape())?;
            hidden = plain.where_cond(&words, &moved)?;
        }
        let (rows, length, dim) = hidden.dims3()?;
        Ok(EncodedPrompt { context: hidden.reshape((1, rows * length, dim))?, pooled })
    }

    /// The token embeddings [B, T, D] with the textual inversions in their places.
    fn put_vectors(&self, embeddings: Tensor, prompt: &PromptRows) -> Result<Tensor> {
        if prompt.embeddings.is_empty() {
            return Ok(embeddings);
        }
        let (_, length, dim) = embeddings.dims3()?;
        let mut vectors = Vec::with_capacity(prompt.embeddings.len());
        for embedding in &prompt.embeddings {
            let (_, width) = embedding.dims2()?;
            if width != dim {
                return Err(Error::Input(format!(
                    "an embedding in the prompt has vectors of {width} numbers, but this CLIP has \
                     {dim}: it was made for another family of models (Stable Diffusion 1 has 768, \
                     Stable Diffusion 2 has 1024, the larger encoder of SDXL 1280)"
                )));
            }
            vectors.push(embedding.to_dtype(DType::F32)?.to_vec2::<f32>()?);
        }
        let shape = embeddings.shape().clone();
        let mut values = embeddings.flatten_all()?.to_vec1::<f32>()?;
        for (y, row) in prompt.rows.iter().enumerate() {
            for (x, (slot, _)) in row.iter().enumerate() {
                if let Slot::Vector { embedding, row } = slot {
                    let place = (y * length + x) * dim;
                    values[place..][..dim].copy_from_slice(&vectors[*embedding][*row]);
                }
            }
        }
        Ok(Tensor::from_vec(values, shape, embeddings.device())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, IndexOp};

    /// The vocabulary of the model with random weights in clip_text's tests, which reads 5 tokens.
    fn tokenizer() -> ClipTokenizer {
        let folder = tempfile::tempdir().unwrap();
        let vocab =
            r#"{"a</w>": 0, "b</w>": 1, "c</w>": 2, "<|startoftext|>": 7, "<|endoftext|>": 8}"#;
        std::fs::write(folder.path().join("vocab.json"), vocab).unwrap();
        std::fs::write(folder.path().join("merges.txt"), "").unwrap();
        ClipTokenizer::read(folder.path()).unwrap()
    }

    fn model() -> ClipText {
        crate::clip::text::tests::model(str::to_owned).unwrap()
    }

    fn encode(prompt: &str, skip: usize, vectors: Option<Tensor>) -> Result<EncodedPrompt> {
        let tokenizer = tokenizer();
        let rows = PromptRows::new(prompt, &tokenizer, 5, |_| Ok(vectors.clone()))?;
        model().encode_prompt(&rows, &tokenizer, skip)
    }

    fn forward(ids: &[u32], skip: usize) -> Vec<Vec<f32>> {
        let ids = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
        model().forward_skip(&ids, skip).unwrap().i(0).unwrap().to_vec2().unwrap()
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.i(0).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn a_plain_prompt_is_the_encoders_own() -> Result<()> {
        let encoded = encode("a b", 1, None)?;
        assert_eq!(rows(&encoded.context), forward(&[7, 0, 1, 8, 8], 1));
        // Pooled at the end, behind the last layer, whatever the layer of the context.
        assert_eq!(encoded.pooled.to_vec2::<f32>()?, [forward(&[7, 0, 1, 8, 8], 1)[3].clone()]);
        let skipped = encode("a b", 2, None)?;
        assert_eq!(rows(&skipped.context), forward(&[7, 0, 1, 8, 8], 2));
        assert_eq!(skipped.pooled.to_vec2::<f32>()?, encoded.pooled.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn weights_move_tokens_from_the_empty_prompt() -> Result<()> {
        for skip in [1, 2] {
            let (words, empty) = (forward(&[7, 0, 1, 8, 8], skip), forward(&[7, 8, 8, 8, 8], skip));
            let found = rows(&encode("a (b:1.5)", skip, None)?.context);
            for (place, weight) in [1.0, 1.0, 1.5, 1.0, 1.0].into_iter().enumerate() {
                for (i, found) in found[place].iter().enumerate() {
                    let (word, empty) = (words[place][i], empty[place][i]);
                    assert!((found - (empty + (word - empty) * weight)).abs() < 1e-6);
                }
            }
            assert_eq!((&found[1], &found[3]), (&words[1], &words[3]), "weight 1 changes no bit");
            assert_eq!(rows(&encode("(a b:0)", skip, None)?.context)[1], empty[1]);
        }
        Ok(())
    }

    #[test]
    fn rows_follow_each_other() -> Result<()> {
        let encoded = encode("a b c (a:1.2)", 1, None)?;
        assert_eq!(encoded.context.dims(), [1, 10, 4]);
        assert_eq!(rows(&encoded.context)[..5], forward(&[7, 0, 1, 2, 8], 1));
        assert_eq!(rows(&encoded.context)[7..], forward(&[7, 0, 8, 8, 8], 1)[2..]);
        assert_eq!(encoded.pooled.to_vec2::<f32>()?[0], forward(&[7, 0, 1, 2, 8], 1)[4]);
        Ok(())
    }

    #[test]
    fn vectors_take_the_places_of_tokens() -> Result<()> {
        let ids = Tensor::new(&[[1u32, 2]], &Device::Cpu)?;
        let vectors = model().embed(&ids)?.i(0)?;
        let found = encode("a embedding:x", 1, Some(vectors))?;
        let expected = encode("a b c", 1, None)?;
        assert_eq!(rows(&found.context), rows(&expected.context));
        assert_eq!(found.pooled.to_vec2::<f32>()?, expected.pooled.to_vec2::<f32>()?);
        let wide = Tensor::zeros((1, 1280), DType::F32, &Device::Cpu)?;
        let error = encode("embedding:x", 1, Some(wide)).unwrap_err().to_string();
        assert!(error.contains("1280 numbers, but this CLIP has 4"), "{error}");
        Ok(())
    }
}
