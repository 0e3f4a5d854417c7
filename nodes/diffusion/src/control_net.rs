//! The CONTROL_NET object.

use std::sync::Mutex;

use candle_core::Tensor as Candle;
use kosmograph_models::controlnet::ControlNet;
use node::interface::{self, ControlCall, marker};
use node::*;
use node_candle::{export, import};

/// A ControlNet behind "control/1".
pub struct ControlNetModel {
    pub control_net: ControlNet,
    pub device: candle_core::Device,
    pub bytes: usize,
    /// The last hint and its embedding: a sampler asks with the same hint at every step.
    pub embedded: Mutex<Option<(Tensor, Candle)>>,
}

impl Export for ControlNetModel {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![ControlNetModel: marker::ControlNet, marker::Describe, marker::Memory];
}

impl interface::Control for ControlNetModel {
    fn residuals(&self, _cx: &Context, call: &ControlCall) -> Result<Vec<Tensor>> {
        let import = |tensor| import(tensor, &self.device);
        let (x, timestep, context) =
            (import(&call.x)?, import(&call.timestep)?, import(&call.context)?);
        let hint = self.hint_rows(&self.embed(&call.hint)?, x.dim(0)?)?;
        let residuals = self.control_net.forward(&x, &timestep, &context, &hint)?;
        let residuals = match call.guess {
            true => residuals.scaled_for_guess_mode(call.strength)?,
            false => residuals.scaled(call.strength)?,
        };
        residuals.down.iter().chain([&residuals.mid]).map(export).collect()
    }
}

impl ControlNetModel {
    /// The embedding of `hint`, kept while the same tensor is asked for.
    fn embed(&self, hint: &Tensor) -> Result<Candle> {
        let mut embedded = self.embedded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*embedded {
            Some((known, embedding)) if known.is_same(hint) => Ok(embedding.clone()),
            _ => {
                let embedding = self.control_net.embed_hint(&import(hint, &self.device)?)?;
                *embedded = Some((hint.clone(), embedding.clone()));
                Ok(embedding)
            }
        }
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

impl interface::Describe for ControlNetModel {
    fn describe(&self) -> serde_json::Value {
        let config = self.control_net.config();
        json!({
            "family": "stable-diffusion-1",
            "context_width": config.cross_attention_dim(),
            "hint_channels": config.conditioning_channels(),
            "hint_factor": config.hint_factor(),
        })
    }
}

impl interface::Memory for ControlNetModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            *self.embedded.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        }
        self.bytes
    }
}
