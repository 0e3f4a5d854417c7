//! The interfaces of node.h, from both sides: a trait for who offers one, a method of the socket for who
//! calls it. Shapes, ranges and meaning stand in node.h.

use crate::object::Interface;
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
}

/// "control/1", offered by a CONTROL_NET.
pub trait Control {
    fn residuals(&self, cx: &Context<'_>, call: &ControlCall) -> Result<Vec<Tensor>>;
}

/// What "control/1" takes.
#[derive(Clone, Debug)]
pub struct ControlCall {
    /// [B, C, H, W].
    pub x: Tensor,
    /// \[B\].
    pub timestep: Tensor,
    /// [B, T, D].
    pub context: Tensor,
    /// [B, 3, 8H, 8W] in 0..1.
    pub hint: Tensor,
    pub strength: f64,
    pub guess: bool,
}

/// "text_encoder/1", offered by a CLIP.
pub trait EncodeText {
    /// The context [1, T, D] and the pooled vector [1, D], where there is one.
    fn encode_text(&self, cx: &Context<'_>, text: &str) -> Result<(Tensor, Option<Tensor>)>;
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
}

/// The marker of each interface, for [`interfaces!`](crate::interfaces).
pub mod marker {
    pub struct Denoiser;
    pub struct ControlNet;
    pub struct TextEncoder;
    pub struct Lora;
    pub struct TextLayers;
    pub struct ClipVision;
    pub struct VaeDecode;
    pub struct VaeEncode;
    pub struct VaeDecodeTiled;
    pub struct VaeEncodeTiled;
    pub struct ImageEncoder;
    pub struct Interleave;
    pub struct Align;
    pub struct Describe;
    pub struct Memory;
}

macro_rules! interface {
    ($marker:ident, $id:literal, $inputs:literal, $outputs:literal, $trait:ident,
     |$object:ident, $cx:ident, $in:ident| $body:expr) => {
        impl<T: $trait> Interface<T> for marker::$marker {
            const ID: &'static str = $id;
            const INPUTS: usize = $inputs;
            const OUTPUTS: usize = $outputs;

            fn call($object: &T, $cx: &Context<'_>, $in: &[Value]) -> Result<Vec<Value>> {
                $body
            }
        }
    };
}

interface!(Denoiser, "denoiser/1", 4, 1, Denoise, |object, cx, input| {
    let (x, timestep) = (tensor(input, 0, "x")?, tensor(input, 1, "timestep")?);
    let (context, residuals) = (tensor(input, 2, "context")?, tensors(input, 3, "residuals")?);
    let prediction = object.denoise(cx, &x, &timestep, &context, &residuals)?;
    Ok(vec![prediction.into_value()])
});
interface!(ControlNet, "control/1", 6, 1, Control, |object, cx, input| {
    let call = ControlCall {
        x: tensor(input, 0, "x")?,
        timestep: tensor(input, 1, "timestep")?,
        context: tensor(input, 2, "context")?,
        hint: tensor(input, 3, "hint")?,
        strength: input[4].as_f64().ok_or_else(|| wrong(input, 4, "strength", "a number"))?,
        guess: input[5].as_bool().ok_or_else(|| wrong(input, 5, "guess", "a boolean"))?,
    };
    Ok(vec![list(object.residuals(cx, &call)?)])
});
interface!(TextEncoder, "text_encoder/1", 1, 2, EncodeText, |object, cx, input| {
    let (context, pooled) = object.encode_text(cx, text(input, 0, "text")?)?;
    Ok(vec![context.into_value(), pooled.map_or(Value::NONE, Tensor::into_value)])
});
interface!(Lora, "lora/1", 2, 2, TakeLora, |object, cx, input| {
    let layers = input[0].as_map().ok_or_else(|| wrong(input, 0, "layers", "a map of layers"))?;
    let layers: Vec<LoraLayer> = layers
        .into_iter()
        .map(|(module, layer)| LoraLayer::read(module, &layer))
        .collect::<Result<_>>()?;
    let strength = input[1].as_f64().ok_or_else(|| wrong(input, 1, "strength", "a number"))?;
    let (with_lora, absent) = object.with_lora(cx, &layers, strength)?;
    let absent = absent.into_iter().map(Value::string).collect();
    Ok(vec![with_lora.into_value(), Value::list(absent)])
});
interface!(TextLayers, "text_layers/1", 1, 1, TextLayers, |object, cx, input| {
    let layer = input[0].as_i64();
    let layer = layer.ok_or_else(|| wrong(input, 0, "stop_at_clip_layer", "an integer"))?;
    Ok(vec![object.stop_at_layer(cx, layer)?.into_value()])
});
interface!(ClipVision, "clip_vision/1", 2, 3, EncodeClipVision, |object, cx, input| {
    let crop = input[1].as_bool().ok_or_else(|| wrong(input, 1, "crop", "a boolean"))?;
    let found = object.encode_clip_vision(cx, &tensor(input, 0, "image")?, crop)?;
    let tensors = [found.last_hidden_state, found.penultimate_hidden_states, found.image_embeds];
    Ok(tensors.map(Tensor::into_value).into())
});
interface!(VaeDecode, "vae_decode/1", 1, 1, Autoencode, |object, cx, input| {
    Ok(vec![object.decode(cx, &tensor(input, 0, "latents")?)?.into_value()])
});
interface!(VaeEncode, "vae_encode/1", 1, 1, Autoencode, |object, cx, input| {
    Ok(vec![object.encode(cx, &tensor(input, 0, "image")?)?.into_value()])
});
interface!(VaeDecodeTiled, "vae_decode_tiled/1", 3, 1, AutoencodeTiled, |object, cx, input| {
    let (tile, overlap) = (size(input, 1, "tile")?, size(input, 2, "overlap")?);
    let latents = tensor(input, 0, "latents")?;
    Ok(vec![object.decode_tiled(cx, &latents, tile, overlap)?.into_value()])
});
interface!(VaeEncodeTiled, "vae_encode_tiled/1", 3, 1, AutoencodeTiled, |object, cx, input| {
    let (tile, overlap) = (size(input, 1, "tile")?, size(input, 2, "overlap")?);
    let image = tensor(input, 0, "image")?;
    Ok(vec![object.encode_tiled(cx, &image, tile, overlap)?.into_value()])
});
interface!(ImageEncoder, "image_encoder/1", 1, 1, EncodeImage, |object, cx, input| {
    Ok(vec![object.encode_image(cx, &tensor(input, 0, "image")?)?.into_value()])
});
interface!(Interleave, "interleave/1", 2, 2, Interleave, |object, cx, input| {
    let images = tensors(input, 1, "images")?;
    let (hidden_states, mask) = object.interleave(cx, text(input, 0, "text")?, &images)?;
    Ok(vec![hidden_states.into_value(), mask.into_value()])
});
interface!(Align, "align/1", 2, 1, Align, |object, cx, input| {
    let (hidden_states, mask) = (tensor(input, 0, "hidden_states")?, tensor(input, 1, "mask")?);
    Ok(vec![object.align(cx, &hidden_states, &mask)?.into_value()])
});
interface!(Describe, "describe/1", 0, 1, Describe, |object, _cx, _input| {
    Ok(vec![Value::string(object.describe().to_string())])
});
interface!(Memory, "memory/1", 1, 1, Memory, |object, _cx, input| {
    let purge = input[0].as_bool().ok_or_else(|| wrong(input, 0, "purge", "a boolean"))?;
    Ok(vec![Value::from(object.bytes(purge) as i64)])
});

fn wrong(input: &[Value], i: usize, name: &str, wanted: &str) -> Error {
    Error::at(name, format!("{wanted} is wanted, but {} was given", input[i].kind_name()))
}

fn tensor(input: &[Value], i: usize, name: &str) -> Result<Tensor> {
    input[i].as_tensor().ok_or_else(|| wrong(input, i, name, "a tensor"))
}

fn tensors(input: &[Value], i: usize, name: &str) -> Result<Vec<Tensor>> {
    if input[i].is_none() {
        return Ok(Vec::new());
    }
    let items = input[i].as_list().ok_or_else(|| wrong(input, i, name, "a list of tensors"))?;
    (0..items.len()).map(|item| tensor(&items, item, name)).collect()
}

fn text<'v>(input: &'v [Value], i: usize, name: &str) -> Result<&'v str> {
    input[i].as_str().ok_or_else(|| wrong(input, i, name, "text in UTF-8"))
}

