//! The MODEL object: a U-Net and the noise schedule it was trained on.

use kosmograph_models::Weights;
use kosmograph_models::lora::Adapted;
use kosmograph_models::samplers::{Prediction, Schedule, SchedulerConfig};
use kosmograph_models::stable_diffusion::unet::{Condition, Residuals, UNet, UNetConfig};
use node::interface::{self, DenoiseCall, LoraLayer, marker};
use node::*;
use node_candle::{export, import};

use crate::lora;

/// A Stable Diffusion U-Net behind "denoiser/1". Its numbers are read when it is first called.
pub struct UNetModel {
    unet: Adapted<UNet>,
    config: UNetConfig,
    schedule: Schedule,
    device: candle_core::Device,
}

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
        Ok(Self { unet, config, schedule, device })
    }
}

impl Export for UNetModel {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![UNetModel: marker::Denoiser, marker::Lora, marker::Describe, marker::Memory];
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
        let (x, timestep, context) = (x.clone(), timestep.clone(), context.clone());
        let (residuals, pooled, sizes) = (residuals.to_vec(), None, None);
        self.denoise_call(cx, &DenoiseCall { x, timestep, context, residuals, pooled, sizes })
    }

    fn denoise_call(&self, _cx: &Context, call: &DenoiseCall) -> Result<Tensor> {
        let import = |tensor| import(tensor, &self.device);
        let residuals: Vec<_> = call.residuals.iter().map(import).collect::<Result<_>>()?;
        // The middle block's residual is the last (node.h).
        let residuals = residuals
            .split_last()
            .map(|(mid, down)| Residuals { down: down.to_vec(), mid: mid.clone() });
        let (x, timestep, context) =
            (import(&call.x)?, import(&call.timestep)?, import(&call.context)?);
        let pooled = call.pooled.as_ref().map(import).transpose()?;
        let sizes = call.sizes.as_ref().map(import).transpose()?;
        let condition =
            Condition { context: &context, pooled: pooled.as_ref(), sizes: sizes.as_ref() };
        export(&self.unet.get()?.forward(&x, &timestep, condition, residuals.as_ref())?)
    }
}

impl interface::TakeLora for UNetModel {
    fn with_lora(
        &self,
        _cx: &Context,
        layers: &[LoraLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        let (unet, absent) = self.unet.with(&lora::layers(layers, &self.device)?, strength)?;
        let (config, schedule) = (self.config.clone(), self.schedule.clone());
        let device = self.device.clone();
        Ok((Object::new(Self { unet, config, schedule, device }), absent))
    }
}

impl interface::Describe for UNetModel {
    fn describe(&self) -> serde_json::Value {
        let config = &self.config;
        let prediction = match self.schedule.prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::VPrediction => "v_prediction",
            Prediction::Sample => "sample",
        };
        let understands = match config.encoder.vector {
            Some(_) => json!(["residuals", "pooled", "sizes"]),
            None => json!(["residuals"]),
        };
        let mut described = json!({
            "family": config.encoder.family(),
            "understands": {"denoiser/1": understands},
            "prediction": prediction,
            "in_channels": config.encoder.in_channels,
            "out_channels": config.out_channels,
            "context_width": config.encoder.cross_attention_dim,
            "train_steps": self.schedule.train_steps(),
            "alphas_cumprod": self.schedule.alphas_cumprod,
            "bytes": self.unet.bytes(),
        });
        if let Some(vector) = config.encoder.vector {
            described["pooled_width"] = vector.pooled().into();
            described["sizes"] = vector.sizes.into();
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
