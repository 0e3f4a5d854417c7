//! The MODEL object: a U-Net and the noise schedule it was trained on.

use std::collections::HashMap;

use kosmograph_models::lora::{Adapted, Layers};
use kosmograph_models::samplers::{LatentSpace, Prediction, Schedule, SchedulerConfig, Timesteps};
use kosmograph_models::stable_diffusion::controlnet_of_unet::Changes;
use kosmograph_models::stable_diffusion::steering::{ExtraTokens, KeysValues, Steering};
use kosmograph_models::stable_diffusion::unet::{Condition, Residuals, UNet, UNetConfig};
use kosmograph_models::{Weight, Weights};
use node::interface::{
    self, AdapterLayer, ControlChanges, DenoiseCall, LoraLayer, Merged, Patch, TensorInfo, marker,
};
use node::*;
use node_candle::{export, import};

use crate::control_net::ControlNetModel;
use crate::lora;
use crate::patches::{Bridge, Placed};
use crate::sampling::described_schedule;
use crate::weights;

/// A Stable Diffusion U-Net behind "denoiser/1". Its numbers are read when it is first called.
pub struct UNetModel {
    unet: Adapted<UNet>,
    config: UNetConfig,
    schedule: Schedule,
    device: candle_core::Device,
    /// What its latents are the autoencoder's times, where that is known.
    scaling_factor: Option<f64>,
    /// What it says of itself in the place of the schedule's: see "model_sampling/1".
    sampled_as: serde_json::Map<String, serde_json::Value>,
    patches: Vec<Placed>,
}

/// What "model_sampling/1" may change.
const CHANGEABLE: [&str; 8] = [
    "prediction",
    "alphas_cumprod",
    "timesteps",
    "consistency",
    "reuse",
    "differential",
    "latent_mean",
    "latent_std",
];

impl UNetModel {
    /// A U-Net of `weights` under diffusers' names, on their device, and the schedule it was trained
    /// on. The file's header is checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says, or the schedule cannot be.
    pub fn new(
        config: UNetConfig,
        scheduler: &SchedulerConfig,
        weights: Weights,
    ) -> kosmograph_models::Result<Self> {
        let (schedule, device) = (Schedule::new(scheduler)?, weights.device().clone());
        let unet = {
            let config = config.clone();
            Adapted::open(weights, &[], move |weights| UNet::load(weights, &config))?
        };
        let (scaling_factor, mut sampled_as) = (None, serde_json::Map::new());
        if let Some(LatentSpace { mean, std }) = &scheduler.latent_space {
            sampled_as.insert("latent_mean".to_owned(), json!(mean));
            sampled_as.insert("latent_std".to_owned(), json!(std));
        }
        Ok(Self { unet, config, schedule, device, scaling_factor, sampled_as, patches: Vec::new() })
    }

    /// The same, denoising latents that are the autoencoder's times `scaling_factor`.
    pub fn of_latents(self, scaling_factor: Option<f64>) -> Self {
        Self { scaling_factor, ..self }
    }
}

impl Export for UNetModel {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![UNetModel:
        marker::Denoiser, marker::ModelSampling, marker::Lora, marker::Layers, marker::Weights,
        marker::Merge, marker::Patches, marker::Guidance, marker::ControlOf, marker::LoraTraining,
        marker::Describe, marker::Memory];
}