fn size(input: &[Value], i: usize, name: &str) -> Result<usize> {
    let size = input[i].as_i64().and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| wrong(input, i, name, "an integer of 0 or more"))
}

fn list(tensors: Vec<Tensor>) -> Value {
    Value::list(tensors.into_iter().map(Tensor::into_value).collect())
}

fn answer(id: &str, value: Value) -> Result<Tensor> {
    let kind = value.kind_name();
    value.as_tensor().ok_or_else(|| {
        Error::new(format!("\"{id}\" answered with {kind} where node.h wants a tensor"))
    })
}

/// The calling side: the same names, on any object that offers them.
impl Object {
    /// "denoiser/1".
    pub fn denoise(
        &self,
        cx: &Context<'_>,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        residuals: Vec<Tensor>,
    ) -> Result<Tensor> {
        let residuals = if residuals.is_empty() { Value::NONE } else { list(residuals) };
        let inputs = [x.into_value(), timestep.into_value(), context.into_value(), residuals];
        let [prediction] = self.call(cx, "denoiser/1", &inputs)?;
        answer("denoiser/1", prediction)
    }

    /// "control/1".
    pub fn control(&self, cx: &Context<'_>, call: ControlCall) -> Result<Vec<Tensor>> {
        let inputs = [
            call.x.into_value(),
            call.timestep.into_value(),
            call.context.into_value(),
            call.hint.into_value(),
            call.strength.into(),
            call.guess.into(),
        ];
        let residuals: [Value; 1] = self.call(cx, "control/1", &inputs)?;
        tensors(&residuals, 0, "the residuals of control/1")
    }

