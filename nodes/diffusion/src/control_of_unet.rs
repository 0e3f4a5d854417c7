//! The CONTROL_NET of a file that says a ControlNet as changes of a U-Net, and DiffControlNetLoader.

use std::path::PathBuf;

use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::controlnet_of_unet::Changes;
use node::interface::{self, ControlCall, ControlChanges, marker};
use node::*;
use node_candle::{device, export};

use crate::loaders::control_net;

/// Changes of a U-Net: what they are of, the model that is sampled says ("base_model/1").
pub struct ControlOfUNet {
    changes: Changes,
}

impl ControlOfUNet {
    pub fn new(changes: Changes) -> Self {
        Self { changes }
    }
}

impl Export for ControlOfUNet {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![ControlOfUNet:
        marker::ControlNet, marker::BaseModel, marker::Describe, marker::Memory];
}

impl interface::Control for ControlOfUNet {
    fn residuals(&self, _cx: &Context, _call: &ControlCall) -> Result<Vec<Tensor>> {
        Err(Error::new(
            "this is a Control-LoRA, which is a ControlNet only together with the model that is sampled (\"base_model/1\")",
        ))
    }
}

impl interface::BaseModel for ControlOfUNet {
    fn of_model(&self, cx: &Context, model: &Object) -> Result<Object> {
        of_model(cx, &self.changes, model)
    }
}

impl interface::Describe for ControlOfUNet {
    fn describe(&self) -> serde_json::Value {
        json!({"bytes": self.changes.bytes()})
    }
}

impl interface::Memory for ControlOfUNet {
    fn bytes(&self, _purge: bool) -> usize {
        self.changes.bytes()
    }
}

/// The ControlNet that `changes` make of `model`.
fn of_model(cx: &Context, changes: &Changes, model: &Object) -> Result<Object> {
    if !model.offers("control_of/1") {
        return Err(Error::at(
            "model",
            "no ControlNet can be made of this model's own weights: what it comes from does not offer \"control_of/1\"; a \
             whole ControlNet would be right",
        ));
    }
    let exported = |tensors: &std::collections::HashMap<String, candle_core::Tensor>| {
        let pair =
            |(name, tensor): (&String, &candle_core::Tensor)| Ok((name.clone(), export(tensor)?));
        tensors.iter().map(pair).collect::<Result<Vec<_>>>()
    };
    let half = |first: bool| {
        let pair = |(name, (up, down)): (&String, &(candle_core::Tensor, candle_core::Tensor))| {
            Ok((name.clone(), export(if first { up } else { down })?))
        };
        changes.low_rank.iter().map(pair).collect::<Result<Vec<_>>>()
    };
    let changes = ControlChanges {
        weights: exported(&changes.own)?,
        differences: exported(&changes.differences)?,
        up: half(true)?,
        down: half(false)?,
    };
    model.control_of(cx, changes)
}

/// Loads a ControlNet that is saved as its difference to a model, together with the model; or any other one.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct DiffControlNetLoader {
    /// The model that it is the difference to.
    model: Model,
    /// The file, or the folder with config.json and the weights.
    #[file(folder = "controlnet", entry = "any")]
    control_net_name: PathBuf,
}

impl Node for DiffControlNetLoader {
    outputs![CONTROL_NET: ControlNet];

    fn run(self, cx: &Context) -> Result<ControlNet> {
        let load = || {
            let checkpoint = Checkpoint::open(&self.control_net_name, &device(&cx.device())?)?;
            match checkpoint.control_changes()? {
                None => control_net(&checkpoint),
                Some(changes) => of_model(cx, &changes, &self.model.0).map(ControlNet),
            }
        };
        load().map_err(|error: Error| error.of_input("control_net_name"))
    }
}
