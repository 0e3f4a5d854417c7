//! CLIP's text encoder: token ids → one vector a token, the condition of Stable Diffusion 1.5.
//!
//! A causal pre-norm transformer with learned positions. Radford et al., arXiv 2103.00020; layers,
//! names and configuration are those of transformers' `CLIPTextModel`.

use candle_core::{DType, Device, IndexOp, Tensor};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear, MultiheadAttention, causal_mask, embedding};

/// The activation of a CLIP model's MLP.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x σ(1.702 x), of OpenAI's models.
    QuickGelu,
    /// The exact GELU, of OpenCLIP's.
    Gelu,
}

impl Activation {
    fn forward(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Activation::QuickGelu => kosmograph_kernels::quick_gelu(x),
            Activation::Gelu => kosmograph_kernels::gelu_erf(x),
        }
    }
}

/// `config.json` of a `CLIPTextModel`; what is left out has transformers' default.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipTextConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of every token, C.
    pub hidden_size: usize,
    /// Width within an MLP.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// The most tokens in a row.
    pub max_position_embeddings: usize,
    #[serde(default = "quick_gelu")]
    pub hidden_act: Activation,
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// The token whose place in a row is pooled. 2 stands in old configurations (SD 1.5's among
    /// them) that mean the highest id.
    #[serde(default = "eos_token_id", alias = "eos")]
    pub eos_token_id: u32,
    /// Width of what the pooled vector is projected to, where it is (transformers' `CLIPTextModelWithProjection`). Not
    /// in the configuration, whose `projection_dim` says nothing of whether there is a projection: in the weights.
    #[serde(skip)]
    pub text_projection: Option<usize>,
}

impl ClipTextConfig {
    /// As [`crate::stable_diffusion::unet::UNetConfig::unsaid`].
    pub fn unsaid(&self) -> Option<serde_json::Value> {
        let is_usual = self.num_attention_heads * 64 == self.hidden_size;
        (!is_usual).then(|| serde_json::json!({"num_attention_heads": self.num_attention_heads}))
    }

    /// Whether it is the larger of SDXL's two encoders, "G": OpenCLIP's, with a projection.
    pub fn is_g(&self) -> bool {
        self.hidden_act == Activation::Gelu && self.text_projection.is_some()
    }
}

/// Which layer gives the context, and whether it goes through the final norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextLayer {
    /// Counted from the last, which is 1.
    pub skip: usize,
    /// Stable Diffusion 1 normalises it, SDXL does not.
    pub normed: bool,
}

impl From<usize> for ContextLayer {
    /// The layer `skip`, normalised.
    fn from(skip: usize) -> Self {
        ContextLayer { skip, normed: true }
    }
}

fn quick_gelu() -> Activation {
    Activation::QuickGelu
}

fn layer_norm_eps() -> f64 {
    1e-5
}

fn eos_token_id() -> u32 {
    49407
}

/// One pre-norm block of a CLIP transformer, text or vision.
#[derive(Clone, Debug)]
pub(crate) struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: MultiheadAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl EncoderLayer {
    pub(crate) fn load(
        weights: &Weights,
        dim: usize,
        intermediate: usize,
        heads: usize,
        activation: Activation,
        eps: f64,
    ) -> Result<EncoderLayer> {
        Ok(EncoderLayer {
            layer_norm1: LayerNorm::load(&weights.sub("layer_norm1"), dim, eps)?,
            self_attn: MultiheadAttention::load(&weights.sub("self_attn"), dim, heads)?,
            layer_norm2: LayerNorm::load(&weights.sub("layer_norm2"), dim, eps)?,
            fc1: Linear::load(&weights.sub("mlp.fc1"), dim, intermediate)?,
            activation,
            fc2: Linear::load(&weights.sub("mlp.fc2"), intermediate, dim)?,
        })
    }

    /// [B, T, C] → [B, T, C].
    pub(crate) fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(x)?;
        let x = kosmograph_kernels::add(x, &self.self_attn.forward(&normed, &normed, mask)?)?;
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let added = self.fc2.forward(&self.activation.forward(&hidden)?)?;
        Ok(kosmograph_kernels::add(&x, &added)?)
    }
}

/// The text encoder.
#[derive(Clone, Debug)]
pub struct ClipText {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    eos_token_id: u32,
}

/// What [`ClipText::forward_embeddings`] gives, [B, T, C] each.
#[derive(Clone, Debug)]
pub struct TextStates {
    /// Of the layer that was asked for.
    pub hidden: Tensor,
    /// Of the last layer, behind the final layer norm.
    pub last: Tensor,
}

