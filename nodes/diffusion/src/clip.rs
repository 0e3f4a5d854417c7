//! The CLIP object: tokenizer and text transformer.

use std::sync::Arc;

use candle_core::Tensor as Candle;
use kosmograph_models::Weights;
use kosmograph_models::clip_text::{ClipText, ClipTextConfig};
use kosmograph_models::clip_tokens::ClipTokenizer;
use kosmograph_models::lora::Adapted;
use node::interface::{self, LoraLayer, marker};
use node::*;
use node_candle::export;

use crate::lora;

/// CLIP's text half behind "text_encoder/1". Its numbers are read when it is first called.
#[derive(Clone)]
pub struct ClipModel {
    text: Adapted<ClipText>,
    config: ClipTextConfig,
    tokenizer: Arc<ClipTokenizer>,
    device: candle_core::Device,
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
        Ok(Self { text, config, tokenizer: tokenizer.into(), device })
    }
}

impl Export for ClipModel {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![ClipModel: marker::TextEncoder, marker::Lora, marker::Describe, marker::Memory];
}

impl interface::EncodeText for ClipModel {
    fn encode_text(&self, cx: &Context, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let length = self.config.max_position_embeddings;
        let tokens = self.tokenizer.tokens(text)?;
        // Two places are the start's and the end's.
        let room = length.saturating_sub(2);
        if tokens.len() > room {
            let count = tokens.len();
            cx.warn(format!("the text has {count} tokens; CLIP reads the first {room} of them"));
        }
        let row = self.tokenizer.row(&tokens, length)?;
        let ids = Candle::from_vec(row, (1, length), &self.device)?;
        let text = self.text.get()?;
        let context = text.forward(&ids)?;
        let pooled = text.pool(&ids, &context)?;
        Ok((export(&context)?, Some(export(&pooled)?)))
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
