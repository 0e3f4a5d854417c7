//! The MODEL object: a U-Net and the noise schedule it was trained on.

use kosmograph_models::samplers::{Prediction, Schedule};
use kosmograph_models::unet::{Residuals, UNet};
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

/// A Stable Diffusion U-Net behind "denoiser/1".
pub struct UNetModel {
    pub unet: UNet,
    pub schedule: Schedule,
    pub device: candle_core::Device,
    pub bytes: usize,
}

impl Export for UNetModel {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![UNetModel: marker::Denoiser, marker::Describe, marker::Memory];
}

impl interface::Denoise for UNetModel {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        residuals: &[Tensor],
    ) -> Result<Tensor> {
        let import = |tensor| import(tensor, &self.device);
        let residuals: Vec<_> = residuals.iter().map(import).collect::<Result<_>>()?;
        // The middle block's residual is the last (node.h).
        let residuals = residuals
            .split_last()
            .map(|(mid, down)| Residuals { down: down.to_vec(), mid: mid.clone() });
        let (x, timestep, context) = (import(x)?, import(timestep)?, import(context)?);
        export(&self.unet.forward(&x, &timestep, &context, residuals.as_ref())?)
    }
}

impl interface::Describe for UNetModel {
    fn describe(&self) -> serde_json::Value {
        let config = self.unet.config();
        let prediction = match self.schedule.prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::VPrediction => "v_prediction",
            Prediction::Sample => "sample",
        };
        json!({
            "family": "stable-diffusion-1",
            "prediction": prediction,
            "in_channels": config.in_channels(),
            "out_channels": config.out_channels(),
            "context_width": config.cross_attention_dim(),
            "train_steps": self.schedule.train_steps(),
            "alphas_cumprod": self.schedule.alphas_cumprod,
        })
    }
}

impl interface::Memory for UNetModel {
    fn bytes(&self, _purge: bool) -> usize {
        self.bytes
    }
}