impl interface::Denoise for UNetModel {
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
        let import = |tensor: &Tensor| import(tensor, &self.device);
        let residuals: Vec<_> = call.residuals.iter().map(import).collect::<Result<_>>()?;
        // The middle block's residual is the last (node.h).
        let residuals = residuals
            .split_last()
            .map(|(mid, down)| Residuals { down: down.to_vec(), mid: mid.clone() });
        let feature = |(name, tensor): &(String, Tensor)| Ok((name.clone(), import(tensor)?));
        let features = call.features.iter().map(feature).collect::<Result<Vec<_>>>()?;
        let extra = call.extra_tokens.iter().map(|extra| extra_tokens(extra, &self.device));
        let extra_tokens = extra.collect::<Result<Vec<_>>>()?;
        let bridge = self.bridge(cx, call)?;
        let steering = Steering {
            residuals: residuals.as_ref(),
            features: &features,
            extra_tokens: &extra_tokens,
            hooks: bridge.as_ref().map(|bridge| bridge as _),
            tape: None,
        };
        let (x, timestep, context) =
            (import(&call.x)?, import(&call.timestep)?, import(&call.context)?);
        let pooled = call.pooled.as_ref().map(import).transpose()?;
        let sizes = call.sizes.as_ref().map(import).transpose()?;
        let condition =
            Condition { context: &context, pooled: pooled.as_ref(), sizes: sizes.as_ref() };
        let unet = self.unet.get()?;
        let said = unet.forward_steered(&x, &timestep, condition, steering, &mut |_, _| {});
        match (said, bridge.and_then(Bridge::failure)) {
            // What a patch said, as it said it.
            (Err(_), Some(failure)) => Err(failure),
            (said, _) => export(&said?),
        }
    }
}

/// A map of "extra_tokens" as the U-Net takes it.
fn extra_tokens(map: &Value, device: &candle_core::Device) -> Result<ExtraTokens> {
    let wrong = || {
        Error::at(
            "extra_tokens",
            "\"keys\" and \"values\" are both there or neither is, and they name the same layers",
        )
    };
    let tensor = |value: Option<Value>| {
        let tensor = value.and_then(|value| value.as_tensor());
        tensor.map(|tensor| import(&tensor, device)).transpose()
    };
    let keys_values = match (map.get("keys"), map.get("values")) {
        (None, None) => KeysValues::Tokens(tensor(map.get("tokens"))?.ok_or_else(wrong)?),
        (Some(keys), Some(values)) if keys.pairs().count() == values.pairs().count() => {
            let mut layers = HashMap::new();
            for (path, keys) in keys.pairs() {
                let pair = (tensor(Some(keys.clone()))?, tensor(values.get(path))?);
                let (Some(keys), Some(values)) = pair else { return Err(wrong()) };
                layers.insert(path.to_owned(), (keys, values));
            }
            KeysValues::Projected(layers)
        }
        _ => return Err(wrong()),
    };
    let weight = map.get("weight").and_then(|weight| weight.as_f64()).unwrap_or(1.0);
    Ok(ExtraTokens { keys_values, weight, mask: tensor(map.get("mask"))? })
}

impl interface::TakeLora for UNetModel {
    fn with_lora(
        &self,
        _cx: &Context,
        layers: &[LoraLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        self.adapted(&lora::plain_layers(layers, &self.device)?, strength)
    }
}

impl interface::TakeLayers for UNetModel {
    fn with_layers(
        &self,
        _cx: &Context,
        layers: &[AdapterLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        self.adapted(&lora::layers(layers, &self.device)?, strength)
    }
}

impl interface::TellWeights for UNetModel {
    fn tensors(&self, _cx: &Context) -> Result<Vec<(String, TensorInfo)>> {
        Ok(weights::told(self.unet.tensors()))
    }

    fn tensor(&self, _cx: &Context, name: &str) -> Result<Tensor> {
        export(&self.unet.tensor(name)?)
    }
}

impl interface::MergeWeights for UNetModel {
    fn merged(
        &self,
        cx: &Context,
        tensors: Vec<Merged>,
        other: Option<Object>,
    ) -> Result<(Object, Vec<String>)> {
        let own = self.unet.tensors();
        let merge = weights::Merge::of(cx, own, tensors, other, &self.device)?;
        let absent = merge.absent.clone();
        Ok((Object::new(self.of_unet(self.unet.merged(merge.recipe, merge.other)?)), absent))
    }
}

impl UNetModel {
    fn adapted(&self, layers: &Layers, strength: f64) -> Result<(Object, Vec<String>)> {
        let (unet, absent) = self.unet.with(layers, strength)?;
        Ok((Object::new(self.of_unet(unet)), absent))
    }