    /// "text_encoder/1".
    pub fn encode_text(&self, cx: &Context<'_>, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let [context, pooled] = self.call(cx, "text_encoder/1", &[Value::string(text)])?;
        Ok((answer("text_encoder/1", context)?, pooled.as_tensor()))
    }

    /// "lora/1".
    pub fn with_lora(
        &self,
        cx: &Context<'_>,
        layers: Vec<LoraLayer>,
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let layers = layers.into_iter().map(|layer| (layer.module.clone(), layer.into_value()));
        let inputs = [Value::map(layers), strength.into()];
        let [with_lora, absent] = self.call(cx, "lora/1", &inputs)?;
        let same_type = |object: &Object| object.type_name() == self.type_name();
        let with_lora = with_lora.as_object().filter(same_type).ok_or_else(|| {
            Error::new(format!(
                "\"lora/1\" of this {0} answered with something else than a {0}",
                self.type_name()
            ))
        })?;
        let absent = absent.as_list().unwrap_or_default();
        let absent = absent.iter().filter_map(|path| path.as_str().map(str::to_owned)).collect();
        Ok((with_lora, absent))
    }

    /// "text_layers/1".
    pub fn stop_at_layer(&self, cx: &Context<'_>, layer: i64) -> Result<Object> {
        let [clip] = self.call(cx, "text_layers/1", &[layer.into()])?;
        clip.as_object().ok_or_else(|| {
            let kind = clip.kind_name();
            Error::new(format!(
                "\"text_layers/1\" answered with {kind} where node.h wants an object"
            ))
        })
    }

    /// "clip_vision/1".
    pub fn encode_clip_vision(
        &self,
        cx: &Context<'_>,
        image: Tensor,
        crop: bool,
    ) -> Result<ClipVisionTensors> {
        const ID: &str = "clip_vision/1";
        let [last, penultimate, embeds] = self.call(cx, ID, &[image.into_value(), crop.into()])?;
        Ok(ClipVisionTensors {
            last_hidden_state: answer(ID, last)?,
            penultimate_hidden_states: answer(ID, penultimate)?,
            image_embeds: answer(ID, embeds)?,
        })
    }

    /// "vae_decode/1".
    pub fn decode(&self, cx: &Context<'_>, latents: Tensor) -> Result<Tensor> {
        let [image] = self.call(cx, "vae_decode/1", &[latents.into_value()])?;
        answer("vae_decode/1", image)
    }

    /// "vae_encode/1".
    pub fn encode(&self, cx: &Context<'_>, image: Tensor) -> Result<Tensor> {
        let [latents] = self.call(cx, "vae_encode/1", &[image.into_value()])?;
        answer("vae_encode/1", latents)
    }

    /// "vae_decode_tiled/1".
    pub fn decode_tiled(
        &self,
        cx: &Context<'_>,
        latents: Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        const ID: &str = "vae_decode_tiled/1";
        let inputs = [latents.into_value(), (tile as i64).into(), (overlap as i64).into()];
        let [image] = self.call(cx, ID, &inputs)?;
        answer(ID, image)
    }

    /// "vae_encode_tiled/1".
    pub fn encode_tiled(
        &self,
        cx: &Context<'_>,
        image: Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        const ID: &str = "vae_encode_tiled/1";
        let inputs = [image.into_value(), (tile as i64).into(), (overlap as i64).into()];
        let [latents] = self.call(cx, ID, &inputs)?;
        answer(ID, latents)
    }

    /// "image_encoder/1".
    pub fn encode_image(&self, cx: &Context<'_>, image: Tensor) -> Result<Tensor> {
        let [tokens] = self.call(cx, "image_encoder/1", &[image.into_value()])?;
        answer("image_encoder/1", tokens)
    }

    /// "interleave/1".
    pub fn interleave(
        &self,
        cx: &Context<'_>,
        text: &str,
        images: Vec<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let inputs = [Value::string(text), list(images)];
        let [hidden_states, mask] = self.call(cx, "interleave/1", &inputs)?;
        Ok((answer("interleave/1", hidden_states)?, answer("interleave/1", mask)?))
    }

    /// "align/1".
    pub fn align(&self, cx: &Context<'_>, hidden_states: Tensor, mask: Tensor) -> Result<Tensor> {
        let inputs = [hidden_states.into_value(), mask.into_value()];
        let [context] = self.call(cx, "align/1", &inputs)?;
        answer("align/1", context)
    }

    /// "describe/1".
    ///
    /// # Errors
    /// When the object does not describe itself in JSON.
    pub fn describe(&self, cx: &Context<'_>) -> Result<serde_json::Value> {
        let [description] = self.call(cx, "describe/1", &[])?;
        let json = description.as_str().unwrap_or_default();
        serde_json::from_str(json).map_err(|error| {
            Error::new(format!("this {} describes itself badly: {error}", self.type_name()))
        })
    }

    /// "memory/1": bytes held.
    pub fn memory(&self, cx: &Context<'_>, purge: bool) -> Result<usize> {
        let [bytes] = self.call(cx, "memory/1", &[purge.into()])?;
        Ok(bytes.as_i64().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0))
    }
}
