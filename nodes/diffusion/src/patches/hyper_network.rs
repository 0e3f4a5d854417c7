//! Hypernetworks as patches of both attentions.

use std::path::PathBuf;
use std::sync::Arc;

use kosmograph_models::stable_diffusion::hypernetwork::Hypernetwork;
use node::interface::{self, AttentionCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

struct Beside {
    network: Arc<Hypernetwork>,
    strength: f64,
}

impl Export for Beside {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Beside: marker::AttentionPatch];
}

impl interface::PatchAttention for Beside {
    fn patch_attention(&self, cx: &Context<'_>, call: &AttentionCall) -> Result<Tensor> {
        let device = device(&cx.device())?;
        let k = import(&call.context, &device)?;
        let v = match &call.value_context {
            Some(v) => import(v, &device)?,
            None => k.clone(),
        };
        let contexts = match self.network.change(&k, &v, self.strength)? {
            Some((k, v)) => (Some(export(&k)?), Some(export(&v)?)),
            None => call.contexts(),
        };
        call.attention.attend(cx, call.x.clone(), contexts, None, false).map(|(y, _)| y)
    }
}

/// Puts a hypernetwork beside the attentions of a U-Net: keys and values are made of what its networks add to.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct HypernetworkLoader {
    /// The U-Net.
    model: Model,
    /// The file, of torch.
    #[file(folder = "hypernetworks", entry = "file")]
    hypernetwork_name: PathBuf,
    /// How much it counts; 0 changes nothing.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    strength: f64,
}

impl Node for HypernetworkLoader {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let network = Hypernetwork::open(&self.hypernetwork_name, &device(&cx.device())?);
        let network = network.map_err(|error| Error::from(error).of_input("hypernetwork_name"))?;
        let patch = Object::new(Beside { network: Arc::new(network), strength: self.strength });
        let both = ["self_attention", "cross_attention"];
        patched(cx, &self.model, both.map(|kind| Patch::new(kind, patch.clone())).into())
    }
}
