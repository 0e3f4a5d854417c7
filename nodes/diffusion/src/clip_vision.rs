//! CLIP's picture half: the CLIP_VISION object, its loader and its encoder.

use std::path::{Path, PathBuf};

use candle_core::Device;
use kosmograph_models::clip::pixels::clip_pixels;
use kosmograph_models::clip::vision::{ClipVision as VisionTransformer, ClipVisionConfig};
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::{Resident, Weights};
use node::interface::{self, ClipVisionTensors, marker};
use node::*;
use node_candle::{device, export, import};

/// A vision transformer behind "clip_vision/1". Its numbers are read when it is first called.
pub struct ClipVisionModel {
    vision: Resident<VisionTransformer>,
    config: ClipVisionConfig,
    device: Device,
}

impl ClipVisionModel {
    /// A vision transformer of `weights` under transformers' names, on their device. The file's header
    /// is checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: ClipVisionConfig, weights: Weights) -> kosmograph_models::Result<Self> {
        let device = weights.device().clone();
        let vision = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| VisionTransformer::load(&config, weights))?
        };
        Ok(Self { vision, config, device })
    }
}

impl Export for ClipVisionModel {
    const TYPE: &'static str = "CLIP_VISION";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![ClipVisionModel: marker::ClipVision, marker::Describe, marker::Memory];
}

impl interface::EncodeClipVision for ClipVisionModel {
    fn encode_clip_vision(
        &self,
        _cx: &Context,
        image: &Tensor,
        crop: bool,
    ) -> Result<ClipVisionTensors> {
        let image = import(image, &self.device)?;
        let pixels = clip_pixels(&image, self.config.image_size, crop)?.to_device(&self.device)?;
        let states = self.vision.get()?.forward(&pixels)?;
        Ok(ClipVisionTensors {
            last_hidden_state: export(&states.last_hidden_state)?,
            penultimate_hidden_states: export(&states.penultimate_hidden_states)?,
            image_embeds: export(&states.image_embeds)?,
        })
    }
}

impl interface::Describe for ClipVisionModel {
    fn describe(&self) -> serde_json::Value {
        json!({
            "family": "clip-vision",
            "image_size": self.config.image_size,
            "projection_dim": self.config.projection_dim,
            "bytes": self.vision.bytes(),
        })
    }
}

impl interface::Memory for ClipVisionModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.vision.release();
        }
        self.vision.held()
    }
}

/// Loads CLIP's picture half: a file, or a folder with config.json and the weights.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct CLIPVisionLoader {
    /// The file or folder.
    #[file(folder = "clip_vision", entry = "any")]
    clip_name: PathBuf,
}

impl Node for CLIPVisionLoader {
    outputs![CLIP_VISION: ClipVision];

    fn run(self, cx: &Context) -> Result<ClipVision> {
        let load = || open_clip_vision(&self.clip_name, &device(&cx.device())?);
        load().map_err(|error: Error| error.of_input("clip_name"))
    }
}

/// CLIP's picture half in the file or folder at `path`.
///
/// # Errors
/// It is none.
pub fn open_clip_vision(path: &Path, device: &Device) -> Result<ClipVision> {
    let (config, weights) = Checkpoint::open(path, device)?.clip_vision()?;
    Ok(ClipVision(Object::new(ClipVisionModel::new(config, weights)?)))
}

/// Encodes pictures with CLIP's picture half.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct CLIPVisionEncode {
    /// CLIP's picture half.
    clip_vision: ClipVision,
    /// What it looks at.
    image: Image,
    /// center takes the middle square, none squeezes the whole picture.
    #[widget(default = "center", choices = ["center", "none"])]
    crop: String,
}

impl Node for CLIPVisionEncode {
    outputs![CLIP_VISION_OUTPUT: ClipVisionOutput];

    fn run(self, cx: &Context) -> Result<ClipVisionOutput> {
        let crop = self.crop == "center";
        let found = self.clip_vision.0.encode_clip_vision(cx, self.image.0, crop)?;
        Ok(ClipVisionOutput(Value::map([
            ("last_hidden_state", found.last_hidden_state.into_value()),
            ("penultimate_hidden_states", found.penultimate_hidden_states.into_value()),
            ("image_embeds", found.image_embeds.into_value()),
        ])))
    }
}
