//! The KOSMOS object and its loader.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::kosmos::Kosmos as Model;
use kosmograph_models::text::kosmos_tokens::PICTURE_MARK;
use node::interface::{self, marker};
use node::*;
use node_candle::{device, export, import};

/// Loads Kosmos-G from a folder: config.json, model.safetensors, sentencepiece.bpe.model, dict.txt.
/// `kosmograph convert` makes one of the authors' checkpoint.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct KosmosLoader {
    /// The folder.
    #[file(folder = "kosmos", entry = "directory")]
    kosmos_name: PathBuf,
}

impl Node for KosmosLoader {
    outputs![KOSMOS: Kosmos];

    fn run(self, cx: &Context) -> Result<Kosmos> {
        let device = device(&cx.device())?;
        let model = Model::read(&self.kosmos_name, &device)
            .map_err(|error| Error::from(error).of_input("kosmos_name"))?;
        Ok(Kosmos(Object::new(KosmosModel(model))))
    }
}

/// Kosmos-G behind the interfaces of node.h.
pub struct KosmosModel(Model);

impl Export for KosmosModel {
    const TYPE: &'static str = "KOSMOS";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![KosmosModel:
        marker::ImageEncoder, marker::Interleave, marker::Align, marker::Describe, marker::Memory];
}

impl interface::EncodeImage for KosmosModel {
    fn encode_image(&self, _cx: &Context, image: &Tensor) -> Result<Tensor> {
        export(&self.0.encode_images(&import(image, &Device::Cpu)?)?)
    }
}

impl interface::Interleave for KosmosModel {
    fn interleave(&self, cx: &Context, text: &str, images: &[Tensor]) -> Result<(Tensor, Tensor)> {
        let mut rows = Vec::with_capacity(images.len());
        for (i, image) in images.iter().enumerate() {
            rows.push(self.one_picture(image, i)?);
        }
        let (tokens, hidden_states) = if rows.is_empty() {
            if text.contains(PICTURE_MARK) {
                cx.warn(format!(
                    "no picture is connected, so that every {PICTURE_MARK} is read as text: right in a \
                     negative prompt; elsewhere each wants a picture, image_1 the first"
                ));
            }
            // The authors read a negative prompt so; without a mark it is what any prompt is.
            self.0.negative(text)?
        } else {
            self.0.interleave(text, Some(&Candle::cat(&rows, 0)?))?
        };
        // One prompt has no padding: every token counts.
        let mask = Candle::ones(tokens.shape(), DType::F32, tokens.device())?;
        Ok((export(&hidden_states)?, export(&mask)?))
    }
}

impl KosmosModel {
    /// The tokens [1, Q, D] of picture number `i`.
    fn one_picture(&self, image: &Tensor, i: usize) -> Result<Candle> {
        let (tokens, width) = (self.0.model.image_tokens(), self.0.config.mllm.embed_dim);
        let shape = image.shape();
        if shape != [1, tokens, width] {
            return Err(Error::at(
                format!("image_{}", i + 1),
                format!(
                    "one picture is [1, {tokens}, {width}] for this model, but {shape:?} was given: \
                     encode one picture, with this model's encoder"
                ),
            ));
        }
        import(image, self.0.device())
    }
}

impl interface::Align for KosmosModel {
    fn align(&self, _cx: &Context, hidden_states: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let width = self.0.config.mllm.embed_dim;
        let (shape, mask_shape) = (hidden_states.shape(), mask.shape());
        if shape.len() != 3 || shape[2] != width || mask_shape != shape[..2] {
            return Err(Error::at(
                "hidden_states",
                format!(
                    "hidden states [B, T, {width}] with a mask [B, T] are wanted, but {shape:?} and \
                     {mask_shape:?} were given"
                ),
            ));
        }
        let padding = import(mask, self.0.device())?.eq(0f32)?;
        let hidden_states = import(hidden_states, self.0.device())?;
        export(&self.0.model.align_masked(&hidden_states, &padding)?)
    }
}

impl interface::Describe for KosmosModel {
    fn describe(&self) -> serde_json::Value {
        let config = &self.0.config;
        json!({
            "family": "kosmos-g",
            "image_tokens": self.0.model.image_tokens(),
            "hidden_width": config.mllm.embed_dim,
            "context_width": config.aligner.dim,
            "bytes": self.0.model.bytes(),
        })
    }
}

impl interface::Memory for KosmosModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.0.model.release();
        }
        self.0.model.held()
    }
}
