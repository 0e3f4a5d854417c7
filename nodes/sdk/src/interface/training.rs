//! Training in a graph: "train_lora/1", from both sides.

use super::{AdapterLayer, marker, optional};
use crate::object::{Arguments, Interface};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// "train_lora/1", offered by a MODEL that can be trained.
pub trait TrainLora {
    /// A LoRA of it; the object itself stays what it is.
    fn train_lora(&self, cx: &Context<'_>, call: &LoraTraining) -> Result<TrainedLora>;
}

/// What "train_lora/1" takes.
#[derive(Clone, Debug)]
pub struct LoraTraining {
    pub examples: Vec<LoraExample>,
    /// An object with the keys that node.h gives it.
    pub settings: serde_json::Value,
    /// What it begins with; a layer that is not there begins anew.
    pub layers: Vec<AdapterLayer>,
}

/// What a network learns from.
#[derive(Clone, Debug)]
pub struct LoraExample {
    /// [1, C, H, W], at the network's scale.
    pub latents: Tensor,
    /// [1, T, D].
    pub context: Tensor,
    /// [1, P].
    pub pooled: Option<Tensor>,
    /// [1, 6] or [1, 5].
    pub sizes: Option<Tensor>,
}

impl LoraExample {
    fn read(value: &Value) -> Result<Self> {
        let tensor = |key: &str| value.get(key).and_then(|value| value.as_tensor());
        let (Some(latents), Some(context)) = (tensor("latents"), tensor("context")) else {
            let sentence = "an example has the tensors \"latents\" and \"context\"";
            return Err(Error::at("examples", sentence));
        };
        Ok(Self { latents, context, pooled: tensor("pooled"), sizes: tensor("sizes") })
    }

    fn into_value(self) -> Value {
        Value::map([
            ("latents", self.latents.into_value()),
            ("context", self.context.into_value()),
            ("pooled", optional(self.pooled)),
            ("sizes", optional(self.sizes)),
        ])
    }
}

/// What "train_lora/1" gives.
#[derive(Clone, Debug)]
pub struct TrainedLora {
    pub layers: Vec<AdapterLayer>,
    /// Of each pass.
    pub losses: Vec<f64>,
}

/// The layers of a map as "lora/2" has it.
fn read_layers(value: &Value) -> Result<Vec<AdapterLayer>> {
    let layers = value.as_map().unwrap_or_default().into_iter();
    layers.map(|(module, layer)| AdapterLayer::read(module, &layer)).collect()
}

fn of_layers(layers: Vec<AdapterLayer>) -> Value {
    Value::map(layers.into_iter().map(|layer| (layer.module.clone(), layer.into_value())))
}

impl<T: TrainLora> Interface<T> for marker::LoraTraining {
    const ID: &'static str = "train_lora/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments) -> Result<Value> {
        let settings = serde_json::from_str(&input.text("settings")?)
            .map_err(|error| Error::at("settings", format!("they are no JSON: {error}")))?;
        let examples = input.get("examples").as_list().unwrap_or_default();
        let examples = examples.iter().map(LoraExample::read).collect::<Result<_>>()?;
        let layers = read_layers(&input.get("layers"))?;
        let trained = object.train_lora(cx, &LoraTraining { examples, settings, layers })?;
        let losses = Value::list(trained.losses.into_iter().map(Value::from).collect());
        Ok(Value::map([("layers", of_layers(trained.layers)), ("losses", losses)]))
    }
}

impl AdapterLayer {
    /// Layers by their modules' paths, as "lora/2" and "train_lora/1" have them.
    ///
    /// # Errors
    /// A factor is no tensor.
    pub fn read_all(layers: &Value) -> Result<Vec<Self>> {
        read_layers(layers)
    }

    /// The other way.
    pub fn into_map(layers: Vec<Self>) -> Value {
        of_layers(layers)
    }
}

impl Object {
    /// "train_lora/1".
    ///
    /// # Errors
    /// What the object reports.
    pub fn train_lora(&self, cx: &Context<'_>, call: LoraTraining) -> Result<TrainedLora> {
        let examples = call.examples.into_iter().map(LoraExample::into_value).collect();
        let layers = match call.layers.is_empty() {
            true => Value::NONE,
            false => of_layers(call.layers),
        };
        let input = [
            ("examples", Value::list(examples)),
            ("settings", Value::string(call.settings.to_string())),
            ("layers", layers),
        ];
        let answer = self.call(cx, "train_lora/1", input)?;
        let losses = answer.get("losses").and_then(|losses| losses.as_list()).unwrap_or_default();
        let losses = losses.iter().filter_map(Value::as_f64).collect();
        let layers = answer.get("layers").unwrap_or(Value::NONE);
        Ok(TrainedLora { layers: read_layers(&layers)?, losses })
    }
}
