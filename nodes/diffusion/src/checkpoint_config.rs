//! CheckpointLoader: a checkpoint with the configuration that its makers' code wanted beside it.

use std::path::PathBuf;

use node::*;

use crate::loaders::load_all;
use crate::sampling::Described;

/// The configurations of ComfyUI's folder.
const CONFIGS: [&str; 11] = [
    "anything_v3.yaml",
    "v1-inference.yaml",
    "v1-inference_clip_skip_2.yaml",
    "v1-inference_clip_skip_2_fp16.yaml",
    "v1-inference_fp16.yaml",
    "v1-inpainting-inference.yaml",
    "v2-inference-v.yaml",
    "v2-inference-v_fp32.yaml",
    "v2-inference.yaml",
    "v2-inference_fp32.yaml",
    "v2-inpainting-inference.yaml",
];

/// Those that take the text from the layer before the last.
const SKIP: [&str; 3] =
    ["anything_v3.yaml", "v1-inference_clip_skip_2.yaml", "v1-inference_clip_skip_2_fp16.yaml"];

/// Loads a Stable Diffusion 1 checkpoint of which somebody knew the configuration. What it is, it says itself, so the
/// configuration is held against that; of what it adds, the layer of the text encoder is taken. CheckpointLoaderSimple needs none.
#[derive(Inputs)]
#[node(category = "advanced/loaders", checked)]
pub struct CheckpointLoader {
    /// The configuration, by its file's name in ComfyUI; no file is read.
    #[widget(choices = CONFIGS, default = "v1-inference.yaml")]
    config_name: String,
    /// The file or folder.
    #[file(folder = "checkpoints", entry = "any")]
    ckpt_name: PathBuf,
}

impl Node for CheckpointLoader {
    outputs![MODEL: Model, CLIP: Clip, VAE: Vae];

    fn run(self, cx: &Context) -> Result<(Model, Clip, Vae)> {
        let name = self.config_name.as_str();
        if name.starts_with("v2-") {
            return Err(Error::at(
                "config_name",
                format!("{name} is of Stable Diffusion 2, a family that is not here"),
            ));
        }
        let loaded = load_all(cx, &self.ckpt_name);
        let (model, mut clip, vae) = loaded.map_err(|error| error.of_input("ckpt_name"))?;
        let described = Described::of(cx, &model.0, "ckpt_name")?;
        let inpaints = described.in_channels.is_some_and(|channels| channels > 4);
        let other = match (described.vector.is_some(), inpaints) {
            (true, _) => Some("of SDXL's family"),
            (false, true) if !name.contains("inpainting") => Some("for inpainting"),
            (false, false) if name.contains("inpainting") => Some("not for inpainting"),
            _ => None,
        };
        if let Some(other) = other {
            return Err(Error::at(
                "config_name",
                format!(
                    "the checkpoint is {other}, which {name} is not; CheckpointLoaderSimple takes it as it is"
                ),
            ));
        }
        if SKIP.contains(&name) && clip.0.offers("text_layers/1") {
            clip = Clip(clip.0.stop_at_layer(cx, -2)?);
        }
        Ok((model, clip, vae))
    }
}
