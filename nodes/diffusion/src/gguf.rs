//! The loaders of ComfyUI-GGUF. A file says itself what it is, so the other loaders take GGUF files as well;
//! these are the names that workflows have.

use std::path::PathBuf;

use node::*;

use crate::loaders::{clip, open, unet};

/// Loads a U-Net from a GGUF file. Its weights stay quantised in memory, and are widened one layer at a time.
#[derive(Inputs)]
#[node(category = "advanced/loaders")]
pub struct UnetLoaderGGUF {
    /// The file.
    #[file(folder = "diffusion_models", entry = "file")]
    unet_name: PathBuf,
}

impl Node for UnetLoaderGGUF {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let load = || unet(&open(cx, &self.unet_name, "U-Net")?, None);
        load().map_err(|error| error.of_input("unet_name"))
    }
}

/// Loads CLIP's text encoder from a GGUF file, or any other.
#[derive(Inputs)]
#[node(category = "advanced/loaders")]
pub struct CLIPLoaderGGUF {
    /// The file.
    #[file(folder = "text_encoders", entry = "file")]
    clip_name: PathBuf,
    /// The family of models that it encodes for.
    #[widget(choices = ["stable_diffusion"], default = "stable_diffusion")]
    r#type: String,
}

impl Node for CLIPLoaderGGUF {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        // One family is supported, and its choice changes nothing.
        let _ = self.r#type;
        let load = || clip(&open(cx, &self.clip_name, "text encoder")?);
        load().map_err(|error| error.of_input("clip_name"))
    }
}
