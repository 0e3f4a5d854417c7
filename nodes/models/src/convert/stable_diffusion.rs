//! The Stable Diffusion 1.5 inside a Kosmos-G checkpoint → a folder in the layout of diffusers, which
//! its loaders read: unet, vae, scheduler. A text encoder is not in it; Kosmos-G is in its place.

use std::path::Path;

use candle_core::Device;
use serde_json::{Value, json};

use super::write::{pretty, write_safetensors, write_text};
use super::{ConvertError, Renamed, Result};
use crate::error::Error;
use crate::files::pickle::TorchFile;
use crate::files::weights::Weights;
use crate::stable_diffusion::unet::{UNet, UNetConfig};
use crate::stable_diffusion::vae::{Vae, VaeConfig};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Writes what is there of the two into `folder`, and checks that they are what their configurations
/// say.
pub(super) fn write(
    file: &TorchFile,
    folder: &Path,
    unet: &[Renamed],
    vae: &[Renamed],
    written: &mut dyn FnMut(u64) -> crate::Result<()>,
) -> Result<()> {
    let mut index = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.21.4",
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": [null, null],
        "tokenizer": [null, null],
    });
    if !unet.is_empty() {
        let config = unet_config(file, unet)?;
        let part = part(file, folder, "unet", &config, unet, written)?;
        let config = UNetConfig::from_value(&config, "unet/config.json")?;
        part.check(|weights| UNet::load(weights, &config), &[])?;
        index["unet"] = json!(["diffusers", "UNet2DConditionModel"]);
    }
    if !vae.is_empty() {
        let config = vae_config(file, vae)?;
        let part = part(file, folder, "vae", &config, vae, written)?;
        let config = VaeConfig::from_value(&config, "vae/config.json")?;
        part.check(|weights| Vae::load(weights, &config), &[])?;
        index["vae"] = json!(["diffusers", "AutoencoderKL"]);
    }
    let scheduler = folder.join("scheduler");
    make_folder(&scheduler)?;
    write_text(&scheduler.join("scheduler_config.json"), &pretty(&scheduler_config()))?;
    write_text(&folder.join("model_index.json"), &pretty(&index))
}

fn part(
    file: &TorchFile,
    folder: &Path,
    name: &str,
    config: &Value,
    tensors: &[Renamed],
    written: &mut dyn FnMut(u64) -> crate::Result<()>,
) -> Result<Weights> {
    let folder = folder.join(name);
    make_folder(&folder)?;
    write_text(&folder.join("config.json"), &pretty(config))?;
    write_safetensors(file, tensors, Default::default(), &folder.join(WEIGHTS), written)?;
    Ok(Weights::open(&folder, &Device::Cpu)?)
}

fn make_folder(path: &Path) -> Result<()> {
    let write = |source| ConvertError::Write { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(write)
}

/// The shapes of one part by the names it has there.
struct Shapes<'a> {
    file: &'a TorchFile,
    tensors: &'a [Renamed],
}

impl Shapes<'_> {
    fn has(&self, beginning: &str) -> bool {
        self.tensors.iter().any(|(name, _)| name.starts_with(beginning))
    }

    fn get(&self, wanted: &str) -> Result<&[usize]> {
        let found = self.tensors.iter().find(|(name, _)| name == wanted);
        let info = found.and_then(|(_, source)| self.file.info(source));
        let missing = || Error::MissingTensor {
            file: self.file.path().display().to_string(),
            name: wanted.to_owned(),
            nearest: None,
        };
        Ok(&info.ok_or_else(missing)?.shape)
    }

    /// Length `index` of the shape of `wanted`.
    fn length(&self, wanted: &str, index: usize) -> Result<usize> {
        let shape = self.get(wanted)?;
        shape.get(index).copied().ok_or_else(|| ConvertError::OddShape {
            input: self.file.path().to_owned(),
            name: wanted.to_owned(),
            shape: shape.to_vec(),
        })
    }

    /// Channels of every block: what its first convolution gives.
    fn block_channels(&self, before: &str) -> Result<Vec<usize>> {
        let blocks = (0..).take_while(|i| self.has(&format!("{before}.{i}.")));
        let first = |i: usize| self.length(&format!("{before}.{i}.resnets.0.conv1.weight"), 0);
        blocks.map(first).collect()
    }

    fn count(&self, before: &str) -> usize {
        (0..).take_while(|i| self.has(&format!("{before}.{i}."))).count()
    }
}

/// Of Stable Diffusion 1.5's family: eight heads, 32 groups.
fn unet_config(file: &TorchFile, tensors: &[Renamed]) -> Result<Value> {
    let shapes = Shapes { file, tensors };
    let channels = shapes.block_channels("down_blocks")?;
    let types = |side: &str, with: &str, without: &str| -> Vec<String> {
        let has = |i: usize| shapes.has(&format!("{side}_blocks.{i}.attentions."));
        (0..channels.len()).map(|i| if has(i) { with } else { without }.to_owned()).collect()
    };
    let context = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    Ok(json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.21.4",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": shapes.length(context, 1)?,
        "down_block_types": types("down", "CrossAttnDownBlock2D", "DownBlock2D"),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": shapes.length("conv_in.weight", 1)?,
        "layers_per_block": shapes.count("down_blocks.0.resnets"),
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": shapes.length("conv_out.weight", 0)?,
        "sample_size": 64,
        "up_block_types": types("up", "CrossAttnUpBlock2D", "UpBlock2D"),
    }))
}

fn vae_config(file: &TorchFile, tensors: &[Renamed]) -> Result<Value> {
    let shapes = Shapes { file, tensors };
    let channels = shapes.block_channels("encoder.down_blocks")?;
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.21.4",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "in_channels": shapes.length("encoder.conv_in.weight", 1)?,
        "latent_channels": shapes.length("decoder.conv_in.weight", 1)?,
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets"),
        "norm_num_groups": 32,
        "out_channels": shapes.length("decoder.conv_out.weight", 0)?,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
    }))
}

/// Stable Diffusion 1.5's.
fn scheduler_config() -> Value {
    json!({
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    })
}
