//! Loaders: folders in the diffusers layout (config.json beside safetensors) to objects.

use std::path::{Path, PathBuf};

use candle_core::Device;
use kosmograph_models::Weights;
use kosmograph_models::clip_text::ClipTextConfig;
use kosmograph_models::clip_tokens::ClipTokenizer;
use kosmograph_models::controlnet::ControlNetConfig;
use kosmograph_models::samplers::SchedulerConfig;
use kosmograph_models::unet::UNetConfig;
use kosmograph_models::vae::VaeConfig;
use node::*;
use node_candle::device;

use crate::clip::ClipModel;
use crate::control_net::ControlNetModel;
use crate::model::UNetModel;
use crate::vae::VaeModel;

/// Loads a whole Stable Diffusion checkpoint from a folder in the diffusers layout: unet, text_encoder,
/// tokenizer, vae, scheduler.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct CheckpointLoaderSimple {
    /// The folder, which holds model_index.json.
    #[file(folder = "checkpoints", entry = "directory")]
    ckpt_name: PathBuf,
}

impl Node for CheckpointLoaderSimple {
    outputs![MODEL: Model, CLIP: Clip, VAE: Vae];

    fn run(self, cx: &Context) -> Result<(Model, Clip, Vae)> {
        let (folder, device) = (&self.ckpt_name, device(&cx.device())?);
        let load = || {
            let model = load_unet(&folder.join("unet"), &folder.join("scheduler"), &device)?;
            let clip = load_clip(&folder.join("text_encoder"), &folder.join("tokenizer"), &device)?;
            Ok((model, clip, load_vae(&folder.join("vae"), &device)?))
        };
        load().map_err(|error: Error| error.of_input("ckpt_name"))
    }
}

/// Loads a U-Net alone: a DreamBooth or other variant to swap in.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct UNETLoader {
    /// The folder with config.json and the weights.
    #[file(folder = "diffusion_models", entry = "directory")]
    unet_name: PathBuf,
    /// The type the weights are kept in.
    #[widget(choices = ["default"], default = "default")]
    weight_dtype: Option<String>,
}

impl Node for UNETLoader {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        // "default" is the one choice: the weights' own type on disk, f32 in memory.
        let _ = self.weight_dtype;
        let scheduler = self.unet_name.with_file_name("scheduler");
        load_unet(&self.unet_name, &scheduler, &device(&cx.device())?)
            .map_err(|error| error.of_input("unet_name"))
    }
}

/// Loads an autoencoder alone.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct VAELoader {
    /// The folder with config.json and the weights.
    #[file(folder = "vae", entry = "directory")]
    vae_name: PathBuf,
}

impl Node for VAELoader {
    outputs![VAE: Vae];

    fn run(self, cx: &Context) -> Result<Vae> {
        load_vae(&self.vae_name, &device(&cx.device())?).map_err(|error| error.of_input("vae_name"))
    }
}

/// Loads CLIP's text encoder alone; the tokenizer is the folder "tokenizer" beside or in it, or CLIP's own.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct CLIPLoader {
    /// The folder with config.json and the weights.
    #[file(folder = "text_encoders", entry = "directory")]
    clip_name: PathBuf,
    /// The family of models that it encodes for.
    #[widget(choices = ["stable_diffusion"], default = "stable_diffusion")]
    r#type: Option<String>,
}

impl Node for CLIPLoader {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        // One family is supported, and its choice changes nothing.
        let _ = self.r#type;
        let inside = self.clip_name.join("tokenizer");
        let beside = self.clip_name.with_file_name("tokenizer");
        let tokenizer = if inside.is_dir() { inside } else { beside };
        load_clip(&self.clip_name, &tokenizer, &device(&cx.device())?)
            .map_err(|error| error.of_input("clip_name"))
    }
}

/// Loads a ControlNet.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct ControlNetLoader {
    /// The folder with config.json and the weights.
    #[file(folder = "controlnet", entry = "directory")]
    control_net_name: PathBuf,
}

impl Node for ControlNetLoader {
    outputs![CONTROL_NET: ControlNet];

    fn run(self, cx: &Context) -> Result<ControlNet> {
        load_control_net(&self.control_net_name, &device(&cx.device())?)
            .map_err(|error| error.of_input("control_net_name"))
    }
}

fn load_unet(folder: &Path, scheduler: &Path, device: &Device) -> Result<Model> {
    let (text, file) = read(&folder.join("config.json"))?;
    let config = UNetConfig::from_json(&text, &file)?;
    // A U-Net that stands alone was trained on Stable Diffusion 1.5's schedule.
    let scheduler = scheduler.join("scheduler_config.json");
    let schedule = match scheduler.is_file() {
        true => {
            let (text, file) = read(&scheduler)?;
            SchedulerConfig::from_json(&text, &file)?
        }
        false => SchedulerConfig::default(),
    };
    let weights = Weights::open(folder, device)?;
    Ok(Model(Object::new(UNetModel::new(config, &schedule, weights)?)))
}

fn load_vae(folder: &Path, device: &Device) -> Result<Vae> {
    let (text, file) = read(&folder.join("config.json"))?;
    let config = VaeConfig::from_json(&text, &file)?;
    let weights = Weights::open(folder, device)?;
    Ok(Vae(Object::new(VaeModel::new(config, weights)?)))
}

fn load_clip(folder: &Path, tokenizer: &Path, device: &Device) -> Result<Clip> {
    let (text, file) = read(&folder.join("config.json"))?;
    let wrong = |error| Error::new(format!("{file} is not a CLIP text encoder's: {error}"));
    let config: ClipTextConfig = serde_json::from_str(&text).map_err(wrong)?;
    let tokenizer = match tokenizer.is_dir() {
        true => ClipTokenizer::read(tokenizer)?,
        false => ClipTokenizer::clip()?,
    };
    let weights = Weights::open(folder, device)?;
    Ok(Clip(Object::new(ClipModel::new(config, tokenizer, weights)?)))
}

fn load_control_net(folder: &Path, device: &Device) -> Result<ControlNet> {
    let (text, file) = read(&folder.join("config.json"))?;
    let config = ControlNetConfig::from_json(&text, &file)?;
    let weights = Weights::open(folder, device)?;
    Ok(ControlNet(Object::new(ControlNetModel::new(config, weights)?)))
}

/// A file's text, and its name for errors.
fn read(path: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(format!(
            "{} cannot be read: {error}; a folder in the diffusers layout would be right",
            path.display()
        ))
    })?;
    Ok((text, path.display().to_string()))
}
