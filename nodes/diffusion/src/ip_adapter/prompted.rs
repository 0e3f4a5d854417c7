//! A MODEL with a picture beside its text: it asks the model that it stands on with extra tokens for the rows of each side.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::samplers::Schedule;
use kosmograph_models::stable_diffusion::ip_adapter::by_path;
use node::interface::{self, AdapterLayer, ControlChanges, DenoiseCall, LoraLayer, Patch, marker};
use node::*;
use node_candle::{export, import};

use super::adapter::{Embeds, IpAdapterModel};
use super::weights::of_layers;
use crate::sampling::schedule_of;

/// How a picture steers.
#[derive(Clone, Debug)]
pub struct Manner {
    pub weight: f64,
    pub weight_type: String,
    /// What keys and values are multiplied by, one of [`super::weights::SCALINGS`].
    pub scaling: String,
    /// Where in the schedule it begins and ends, 0 the noisiest.
    pub start: f64,
    pub end: f64,
    /// Where in the picture, [1, H, W].
    pub mask: Option<Tensor>,
}

/// Keys and values [2, S, C] of a layer: of the negative, then of the positive.
struct Layer {
    path: String,
    keys: Candle,
    values: Candle,
}

/// The model.
pub struct Prompted {
    inner: Object,
    pictures: std::sync::Arc<Picture>,
    /// The timesteps, as the model is told them, from which and to which it acts.
    range: (f64, f64),
    /// The inner model's, with what this one adds.
    description: serde_json::Value,
    /// Keys and values for the rows of the last call.
    rows: Mutex<Option<(Vec<String>, Value)>>,
}

/// What is asked with.
struct Picture {
    /// [2, S, D].
    tokens: Candle,
    layers: Vec<Layer>,
    weight: f64,
    mask: Option<Tensor>,
    /// Where in the schedule it begins and ends, 0 the noisiest.
    start: f64,
    end: f64,
}

impl Prompted {
    /// `model` with the pictures `positive`, and `negative` for the rows of the other side.
    ///
    /// # Errors
    /// The model takes no extra tokens, or the adapter is for another family.
    pub fn new(
        cx: &Context,
        model: &Model,
        adapter: &IpAdapterModel,
        (positive, negative): (&Embeds, &Embeds),
        manner: &Manner,
    ) -> Result<Self> {
        let at_model = |sentence: String| Error::at("model", sentence);
        let mut description = model.0.describe(cx).map_err(|error| error.of_input("model"))?;
        let mut understands: Vec<String> =
            serde_json::from_value(description["understands"]["denoiser/1"].clone())
                .unwrap_or_default();
        if !understands.iter().any(|key| key == "extra_tokens") {
            return Err(at_model(
                "this model takes no extra tokens in its cross-attention, so no IP-Adapter fits it"
                    .to_owned(),
            ));
        }
        let (width, wanted) = (description["context_width"].as_u64(), adapter.config.context_width);
        if width.is_some_and(|width| width != wanted as u64) {
            return Err(at_model(format!(
                "the model's context is {} numbers wide, but the IP-Adapter's tokens are {wanted}: it is for another family \
                 of models",
                width.unwrap_or(0)
            )));
        }
        let paths: Vec<String> =
            serde_json::from_value(description["cross_attentions"].clone()).unwrap_or_default();
        let network = adapter.adapter.get()?;
        let tokens = [negative, positive].map(|embeds| -> Result<Candle> {
            let embeds = import(&embeds.0, &adapter.device)?;
            let tokens = network.tokens(&embeds)?;
            // Of several pictures all tokens are read.
            let (pictures, count, width) = tokens.dims3()?;
            Ok(tokens.reshape((1, pictures * count, width))?)
        });
        let [negative, positive] = tokens;
        let (negative, positive) = same_length(negative?, positive?)?;
        let tokens = Candle::cat(&[negative, positive], 0)?;
        // A U-Net that does not name its layers projects the tokens itself.
        let mut layers = Vec::new();
        if !paths.is_empty() {
            let of_layer = of_layers(&manner.weight_type, &paths)?;
            let keys_values = network.keys_values(&tokens)?;
            let scaled = keys_values.into_iter().enumerate().map(|(i, pair)| {
                let weight = of_layer.get(i).copied().unwrap_or(1.0) * manner.weight;
                scaled(pair, weight, &manner.scaling)
            });
            let mut by_path = by_path(scaled.collect::<Result<_>>()?, &paths, |i| {
                if of_layer.get(i) == Some(&0.0) { 0.0 } else { 1.0 }
            })?;
            layers.extend(paths.iter().filter_map(|path| {
                let (keys, values) = by_path.remove(path)?;
                Some(Layer { path: path.clone(), keys, values })
            }));
        } else if manner.weight_type != "linear" || manner.scaling != "V only" {
            return Err(at_model(format!(
                "this model does not name its layers, so \"{}\" and \"{}\" cannot be; \"linear\" and \"V only\" would be \
                 right",
                manner.weight_type, manner.scaling
            )));
        }
        let picture = Picture {
            tokens,
            // Where layers are given, each has its weight in its values.
            weight: if layers.is_empty() { manner.weight } else { 1.0 },
            layers,
            mask: manner.mask.clone(),
            start: manner.start,
            end: manner.end,
        };
        let range = picture.range(&schedule_of(cx, model)?);
        if !understands.iter().any(|key| key == "rows") {
            understands.push("rows".to_owned());
        }
        description["understands"]["denoiser/1"] = json!(understands);
        if let Some(bytes) = description["bytes"].as_u64() {
            description["bytes"] = json!(bytes + picture.bytes() as u64);
        }
        let inner = model.0.clone();
        let pictures = picture.into();
        Ok(Self { inner, pictures, range, description, rows: Mutex::default() })
    }

