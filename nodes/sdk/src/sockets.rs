//! The socket types of node.h as Rust types.
//!
//! Each is a thin hand on a [`Value`]; what it promises (kind, element type, number of axes) is checked
//! when an input is read, so that a node can rely on it.

pub mod plain;

use crate::interface::AdapterLayer;
use crate::{Error, Object, Result, Tensor, Value};

/// A type that travels along a link.
pub trait Socket: Sized {
    /// The name two ends of a link agree on, "IMAGE".
    const TYPE: &'static str;

    /// # Errors
    /// What is wrong with `value`, as a sentence.
    fn from_value(value: Value) -> Result<Self>;

    fn into_value(self) -> Value;
}

fn wrong_kind(wanted: &str, value: &Value, what: &str) -> Error {
    Error::new(format!("{wanted} ({what}) is wanted, but {} was given", value.kind_name()))
}

macro_rules! tensor_socket {
    ($(#[$doc:meta])* $name:ident, $type:literal, $axes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Tensor);

        impl Socket for $name {
            const TYPE: &'static str = $type;

            fn from_value(value: Value) -> Result<Self> {
                let what = concat!("an f32 tensor ", $axes);
                let tensor = value.as_tensor().ok_or_else(|| wrong_kind(Self::TYPE, &value, what))?;
                check_tensor($type, $axes, &tensor)?;
                Ok(Self(tensor))
            }

            fn into_value(self) -> Value {
                self.0.into_value()
            }
        }
    };
}

/// An f32 tensor with as many axes as `axes` names.
fn check_tensor(socket: &str, axes: &str, tensor: &Tensor) -> Result<()> {
    let shape = tensor.shape();
    let wanted = axes.split(',').count();
    if shape.len() != wanted {
        return Err(Error::new(format!(
            "{socket} has the axes {axes}, but a tensor of shape {shape:?} was given"
        )));
    }
    if shape.contains(&0) {
        return Err(Error::new(format!("{socket} is empty: its shape is {shape:?}")));
    }
    if tensor.dl().dtype != kosmograph_abi::DLDataType::F32 {
        let dtype = tensor.dl().dtype;
        return Err(Error::new(format!(
            "{socket} holds f32 values, but a tensor of DLPack code {} with {} bits was given",
            dtype.code, dtype.bits
        )));
    }
    Ok(())
}

tensor_socket! {
    /// Pictures: f32 [B, H, W, C] in 0..1, C = 1, 3 or 4.
    Image, "IMAGE", "[B, H, W, C]"
}
tensor_socket! {
    /// Masks: f32 [B, H, W] in 0..1.
    Mask, "MASK", "[B, H, W]"
}
tensor_socket! {
    /// A picture as the multimodal model reads it: f32 [1, Q, D], Q tokens.
    ImageTokens, "IMAGE_TOKENS", "[1, Q, D]"
}

impl Mask {
    /// (B, H, W).
    pub fn dims(&self) -> (usize, usize, usize) {
        let shape = self.0.shape();
        (shape[0], shape[1], shape[2])
    }
}

impl Image {
    /// (B, H, W, C).
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let shape = self.0.shape();
        (shape[0], shape[1], shape[2], shape[3])
    }
}