impl ClipText {
    /// Loads from weights whose names begin with `text_model.`, or (transformers 5) go without it.
    pub fn load(config: &ClipTextConfig, weights: &Weights) -> Result<ClipText> {
        let text_projection = match config.text_projection {
            Some(width) => {
                let projection = weights.sub("text_projection");
                Some(Linear::load_without_bias(&projection, config.hidden_size, width)?)
            }
            None => None,
        };
        let classical = weights.sub("text_model");
        let bare = !classical.has("embeddings.token_embedding.weight")
            && weights.has("embeddings.token_embedding.weight");
        let weights = if bare { weights } else { &classical };
        let dim = config.hidden_size;
        let embeddings = weights.sub("embeddings");
        let layer = |index: usize| {
            EncoderLayer::load(
                &weights.sub(format!("encoder.layers.{index}")),
                dim,
                config.intermediate_size,
                config.num_attention_heads,
                config.hidden_act,
                config.layer_norm_eps,
            )
        };
        Ok(ClipText {
            token_embedding: embeddings.get("token_embedding.weight", (config.vocab_size, dim))?,
            position_embedding: embeddings
                .get("position_embedding.weight", (config.max_position_embeddings, dim))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(
                &weights.sub("final_layer_norm"),
                dim,
                config.layer_norm_eps,
            )?,
            text_projection,
            eos_token_id: config.eos_token_id,
        })
    }

    /// How many layers there are.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The most tokens in a row.
    pub fn max_length(&self) -> Result<usize> {
        Ok(self.position_embedding.dim(0)?)
    }

