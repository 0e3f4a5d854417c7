//! Loaders: checkpoints and their parts, in folders or single files of any kind, to objects.
//!
//! What a file is shows in its tensors, so a loader of one part takes a whole checkpoint as well, and
//! says so.

use std::path::{Path, PathBuf};

use kosmograph_models::Fp8;
use kosmograph_models::stable_diffusion::checkpoint::{Checkpoint, TextEncoder};
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use node::*;
use node_candle::device;

use crate::clip::{ClipModel, Part};
use crate::control_net::ControlNetModel;
use crate::control_of_unet::ControlOfUNet;
use crate::missing_part::{MissingClip, MissingVae};
use crate::model::UNetModel;
use crate::t2i_adapter::AdapterModel;
use crate::tiny_vae::TinyVae;
use crate::vae::VaeModel;

/// Loads a whole Stable Diffusion checkpoint: one file, or a folder in the diffusers layout (unet,
/// text_encoder, tokenizer, vae, scheduler).
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct CheckpointLoaderSimple {
    /// The file or folder.
    #[file(folder = "checkpoints", entry = "any")]
    pub ckpt_name: PathBuf,
}

impl Node for CheckpointLoaderSimple {
    outputs![MODEL: Model, CLIP: Clip, VAE: Vae];

    fn run(self, cx: &Context) -> Result<(Model, Clip, Vae)> {
        load_all(cx, &self.ckpt_name).map_err(|error| error.of_input("ckpt_name"))
    }
}

/// Loads a whole Stable Diffusion checkpoint from a folder in the diffusers layout.
#[derive(Inputs)]
#[node(category = "advanced/loaders/deprecated", checked)]
pub struct DiffusersLoader {
    /// The folder, which holds model_index.json.
    #[file(folder = "diffusers", entry = "directory")]
    model_path: PathBuf,
}

impl Node for DiffusersLoader {
    outputs![MODEL: Model, CLIP: Clip, VAE: Vae];

    fn run(self, cx: &Context) -> Result<(Model, Clip, Vae)> {
        load_all(cx, &self.model_path).map_err(|error| error.of_input("model_path"))
    }
}

/// All parts of a checkpoint. A U-Net it must have; a CLIP or VAE that it lacks, or that cannot be opened,
/// is told by the node that uses it.
pub fn load_all(cx: &Context, path: &Path) -> Result<(Model, Clip, Vae)> {
    let checkpoint = Checkpoint::open(path, &device(&cx.device())?)?;
    let model = unet(&checkpoint, None)?;
    let missing = |part: &str, error: Error, loader: &str| {
        cx.info(format!("{error}; it is loaded without its {part}"));
        format!("{error}; {loader} takes a {part} from another file")
    };
    let clip = clip(&checkpoint).unwrap_or_else(|error| {
        Clip(Object::new(MissingClip { sentence: missing("CLIP", error, "CLIPLoader") }))
    });
    let vae = vae(&checkpoint).unwrap_or_else(|error| {
        Vae(Object::new(MissingVae { sentence: missing("VAE", error, "VAELoader") }))
    });
    Ok((model, clip, vae))
}

/// The types that ComfyUI keeps a U-Net's weights in.
const WEIGHT_DTYPES: &[&str] = &["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"];

/// Loads a U-Net alone: a DreamBooth or other variant to swap in.
#[derive(Inputs)]
#[node(category = "advanced/loaders", checked)]
pub struct UNETLoader {
    /// The file, or the folder with config.json and the weights.
    #[file(folder = "diffusion_models", entry = "any")]
    unet_name: PathBuf,
    /// The type the weights are kept in: "default" is the file's own. In fp8 they take a byte each, and every
    /// number is rounded.
    #[widget(choices = WEIGHT_DTYPES, default = "default")]
    weight_dtype: Option<String>,
}

