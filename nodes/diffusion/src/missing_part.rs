//! What stands in the place of a part that a checkpoint does not have: an object of its type whose every
//! interface says so. A checkpoint without a CLIP or a VAE then serves whoever takes its other parts, and
//! the node that takes the missing one is the one that fails.

use node::interface::{self, LoraLayer, marker};
use node::*;

/// The CLIP of a checkpoint that has none.
pub struct MissingClip {
    /// What is missing, where, and what would be right.
    pub sentence: String,
}

impl Export for MissingClip {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![MissingClip:
        marker::TextEncoder, marker::TextLayers, marker::Lora, marker::Describe, marker::Memory];
}

impl interface::EncodeText for MissingClip {
    fn encode_text(&self, _cx: &Context, _text: &str) -> Result<(Tensor, Option<Tensor>)> {
        Err(Error::new(self.sentence.clone()))
    }
}

impl interface::TextLayers for MissingClip {
    fn stop_at_layer(&self, _cx: &Context, _layer: i64) -> Result<Object> {
        Err(Error::new(self.sentence.clone()))
    }
}

impl interface::TakeLora for MissingClip {
    /// Passed on as it is: who wants the LoRA on the U-Net alone has to link a CLIP all the same.
    fn with_lora(
        &self,
        _cx: &Context,
        _layers: &[LoraLayer],
        _strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        Ok((Object::new(MissingClip { sentence: self.sentence.clone() }), Vec::new()))
    }
}

impl interface::Describe for MissingClip {
    fn describe(&self) -> serde_json::Value {
        json!({"missing": self.sentence, "bytes": 0})
    }
}

impl interface::Memory for MissingClip {
    fn bytes(&self, _purge: bool) -> usize {
        0
    }
}

/// The VAE of a checkpoint that has none.
pub struct MissingVae {
    /// What is missing, where, and what would be right.
    pub sentence: String,
}

impl MissingVae {
    fn told<T>(&self) -> Result<T> {
        Err(Error::new(self.sentence.clone()))
    }
}

impl Export for MissingVae {
    const TYPE: &'static str = "VAE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![MissingVae:
        marker::VaeDecode, marker::VaeEncode, marker::VaeDecodeTiled, marker::VaeEncodeTiled,
        marker::Describe, marker::Memory];
}

impl interface::Autoencode for MissingVae {
    fn decode(&self, _cx: &Context, _latents: &Tensor) -> Result<Tensor> {
        self.told()
    }

    fn encode(&self, _cx: &Context, _image: &Tensor) -> Result<Tensor> {
        self.told()
    }
}

impl interface::AutoencodeTiled for MissingVae {
    fn decode_tiled(
        &self,
        _cx: &Context,
        _latents: &Tensor,
        _tile: usize,
        _overlap: usize,
    ) -> Result<Tensor> {
        self.told()
    }

    fn encode_tiled(
        &self,
        _cx: &Context,
        _image: &Tensor,
        _tile: usize,
        _overlap: usize,
    ) -> Result<Tensor> {
        self.told()
    }
}

impl interface::Describe for MissingVae {
    fn describe(&self) -> serde_json::Value {
        json!({"missing": self.sentence, "bytes": 0})
    }
}

impl interface::Memory for MissingVae {
    fn bytes(&self, _purge: bool) -> usize {
        0
    }
}
