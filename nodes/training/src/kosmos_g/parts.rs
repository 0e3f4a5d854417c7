//! The networks of a folder of Kosmos-G that a stage learns or computes with, and what of them begins anew.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_models::kosmos::KosmosConfig;
use kosmograph_models::kosmos::aligner::{Aligner, Reconstruction};
use kosmograph_models::kosmos::connector::Connector;
use kosmograph_models::kosmos::mllm::Mllm;
use kosmograph_models::kosmos::vit::Vit;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::{Weight, Weights};

use crate::error::{Error, Result};
use crate::lora;

/// The networks of a folder that a stage computes with.
pub(super) struct Parts {
    pub mllm: Mllm,
    pub aligner: Aligner,
    /// For `align`, where it is in the weights.
    pub reconstruction: Option<Reconstruction>,
    /// For `instruct`.
    pub vision: Option<(Vit, Connector)>,
}

impl Parts {
    pub fn load(
        config: &KosmosConfig,
        is_align: bool,
        weights: &Weights,
    ) -> kosmograph_models::Result<Parts> {
        let (width, vit) = (config.mllm.embed_dim, &config.vision.vit);
        let aligner = weights.sub("aligner");
        let reconstruction = match is_align && Reconstruction::is_in(&aligner) {
            true => Some(Reconstruction::load(&config.aligner, width, &aligner)?),
            false => None,
        };
        let vision = match is_align {
            true => None,
            false => {
                let connector = weights.sub("img_connector");
                Some((
                    Vit::load(vit, &weights.sub("img_model.visual"))?,
                    Connector::load(&config.connector, vit.width, width, &connector)?,
                ))
            }
        };
        let mllm = Mllm::load(&config.mllm, &weights.sub("gpt_model.decoder"))?;
        let aligner = Aligner::load(&config.aligner, width, &aligner)?;
        Ok(Parts { mllm, aligner, reconstruction, vision })
    }
}

/// Puts `found`, of the file at `path`, into the places of what is called the same.
pub(super) fn take_over(
    tensors: &mut HashMap<String, Weight>,
    found: HashMap<String, Weight>,
    path: &Path,
) -> Result<()> {
    for (name, weight) in found {
        match tensors.get_mut(&name) {
            Some(there) if there.dims() == weight.dims() => *there = weight,
            _ => {
                return Err(Error::Config(format!(
                    "{}: the vision transformer is of another shape than the configuration's (`{name}`)",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// A reconstruction half that knows nothing: norms of one, biases of zero, the rest as torch's layers begin.
pub(super) fn reconstruction(
    config: &KosmosConfig,
    generator: &mut Generator,
) -> Result<HashMap<String, Weight>> {
    let recording = Weights::recording();
    Reconstruction::load(&config.aligner, config.mllm.embed_dim, &recording.sub("aligner"))?;
    let mut tensors = HashMap::new();
    for (name, shape) in recording.recorded() {
        let is_norm = name.contains("norm") || name.contains("inner_attn_ln");
        let tensor = match (name.ends_with(".bias"), is_norm) {
            (true, _) => Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?,
            (_, true) => Tensor::ones(shape.as_slice(), DType::F32, &Device::Cpu)?,
            _ => lora::evenly(generator, &shape, shape.last().copied().unwrap_or(1))?,
        };
        tensors.insert(name, tensor.into());
    }
    Ok(tensors)
}
