//! The interfaces of node.h, from both sides: a trait for who offers one, a method of the object for who
//! calls it. Shapes, ranges and meaning stand in node.h.

use crate::object::{Arguments, Interface};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// "denoiser/1", offered by a MODEL.
pub trait Denoise {
    fn denoise(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        residuals: &[Tensor],
    ) -> Result<Tensor>;

    /// The same with all that a call may bring; a network that takes no more than the above has nothing to do here.
    fn denoise_call(&self, cx: &Context<'_>, call: &DenoiseCall) -> Result<Tensor> {
        self.denoise(cx, &call.x, &call.timestep, &call.context, &call.residuals)
    }
}

/// What "denoiser/1" takes.
#[derive(Clone, Debug)]
pub struct DenoiseCall {
    /// [B, C, H, W].
    pub x: Tensor,
    /// \[B\].
    pub timestep: Tensor,
    /// [B, T, D].
    pub context: Tensor,
    /// Of ControlNets, the middle's last; none where there are none.
    pub residuals: Vec<Tensor>,
    /// [B, P].
    pub pooled: Option<Tensor>,
    /// [B, 6] or [B, 5].
    pub sizes: Option<Tensor>,
    /// What T2I-Adapters return, by the name of the block.
    pub features: Vec<(String, Tensor)>,
    /// Maps as node.h has them: what the cross-attention reads beside the context.
    pub extra_tokens: Vec<Value>,
    /// Of each row of x "positive" or "negative"; empty where the caller does not say it.
    pub rows: Vec<String>,
}

impl DenoiseCall {
    /// A call that brings no more than it must.
    pub fn new(x: Tensor, timestep: Tensor, context: Tensor) -> Self {
        Self {
            x,
            timestep,
            context,
            residuals: Vec::new(),
            pooled: None,
            sizes: None,
            features: Vec::new(),
            extra_tokens: Vec::new(),
            rows: Vec::new(),
        }
    }
}

/// "text_encoder/1", offered by a CLIP.
pub trait EncodeText {
    /// The context [1, T, D] and the pooled vector [1, D], where there is one.
    fn encode_text(&self, cx: &Context<'_>, text: &str) -> Result<(Tensor, Option<Tensor>)>;

    /// The same of a text for each encoder, by its name ("l", "g"). Who has one encoder leaves this as it is.
    fn encode_texts(
        &self,
        _cx: &Context<'_>,
        _texts: &[(String, String)],
    ) -> Result<(Tensor, Option<Tensor>)> {
        Err(Error::new("this CLIP has one encoder and takes one text for it"))
    }
}

/// "lora/1", offered by a MODEL and a CLIP that can take a LoRA.
pub trait TakeLora {
    /// The same object with the LoRA put on, and the modules that it does not have.
    fn with_lora(
        &self,
        cx: &Context<'_>,
        layers: &[LoraLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)>;
}

/// "model_sampling/1", offered by a MODEL.
pub trait ModelSampling {
    /// The same model, of which "describe/1" says `description` where that says something.
    fn sampled_as(
        &self,
        cx: &Context<'_>,
        description: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Object>;
}

/// A layer of "lora/1": W becomes W + strength · scale · up · down.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// The path of the module that it changes.
    pub module: String,
    /// [O, R] or [O, R, 1, 1].
    pub up: Tensor,
    /// [R, I] or [R, I, kH, kW].
    pub down: Tensor,
    /// [R, R, kH, kW]; `down` is 1 × 1 then.
    pub mid: Option<Tensor>,
    pub scale: f64,
}

impl LoraLayer {
    fn read(module: String, layer: &Value) -> Result<Self> {
        let part = |key: &str| layer.get(key).unwrap_or(Value::NONE);
        let tensor = |key: &str| part(key).as_tensor();
        let (up, down, scale) = (tensor("up"), tensor("down"), part("scale").as_f64());
        let (Some(up), Some(down), Some(scale)) = (up, down, scale) else {
            return Err(Error::new(format!(
                "layer \"{module}\" of the LoRA has no tensors \"up\" and \"down\" and no number \"scale\""
            )));
        };
        Ok(Self { module, up, down, mid: tensor("mid"), scale })
    }

