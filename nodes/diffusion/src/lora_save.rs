//! LoraSave: a difference of two U-Nets becomes a LoRA.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::files::tensor_file::{self, Entry};
use kosmograph_models::lora::extract;
use kosmograph_models::stable_diffusion::checkpoint::original::{self, Named};
use node::*;
use node_candle::import;

use crate::output::{self, Saved};

/// Saves what ModelMergeSubtract took out of a U-Net as a LoRA, by the largest singular values of each weight, in half precision:
/// PREFIX_00001_.safetensors. Weights that did not change have no layer in it, nor have biases and norms.
#[derive(Inputs)]
#[node(category = "_for_testing", output_node, writes = "output")]
pub struct LoraSave {
    /// How the file begins; may name sub-folders.
    #[widget(default = "loras/ComfyUI_extracted_lora", prefix)]
    filename_prefix: String,
    /// How many singular values of each weight.
    #[widget(default = 8, min = 1, max = 1024)]
    rank: u64,
    /// The difference; without one nothing is saved.
    model_diff: Option<Model>,
}

impl Node for LoraSave {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let Some(Model(model)) = self.model_diff else {
            cx.info("there is no model_diff, so that nothing is saved");
            return Ok(());
        };
        let at_model = |error: Error| error.of_input("model_diff");
        if !model.offers("weights/1") {
            return Err(Error::at(
                "model_diff",
                "this model cannot be saved: its library does not offer \"weights/1\"",
            ));
        }
        let named = model.weights(cx).map_err(at_model)?;
        let named: Vec<Named> = named.into_iter().map(|(name, info)| (name, info.shape)).collect();
        let pieces = original::unet(&named, "diffusion_model.");
        let is_layer =
            |piece: &original::Piece| piece.name.ends_with(".weight") && piece.shape.len() >= 2;
        let pieces: Vec<_> = pieces.into_iter().filter(is_layer).collect();
        let mut tensors = BTreeMap::new();
        for (done, piece) in pieces.iter().enumerate() {
            cx.progress(done, pieces.len())?;
            let mut number = |name: &str| {
                let tensor =
                    model.weight(cx, name).and_then(|tensor| import(&tensor, &Device::Cpu));
                tensor.map_err(|error| kosmograph_models::Error::Input(error.to_string()))
            };
            let change = piece.numbers(&mut number).map_err(|error| at_model(error.into()))?;
            let layer = piece.name.trim_end_matches(".weight");
            if let Some((up, down)) = extract(&change, self.rank as usize)? {
                tensors.insert(format!("{layer}.lora_up.weight"), up);
                tensors.insert(format!("{layer}.lora_down.weight"), down);
            }
        }
        if tensors.is_empty() {
            return Err(Error::at(
                "model_diff",
                "no weight of this model is other than 0: the two models that it is the difference of are the same",
            ));
        }
        write(cx, &self.filename_prefix, &tensors)
    }
}

fn write(cx: &Context<'_>, prefix: &str, tensors: &BTreeMap<String, Candle>) -> Result<()> {
    let entry = |(name, tensor): (&String, &Candle)| Entry {
        name: name.clone(),
        dtype: DType::F16,
        shape: tensor.dims().to_vec(),
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let root = output::root(cx)?;
    let (root, input, ending) = (Path::new(&root), "filename_prefix", "safetensors");
    let saved = Saved { root, prefix, input, ending, key: "loras" };
    output::save(cx, &saved, |file| {
        let numbers = &mut |entry: &Entry| Ok(tensors[&entry.name].clone());
        tensor_file::write(file, &entries, HashMap::new(), numbers).map_err(io::Error::other)
    })
}