    fn rows(&self) -> MutexGuard<'_, Option<(Vec<String>, Value)>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same over another model.
    fn over(&self, inner: Object) -> Object {
        Object::new(Self {
            inner,
            pictures: self.pictures.clone(),
            range: self.range,
            description: self.description.clone(),
            rows: Mutex::default(),
        })
    }

    /// The extra tokens for `rows`, kept while the same are asked for.
    fn tokens(&self, rows: &[String]) -> Result<Value> {
        let mut kept = self.rows();
        match &*kept {
            Some((known, value)) if known == rows => Ok(value.clone()),
            _ => {
                let value = self.pictures.value(rows)?;
                *kept = Some((rows.to_vec(), value.clone()));
                Ok(value)
            }
        }
    }
}

/// Both sides with as many tokens: the shorter one's over and over, which a softmax of whole repetitions does not notice.
fn same_length(a: Candle, b: Candle) -> Result<(Candle, Candle)> {
    let (of_a, of_b) = (a.dim(1)?, b.dim(1)?);
    if of_a == of_b {
        return Ok((a, b));
    }
    let (long, short) = (of_a.max(of_b), of_a.min(of_b));
    if short == 0 || long % short != 0 {
        return Err(Error::at(
            "neg_embed",
            format!(
                "the positive has {of_b} tokens and the negative {of_a}; as many pictures for both, or one for the \
                 negative, would be right"
            ),
        ));
    }
    let repeated = |side: Candle, length: usize| side.repeat((1, long / length, 1));
    Ok((repeated(a, of_a)?, repeated(b, of_b)?))
}

/// Keys and values of a layer, multiplied so that they count with `weight` in the way `scaling` says (ComfyUI's nodes).
fn scaled(
    (keys, values): (Candle, Candle),
    weight: f64,
    scaling: &str,
) -> Result<(Candle, Candle)> {
    let penalty = keys.dim(2)? as f64 / 1280.0;
    Ok(match scaling {
        "V only" if weight == 1.0 => (keys, values),
        "V only" => (keys, (values * weight)?),
        "K+V" => ((keys * weight)?, (values * weight)?),
        "K+V w/ C penalty" => ((keys * (weight * penalty))?, (values * (weight * penalty))?),
        "K+mean(V) w/ C penalty" => {
            let weight = weight * penalty;
            let mean = values.mean_keepdim(1)?;
            let values = values.broadcast_sub(&mean)?.broadcast_add(&(mean * weight)?)?;
            ((keys * weight)?, values)
        }
        other => {
            return Err(Error::at(
                "embeds_scaling",
                format!(
                    "there is no \"{other}\"; there are {}",
                    super::weights::SCALINGS.join(", ")
                ),
            ));
        }
    })
}

impl Picture {
    /// The timesteps from which and to which it acts: 0 is before the noisiest, 1 behind the end, as in ComfyUI.
    fn range(&self, schedule: &Schedule) -> (f64, f64) {
        let first = match self.start <= 0.0 {
            true => f64::INFINITY,
            false => schedule.told_at_percent(self.start),
        };
        let last = match self.end >= 1.0 {
            true => f64::NEG_INFINITY,
            false => schedule.told_at_percent(self.end),
        };
        (first, last)
    }

    fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| 2 * layer.keys.elem_count());
        (layers.sum::<usize>() + self.tokens.elem_count()) * size_of::<f32>()
    }

    /// A map as node.h has it, for rows of these sides.
    fn value(&self, rows: &[String]) -> Result<Value> {
        let side = |row: &String| match row.as_str() {
            "negative" => Ok(0u32),
            "positive" => Ok(1),
            other => Err(Error::at(
                "rows",
                format!("a row is \"positive\" or \"negative\", not \"{other}\""),
            )),
        };
        let sides = rows.iter().map(side).collect::<Result<Vec<u32>>>()?;
        let sides = Candle::new(sides, &Device::Cpu)?;
        let of_rows = |tensor: &Candle| {
            let sides = sides.to_device(tensor.device())?;
            Ok::<_, Error>(export(&tensor.index_select(&sides, 0)?)?.into_value())
        };
        let mut pairs = vec![("tokens", of_rows(&self.tokens)?), ("weight", self.weight.into())];
        if !self.layers.is_empty() {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for layer in &self.layers {
                keys.push((layer.path.clone(), of_rows(&layer.keys)?));
                values.push((layer.path.clone(), of_rows(&layer.values)?));
            }
            pairs.extend([("keys", Value::map(keys)), ("values", Value::map(values))]);
        }
        pairs.extend(self.mask.clone().map(|mask| ("mask", mask.into_value())));
        Ok(Value::map(pairs))
    }
}

impl Export for Prompted {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Prompted:
        marker::Denoiser, marker::ModelSampling, marker::Lora, marker::Layers, marker::Patches,
        marker::Guidance, marker::ControlOf, marker::Describe, marker::Memory];
}

impl interface::Denoise for Prompted {
    fn denoise(
        &self,
        cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        residuals: &[Tensor],
    ) -> Result<Tensor> {
        let call = DenoiseCall::new(x.clone(), timestep.clone(), context.clone());
        self.denoise_call(cx, &DenoiseCall { residuals: residuals.to_vec(), ..call })
    }

    fn denoise_call(&self, cx: &Context, call: &DenoiseCall) -> Result<Tensor> {
        let timestep = f64::from(call.timestep.to_f32()?.first().copied().unwrap_or(0.0));
        let mut call = call.clone();
        if timestep <= self.range.0 && timestep >= self.range.1 {
            let rows = call.x.shape().first().copied().unwrap_or(0);
            if call.rows.len() != rows {
                return Err(Error::at(
                    "rows",
                    format!(
                        "an IP-Adapter takes which of the {rows} rows are \"positive\" and which \"negative\", and {} were \
                         told: this sampler does not say it",
                        call.rows.len()
                    ),
                ));
            }
            call.extra_tokens.push(self.tokens(&call.rows)?);
        }
        self.inner.denoise_call(cx, call)
    }
}

impl interface::TakeLora for Prompted {
    fn with_lora(
        &self,
        cx: &Context,
        layers: &[LoraLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let (inner, absent) = self.inner.with_lora(cx, layers.to_vec(), strength)?;
        Ok((self.over(inner), absent))
    }
}

impl interface::TakeLayers for Prompted {
    fn with_layers(
        &self,
        cx: &Context,
        layers: &[AdapterLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let (inner, absent) = self.inner.with_layers(cx, layers.to_vec(), strength)?;
        Ok((self.over(inner), absent))
    }
}

impl interface::ControlOf for Prompted {
    fn control_of(&self, cx: &Context, changes: &ControlChanges) -> Result<Object> {
        self.inner.control_of(cx, changes.clone())
    }
}

impl interface::ModelSampling for Prompted {
    fn sampled_as(
        &self,
        cx: &Context,
        description: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Object> {
        let inner = self.inner.sampled_as(cx, description)?;
        let mut described = inner.describe(cx)?;
        // What this one says beside that of the model it stands on.
        for key in ["understands", "bytes"] {
            described[key] = self.description[key].clone();
        }
        let range = self.pictures.range(&schedule_of(cx, &Model(inner.clone()))?);
        Ok(Object::new(Self {
            inner,
            pictures: self.pictures.clone(),
            range,
            description: described,
            rows: Mutex::default(),
        }))
    }
}

impl interface::TakePatches for Prompted {
    fn with_patches(&self, cx: &Context, patches: Vec<Patch>) -> Result<Object> {
        Ok(self.over(self.inner.with_patches(cx, patches)?))
    }
}

impl interface::Guidances for Prompted {
    fn guidances(&self, cx: &Context) -> Result<Vec<Patch>> {
        self.inner.guidances(cx)
    }
}

impl interface::Describe for Prompted {
    fn describe(&self) -> serde_json::Value {
        self.description.clone()
    }
}

impl interface::Memory for Prompted {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            *self.rows() = None;
        }
        self.pictures.bytes()
    }

    /// With the model that it stands on, which nobody else may hold any more.
    fn bytes_in(&self, cx: &Context<'_>, purge: bool) -> Result<usize> {
        let own = self.bytes(purge);
        match self.inner.offers("memory/1") {
            true => Ok(own + self.inner.memory(cx, purge)?),
            false => Ok(own),
        }
    }
}