impl Node for UNETLoader {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let rounding = match self.weight_dtype.as_deref() {
            Some("fp8_e4m3fn" | "fp8_e4m3fn_fast") => Some(Fp8::E4M3),
            Some("fp8_e5m2") => Some(Fp8::E5M2),
            _ => None,
        };
        let load = || unet(&open(cx, &self.unet_name, "U-Net")?, rounding);
        load().map_err(|error| error.of_input("unet_name"))
    }
}

/// Loads an autoencoder alone, a tiny one (TAESD) among them: taesd and taesdxl are there when their encoder and
/// decoder lie in vae_approx.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct VAELoader {
    /// The file, or the folder with config.json and the weights.
    #[file(folder = "vae", entry = "any")]
    pub vae_name: PathBuf,
}

impl Node for VAELoader {
    outputs![VAE: Vae];

    fn run(self, cx: &Context) -> Result<Vae> {
        let load = || vae(&open(cx, &self.vae_name, "VAE")?);
        load().map_err(|error| error.of_input("vae_name"))
    }
}

/// Loads CLIP's text encoder alone. A folder's tokenizer is the folder "tokenizer" in it or beside it; else
/// it is CLIP's own.
#[derive(Inputs)]
#[node(category = "advanced/loaders", checked)]
pub struct CLIPLoader {
    /// The file, or the folder with config.json and the weights.
    #[file(folder = "text_encoders", entry = "any")]
    clip_name: PathBuf,
    /// The family of models that it encodes for.
    #[widget(choices = ["stable_diffusion"], default = "stable_diffusion")]
    r#type: String,
    /// Where it computes: "default" is where everything does.
    #[widget(choices = ["default", "cpu"], default = "default")]
    device: Option<String>,
}

impl Node for CLIPLoader {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        // One family is supported, and its choice changes nothing: an encoder shows what it is.
        let _ = self.r#type;
        check_device(cx, self.device.as_deref())?;
        let load = || clip(&open(cx, &self.clip_name, "text encoder")?);
        load().map_err(|error| error.of_input("clip_name"))
    }
}

/// Loads SDXL's two text encoders from two files, in either order.
#[derive(Inputs)]
#[node(category = "advanced/loaders", checked)]
pub struct DualCLIPLoader {
    /// The file of one, or the folder with config.json and the weights.
    #[file(folder = "text_encoders", entry = "any")]
    clip_name1: PathBuf,
    /// That of the other.
    #[file(folder = "text_encoders", entry = "any")]
    clip_name2: PathBuf,
    /// The family of models that they encode for.
    #[widget(choices = ["sdxl"], default = "sdxl")]
    r#type: String,
    /// Where they compute: "default" is where everything does.
    #[widget(choices = ["default", "cpu"], default = "default")]
    device: Option<String>,
}

impl Node for DualCLIPLoader {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        // One family is supported, and its choice changes nothing: an encoder shows what it is.
        let _ = self.r#type;
        check_device(cx, self.device.as_deref())?;
        two_clips(
            cx,
            [("clip_name1", self.clip_name1.as_path()), ("clip_name2", self.clip_name2.as_path())],
        )
    }
}