    /// The noise levels that it is trained at.
    ///
    /// # Errors
    /// It is changed inside by patches, which have no gradient, or lies on a GPU.
    pub fn trainable(&self) -> Result<Schedule> {
        if !self.patches.is_empty() {
            return Err(Error::new(
                "a MODEL with patches on it is not trained; the one before them would be right",
            ));
        }
        if !self.device.is_cpu() {
            return Err(Error::new("training is on the CPU alone; --device cpu would be right"));
        }
        self.in_force()
    }

    /// Its configuration, its tensors with the LoRAs that are on it, and what errors call them.
    pub fn network(&self) -> Result<(&UNetConfig, HashMap<String, Weight>, String)> {
        Ok((&self.config, self.unet.shared_tensors()?, self.unet.origin().to_owned()))
    }

    /// The noise levels that it is sampled at, which "model_sampling/1" may have changed.
    fn in_force(&self) -> Result<Schedule> {
        match self.sampled_as.is_empty() {
            true => Ok(self.schedule.clone()),
            false => described_schedule(&interface::Describe::describe(self)),
        }
    }

    /// Patches where they act in this network and its schedule.
    fn placed(&self, patches: impl IntoIterator<Item = Patch>) -> Result<Vec<Placed>> {
        let (blocks, schedule) = (self.config.blocks(), self.in_force()?);
        patches.into_iter().map(|patch| Placed::new(patch, &blocks, &schedule)).collect()
    }

    /// What the patches that act in a call take the place of; `None` where none does.
    fn bridge<'a>(
        &'a self,
        cx: &'a Context<'a>,
        call: &'a DenoiseCall,
    ) -> Result<Option<Bridge<'a>>> {
        if self.patches.is_empty() {
            return Ok(None);
        }
        let told = f64::from(call.timestep.to_f32()?.first().copied().unwrap_or(0.0));
        let sigma = self.in_force()?.sigma_of_told(told);
        let acting: Vec<&Placed> =
            self.patches.iter().filter(|placed| placed.acts_inside(sigma)).collect();
        let shape = call.x.shape();
        let latent = match shape[..] {
            [_, _, height, width] => (height, width),
            _ => (0, 0),
        };
        Ok((!acting.is_empty())
            .then(|| Bridge::new(cx, acting, sigma, &call.rows, latent, &self.device)))
    }

    /// The same with another U-Net.
    fn of_unet(&self, unet: Adapted<UNet>) -> Self {
        Self {
            unet,
            config: self.config.clone(),
            schedule: self.schedule.clone(),
            device: self.device.clone(),
            scaling_factor: self.scaling_factor,
            sampled_as: self.sampled_as.clone(),
            patches: self.patches.clone(),
        }
    }
}

impl interface::TakePatches for UNetModel {
    fn with_patches(&self, _cx: &Context, patches: Vec<Patch>) -> Result<Object> {
        let mut other = self.of_unet(self.unet.clone());
        other.patches.extend(self.placed(patches)?);
        Ok(Object::new(other))
    }
}

impl interface::Guidances for UNetModel {
    fn guidances(&self, _cx: &Context) -> Result<Vec<Patch>> {
        let guidance = self.patches.iter().filter(|placed| placed.is_guidance());
        Ok(guidance.map(|placed| placed.patch.clone()).collect())
    }
}

impl interface::ControlOf for UNetModel {
    fn control_of(&self, _cx: &Context, changes: &ControlChanges) -> Result<Object> {
        let tensors = |tensors: &[(String, Tensor)]| {
            let pair = |(name, tensor): &(String, Tensor)| {
                Ok((name.clone(), import(tensor, &self.device)?))
            };
            tensors.iter().map(pair).collect::<Result<HashMap<_, _>>>()
        };
        let (ups, mut downs) = (tensors(&changes.up)?, tensors(&changes.down)?);
        let mut low_rank = HashMap::new();
        for (name, up) in ups {
            let down = downs.remove(&name).ok_or_else(|| {
                Error::at("down", format!("the low-rank change of {name} has an up and no down"))
            })?;
            low_rank.insert(name, (up, down));
        }
        let changes = Changes {
            own: tensors(&changes.weights)?,
            differences: tensors(&changes.differences)?,
            low_rank,
        };
        let unet = (&self.unet, &self.config);
        Ok(Object::new(ControlNetModel::of_unet(changes, unet, &self.device)?))
    }
}

