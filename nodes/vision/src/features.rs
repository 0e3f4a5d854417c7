//! DINOv2 behind "features/1", for the nodes that compare pictures.

use std::path::PathBuf;

use candle_core::Tensor as Candle;
use kosmograph_models::measures::pixels::{self, Half, Preprocess};
use kosmograph_models::{Resident, Weights};
use kosmograph_pixels::pillow::Picture;
use node::interface::{self, marker};
use node::*;
use node_candle::{device, export};

use crate::dinov2::{DinoV2, TOLERATED, by_transformers_names};
use crate::pictures::each;

/// The way to the pixels of transformers' processor.
const PIXELS: Preprocess = Preprocess { half: Half::Down, ..pixels::DINO };

struct Looking(Resident<DinoV2>);

impl Export for Looking {
    const TYPE: &'static str = "FEATURES";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Looking: marker::Features, marker::Describe, marker::Memory];
}

impl interface::TellFeatures for Looking {
    fn features_of_images(&self, cx: &Context, image: &Tensor) -> Result<Tensor> {
        let network = self.0.get()?;
        let rows = each(cx, &Image(image.clone()), |picture, _| {
            let (width, height) = (picture.width, picture.height);
            let picture = Picture { pixels: &picture.pixels, width, height, channels: 3 };
            Ok(network.features(&PIXELS.pixels(picture)?)?)
        })?;
        export(&Candle::cat(&rows, 0)?)
    }
}

impl interface::Describe for Looking {
    fn describe(&self) -> serde_json::Value {
        json!({"family": "dinov2", "bytes": self.0.bytes()})
    }
}

impl interface::Memory for Looking {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.0.release();
        }
        self.0.held()
    }
}

/// Loads DINOv2, for ImageSimilarity and the other nodes that compare pictures.
#[derive(Inputs)]
#[node(class = "DINOv2Loader", category = "measure")]
pub struct DinoV2Loader {
    /// The file, transformers' (model.safetensors) or the authors' (dinov2_vits14_pretrain.pth), or its folder.
    #[file(folder = "dinov2", entry = "any")]
    model_name: PathBuf,
}

impl Node for DinoV2Loader {
    outputs![features: Features];

    fn run(self, cx: &Context) -> Result<Features> {
        let open = || -> Result<Looking> {
            let weights = Weights::open(&self.model_name, &device(&cx.device())?)?;
            let weights = by_transformers_names(&weights)?;
            Ok(Looking(Resident::open(weights, &[TOLERATED], DinoV2::load)?))
        };
        let network = open().map_err(|error| error.of_input("model_name"))?;
        Ok(Features(Object::new(network)))
    }
}
