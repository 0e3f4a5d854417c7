//! A LoRA trained in a graph: ComfyUI's TrainLoraNode, its LORA_MODEL and LoraModelLoader.

use std::path::PathBuf;

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::lora::Lora;
use kosmograph_training::adapter::{self, LatentExample, Network, Settings};
use node::interface::{AdapterLayer, LoraExample, LoraTraining, TrainLora, TrainedLora};
use node::plain::Whole;
use node::*;
use node_candle::{export, import};

use crate::lora;
use crate::model::UNetModel;
use crate::sampling::{Described, told};

/// Trains a LoRA of a model on latents and the conditioning of each: every layer learns, and the loss is of x₀. Computed in f32
/// throughout, whatever the types say.
#[derive(Inputs)]
#[node(category = "training")]
pub struct TrainLoraNode {
    /// What the LoRA is for; it stays as it is.
    model: Model,
    /// What it learns to draw.
    latents: Latent,
    /// What each of the latents shows; one for all, or as many as they.
    positive: Conditioning,
    /// How many of the latents are taken at once.
    #[widget(default = 1, min = 1, max = 10000, step = 1)]
    batch_size: i64,
    /// How many batches are added up for a step.
    #[widget(default = 1, min = 1, max = 1024, step = 1)]
    grad_accumulation_steps: i64,
    /// Steps.
    #[widget(default = 16, min = 1, max = 100000, step = 1)]
    steps: i64,
    /// How far a step goes.
    #[widget(default = 0.0005, min = 0.0000001, max = 1.0, step = 0.0000001)]
    learning_rate: f64,
    /// Of each layer's factors.
    #[widget(default = 8, min = 1, max = 128, step = 1)]
    rank: i64,
    /// How the factors follow their gradients.
    #[widget(choices = ["AdamW", "Adam", "SGD", "RMSprop"], default = "AdamW")]
    optimizer: String,
    /// What x₀ is measured by. Huber and SmoothL1 are one.
    #[widget(choices = ["MSE", "L1", "Huber", "SmoothL1"], default = "MSE")]
    loss_function: String,
    /// What the start, the noise and the order are drawn from.
    #[widget(seed, default = 0)]
    seed: u64,
    /// Both are computed in f32.
    #[widget(choices = ["bf16", "fp32"], default = "bf16")]
    training_dtype: String,
    /// With bf16 the finished LoRA is rounded, and takes half the room in a file.
    #[widget(choices = ["bf16", "fp32"], default = "bf16")]
    lora_dtype: String,
    /// What stands for a layer's change.
    #[widget(choices = ["LoRA", "LoHa", "LoKr"], default = "LoRA")]
    algorithm: String,
    /// Whether the U-Net's blocks are computed again for their gradients: less memory, more time, the same numbers.
    #[widget(default = true)]
    gradient_checkpointing: bool,
    /// A LoRA to go on with; the steps in its name ("_16_steps_") are added to the steps that come out.
    #[file(folder = "loras", entry = "file", default = "[None]", none = "[None]")]
    existing_lora: Option<PathBuf>,
}

impl Node for TrainLoraNode {
    outputs![model: Model, lora: LoraModel, loss_map: LossMap, steps: Whole];

    fn run(self, cx: &Context) -> Result<(Model, LoraModel, LossMap, Whole)> {
        if !self.model.0.offers("train_lora/1") {
            return Err(Error::at(
                "model",
                "this MODEL cannot be trained: the library it comes from does not offer \"train_lora/1\"",
            ));
        }
        let (layers, steps_before) = match &self.existing_lora {
            Some(path) => {
                let lora = Lora::open(path);
                let lora = lora.map_err(|error| Error::from(error).of_input("existing_lora"))?;
                if !lora.text_encoder.is_empty() || !lora.text_encoder_2.is_empty() {
                    cx.warn(format!(
                        "{}: its layers for the text encoder are left out: the U-Net alone is trained",
                        path.display()
                    ));
                }
                (lora::across(&lora.unet)?, steps_of(path))
            }
            None => (Vec::new(), 0),
        };
        let examples = self.examples(cx)?;
        // With the type of a training ComfyUI chooses what it computes in; here it is f32 in either case.
        let _ = &self.training_dtype;
        let settings = json!({
            "kind": self.algorithm.to_lowercase(),
            "rank": self.rank,
            "steps": self.steps,
            "batch": self.batch_size,
            "accumulate": self.grad_accumulation_steps,
            "optimiser": self.optimizer.to_lowercase(),
            "learning_rate": self.learning_rate,
            "loss": match &*self.loss_function {
                "MSE" => "mse",
                "L1" => "l1",
                _ => "huber",
            },
            "seed": self.seed,
            "recompute": self.gradient_checkpointing,
        });
        let call = LoraTraining { examples, settings, layers };
        let TrainedLora { layers, losses } = self.model.0.train_lora(cx, call)?;
        let layers = match &*self.lora_dtype {
            "bf16" => layers.into_iter().map(rounded).collect::<Result<_>>()?,
            _ => layers,
        };
        let (model, _) = self.model.0.with_layers(cx, layers.clone(), 1.0)?;
        let steps = Whole(self.steps.saturating_add(steps_before));
        Ok((Model(model), LoraModel::of(layers), LossMap(losses), steps))
    }
}

