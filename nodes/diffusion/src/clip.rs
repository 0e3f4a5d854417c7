//! The CLIP object: tokenizer and text transformer.

use candle_core::Tensor as Candle;
use kosmograph_models::clip_text::ClipText;
use kosmograph_models::clip_tokens::ClipTokenizer;
use node::interface::{self, marker};
use node::*;
use node_candle::export;

/// CLIP's text half behind "text_encoder/1".
pub struct ClipModel {
    pub text: ClipText,
    pub tokenizer: ClipTokenizer,
    pub device: candle_core::Device,
    pub bytes: usize,
}

impl Export for ClipModel {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![ClipModel: marker::TextEncoder, marker::Describe, marker::Memory];
}

impl interface::EncodeText for ClipModel {
    fn encode_text(&self, cx: &Context, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let length = self.text.max_length()?;
        let tokens = self.tokenizer.tokens(text)?;
        // Two places are the start's and the end's.
        let room = length.saturating_sub(2);
        if tokens.len() > room {
            let count = tokens.len();
            cx.warn(format!("the text has {count} tokens; CLIP reads the first {room} of them"));
        }
        let row = self.tokenizer.row(&tokens, length)?;
        let ids = Candle::from_vec(row, (1, length), &self.device)?;
        let context = self.text.forward(&ids)?;
        let pooled = self.text.pool(&ids, &context)?;
        Ok((export(&context)?, Some(export(&pooled)?)))
    }
}

impl interface::Describe for ClipModel {
    fn describe(&self) -> serde_json::Value {
        json!({"family": "clip", "layers": self.text.layers()})
    }
}

impl interface::Memory for ClipModel {
    fn bytes(&self, _purge: bool) -> usize {
        self.bytes
    }
}
