//! A ControlNet to train: what it begins as.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use kosmograph_models::{Weight, Weights};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora;
use crate::parameters::Parameters;

/// The network, its variables, and its config.json.
pub(crate) struct Control {
    pub network: ControlNet,
    pub parameters: Parameters,
    pub described: String,
}

/// The options of a U-Net that a ControlNet has too.
const SHARED: [&str; 22] = [
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "class_embed_type",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "encoder_hid_dim",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "mid_block_type",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
];
/// The channels that the hint goes through, of published ControlNets; their count says how much smaller latents are.
const EMBEDDING: [usize; 4] = [16, 32, 96, 256];

impl Control {
    /// The one that the configuration names; else a copy of the U-Net's first half whose outputs are zeros at first.
    pub fn begin(config: &Config, unet: &Weights, generator: &mut Generator) -> Result<Control> {
        let start = config.control.as_ref().and_then(|control| control.start.as_deref());
        let widths = config.control.as_ref().map(|control| &*control.widths).unwrap_or_default();
        let (described, origin, tensors) = match start {
            Some(folder) => {
                let described = read(&folder.join("config.json"))?;
                let (found, weights) = Checkpoint::open(folder, &Device::Cpu)?.control_net()?;
                let (_, tensors) =
                    weights.load_kept(|weights| ControlNet::load(weights, &found))?;
                (described, weights.origin().to_owned(), tensors)
            }
            None => {
                let described = of_unet(&config.model, widths)?;
                let found =
                    ControlNetConfig::from_json(&described, "the ControlNet's config.json")?;
                let tensors = first_half(&found, unet, generator)?;
                (described, "the new ControlNet".to_owned(), tensors)
            }
        };
        let network = ControlNetConfig::from_json(&described, "the ControlNet's config.json")?;
        if network.vector().is_some() || network.conditioning_channels() != 3 {
            let sentence =
                "a ControlNet of SDXL, or with hints of other than three channels, is not trained";
            return Err(Error::Config(sentence.to_owned()));
        }
        let parameters = Parameters::of(&tensors, |_| true)?;
        let variables = parameters.replace_in(&tensors);
        let weights = Weights::from_kept(origin, variables, &Device::Cpu);
        let network = ControlNet::load(&weights, &network)?;
        Ok(Control { network, parameters, described })
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The config.json of the ControlNet that a U-Net gives.
fn of_unet(model: &Path, widths: &[usize]) -> Result<String> {
    let path = model.join("unet/config.json");
    if !path.is_file() {
        return Err(Error::Config(format!(
            "{} has no unet/config.json that says what a ControlNet of it is like; a folder in diffusers' layout, or \
             \"control.start\", would be right",
            model.display()
        )));
    }
    let unet: Value = serde_json::from_str(&read(&path)?)
        .map_err(|error| Error::Config(format!("{}: {error}", path.display())))?;
    let mut described = Map::from_iter([("_class_name".to_owned(), json!("ControlNetModel"))]);
    for name in SHARED {
        if let Some(value) = unet.get(name) {
            described.insert(name.to_owned(), value.clone());
        }
    }
    described.insert("conditioning_channels".to_owned(), json!(3));
    described.insert(
        "conditioning_embedding_out_channels".to_owned(),
        json!(if widths.is_empty() { &EMBEDDING } else { widths }),
    );
    described.insert("controlnet_conditioning_channel_order".to_owned(), json!("rgb"));
    described.insert("global_pool_conditions".to_owned(), json!(false));
    Ok(format!("{:#}\n", Value::Object(described)))
}

/// The tensors of a ControlNet: those that the U-Net has too; zeros where a result leaves it; the rest as torch's
/// convolutions begin.
fn first_half(
    config: &ControlNetConfig,
    unet: &Weights,
    generator: &mut Generator,
) -> Result<HashMap<String, Weight>> {
    let recording = Weights::recording();
    ControlNet::load(&recording, config)?;
    let mut tensors = HashMap::new();
    let shapes = recording.recorded();
    for (name, shape) in &shapes {
        let is_last = [
            "controlnet_down_blocks.",
            "controlnet_mid_block.",
            "controlnet_cond_embedding.conv_out.",
        ]
        .iter()
        .any(|start| name.starts_with(start));
        let tensor = if is_last {
            Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?
        } else if name.starts_with("controlnet_cond_embedding.") {
            let weight =
                format!("{}.weight", name.rsplit_once('.').map_or("", |(module, _)| module));
            let inputs: usize = shapes.get(&weight).map_or(1, |shape| shape[1..].iter().product());
            lora::evenly(generator, shape, inputs)?
        } else {
            unet.get(name, shape.as_slice())?.to_dtype(DType::F32)?
        };
        tensors.insert(name.clone(), tensor.into());
    }
    Ok(tensors)
}