impl TrainLoraNode {
    fn examples(&self, cx: &Context) -> Result<Vec<LoraExample>> {
        let described = Described::of(cx, &self.model.0, "model")?;
        let latents = self.latents.at_scale(described.scaling_factor);
        let latents = latents.and_then(|latents| latents.samples());
        let latents = latents.map_err(|error| error.of_input("latents"))?;
        let latents = import(&latents, &Device::Cpu)?;
        let (count, channels, height, width) = latents.dims4()?;
        let given = self.positive.entries().len();
        if given != 1 && given != count {
            return Err(Error::at(
                "positive",
                format!(
                    "there are {given} conditionings for {count} latents; one for all, or {count}, would be right"
                ),
            ));
        }
        let dims = (1, channels, height, width);
        let entries = told(&described, &self.positive, dims, &Device::Cpu)?;
        if entries.len() != given {
            return Err(Error::at("positive", "conditionings of areas are not trained on"));
        }
        if entries.iter().any(|entry| !entry.controls.is_empty() || entry.area.is_some()) {
            cx.warn("ControlNets and areas of the conditioning are left out of the training");
        }
        let example = |row: usize| {
            let entry = &entries[row % entries.len()];
            let vector = entry.vector.as_ref();
            Ok(LoraExample {
                latents: export(&latents.narrow(0, row, 1)?.contiguous()?)?,
                context: export(&entry.context)?,
                pooled: vector.map(|vector| export(&vector.pooled)).transpose()?,
                sizes: vector.map(|vector| export(&vector.sizes)).transpose()?,
            })
        };
        (0..count).map(example).collect()
    }
}

/// How many steps a LoRA was trained for by its file's name, "trained_16_steps_00001_.safetensors".
fn steps_of(path: &std::path::Path) -> i64 {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let before = name.split_once("_steps_").map(|(before, _)| before);
    before.and_then(|before| before.rsplit('_').next()?.parse().ok()).unwrap_or(0)
}

/// A layer in the numbers that bf16 has.
fn rounded(layer: AdapterLayer) -> Result<AdapterLayer> {
    let rounded = |(name, factor): (String, Tensor)| {
        let (f32, bf16) = (candle_core::DType::F32, candle_core::DType::BF16);
        let factor = import(&factor, &Device::Cpu)?.to_dtype(bf16)?.to_dtype(f32)?;
        Ok((name, export(&factor)?))
    };
    let factors = layer.factors.into_iter().map(rounded).collect::<Result<_>>()?;
    Ok(AdapterLayer { factors, ..layer })
}

impl TrainLora for UNetModel {
    fn train_lora(&self, cx: &Context<'_>, call: &LoraTraining) -> Result<TrainedLora> {
        let settings: Settings = serde_json::from_value(call.settings.clone())
            .map_err(|error| Error::at("settings", error))?;
        let import = |tensor: &Tensor| -> Result<Candle> { import(tensor, &Device::Cpu) };
        let example = |example: &LoraExample| {
            Ok(LatentExample {
                latents: import(&example.latents)?,
                context: import(&example.context)?,
                pooled: example.pooled.as_ref().map(import).transpose()?,
                sizes: example.sizes.as_ref().map(import).transpose()?,
            })
        };
        let examples = call.examples.iter().map(example).collect::<Result<Vec<_>>>()?;
        let start = lora::layers(&call.layers, &Device::Cpu)?;
        let schedule = self.trainable()?;
        let (config, tensors, origin) = self.network()?;
        let network = Network { config, schedule: &schedule, tensors, origin };
        let steps = settings.steps;
        let mut update = |done: usize, _: f64| {
            cx.progress(done, steps).map_err(|_| kosmograph_training::Error::Cancelled)
        };
        let trained = adapter::train(network, &settings, &start, &examples, &mut update);
        let trained = trained.map_err(|error| match error {
            kosmograph_training::Error::Cancelled => Error::Cancelled,
            _ if cx.cancelled().is_err() => Error::Cancelled,
            error => Error::new(error),
        })?;
        Ok(TrainedLora { layers: lora::across(&trained.layers)?, losses: trained.losses })
    }
}

/// Puts a LoRA that was trained in the graph on a model.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct LoraModelLoader {
    /// The model that is changed.
    model: Model,
    /// The LoRA.
    lora: LoraModel,
    /// How strongly it is changed.
    #[widget(default = 1.0, min = -100.0, max = 100.0, step = 0.01)]
    strength_model: f64,
}

impl Node for LoraModelLoader {
    outputs![model: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        if self.strength_model == 0.0 {
            return Ok(self.model);
        }
        if !self.model.0.offers("lora/2") {
            return Err(Error::at(
                "model",
                "this MODEL cannot take the LoRA: the library it comes from does not offer \"lora/2\"",
            ));
        }
        let layers = self.lora.layers().map_err(|error| error.of_input("lora"))?;
        let count = layers.len();
        let (model, absent) = self.model.0.with_layers(cx, layers, self.strength_model)?;
        match absent.first() {
            Some(first) if absent.len() >= count => Err(Error::at(
                "lora",
                format!(
                    "none of the LoRA's {count} layers has a place in this model, `{first}` among them: it was trained on \
                     another"
                ),
            )),
            Some(first) => {
                let absent = absent.len();
                cx.warn(format!(
                    "{absent} of the LoRA's {count} layers have no place in this model, `{first}` among them"
                ));
                Ok(Model(model))
            }
            None => Ok(Model(model)),
        }
    }
}