    fn into_value(self) -> Value {
        let mut pairs = vec![
            ("up", self.up.into_value()),
            ("down", self.down.into_value()),
            ("scale", self.scale.into()),
        ];
        pairs.extend(self.mid.map(|mid| ("mid", mid.into_value())));
        Value::map(pairs)
    }
}

/// "lora/2", offered by a MODEL and a CLIP that can take a LoRA of any kind.
pub trait TakeLayers {
    /// The same object with the layers put on, and the modules that it does not have.
    fn with_layers(
        &self,
        cx: &Context<'_>,
        layers: &[AdapterLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)>;
}

/// A layer of "lora/2".
#[derive(Clone, Debug)]
pub struct AdapterLayer {
    /// The path of the module that it changes.
    pub module: String,
    /// By the names that node.h gives them.
    pub factors: Vec<(String, Tensor)>,
    pub alpha: Option<f64>,
}

impl AdapterLayer {
    fn read(module: String, layer: &Value) -> Result<Self> {
        let factors = layer.get("factors").unwrap_or(Value::NONE).as_map().unwrap_or_default();
        let factors = factors.into_iter().map(|(name, factor)| match factor.as_tensor() {
            Some(tensor) => Ok((name, tensor)),
            None => Err(Error::new(format!(
                "the factor \"{name}\" of layer \"{module}\" of the LoRA is no tensor"
            ))),
        });
        let factors = factors.collect::<Result<_>>()?;
        let alpha = layer.get("alpha").and_then(|alpha| alpha.as_f64());
        Ok(Self { module, factors, alpha })
    }