/// A socket for objects of one type, other libraries' own too:
///
/// ```
/// node::object_socket! {
///     /// A SAM_MODEL: offers "segment/1".
///     pub SamModel, "SAM_MODEL"
/// }
/// ```
#[macro_export]
macro_rules! object_socket {
    ($(#[$doc:meta])* $visible:vis $name:ident, $type:literal) => {
        $(#[$doc])*
        #[derive(Clone)]
        $visible struct $name(pub $crate::Object);

        impl $crate::Socket for $name {
            const TYPE: &'static str = $type;

            fn from_value(value: $crate::Value) -> $crate::Result<Self> {
                $crate::object_of_type(&value, $type).map(Self)
            }

            fn into_value(self) -> $crate::Value {
                self.0.into_value()
            }
        }
    };
}

/// The object that `value` is, where it is of that type.
///
/// # Errors
/// It is no object, or one of another type.
#[doc(hidden)]
pub fn object_of_type(value: &Value, wanted: &str) -> Result<Object> {
    let object = value.as_object().ok_or_else(|| wrong_kind(wanted, value, "an object"))?;
    match object.type_name() {
        found if found == wanted => Ok(object),
        found => Err(Error::new(format!("{wanted} is wanted, but a {found} was given"))),
    }
}

object_socket! {
    /// A denoiser: offers "denoiser/1" and "describe/1".
    pub Model, "MODEL"
}
object_socket! {
    /// A text encoder: offers "text_encoder/1".
    pub Clip, "CLIP"
}
object_socket! {
    /// CLIP's picture half: offers "clip_vision/1".
    pub ClipVision, "CLIP_VISION"
}
object_socket! {
    /// An autoencoder: offers "vae_decode/1" and "vae_encode/1".
    pub Vae, "VAE"
}
object_socket! {
    /// A ControlNet: offers "control/1".
    pub ControlNet, "CONTROL_NET"
}
object_socket! {
    /// Makes pictures larger: offers "upscale/1" and "describe/1".
    pub UpscaleModel, "UPSCALE_MODEL"
}
object_socket! {
    /// What pictures are measured with: offers "features/1".
    pub Features, "FEATURES"
}
object_socket! {
    /// Kosmos-G: offers "image_encoder/1", "interleave/1" and "align/1".
    pub Kosmos, "KOSMOS"
}
object_socket! {
    /// Something else that makes image tokens: offers "image_encoder/1".
    pub ImageEncoder, "IMAGE_ENCODER"
}

object_socket! {
    /// Boxes with texts to patches of a U-Net: offers "grounding/1".
    pub Gligen, "GLIGEN"
}
object_socket! {
    /// A picture's style to tokens: offers "style_model/1".
    pub StyleModel, "STYLE_MODEL"
}
object_socket! {
    /// Pictures of a person in the place of a word: offers "photo_maker/1".
    pub PhotoMaker, "PHOTOMAKER"
}
object_socket! {
    /// What is done to latents: offers "latent_operation/1".
    pub LatentOperation, "LATENT_OPERATION"
}
object_socket! {
    /// The way from noise to a latent: offers "sampler/1".
    pub Sampler, "SAMPLER"
}
object_socket! {
    /// What says x₀ to a sampler: offers "guider/1" and "describe/1".
    pub Guider, "GUIDER"
}
object_socket! {
    /// The noise of a picture: offers "noise/1".
    pub Noise, "NOISE"
}

macro_rules! map_socket {
    ($(#[$doc:meta])* $name:ident, $type:literal, $what:literal, $key:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Value);

        impl Socket for $name {
            const TYPE: &'static str = $type;

            fn from_value(value: Value) -> Result<Self> {
                if value.get($key).is_none() {
                    return Err(wrong_kind(Self::TYPE, &value, $what));
                }
                Ok(Self(value))
            }

            fn into_value(self) -> Value {
                self.0
            }
        }
    };
}
map_socket! {
    /// Latents: a map with the f32 tensor "samples" [B, C, h, w]; what else it carries is passed on.
    Latent, "LATENT", "a map with the tensor \"samples\"", "samples"
}
map_socket! {
    /// Pictures as CLIP sees them: a map of "last_hidden_state" [B, T, C], "penultimate_hidden_states"
    /// [B, T, C] and "image_embeds" [B, P].
    ClipVisionOutput, "CLIP_VISION_OUTPUT", "a map with the tensor \"image_embeds\"", "image_embeds"
}
map_socket! {
    /// A ControlNet with its hint and where it acts; chained by "previous".
    Control, "CONTROL", "a map with \"control_net\"", "control_net"
}
map_socket! {
    /// A LoRA in memory: a map of "layers", as "lora/2" takes them.
    LoraModel, "LORA_MODEL", "a map with \"layers\"", "layers"
}
map_socket! {
    /// What the multimodal model thinks: a map of "hidden_states" [1, T, D] and "mask" [1, T].
    HiddenStates, "HIDDEN_STATES", "a map with the tensor \"hidden_states\"", "hidden_states"
}

impl LoraModel {
    /// Of layers, each a module's.
    pub fn of(layers: Vec<AdapterLayer>) -> Self {
        Self(Value::map([("layers", AdapterLayer::into_map(layers))]))
    }

    /// Its layers.
    ///
    /// # Errors
    /// One that is none.
    pub fn layers(&self) -> Result<Vec<AdapterLayer>> {
        AdapterLayer::read_all(&self.0.get("layers").unwrap_or(Value::NONE))
    }
}

/// The losses of a training, of each pass: a map of "loss", a list of numbers.
#[derive(Clone, Debug)]
pub struct LossMap(pub Vec<f64>);

impl Socket for LossMap {
    const TYPE: &'static str = "LOSS_MAP";

    fn from_value(value: Value) -> Result<Self> {
        let losses = value.get("loss").and_then(|losses| losses.as_list());
        let losses = losses.map(|losses| losses.iter().map(Value::as_f64).collect::<Option<_>>());
        let wrong = || wrong_kind(Self::TYPE, &value, "a map with the list of numbers \"loss\"");
        losses.flatten().map(Self).ok_or_else(wrong)
    }

    fn into_value(self) -> Value {
        let losses = self.0.into_iter().map(Value::from).collect();
        Value::map([("loss", Value::list(losses))])
    }
}

/// The tensor of `key`, with as many axes as `axes` names.
fn map_tensor(socket: &str, map: &Value, key: &str, axes: &str) -> Result<Tensor> {
    let value = map.get(key).unwrap_or(Value::NONE);
    let tensor = value.as_tensor().ok_or_else(|| {
        Error::new(format!("{socket}: \"{key}\" should be a tensor {axes}, but it is {value:?}"))
    })?;
    check_tensor(&format!("{socket}: \"{key}\""), axes, &tensor)?;
    Ok(tensor)
}

impl Latent {
    pub fn new(samples: Tensor) -> Self {
        Self(Value::map([("samples", samples.into_value())]))
    }

    /// [B, C, h, w].
    pub fn samples(&self) -> Result<Tensor> {
        map_tensor("LATENT", &self.0, "samples", "[B, C, h, w]")
    }

    /// The same with other samples; all other keys stay.
    pub fn with_samples(&self, samples: Tensor) -> Self {
        Self(self.0.with("samples", samples.into_value()))
    }

    /// Where a sampler may change the samples: [B, H, W] of any size, 1 where it may, 0 where they stay.
    pub fn noise_mask(&self) -> Result<Option<Mask>> {
        let Some(value) = self.0.get("noise_mask") else { return Ok(None) };
        Mask::from_value(value)
            .map(Some)
            .map_err(|error| Error::new(format!("LATENT: \"noise_mask\": {error}")))
    }

    /// The same with another noise mask.
    pub fn with_noise_mask(&self, mask: Mask) -> Self {
        Self(self.0.with("noise_mask", mask.into_value()))
    }

    /// What the samples are the autoencoder's own latents times, above 0, where that is known.
    pub fn scale(&self) -> Result<Option<f64>> {
        let Some(value) = self.0.get("scale") else { return Ok(None) };
        match value.as_f64().filter(|scale| scale.is_finite() && *scale > 0.0) {
            Some(scale) => Ok(Some(scale)),
            None => Err(Error::new(format!(
                "LATENT: \"scale\" should be a number above 0, but it is {value:?}"
            ))),
        }
    }

    /// The same saying another scale, where one is known; the samples stay.
    pub fn with_scale(&self, scale: Option<f64>) -> Self {
        match scale {
            Some(scale) => Self(self.0.with("scale", scale.into())),
            None => self.clone(),
        }
    }

    /// The same at the scale `wanted`, its samples multiplied by what the two differ by. Where either is not known
    /// the samples stay.
    ///
    /// # Errors
    /// What it says of itself is no LATENT, or there is no memory for other samples.
    pub fn at_scale(&self, wanted: Option<f64>) -> Result<Self> {
        let same = |own: f64, wanted: f64| (own - wanted).abs() <= 1e-9 * wanted;
        match (self.scale()?, wanted) {
            (Some(own), Some(wanted)) if !same(own, wanted) => {
                let samples = self.samples()?;
                let by = (wanted / own) as f32;
                let mut values = samples.to_vec()?;
                values.iter_mut().for_each(|value| *value *= by);
                let scaled = Tensor::from_f32(&samples.shape(), values)?;
                Ok(self.with_samples(scaled).with_scale(Some(wanted)))
            }
            _ => Ok(self.with_scale(wanted)),
        }
    }

    /// Both at one scale, the first's, or the second's where the first does not say its own: for nodes that make one
    /// latent of two.
    ///
    /// # Errors
    /// As [`Latent::at_scale`].
    pub fn at_one_scale(&self, second: &Latent) -> Result<(Latent, Latent)> {
        let scale = self.scale()?;
        Ok((self.with_scale(scale.or(second.scale()?)), second.at_scale(scale)?))
    }

    /// Which of a batch's pictures each latent was, when the latents were taken out of one.
    pub fn batch_index(&self) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.0.get("batch_index") else { return Ok(None) };
        let items = value.as_list().unwrap_or_default();
        let indices = items.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
        match indices.filter(|indices| !indices.is_empty()) {
            Some(indices) => Ok(Some(indices)),
            None => Err(Error::new(format!(
                "LATENT: \"batch_index\" should be a list of integers, but it is {value:?}"
            ))),
        }
    }
}

impl HiddenStates {
    pub fn new(hidden_states: Tensor, mask: Tensor) -> Self {
        let pairs = [("hidden_states", hidden_states.into_value()), ("mask", mask.into_value())];
        Self(Value::map(pairs))
    }

    /// [1, T, D].
    pub fn hidden_states(&self) -> Result<Tensor> {
        map_tensor("HIDDEN_STATES", &self.0, "hidden_states", "[1, T, D]")
    }

    /// [1, T], 1 where the token counts.
    pub fn mask(&self) -> Result<Tensor> {
        map_tensor("HIDDEN_STATES", &self.0, "mask", "[1, T]")
    }
}

impl Control {
    pub fn new(
        control_net: ControlNet,
        hint: Image,
        strength: f64,
        start: f64,
        end: f64,
        previous: Option<Control>,
    ) -> Self {
        let mut pairs = vec![
            ("control_net", control_net.into_value()),
            ("hint", hint.into_value()),
            ("strength", strength.into()),
            ("start", start.into()),
            ("end", end.into()),
        ];
        pairs.extend(previous.map(|previous| ("previous", previous.into_value())));
        Self(Value::map(pairs))
    }

    pub fn control_net(&self) -> Result<ControlNet> {
        ControlNet::from_value(self.0.get("control_net").unwrap_or(Value::NONE))
    }

    /// [B, H, W, 3] in 0..1.
    pub fn hint(&self) -> Result<Image> {
        Image::from_value(self.0.get("hint").unwrap_or(Value::NONE))
    }

    pub fn strength(&self) -> f64 {
        self.number("strength", 1.0)
    }

    /// Where in the schedule it begins to act, 0 the noisiest, 1 the end.
    pub fn start(&self) -> f64 {
        self.number("start", 0.0)
    }

    /// Where it stops to act.
    pub fn end(&self) -> f64 {
        self.number("end", 1.0)
    }

    /// Whether it sees the conditional half alone, with residuals that grow with depth.
    pub fn guess(&self) -> bool {
        self.0.get("guess").and_then(|value| value.as_bool()).unwrap_or(false)
    }

    /// The same in guess mode, or out of it.
    pub fn with_guess(&self, guess: bool) -> Self {
        Self(self.0.with("guess", guess.into()))
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.0.get(key).and_then(|value| value.as_f64()).unwrap_or(default)
    }

    /// The ControlNet that acts together with this one.
    pub fn previous(&self) -> Result<Option<Control>> {
        self.0.get("previous").map(Control::from_value).transpose()
    }
}

/// What steers the denoiser: a list of maps, each with "context" [1, T, D].
#[derive(Clone, Debug)]
pub struct Conditioning(pub Value);

impl Socket for Conditioning {
    const TYPE: &'static str = "CONDITIONING";

    fn from_value(value: Value) -> Result<Self> {
        let entries = value.as_list().unwrap_or_default();
        if entries.is_empty() || entries.iter().any(|entry| entry.get("context").is_none()) {
            return Err(wrong_kind(Self::TYPE, &value, "a list of maps, each with a \"context\""));
        }
        Ok(Self(value))
    }

    fn into_value(self) -> Value {
        self.0
    }
}

impl Conditioning {
    /// One entry, without anything but its context [1, T, D] and pooled vector [1, D].
    pub fn new(context: Tensor, pooled: Option<Tensor>) -> Self {
        let mut pairs = vec![("context", context.into_value())];
        pairs.extend(pooled.map(|pooled| ("pooled", pooled.into_value())));
        Self(Value::list(vec![Value::map(pairs)]))
    }

    /// The maps.
    pub fn entries(&self) -> Vec<Value> {
        self.0.as_list().unwrap_or_default()
    }

    /// [1, T, D] of each entry.
    pub fn contexts(&self) -> Result<Vec<Tensor>> {
        let context = |entry| map_tensor("CONDITIONING", entry, "context", "[1, T, D]");
        self.entries().iter().map(context).collect()
    }

    /// The same with `change` made to every entry.
    pub fn map_entries(&self, change: impl FnMut(Value) -> Value) -> Self {
        Self(Value::list(self.entries().into_iter().map(change).collect()))
    }
}
