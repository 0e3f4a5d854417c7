//! PHOTOMAKER: a person in the place of a word of SDXL's text.

use std::path::PathBuf;

use candle_core::Device;
use kosmograph_models::Resident;
use kosmograph_models::clip::pixels::clip_pixels;
use kosmograph_models::stable_diffusion::photo_maker::{
    PhotoMaker as Encoder, PhotoMakerConfig, open_photo_maker,
};
use node::interface::{self, marker};
use node::*;
use node_candle::{device, export, import};

/// The word that the person takes the place of.
const WORD: &str = "photomaker";

/// An encoder behind "photo_maker/1". Its numbers are read when it is first called.
pub struct PersonEncoder {
    encoder: Resident<Encoder>,
    config: PhotoMakerConfig,
    device: Device,
}

impl Export for PersonEncoder {
    const TYPE: &'static str = "PHOTOMAKER";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![PersonEncoder: marker::PhotoMaker, marker::Describe, marker::Memory];
}

impl interface::PutPerson for PersonEncoder {
    fn put_person(
        &self,
        _cx: &Context<'_>,
        image: &Tensor,
        context: &Tensor,
        at: usize,
    ) -> Result<Tensor> {
        let image = import(image, &self.device)?;
        let pixels = clip_pixels(&image, self.config.vision.image_size, true)?;
        let (pixels, text) = (pixels.to_device(&self.device)?, import(context, &self.device)?);
        export(&self.encoder.get()?.forward(&pixels, &text, at)?)
    }
}

impl interface::Describe for PersonEncoder {
    fn describe(&self) -> serde_json::Value {
        json!({
            "family": "photomaker",
            "image_size": self.config.vision.image_size,
            "context_width": self.config.context(),
            "bytes": self.encoder.bytes(),
        })
    }
}

impl interface::Memory for PersonEncoder {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.encoder.release();
        }
        self.encoder.held()
    }
}

/// Loads PhotoMaker's encoder, of its first version.
#[derive(Inputs)]
#[node(category = "_for_testing/photomaker", checked)]
pub struct PhotoMakerLoader {
    /// The file.
    #[file(folder = "photomaker", entry = "any")]
    photomaker_model_name: PathBuf,
}

impl Node for PhotoMakerLoader {
    outputs![PHOTOMAKER: PhotoMaker];

    fn run(self, cx: &Context) -> Result<PhotoMaker> {
        let load = || {
            let device = device(&cx.device())?;
            let (config, weights) = open_photo_maker(&self.photomaker_model_name, &device)?;
            let encoder = {
                let config = config.clone();
                Resident::open(weights, &[], move |weights| Encoder::load(&config, weights))?
            };
            Ok(PhotoMaker(Object::new(PersonEncoder { encoder, config, device })))
        };
        load().map_err(|error: Error| error.of_input("photomaker_model_name"))
    }
}

/// Encodes a text in which the word photomaker makes the word before it that person of a picture. The LoRA in PhotoMaker's file
/// belongs on the model besides (LoraLoaderModelOnly).
#[derive(Inputs)]
#[node(category = "_for_testing/photomaker")]
pub struct PhotoMakerEncode {
    /// PhotoMaker's encoder.
    photomaker: PhotoMaker,
    /// The person; of several pictures the first.
    image: Image,
    /// SDXL's text encoders.
    clip: Clip,
    /// What the picture should show, with the word photomaker in it.
    #[widget(multiline, default = "photograph of photomaker", mentions = "embeddings")]
    text: String,
}

impl Node for PhotoMakerEncode {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let mut words: Vec<&str> = self.text.split(' ').collect();
        let Some(place) = words.iter().position(|word| *word == WORD) else {
            cx.info("the text has no word photomaker, so that no person is put into it");
            let (context, pooled) = self.clip.0.encode_text(cx, &self.text)?;
            return Ok(Conditioning::new(context, pooled));
        };
        words.remove(place);
        let (context, pooled) = self.clip.0.encode_text(cx, &words.join(" "))?;
        let image = import(&self.image.0, &Device::Cpu)?;
        if image.dim(0)? > 1 {
            cx.info("of several pictures PhotoMaker sees the first, as in ComfyUI");
        }
        let first = export(&image.narrow(0, 0, 1)?)?;
        // As many tokens before it as words, the one that begins the text counted in: it falls on the word before its own.
        let context = self.photomaker.0.put_person(cx, first, context, place);
        Ok(Conditioning::new(context.map_err(|error| error.of_input("photomaker"))?, pooled))
    }
}