/// The text encoders of two files as one CLIP; each file by its input.
pub(crate) fn two_clips(cx: &Context, files: [(&'static str, &Path); 2]) -> Result<Clip> {
    let mut parts = Vec::new();
    for (input, path) in files {
        let load = || encoders(&open(cx, path, "text encoder")?);
        parts.extend(load().map_err(|error| error.of_input(input))?);
    }
    let clip = ClipModel::new(parts).map_err(|error| error.of_input("clip_name2"))?;
    Ok(Clip(Object::new(clip)))
}

/// Refuses a device of its own for a text encoder.
fn check_device(cx: &Context, device: Option<&str>) -> Result<()> {
    if device == Some("cpu") && cx.device() != "cpu" {
        return Err(Error::at(
            "device",
            format!(
                "a text encoder on the CPU beside a run on {} is not supported; \"default\" would be right",
                cx.device()
            ),
        ));
    }
    Ok(())
}

/// Loads a ControlNet, or a T2I-Adapter.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct ControlNetLoader {
    /// The file, or the folder with config.json and the weights.
    #[file(folder = "controlnet", entry = "any")]
    control_net_name: PathBuf,
}

impl Node for ControlNetLoader {
    outputs![CONTROL_NET: ControlNet];

    fn run(self, cx: &Context) -> Result<ControlNet> {
        let load = || {
            let checkpoint = Checkpoint::open(&self.control_net_name, &device(&cx.device())?)?;
            control_net(&checkpoint)
        };
        load().map_err(|error: Error| error.of_input("control_net_name"))
    }
}

/// What steers a U-Net by a picture: a ControlNet, a Control-LoRA, or a T2I-Adapter.
pub(crate) fn control_net(checkpoint: &Checkpoint) -> Result<ControlNet> {
    if checkpoint.is_t2i_adapter() {
        let (config, weights) = checkpoint.t2i_adapter()?;
        return Ok(ControlNet(Object::new(AdapterModel::new(config, weights)?)));
    }
    if let Some(changes) = checkpoint.control_lora()? {
        return Ok(ControlNet(Object::new(ControlOfUNet::new(changes))));
    }
    let (config, weights) = checkpoint.control_net()?;
    Ok(ControlNet(Object::new(ControlNetModel::new(config, weights)?)))
}

/// As ControlNetLoader, by the name of the Advanced-ControlNet pack, whose keyframes are not here.
#[derive(Inputs)]
#[node(category = "Adv-ControlNet", checked)]
pub struct ControlNetLoaderAdvanced {
    /// The file, or the folder with config.json and the weights.
    #[file(folder = "controlnet", entry = "any")]
    control_net_name: PathBuf,
}

impl Node for ControlNetLoaderAdvanced {
    outputs![CONTROL_NET: ControlNet];

    fn run(self, cx: &Context) -> Result<ControlNet> {
        ControlNetLoader { control_net_name: self.control_net_name }.run(cx)
    }
}

/// Opens what a loader of one part was given.
pub(crate) fn open(cx: &Context, path: &Path, part: &str) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path, &device(&cx.device())?)?;
    if checkpoint.is_whole() {
        cx.info(format!("{} is a whole checkpoint; its {part} is taken", path.display()));
    }
    Ok(checkpoint)
}

pub(crate) fn unet(checkpoint: &Checkpoint, rounding: Option<Fp8>) -> Result<Model> {
    let (config, scheduler, weights) = checkpoint.unet()?;
    let weights = rounding.map_or(weights.clone(), |fp8| weights.rounded(fp8));
    let scaling_factor = checkpoint.latent_scale(&config);
    let model = UNetModel::new(config, &scheduler, weights)?.of_latents(scaling_factor);
    Ok(Model(Object::new(model)))
}

pub(crate) fn clip(checkpoint: &Checkpoint) -> Result<Clip> {
    Ok(Clip(Object::new(ClipModel::new(encoders(checkpoint)?)?)))
}

/// The text encoders of a checkpoint with their tokenizers.
fn encoders(checkpoint: &Checkpoint) -> Result<Vec<Part>> {
    let part = |encoder: TextEncoder| {
        let tokenizer = match &encoder.tokenizer {
            Some(tokenizer) => tokenizer.read()?,
            None => ClipTokenizer::clip()?,
        };
        Ok((encoder.config, tokenizer, encoder.weights))
    };
    checkpoint.text_encoders()?.into_iter().map(part).collect()
}

fn vae(checkpoint: &Checkpoint) -> Result<Vae> {
    if checkpoint.is_taesd() {
        let (config, halves) = checkpoint.taesd()?;
        let vae = TinyVae::new(config, halves)?.of_latents(checkpoint.taesd_scale());
        return Ok(Vae(Object::new(vae)));
    }
    let (config, weights) = checkpoint.vae()?;
    Ok(Vae(Object::new(VaeModel::new(config, weights)?)))
}
