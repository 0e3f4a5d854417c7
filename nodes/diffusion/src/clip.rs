//! The CLIP object: tokenizer and text transformer.

use std::sync::Arc;

use kosmograph_models::Weights;
use kosmograph_models::clip::text::{ClipText, ClipTextConfig};
use kosmograph_models::lora::Adapted;
use kosmograph_models::text::clip_prompt_tokens::{PromptRows, SENTENCE_SIGNS};
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use node::interface::{self, LoraLayer, marker};
use node::*;
use node_candle::export;

use crate::embedding::{Embedding, read_embedding};
use crate::lora;

/// CLIP's text half behind "text_encoder/1". Its numbers are read when it is first called. A clone
/// shares the network.
#[derive(Clone)]
pub struct ClipModel {
    text: Adapted<ClipText>,
    config: ClipTextConfig,
    tokenizer: Arc<ClipTokenizer>,
    device: candle_core::Device,
    /// The layer that gives the context, counted from the last, which is 1.
    clip_skip: usize,
}

impl ClipModel {
    /// A text encoder of `weights` under transformers' names, on their device. The file's header is
    /// checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says, or the tokenizer has tokens that the
    /// encoder does not know.
    pub fn new(config: ClipTextConfig, tokenizer: ClipTokenizer, weights: Weights) -> Result<Self> {
        let (symbols, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if symbols > rows {
            return Err(Error::new(format!(
                "the tokenizer has {symbols} tokens, but the text encoder of {} knows {rows}",
                weights.origin()
            )));
        }
        let device = weights.device().clone();
        // An older transformers saved the row of position numbers too.
        let tolerated = ["*position_ids"];
        let text = {
            let config = config.clone();
            Adapted::open(weights, &tolerated, move |weights| ClipText::load(&config, weights))?
        };
        Ok(Self { text, config, tokenizer: tokenizer.into(), device, clip_skip: 1 })
    }
}

impl Export for ClipModel {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![ClipModel:
        marker::TextEncoder, marker::TextLayers, marker::Lora, marker::Describe, marker::Memory];
}

impl interface::EncodeText for ClipModel {
    fn encode_text(&self, cx: &Context, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let length = self.config.max_position_embeddings;
        // Files that were found and do not fit, by the names that led to them.
        let mut unfit: Vec<(String, String)> = Vec::new();
        let find = |name: &str| {
            let Some(path) = cx.file("embeddings", name) else { return Ok(None) };
            match read_embedding(&path, self.config.hidden_size)? {
                Embedding::Fits(vectors) => Ok(Some(vectors)),
                Embedding::Unfit(sentence) => {
                    if unfit.iter().all(|(known, _)| known != name) {
                        unfit.push((name.to_owned(), sentence));
                    }
                    Ok(None)
                }
            }
        };
        let prompt = PromptRows::new(text, &self.tokenizer, length, find)?;
        for (_, sentence) in &unfit {
            cx.warn(format!("{sentence}; it is left out"));
        }
        // A name is told once, whether its file is missing or does not fit; a sign behind it may be the
        // sentence's.
        let is_unfit = |name: &&String| {
            let bare = name.trim_end_matches(SENTENCE_SIGNS);
            unfit.iter().any(|(known, _)| known == *name || known == bare)
        };
        for name in prompt.missing.iter().filter(|name| !is_unfit(name)) {
            cx.warn(format!(
                "there is no embedding \"{name}\" in the folder embeddings; it is left out"
            ));
        }
        let encoded = self.text.get()?.encode_prompt(&prompt, &self.tokenizer, self.clip_skip)?;
        Ok((export(&encoded.context)?, Some(export(&encoded.pooled)?)))
    }
}

impl interface::TextLayers for ClipModel {
    fn stop_at_layer(&self, cx: &Context, layer: i64) -> Result<Object> {
        let layers = self.config.num_hidden_layers;
        let skip = match layer.checked_neg().and_then(|skip| usize::try_from(skip).ok()) {
            None | Some(0) => {
                return Err(Error::new(format!(
                    "layers are counted from the end, -1 is the last; {layer} is none"
                )));
            }
            Some(skip) => skip,
        };
        let clip_skip = if skip <= layers {
            skip
        } else {
            // As ComfyUI has it, whose input goes down to the 24 layers of larger encoders.
            cx.warn(format!("this CLIP has {layers} layers, none is {layer}: it ends at the last"));
            1
        };
        Ok(Object::new(Self { clip_skip, ..self.clone() }))
    }
}

impl interface::TakeLora for ClipModel {
    fn with_lora(
        &self,
        _cx: &Context,
        layers: &[LoraLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let (text, absent) = self.text.with(&lora::layers(layers, &self.device)?, strength)?;
        Ok((Object::new(Self { text, ..self.clone() }), absent))
    }
}

impl interface::Describe for ClipModel {
    fn describe(&self) -> serde_json::Value {
        let layers = self.config.num_hidden_layers;
        json!({"family": "clip", "layers": layers, "bytes": self.text.bytes()})
    }
}

impl interface::Memory for ClipModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.text.release();
        }
        self.text.held()
    }
}
