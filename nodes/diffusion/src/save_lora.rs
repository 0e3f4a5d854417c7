//! SaveLoRANode: a LoRA that was trained in the graph becomes a file.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::files::tensor_file::{self, Entry};
use node::interface::AdapterLayer;
use node::*;
use node_candle::import;

use crate::output::{self, Saved};

/// Saves a LoRA that was trained in the graph as a safetensors file in the output folder, under kohya's names: PREFIX_16_steps_00001_.safetensors.
#[derive(Inputs)]
#[node(category = "loaders", output_node, writes = "output")]
pub struct SaveLoRANode {
    /// The LoRA.
    lora: LoraModel,
    /// How the file begins; may name sub-folders.
    #[widget(default = "loras/ComfyUI_trained_lora", prefix)]
    prefix: String,
    /// How many steps it was trained for, for its name.
    #[widget(default = 0, min = 0, max = 9_007_199_254_740_991i64)]
    steps: Option<i64>,
}

impl Node for SaveLoRANode {
    outputs![];

    const REPLACES: &'static [Replaces] = &[Replaces::named("SaveLoRA")];

    fn run(self, cx: &Context) -> Result<()> {
        let tensors = self.lora.layers().and_then(tensors);
        let tensors = tensors.map_err(|error| error.of_input("lora"))?;
        let entry = |(name, (tensor, dtype)): (&String, &(Candle, DType))| Entry {
            name: name.clone(),
            dtype: *dtype,
            shape: tensor.dims().to_vec(),
        };
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        let metadata = [("ss_network_module".to_owned(), "networks.lora".to_owned())];
        let prefix = match self.steps {
            Some(steps @ 1..) => format!("{}_{steps}_steps", self.prefix),
            _ => self.prefix,
        };
        let root = output::root(cx)?;
        let (root, ending) = (Path::new(&root), "safetensors");
        let saved = Saved { root, prefix: &prefix, input: "prefix", ending, key: "loras" };
        output::save(cx, &saved, |file| {
            let numbers = &mut |entry: &Entry| Ok(tensors[&entry.name].0.clone());
            tensor_file::write(file, &entries, HashMap::from(metadata), numbers)
                .map_err(io::Error::other)
        })
    }
}

/// The tensors of the file by their names, each with its type: those whose numbers all are bf16's take two bytes for each.
fn tensors(layers: Vec<AdapterLayer>) -> Result<BTreeMap<String, (Candle, DType)>> {
    let mut tensors = BTreeMap::new();
    for layer in layers {
        let module = format!("lora_unet_{}", layer.module.replace('.', "_"));
        for (factor, tensor) in layer.factors {
            let end = match factor.as_str() {
                "up" => "lora_up.weight",
                "down" => "lora_down.weight",
                "mid" => "lora_mid.weight",
                other => other,
            };
            let tensor = import(&tensor, &Device::Cpu)?.to_dtype(DType::F32)?;
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            let is_half = values.iter().all(|value| value.to_bits() & 0xffff == 0);
            let dtype = if is_half { DType::BF16 } else { DType::F32 };
            tensors.insert(format!("{module}.{end}"), (tensor, dtype));
        }
        if let Some(alpha) = layer.alpha {
            let alpha = Candle::new(alpha as f32, &Device::Cpu)?;
            tensors.insert(format!("{module}.alpha"), (alpha, DType::F32));
        }
    }
    if tensors.is_empty() {
        return Err(Error::new("the LoRA has no layers"));
    }
    Ok(tensors)
}