impl interface::ModelSampling for UNetModel {
    fn sampled_as(
        &self,
        _cx: &Context,
        description: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Object> {
        if let Some(key) = description.keys().find(|key| !CHANGEABLE.contains(&key.as_str())) {
            return Err(Error::at(
                "description",
                format!(
                    "\"{key}\" is nothing that a sampling changes; {} are",
                    CHANGEABLE.join(", ")
                ),
            ));
        }
        let mut other = self.of_unet(self.unet.clone());
        other.sampled_as.extend(description.clone());
        // Where patches begin and end is a share of the schedule, which is another one now.
        other.patches = other.placed(self.patches.iter().map(|placed| placed.patch.clone()))?;
        Ok(Object::new(other))
    }
}

/// What a MODEL of this schedule says of it.
pub fn schedule_description(schedule: &Schedule) -> serde_json::Map<String, serde_json::Value> {
    let prediction = match schedule.prediction {
        Prediction::Epsilon => "epsilon",
        Prediction::VPrediction => "v_prediction",
        Prediction::Sample => "sample",
        Prediction::Edm => "edm",
    };
    let timesteps = match schedule.timesteps {
        Timesteps::Places => serde_json::Value::Null,
        Timesteps::Scaled { factor, offset } => json!({"factor": factor, "offset": offset}),
        Timesteps::QuarterLogSigma => "quarter_log_sigma".into(),
    };
    let pairs = [
        ("prediction", prediction.into()),
        ("alphas_cumprod", json!(schedule.alphas_cumprod)),
        ("timesteps", timesteps),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

impl interface::Describe for UNetModel {
    fn describe(&self) -> serde_json::Value {
        let config = &self.config;
        let mut understands = vec!["residuals", "features", "extra_tokens"];
        if config.encoder.vector.is_some() {
            understands.extend(["pooled", "sizes"]);
        }
        // Patches are told which rows are whose.
        if self.patches.iter().any(|placed| !placed.is_guidance()) {
            understands.push("rows");
        }
        let mut described = json!({
            "family": config.encoder.family(),
            "understands": {"denoiser/1": understands},
            "cross_attentions": config.cross_attentions(),
            "in_channels": config.encoder.in_channels,
            "out_channels": config.out_channels,
            "context_width": config.encoder.cross_attention_dim,
            "model_channels": config.encoder.levels.first().map_or(0, |level| level.channels),
            "bytes": self.unet.bytes(),
        });
        for (key, value) in schedule_description(&self.schedule).iter().chain(&self.sampled_as) {
            described[key] = value.clone();
        }
        if let Some(alphas) = described["alphas_cumprod"].as_array() {
            described["train_steps"] = alphas.len().into();
        }
        if let Some(unsaid) = config.unsaid() {
            described["unsaid"] = json!({"unet": unsaid});
        }
        if let Some(scale) = self.scaling_factor {
            described["scaling_factor"] = scale.into();
        }
        if let Some(vector) = config.encoder.vector {
            described["pooled_width"] = vector.pooled().into();
            described["sizes"] = vector.sizes.into();
        }
        // The latents of Stable Diffusion 1 and SDXL have a tiny decoder each.
        let decoder = match config.encoder.vector {
            Some(_) => Some("taesdxl_decoder"),
            None if config.encoder.cross_attention_dim == 768 => Some("taesd_decoder"),
            None => None,
        };
        if let Some(decoder) = decoder.filter(|_| config.out_channels == 4) {
            described["preview_decoder"] = json!(decoder);
        }
        if let Some((rgb, bias)) = config.latent_rgb() {
            described["latent_rgb"] = json!(rgb);
            described["latent_rgb_bias"] = json!(bias);
        }
        described
    }
}

impl interface::Memory for UNetModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.unet.release();
        }
        self.unet.held()
    }
}
