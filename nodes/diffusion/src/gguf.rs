//! The loaders of ComfyUI-GGUF. A file says itself what it is, so the other loaders take GGUF files as well;
//! these are the names that workflows have.

use std::path::PathBuf;

use node::*;

use crate::loaders::{clip, open, two_clips, unet};

/// Loads a U-Net from a GGUF file. Its weights stay quantised in memory, and are widened one layer at a time.
#[derive(Inputs)]
#[node(category = "advanced/loaders", checked)]
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
#[node(category = "advanced/loaders", checked)]
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

/// Loads SDXL's two text encoders from two files, of GGUF or any other kind, in either order.
#[derive(Inputs)]
#[node(category = "advanced/loaders", checked)]
pub struct DualCLIPLoaderGGUF {
    /// The file of one.
    #[file(folder = "text_encoders", entry = "file")]
    clip_name1: PathBuf,
    /// That of the other.
    #[file(folder = "text_encoders", entry = "file")]
    clip_name2: PathBuf,
    /// The family of models that they encode for.
    #[widget(choices = ["sdxl"], default = "sdxl")]
    r#type: String,
}

impl Node for DualCLIPLoaderGGUF {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        // One family is supported, and its choice changes nothing.
        let _ = self.r#type;
        two_clips(
            cx,
            [("clip_name1", self.clip_name1.as_path()), ("clip_name2", self.clip_name2.as_path())],
        )
    }
}