    fn into_value(self) -> Value {
        let factors = self.factors.into_iter().map(|(name, factor)| (name, factor.into_value()));
        let factors = [("factors", Value::map(factors))];
        let alpha = self.alpha.map(|alpha| ("alpha", alpha.into()));
        Value::map(factors.into_iter().chain(alpha))
    }
}

/// "text_layers/1", offered by a CLIP.
pub trait TextLayers {
    /// The CLIP that stops at `layer`, counted from the end: -1 is the last.
    fn stop_at_layer(&self, cx: &Context<'_>, layer: i64) -> Result<Object>;
}

/// "clip_vision/1", offered by a CLIP_VISION.
pub trait EncodeClipVision {
    fn encode_clip_vision(
        &self,
        cx: &Context<'_>,
        image: &Tensor,
        crop: bool,
    ) -> Result<ClipVisionTensors>;
}

/// What "clip_vision/1" gives.
#[derive(Clone, Debug)]
pub struct ClipVisionTensors {
    /// [B, T, C].
    pub last_hidden_state: Tensor,
    /// [B, T, C].
    pub penultimate_hidden_states: Tensor,
    /// [B, P].
    pub image_embeds: Tensor,
}

/// "features/1", offered by a FEATURES.
pub trait TellFeatures {
    /// Of pictures [B, H, W, C], [B, F].
    fn features_of_images(&self, cx: &Context<'_>, image: &Tensor) -> Result<Tensor>;

    /// Of a text, [1, F]. Who knows no texts leaves this as it is.
    fn features_of_text(&self, _cx: &Context<'_>, _text: &str) -> Result<Tensor> {
        Err(Error::new("this network knows pictures and no texts; CLIP would be right"))
    }
}

/// "vae_decode/1" and "vae_encode/1", offered by a VAE.
pub trait Autoencode {
    fn decode(&self, cx: &Context<'_>, latents: &Tensor) -> Result<Tensor>;
    fn encode(&self, cx: &Context<'_>, image: &Tensor) -> Result<Tensor>;
}

/// "vae_decode_tiled/1" and "vae_encode_tiled/1", offered by a VAE. Sizes are in latent pixels.
pub trait AutoencodeTiled {
    fn decode_tiled(
        &self,
        cx: &Context<'_>,
        latents: &Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor>;
    fn encode_tiled(
        &self,
        cx: &Context<'_>,
        image: &Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor>;
}

/// "upscale/1", offered by an UPSCALE_MODEL.
pub trait Upscale {
    /// Larger pictures; `tiles` are the side of a tile and what neighbours share, in pixels of the small picture, where the
    /// caller says them.
    fn upscale(
        &self,
        cx: &Context<'_>,
        image: &Tensor,
        tiles: Option<(usize, usize)>,
    ) -> Result<Tensor>;
}

/// "image_encoder/1", offered by a KOSMOS and an IMAGE_ENCODER.
pub trait EncodeImage {
    fn encode_image(&self, cx: &Context<'_>, image: &Tensor) -> Result<Tensor>;
}

/// "interleave/1", offered by a KOSMOS.
pub trait Interleave {
    /// Hidden states [1, T, D] and their mask [1, T].
    fn interleave(
        &self,
        cx: &Context<'_>,
        text: &str,
        images: &[Tensor],
    ) -> Result<(Tensor, Tensor)>;
}

/// "align/1", offered by a KOSMOS.
pub trait Align {
    fn align(&self, cx: &Context<'_>, hidden_states: &Tensor, mask: &Tensor) -> Result<Tensor>;
}

/// "describe/1".
pub trait Describe {
    fn describe(&self) -> serde_json::Value;
}

/// "memory/1".
pub trait Memory {
    /// Bytes held, after giving back what can be had again if `purge`.
    fn bytes(&self, purge: bool) -> usize;

    /// The same of one that stands on another object, which it asks.
    fn bytes_in(&self, _cx: &Context<'_>, purge: bool) -> Result<usize> {
        Ok(self.bytes(purge))
    }
}

/// The marker of each interface, for [`interfaces!`](crate::interfaces).
pub mod marker {
    pub struct Denoiser;
    pub struct ControlNet;
    pub struct TextEncoder;
    pub struct ControlOf;
    pub struct BaseModel;
    pub struct ControlType;
    pub struct ModelSampling;
    pub struct Lora;
    pub struct Layers;
    pub struct LoraTraining;
    pub struct TextLayers;
    pub struct ClipVision;
    pub struct VaeDecode;
    pub struct VaeEncode;
    pub struct VaeDecodeTiled;
    pub struct VaeEncodeTiled;
    pub struct Upscale;
    pub struct Features;
    pub struct ImageEncoder;
    pub struct Interleave;
    pub struct Align;
    pub struct Describe;
    pub struct Memory;
    pub struct Sampler;
    pub struct Guider;
    pub struct Noise;
    pub struct Patches;
    pub struct Guidance;
    pub struct AttentionPatch;
    pub struct Attention;
    pub struct BlockPatch;
    pub struct TokensPatch;
    pub struct SidesPatch;
    pub struct Grounding;
    pub struct StyleModel;
    pub struct PhotoMaker;
    pub struct Weights;
    pub struct Merge;
    pub struct LatentOperation;
    pub struct GuidancePatch;
    pub struct Sides;
}

macro_rules! interface {
    ($marker:ident, $id:literal, $trait:ident, |$object:ident, $cx:ident, $in:ident| $body:expr) => {
        impl<T: $trait> Interface<T> for marker::$marker {
            const ID: &'static str = $id;

            fn call($object: &T, $cx: &Context<'_>, $in: &Arguments) -> Result<Value> {
                $body
            }
        }
    };
}

mod calling;
mod control;
mod grounding;
mod latents;
mod patches;
mod photo_maker;
mod sampling;
mod style;
mod training;
mod weights;

pub use control::{
    BaseModel, Control, ControlAnswer, ControlCall, ControlChanges, ControlOf, ControlType,
};
pub use grounding::{Ground, GroundedBox};
pub use latents::OperateOnLatents;
pub use patches::{
    AskSides, Attend, AttentionCall, BlockCall, GuidanceCall, Guidances, Patch, PatchAttention,
    PatchBlock, PatchGuidance, PatchSides, PatchTokens, SidesCall, TakePatches, TokensCall,
};
pub use photo_maker::PutPerson;
pub use sampling::{Guide, GuideCall, MakeNoise, SampleCall, SampleLatents};
pub use style::StyleTokens;
pub use training::{LoraExample, LoraTraining, TrainLora, TrainedLora};
pub use weights::{MergeWeights, Merged, StoredAs, TellWeights, TensorInfo};

interface!(Denoiser, "denoiser/1", Denoise, |object, cx, input| {
    let (x, timestep) = (input.tensor("x")?, input.tensor("timestep")?);
    let rows = input.get("rows");
    let call = DenoiseCall {
        residuals: input.tensors("residuals")?,
        pooled: input.optional_tensor("pooled"),
        sizes: input.optional_tensor("sizes"),
        features: named_tensors(&input.get("features")),
        extra_tokens: input.get("extra_tokens").as_list().unwrap_or_default(),
        rows: rows.items().iter().filter_map(|row| row.as_str().map(str::to_owned)).collect(),
        ..DenoiseCall::new(x, timestep, input.tensor("context")?)
    };
    give("prediction", object.denoise_call(cx, &call)?)
});
interface!(TextEncoder, "text_encoder/1", EncodeText, |object, cx, input| {
    let (context, pooled) = match input.get("texts").as_map() {
        None => object.encode_text(cx, &input.text("text")?)?,
        Some(texts) => {
            let text = |(name, text): (String, Value)| match text.as_str() {
                Some(text) => Ok((name, text.to_owned())),
                None => Err(Error::at("texts", format!("the text of \"{name}\" is no text"))),
            };
            let texts: Vec<_> = texts.into_iter().map(text).collect::<Result<_>>()?;
            object.encode_texts(cx, &texts)?
        }
    };
    let context = [("context", context.into_value())];
    Ok(Value::map(context.into_iter().chain(pooled.map(|pooled| ("pooled", pooled.into_value())))))
});
interface!(Lora, "lora/1", TakeLora, |object, cx, input| {
    let layers = input.get("layers").as_map().unwrap_or_default();
    let layers: Vec<LoraLayer> = layers
        .into_iter()
        .map(|(module, layer)| LoraLayer::read(module, &layer))
        .collect::<Result<_>>()?;
    let (with_lora, absent) = object.with_lora(cx, &layers, input.number("strength")?)?;
    let absent = Value::list(absent.into_iter().map(Value::string).collect());
    Ok(Value::map([("object", with_lora.into_value()), ("absent", absent)]))
});
interface!(ModelSampling, "model_sampling/1", ModelSampling, |object, cx, input| {
    let description = serde_json::from_str(&input.text("description")?)
        .map_err(|error| Error::at("description", format!("it is no JSON object: {error}")))?;
    let model = object.sampled_as(cx, &description)?;
    Ok(Value::map([("model", model.into_value())]))
});
interface!(Layers, "lora/2", TakeLayers, |object, cx, input| {
    let layers = input.get("layers").as_map().unwrap_or_default();
    let layers: Vec<AdapterLayer> = layers
        .into_iter()
        .map(|(module, layer)| AdapterLayer::read(module, &layer))
        .collect::<Result<_>>()?;
    let (with_layers, absent) = object.with_layers(cx, &layers, input.number("strength")?)?;
    let absent = Value::list(absent.into_iter().map(Value::string).collect());
    Ok(Value::map([("object", with_layers.into_value()), ("absent", absent)]))
});
interface!(TextLayers, "text_layers/1", TextLayers, |object, cx, input| {
    let clip = object.stop_at_layer(cx, input.integer("stop_at_clip_layer")?)?;
    Ok(Value::map([("clip", clip.into_value())]))
});
interface!(ClipVision, "clip_vision/1", EncodeClipVision, |object, cx, input| {
    let found = object.encode_clip_vision(cx, &input.tensor("image")?, input.boolean("crop")?)?;
    Ok(Value::map([
        ("last_hidden_state", found.last_hidden_state.into_value()),
        ("penultimate_hidden_states", found.penultimate_hidden_states.into_value()),
        ("image_embeds", found.image_embeds.into_value()),
    ]))
});
interface!(Features, "features/1", TellFeatures, |object, cx, input| {
    let features = match input.optional_tensor("image") {
        Some(image) => object.features_of_images(cx, &image)?,
        None => object.features_of_text(cx, &input.text("text")?)?,
    };
    give("features", features)
});
interface!(VaeDecode, "vae_decode/1", Autoencode, |object, cx, input| {
    give("image", object.decode(cx, &input.tensor("latents")?)?)
});
interface!(VaeEncode, "vae_encode/1", Autoencode, |object, cx, input| {
    give("latents", object.encode(cx, &input.tensor("image")?)?)
});
interface!(VaeDecodeTiled, "vae_decode_tiled/1", AutoencodeTiled, |object, cx, input| {
    let (tile, overlap) = (input.size("tile")?, input.size("overlap")?);
    give("image", object.decode_tiled(cx, &input.tensor("latents")?, tile, overlap)?)
});
interface!(VaeEncodeTiled, "vae_encode_tiled/1", AutoencodeTiled, |object, cx, input| {
    let (tile, overlap) = (input.size("tile")?, input.size("overlap")?);
    give("latents", object.encode_tiled(cx, &input.tensor("image")?, tile, overlap)?)
});
interface!(Upscale, "upscale/1", Upscale, |object, cx, input| {
    let size = |name: &str| match input.get(name).is_none() {
        true => Ok(None),
        false => input.size(name).map(Some),
    };
    let (tile, overlap) = (size("tile")?, size("overlap")?);
    let tiles = tile.map(|tile| (tile, overlap.unwrap_or(0)));
    give("image", object.upscale(cx, &input.tensor("image")?, tiles)?)
});
interface!(ImageEncoder, "image_encoder/1", EncodeImage, |object, cx, input| {
    give("tokens", object.encode_image(cx, &input.tensor("image")?)?)
});
interface!(Interleave, "interleave/1", Interleave, |object, cx, input| {
    let images = input.tensors("images")?;
    let (hidden_states, mask) = object.interleave(cx, &input.text("text")?, &images)?;
    Ok(Value::map([("hidden_states", hidden_states.into_value()), ("mask", mask.into_value())]))
});
interface!(Align, "align/1", Align, |object, cx, input| {
    give("context", object.align(cx, &input.tensor("hidden_states")?, &input.tensor("mask")?)?)
});
interface!(Describe, "describe/1", Describe, |object, _cx, _input| {
    Ok(Value::map([("description", Value::string(object.describe().to_string()))]))
});
interface!(Memory, "memory/1", Memory, |object, cx, input| {
    let bytes = object.bytes_in(cx, input.boolean("purge")?)?;
    Ok(Value::map([("bytes", Value::from(bytes as i64))]))
});

/// A tensor that may be absent.
fn optional(tensor: Option<Tensor>) -> Value {
    tensor.map_or(Value::NONE, Tensor::into_value)
}

fn give(name: &str, tensor: Tensor) -> Result<Value> {
    Ok(Value::map([(name, tensor.into_value())]))
}

fn list(tensors: Vec<Tensor>) -> Value {
    Value::list(tensors.into_iter().map(Tensor::into_value).collect())
}

/// A map from names to tensors.
fn named(tensors: Vec<(String, Tensor)>) -> Value {
    Value::map(tensors.into_iter().map(|(name, tensor)| (name, tensor.into_value())))
}

/// The tensors of such a map, in its order.
fn named_tensors(map: &Value) -> Vec<(String, Tensor)> {
    map.pairs().filter_map(|(name, value)| Some((name.to_owned(), value.as_tensor()?))).collect()
}

/// The tensor that an answer has under `name`.
fn tensor(answer: &Value, name: &str) -> Result<Tensor> {
    let tensor = answer.get(name).and_then(|value| value.as_tensor());
    tensor.ok_or_else(|| Error::new(format!("the answer has no tensor \"{name}\"")))
}