    /// The condition of Stable Diffusion: `ids` [B, T] → `last_hidden_state` [B, T, C].
    ///
    /// # Errors
    /// The rows are longer than the model's positions, or an id is outside its vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.forward_skip(ids, 1)
    }

    /// The condition from an earlier layer: what `clip_skip` layers from the end gives (1 is the
    /// last, as A1111 counts; ComfyUI writes -1), and then the final layer norm. [B, T, C].
    ///
    /// # Errors
    /// As [`Self::forward`]; or there are fewer layers, or `clip_skip` is 0.
    pub fn forward_skip(&self, ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        let hidden = self.hidden_state(ids, clip_skip)?;
        Ok(self.final_layer_norm.forward(&hidden)?)
    }

    /// [`Self::forward_skip`] without the final layer norm. [B, T, C].
    pub fn hidden_state(&self, ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        self.check_skip(clip_skip)?;
        let (mut x, mask) = self.positioned(&self.embed(ids)?)?;
        for layer in &self.layers[..=self.layers.len() - clip_skip] {
            x = layer.forward(&x, Some(&mask))?;
        }
        Ok(x)
    }

    /// The embedding of each token, without positions: `ids` [B, T] → [B, T, C] in f32.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(embedding(&self.token_embedding, ids)?.to_dtype(DType::F32)?)
    }

    /// From embeddings [B, T, C] of tokens, or of anything that stands in their places, to the states
    /// of the layer `layer` and of the last one.
    ///
    /// # Errors
    /// As [`Self::forward_skip`].
    pub fn forward_embeddings(
        &self,
        embeddings: &Tensor,
        layer: impl Into<ContextLayer>,
    ) -> Result<TextStates> {
        let ContextLayer { skip: clip_skip, normed } = layer.into();
        self.check_skip(clip_skip)?;
        let (mut x, mask) = self.positioned(embeddings)?;
        let mut hidden = None;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, Some(&mask))?;
            if index == self.layers.len() - clip_skip {
                hidden = Some(if normed { self.final_layer_norm.forward(&x)? } else { x.clone() });
            }
        }
        let last = self.final_layer_norm.forward(&x)?;
        Ok(TextStates { hidden: hidden.unwrap_or_else(|| last.clone()), last })
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        self.token_embedding.device()
    }

    fn check_skip(&self, clip_skip: usize) -> Result<()> {
        if !(1..=self.layers.len()).contains(&clip_skip) {
            return Err(Error::Input(format!(
                "this CLIP has {} layers: a clip skip of 1 (the last) to {0} would be right, not {clip_skip}",
                self.layers.len()
            )));
        }
        Ok(())
    }

    /// `embeddings` [B, T, C] with their positions added, and the mask that hides what comes later.
    fn positioned(&self, embeddings: &Tensor) -> Result<(Tensor, Tensor)> {
        let (_, length, _) = embeddings.dims3()?;
        let longest = self.max_length()?;
        if length > longest {
            return Err(Error::Input(format!(
                "a row of {length} tokens is too long for this CLIP, which takes {longest}"
            )));
        }
        let positions = self.position_embedding.narrow(0, 0, length)?.to_dtype(DType::F32)?;
        let x = embeddings.broadcast_add(&positions)?;
        let mask = causal_mask(length, x.device())?;
        Ok((x, mask))
    }

    /// `pooler_output`: of each row of `last_hidden_state` [B, T, C] the vector at its first end
    /// token. [B, C].
    pub fn pool(&self, ids: &Tensor, last_hidden_state: &Tensor) -> Result<Tensor> {
        let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        let pooled = rows.iter().enumerate().map(|(row, ids)| {
            let wanted = match self.eos_token_id {
                2 => ids.iter().copied().max().unwrap_or_default(),
                end => end,
            };
            // A row without an end is pooled at its first token, as transformers does.
            let position = ids.iter().position(|id| *id == wanted).unwrap_or(0);
            Ok(last_hidden_state.i((row, position))?)
        });
        Ok(Tensor::stack(&pooled.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

impl ClipText {
    /// `text_embeds`: what [`ClipText::pool`] gives, [B, C], projected where the encoder has a projection.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn project(&self, pooled: &Tensor) -> Result<Tensor> {
        match &self.text_projection {
            Some(projection) => Ok(projection.forward(pooled)?),
            None => Ok(pooled.clone()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::HashMap;

    fn config() -> ClipTextConfig {
        serde_json::from_str(
            r#"{"vocab_size": 9, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 5, "eos_token_id": 8}"#,
        )
        .expect("a valid configuration")
    }

    /// A model with random weights; `rename` changes each tensor's name.
    pub(crate) fn model(rename: fn(&str) -> String) -> Result<ClipText> {
        let recording = Weights::recording();
        ClipText::load(&config(), &recording)?;
        let mut seed = 1u32;
        let mut tensors = HashMap::new();
        for (name, shape) in recording.recorded() {
            let values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 16) as f32 / 65536.0 - 0.5
                })
                .collect();
            tensors.insert(rename(&name), Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        ClipText::load(&config(), &Weights::from_tensors("test", tensors, &Device::Cpu))
    }

    fn ids(row: &[u32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(row, (1, row.len()), &Device::Cpu)?)
    }

    #[test]
    fn names_may_go_without_their_prefix() -> Result<()> {
        let classical = model(str::to_owned)?.forward(&ids(&[1, 2, 8])?)?;
        let bare = model(|name| name.replace("text_model.", ""))?.forward(&ids(&[1, 2, 8])?)?;
        assert_eq!(bare.to_vec3::<f32>()?, classical.to_vec3::<f32>()?);
        Ok(())
    }

    #[test]
    fn a_token_sees_only_those_before_it() -> Result<()> {
        let model = model(str::to_owned)?;
        let (a, b) = (model.forward(&ids(&[1, 2, 3])?)?, model.forward(&ids(&[1, 2, 4])?)?);
        let (a, b) = (a.to_vec3::<f32>()?, b.to_vec3::<f32>()?);
        assert_eq!(a[0][..2], b[0][..2]);
        assert_ne!(a[0][2], b[0][2]);
        Ok(())
    }

    #[test]
    fn states_of_embeddings_are_those_of_their_tokens() -> Result<()> {
        let model = model(str::to_owned)?;
        let ids = ids(&[1, 2, 8])?;
        for skip in [1, 2] {
            let states = model.forward_embeddings(&model.embed(&ids)?, skip)?;
            let hidden = model.forward_skip(&ids, skip)?.to_vec3::<f32>()?;
            assert_eq!(states.hidden.to_vec3::<f32>()?, hidden);
            let last = model.forward(&ids)?.to_vec3::<f32>()?;
            assert_eq!(states.last.to_vec3::<f32>()?, last);
        }
        assert!(model.forward_embeddings(&model.embed(&ids)?, 3).is_err());
        Ok(())
    }

    #[test]
    fn pools_at_the_first_end_or_the_highest_id() -> Result<()> {
        let mut model = model(str::to_owned)?;
        let ids = ids(&[1, 8, 3, 8])?;
        let hidden = Tensor::arange(0f32, 4.0, &Device::Cpu)?.reshape((1, 4, 1))?;
        assert_eq!(model.pool(&ids, &hidden)?.to_vec2::<f32>()?, [[1.0]]);
        model.eos_token_id = 3;
        assert_eq!(model.pool(&ids, &hidden)?.to_vec2::<f32>()?, [[2.0]]);
        model.eos_token_id = 2;
        assert_eq!(model.pool(&ids, &hidden)?.to_vec2::<f32>()?, [[1.0]]);
        Ok(())
    }

    #[test]
    fn inputs_that_do_not_fit_are_named() -> Result<()> {
        let model = model(str::to_owned)?;
        let said = |result: Result<Tensor>| result.unwrap_err().to_string();
        let long = said(model.forward(&ids(&[1; 6])?));
        assert!(long.contains("6 tokens") && long.contains("takes 5"), "{long}");
        let outside = said(model.forward(&ids(&[1, 9])?));
        assert!(outside.contains("token 9") && outside.contains("9 rows"), "{outside}");
        for skip in [0, 3] {
            let skipped = said(model.forward_skip(&ids(&[1])?, skip));
            assert!(skipped.contains("has 2 layers"), "{skipped}");
        }
        let unknown = serde_json::from_str::<Activation>("\"relu\"").unwrap_err().to_string();
        assert!(unknown.contains("quick_gelu"), "{unknown}");
        Ok(())
    }
}
