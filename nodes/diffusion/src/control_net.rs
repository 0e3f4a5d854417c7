//! The CONTROL_NET object.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor as Candle;
use kosmograph_models::lora::Adapted;
use kosmograph_models::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use kosmograph_models::stable_diffusion::controlnet_of_unet::Changes;
use kosmograph_models::stable_diffusion::unet::{Condition, UNet, UNetConfig};
use kosmograph_models::{Resident, Weights};
use node::interface::{self, ControlCall, marker};
use node::*;
use node_candle::{export, import};

use crate::hint::Embedded;

/// A ControlNet behind "control/1". Its numbers are read when it is first called.
pub struct ControlNetModel {
    control_net: Arc<Resident<ControlNet>>,
    /// The kind of the hint, where it is a union that was told.
    kind: Option<usize>,
    config: ControlNetConfig,
    device: candle_core::Device,
    embedded: Mutex<Embedded>,
}

impl Export for ControlNetModel {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![ControlNetModel: marker::ControlNet, marker::ControlType, marker::Describe,
            marker::Memory];
}

impl interface::Control for ControlNetModel {
    fn residuals(&self, _cx: &Context, call: &ControlCall) -> Result<Vec<Tensor>> {
        let import = |tensor| import(tensor, &self.device);
        let (x, timestep, context) =
            (import(&call.x)?, import(&call.timestep)?, import(&call.context)?);
        let hint = self.hint_rows(&self.embed(&call.hint)?, x.dim(0)?)?;
        let control_net = self.control_net.get()?;
        let pooled = call.pooled.as_ref().map(import).transpose()?;
        let sizes = call.sizes.as_ref().map(import).transpose()?;
        let condition =
            Condition { context: &context, pooled: pooled.as_ref(), sizes: sizes.as_ref() };
        let residuals = control_net.forward_of(&x, &timestep, condition, &hint, self.kind)?;
        let residuals = control_net.scaled(&residuals, call.strength, call.guess)?;
        residuals.down.iter().chain([&residuals.mid]).map(export).collect()
    }
}

impl ControlNetModel {
    /// A ControlNet of `weights` under diffusers' names, on their device. The file's header is
    /// checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: ControlNetConfig, weights: Weights) -> kosmograph_models::Result<Self> {
        let device = weights.device().clone();
        let control_net = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| ControlNet::load(weights, &config))?
        };
        let control_net = Arc::new(control_net);
        Ok(Self { control_net, kind: None, config, device, embedded: Mutex::default() })
    }

    /// The ControlNet that `changes` make of a model's U-Net, which is read when it is first called.
    ///
    /// # Errors
    /// The changes are of another U-Net.
    pub fn of_unet(
        changes: Changes,
        unet: (&Adapted<UNet>, &UNetConfig),
        device: &candle_core::Device,
    ) -> kosmograph_models::Result<Self> {
        let (unet, config) = (unet.0.clone(), changes.config(unet.1)?);
        changes.check(&config, |name| unet.shape(name))?;
        let control_net = {
            let (config, device) = (config.clone(), device.clone());
            Resident::new(changes.bytes(), move || {
                changes.load(&config, &unet.shared_tensors()?, &device)
            })
        };
        let (control_net, device) = (Arc::new(control_net), device.clone());
        Ok(Self { control_net, kind: None, config, device, embedded: Mutex::default() })
    }

    fn embedded(&self) -> MutexGuard<'_, Embedded> {
        self.embedded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The embedding of `hint`, kept while the same tensor is asked for.
    fn embed(&self, hint: &Tensor) -> Result<Candle> {
        self.embedded().of(hint, || {
            let hint_here = import(hint, &self.device)?;
            Ok(self.control_net.get()?.embed_hint_of(&hint_here, self.kind)?)
        })
    }

    /// The embedding for `rows` rows: guidance asks for the hints of all pictures twice over.
    fn hint_rows(&self, embedding: &Candle, rows: usize) -> Result<Candle> {
        let given = embedding.dim(0)?;
        match given {
            1 => Ok(embedding.clone()),
            _ if rows.is_multiple_of(given) => Ok(embedding.repeat((rows / given, 1, 1, 1))?),
            _ => {
                Err(Error::at("hint", format!("{given} hints do not serve {rows} rows of latents")))
            }
        }
    }
}

impl interface::ControlType for ControlNetModel {
    fn of_type(&self, _cx: &Context, kind: Option<usize>) -> Result<Object> {
        match self.config.types() {
            None => Err(Error::new(
                "this ControlNet is for one kind of hint; a ControlNet Union is told which it is",
            )),
            Some(types) if kind.is_some_and(|kind| kind >= types) => Err(Error::new(format!(
                "this ControlNet knows the first {types} kinds of hint only"
            ))),
            Some(_) => Ok(Object::new(Self {
                control_net: self.control_net.clone(),
                kind,
                config: self.config.clone(),
                device: self.device.clone(),
                embedded: Mutex::default(),
            })),
        }
    }
}

impl interface::Describe for ControlNetModel {
    fn describe(&self) -> serde_json::Value {
        let config = &self.config;
        json!({
            "family": config.family(),
            "context_width": config.cross_attention_dim(),
            "hint_channels": config.conditioning_channels(),
            "hint_factor": config.hint_factor(),
            "bytes": self.control_net.bytes(),
        })
    }
}

impl interface::Memory for ControlNetModel {
    fn bytes(&self, purge: bool) -> usize {
        let mut embedded = self.embedded();
        if purge {
            embedded.release();
            self.control_net.release();
        }
        // The hint itself belongs to whoever made it.
        self.control_net.held() / Arc::strong_count(&self.control_net) + embedded.bytes()
    }
}
