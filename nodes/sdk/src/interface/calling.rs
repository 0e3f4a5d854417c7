//! The interfaces of node.h from the calling side: the names of the traits, on any object that offers them.

use super::{
    AdapterLayer, ClipVisionTensors, ControlAnswer, ControlCall, ControlChanges, DenoiseCall,
    LoraLayer, list, named, named_tensors, optional, tensor,
};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// What "text_encoder/1" answers.
fn encoded(answer: &Value) -> Result<(Tensor, Option<Tensor>)> {
    let pooled = answer.get("pooled").and_then(|pooled| pooled.as_tensor());
    Ok((tensor(answer, "context")?, pooled))
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
        self.denoise_call(cx, DenoiseCall { residuals, ..DenoiseCall::new(x, timestep, context) })
    }

    /// "denoiser/1" with all that a call may bring; what there is none of is left out.
    pub fn denoise_call(&self, cx: &Context<'_>, call: DenoiseCall) -> Result<Tensor> {
        let some = |there: bool, value: Value| if there { value } else { Value::NONE };
        let rows = call.rows.iter().map(|row| Value::string(row.as_str())).collect();
        let input = [
            ("x", call.x.into_value()),
            ("timestep", call.timestep.into_value()),
            ("context", call.context.into_value()),
            ("residuals", some(!call.residuals.is_empty(), list(call.residuals))),
            ("pooled", optional(call.pooled)),
            ("sizes", optional(call.sizes)),
            ("features", some(!call.features.is_empty(), named(call.features))),
            ("extra_tokens", some(!call.extra_tokens.is_empty(), Value::list(call.extra_tokens))),
            ("rows", some(!call.rows.is_empty(), Value::list(rows))),
        ];
        tensor(&self.call(cx, "denoiser/1", input)?, "prediction")
    }

    /// "control/1".
    pub fn control(&self, cx: &Context<'_>, call: ControlCall) -> Result<ControlAnswer> {
        let input = [
            ("x", call.x.into_value()),
            ("timestep", call.timestep.into_value()),
            ("context", call.context.into_value()),
            ("hint", call.hint.into_value()),
            ("strength", call.strength.into()),
            ("guess", call.guess.into()),
            ("pooled", optional(call.pooled)),
            ("sizes", optional(call.sizes)),
        ];
        let answer = self.call(cx, "control/1", input)?;
        let wrong = || self.odd("control/1", "residuals");
        let residuals =
            answer.get("residuals").and_then(|value| value.as_list()).ok_or_else(wrong)?;
        Ok(ControlAnswer {
            residuals: residuals
                .iter()
                .map(|value| value.as_tensor().ok_or_else(wrong))
                .collect::<Result<_>>()?,
            features: named_tensors(&answer.get("features").unwrap_or(Value::NONE)),
        })
    }

    /// "text_encoder/1".
    pub fn encode_text(&self, cx: &Context<'_>, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        encoded(&self.call(cx, "text_encoder/1", [("text", Value::string(text))])?)
    }

    /// "text_encoder/1" of a text for each encoder, by its name ("l", "g").
    pub fn encode_texts(
        &self,
        cx: &Context<'_>,
        texts: &[(&str, &str)],
    ) -> Result<(Tensor, Option<Tensor>)> {
        // Who does not know several texts reads the last, which is that of the larger encoder.
        let text = texts.last().map_or("", |(_, text)| text);
        let texts = Value::map(texts.iter().map(|(name, text)| (*name, Value::string(*text))));
        let input = [("text", Value::string(text)), ("texts", texts)];
        encoded(&self.call(cx, "text_encoder/1", input)?)
    }

    /// "control_of/1".
    pub fn control_of(&self, cx: &Context<'_>, changes: ControlChanges) -> Result<Object> {
        let ControlChanges { weights, differences, up, down } = changes;
        let input = [
            ("weights", named(weights)),
            ("differences", named(differences)),
            ("up", named(up)),
            ("down", named(down)),
        ];
        self.made_control_net("control_of/1", &self.call(cx, "control_of/1", input)?)
    }

    /// "base_model/1".
    pub fn of_model(&self, cx: &Context<'_>, model: &Object) -> Result<Object> {
        let input = [("model", model.clone().into_value())];
        self.made_control_net("base_model/1", &self.call(cx, "base_model/1", input)?)
    }

    fn made_control_net(&self, id: &str, answer: &Value) -> Result<Object> {
        let control_net = answer.get("control_net").and_then(|value| value.as_object());
        control_net
            .filter(|object| object.type_name() == "CONTROL_NET")
            .ok_or_else(|| self.odd(id, "control_net"))
    }

    /// "control_type/1".
    pub fn of_type(&self, cx: &Context<'_>, kind: Option<usize>) -> Result<Object> {
        let kind = kind.and_then(|kind| i64::try_from(kind).ok()).unwrap_or(-1);
        let answer = self.call(cx, "control_type/1", [("type", kind.into())])?;
        self.made_control_net("control_type/1", &answer)
    }

    /// "model_sampling/1".
    pub fn sampled_as(
        &self,
        cx: &Context<'_>,
        description: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Object> {
        let text = serde_json::Value::Object(description.clone()).to_string();
        let answer = self.call(cx, "model_sampling/1", [("description", Value::string(text))])?;
        let model = answer.get("model").and_then(|model| model.as_object());
        model
            .filter(|model| model.type_name() == "MODEL")
            .ok_or_else(|| self.odd("model_sampling/1", "model"))
    }

    /// "lora/1".
    pub fn with_lora(
        &self,
        cx: &Context<'_>,
        layers: Vec<LoraLayer>,
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let layers = layers.into_iter().map(|layer| (layer.module.clone(), layer.into_value()));
        self.adapted(cx, "lora/1", Value::map(layers), strength)
    }

    /// "lora/2".
    pub fn with_layers(
        &self,
        cx: &Context<'_>,
        layers: Vec<AdapterLayer>,
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let layers = layers.into_iter().map(|layer| (layer.module.clone(), layer.into_value()));
        self.adapted(cx, "lora/2", Value::map(layers), strength)
    }

    fn adapted(
        &self,
        cx: &Context<'_>,
        interface: &str,
        layers: Value,
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let input = [("layers", layers), ("strength", strength.into())];
        self.changed(&self.call(cx, interface, input)?, interface)
    }

    /// The object of the same type that an answer has, and the names that it has no place for.
    pub(super) fn changed(&self, answer: &Value, interface: &str) -> Result<(Object, Vec<String>)> {
        let same_type = |object: &Object| object.type_name() == self.type_name();
        let adapted = answer.get("object").and_then(|object| object.as_object());
        let adapted = adapted.filter(same_type).ok_or_else(|| {
            Error::new(format!(
                "\"{interface}\" of this {0} answered with something else than a {0}",
                self.type_name()
            ))
        })?;
        let wrong = || self.odd(interface, "absent");
        let absent = answer.get("absent").and_then(|absent| absent.as_list()).ok_or_else(wrong)?;
        let text = |path: &Value| path.as_str().map(str::to_owned).ok_or_else(wrong);
        let absent = absent.iter().map(text).collect::<Result<_>>()?;
        Ok((adapted, absent))
    }

    /// "text_layers/1".
    pub fn stop_at_layer(&self, cx: &Context<'_>, layer: i64) -> Result<Object> {
        let answer = self.call(cx, "text_layers/1", [("stop_at_clip_layer", layer.into())])?;
        let clip = answer.get("clip").and_then(|clip| clip.as_object());
        clip.ok_or_else(|| Error::new("\"text_layers/1\" answered without a CLIP"))
    }

    /// "clip_vision/1".
    pub fn encode_clip_vision(
        &self,
        cx: &Context<'_>,
        image: Tensor,
        crop: bool,
    ) -> Result<ClipVisionTensors> {
        let input = [("image", image.into_value()), ("crop", crop.into())];
        let answer = self.call(cx, "clip_vision/1", input)?;
        Ok(ClipVisionTensors {
            last_hidden_state: tensor(&answer, "last_hidden_state")?,
            penultimate_hidden_states: tensor(&answer, "penultimate_hidden_states")?,
            image_embeds: tensor(&answer, "image_embeds")?,
        })
    }

    /// "features/1" of pictures.
    pub fn features_of_images(&self, cx: &Context<'_>, image: Tensor) -> Result<Tensor> {
        tensor(&self.call(cx, "features/1", [("image", image.into_value())])?, "features")
    }

    /// "features/1" of a text.
    pub fn features_of_text(&self, cx: &Context<'_>, text: &str) -> Result<Tensor> {
        tensor(&self.call(cx, "features/1", [("text", Value::string(text))])?, "features")
    }

    /// "vae_decode/1".
    pub fn decode(&self, cx: &Context<'_>, latents: Tensor) -> Result<Tensor> {
        let input = [("latents", latents.into_value())];
        tensor(&self.call(cx, "vae_decode/1", input)?, "image")
    }

    /// "vae_encode/1".
    pub fn encode(&self, cx: &Context<'_>, image: Tensor) -> Result<Tensor> {
        let input = [("image", image.into_value())];
        tensor(&self.call(cx, "vae_encode/1", input)?, "latents")
    }

    /// "vae_decode_tiled/1".
    pub fn decode_tiled(
        &self,
        cx: &Context<'_>,
        latents: Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        let (tile, overlap) = ((tile as i64).into(), (overlap as i64).into());
        let input = [("latents", latents.into_value()), ("tile", tile), ("overlap", overlap)];
        tensor(&self.call(cx, "vae_decode_tiled/1", input)?, "image")
    }

    /// "vae_encode_tiled/1".
    pub fn encode_tiled(
        &self,
        cx: &Context<'_>,
        image: Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        let (tile, overlap) = ((tile as i64).into(), (overlap as i64).into());
        let input = [("image", image.into_value()), ("tile", tile), ("overlap", overlap)];
        tensor(&self.call(cx, "vae_encode_tiled/1", input)?, "latents")
    }

    /// "upscale/1"; `tiles` are the side of a tile and what neighbours share.
    pub fn upscale(
        &self,
        cx: &Context<'_>,
        image: Tensor,
        (tile, overlap): (usize, usize),
    ) -> Result<Tensor> {
        let (tile, overlap) = ((tile as i64).into(), (overlap as i64).into());
        let input = [("image", image.into_value()), ("tile", tile), ("overlap", overlap)];
        tensor(&self.call(cx, "upscale/1", input)?, "image")
    }

    /// "image_encoder/1".
    pub fn encode_image(&self, cx: &Context<'_>, image: Tensor) -> Result<Tensor> {
        let input = [("image", image.into_value())];
        tensor(&self.call(cx, "image_encoder/1", input)?, "tokens")
    }

    /// "interleave/1".
    pub fn interleave(
        &self,
        cx: &Context<'_>,
        text: &str,
        images: Vec<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let input = [("text", Value::string(text)), ("images", list(images))];
        let answer = self.call(cx, "interleave/1", input)?;
        Ok((tensor(&answer, "hidden_states")?, tensor(&answer, "mask")?))
    }

    /// "align/1".
    pub fn align(&self, cx: &Context<'_>, hidden_states: Tensor, mask: Tensor) -> Result<Tensor> {
        let input = [("hidden_states", hidden_states.into_value()), ("mask", mask.into_value())];
        tensor(&self.call(cx, "align/1", input)?, "context")
    }

    /// "describe/1".
    ///
    /// # Errors
    /// When the object does not describe itself in JSON.
    pub fn describe(&self, cx: &Context<'_>) -> Result<serde_json::Value> {
        let answer = self.call(cx, "describe/1", [])?;
        let description = answer.get("description").unwrap_or(Value::NONE);
        serde_json::from_str(description.as_str().unwrap_or_default()).map_err(|error| {
            Error::new(format!("this {} describes itself badly: {error}", self.type_name()))
        })
    }

    /// What an answer gives under a key is of another kind than node.h says.
    pub(super) fn odd(&self, id: &str, key: &str) -> Error {
        Error::new(format!("\"{id}\" of this {} gives a wrong \"{key}\"", self.type_name()))
    }

    /// "memory/1": bytes held.
    pub fn memory(&self, cx: &Context<'_>, purge: bool) -> Result<usize> {
        let answer = self.call(cx, "memory/1", [("purge", purge.into())])?;
        let bytes = answer.get("bytes").and_then(|bytes| bytes.as_i64());
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
            Error::new(format!(
                "\"memory/1\" of this {} gives no number of bytes",
                self.type_name()
            ))
        })
    }
}
