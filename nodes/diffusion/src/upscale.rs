//! UpscaleModelLoader and ImageUpscaleWithModel.

use std::path::PathBuf;

use kosmograph_models::upscalers;
use node::*;
use node_candle::device;

use crate::upscale_model::Enlarger;

/// The side of a tile and what neighbours share, in pixels of the small picture: ComfyUI's.
const TILES: (usize, usize) = (512, 32);

/// Loads a network that makes pictures larger: ESRGAN (any of its namings), Real-ESRGAN, its compact networks.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct UpscaleModelLoader {
    /// The file, of safetensors or of torch.
    #[file(folder = "upscale_models", entry = "file")]
    pub model_name: PathBuf,
}

impl Node for UpscaleModelLoader {
    outputs![UPSCALE_MODEL: UpscaleModel];

    fn run(self, cx: &Context) -> Result<UpscaleModel> {
        let load = || {
            let (config, weights) = upscalers::open(&self.model_name, &device(&cx.device())?)?;
            Ok(UpscaleModel(Object::new(Enlarger::new(config, weights)?)))
        };
        load().map_err(|error: Error| error.of_input("model_name"))
    }
}

/// Makes pictures larger with a network, in tiles of 512 pixels that fade into each other.
#[derive(Inputs)]
#[node(category = "image/upscaling")]
pub struct ImageUpscaleWithModel {
    /// The network.
    pub upscale_model: UpscaleModel,
    /// What becomes larger. One channel becomes three alike, a fourth is left out.
    pub image: Image,
}

impl Node for ImageUpscaleWithModel {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let image = three_channels(&self.image)?;
        self.upscale_model.0.upscale(cx, image, TILES).map(Image)
    }
}

/// A picture as networks take it, [B, H, W, 3].
///
/// # Errors
/// It has another number of channels than 1, 3 or 4, or there is no memory.
pub fn three_channels(image: &Image) -> Result<Tensor> {
    let (batch, height, width, channels) = image.dims();
    if channels == 3 {
        return Ok(image.0.clone());
    }
    let of_pixel = |pixel: &[f32]| match *pixel {
        [grey] => [grey; 3],
        [red, green, blue, ..] => [red, green, blue],
        _ => [0.0; 3],
    };
    if !matches!(channels, 1 | 4) {
        let sentence = format!("a picture has 1, 3 or 4 channels, this has {channels}");
        return Err(Error::at("image", sentence));
    }
    let shape = [batch, height, width, 3];
    let mut values = memory::room("the pictures in three channels", &shape)?;
    values.extend(image.0.to_f32()?.chunks(channels).flat_map(of_pixel));
    Tensor::from_f32(&shape, values)
}
