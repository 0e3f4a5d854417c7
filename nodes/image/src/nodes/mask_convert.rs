//! Masks from pictures, from files and from nothing, and pictures from masks.

use std::path::PathBuf;

use node::memory::filled;
use node::{Context, Error, Image, Inputs, Mask, Node, Result, Tensor, outputs};

use super::{MAX_RESOLUTION, image, mask, masks, pictures};
use crate::decode::decode;
use kosmograph_pixels::Shape;
use kosmograph_pixels::work::map;

/// A mask as a grey picture.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct MaskToImage {
    pub mask: Mask,
}

impl Node for MaskToImage {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = masks(&self.mask)?;
        let drawn = Shape { channels: 3, ..shape };
        let mut out = drawn.room()?;
        values.iter().for_each(|value| out.extend([*value; 3]));
        image(drawn, out)
    }
}

/// One channel of pictures as a mask.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct ImageToMask {
    pub image: Image,
    #[widget(default = "red", choices = ["red", "green", "blue", "alpha"])]
    pub channel: String,
}

impl Node for ImageToMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let channels = shape.channels;
        let channel = match (self.channel.as_str(), channels) {
            ("alpha", 1 | 3) => {
                return Err(Error::at(
                    "channel",
                    "the picture has no alpha channel; the mask that LoadImage gives is made of one",
                ));
            }
            (_, 1) | ("red", _) => 0,
            ("green", _) => 1,
            ("blue", _) => 2,
            _ => 3,
        };
        let shape = Shape { channels: 1, ..shape };
        let mut out = shape.room()?;
        out.extend(values[channel..].iter().step_by(channels).copied());
        mask(shape, out)
    }
}

/// Loads one channel of a picture as a mask; alpha is inverted: 1 where the picture is transparent.
#[derive(Inputs)]
#[node(category = "mask", checked)]
pub struct LoadImageMask {
    /// The picture's file, looked for in the input folder.
    #[file(folder = "input", entry = "file")]
    pub image: PathBuf,
    #[widget(default = "alpha", choices = ["alpha", "red", "green", "blue"])]
    pub channel: String,
}

impl Node for LoadImageMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let decoded = decode(&self.image).map_err(|error| Error::at("image", error))?;
        // Of an animation the first frame.
        let shape = Shape { batch: 1, channels: 1, ..decoded.shape };
        let count = shape.picture();
        let channel = match self.channel.as_str() {
            "alpha" => {
                let alpha = decoded.mask.map(|mask| mask[..count].to_vec());
                return mask(shape, alpha.unwrap_or_else(|| vec![0.0; count]));
            }
            "red" => 0,
            "green" => 1,
            _ => 2,
        };
        let values = decoded.pixels[channel..].iter().step_by(3).take(count);
        mask(shape, values.copied().collect())
    }
}

/// Inverts masks: each value becomes one minus itself.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct InvertMask {
    pub mask: Mask,
}

impl Node for InvertMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = masks(&self.mask)?;
        mask(shape, map(&values, shape, |value| 1.0 - value)?)
    }
}

/// Masks of 0 and 1: 1 where a mask is above a value.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct ThresholdMask {
    pub mask: Mask,
    #[widget(default = 0.5, min = 0.0, max = 1.0, step = 0.01)]
    pub value: f64,
}

impl Node for ThresholdMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = masks(&self.mask)?;
        let threshold = self.value as f32;
        mask(shape, map(&values, shape, |value| if value > threshold { 1.0 } else { 0.0 })?)
    }
}

/// A mask of one value.
#[derive(Inputs)]
#[node(category = "mask", memory = [4, width, height])]
pub struct SolidMask {
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    pub value: f64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub width: u64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub height: u64,
}

impl Node for SolidMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (height, width) = (self.height as usize, self.width as usize);
        let values = filled("the mask", &[height, width], self.value as f32)?;
        Ok(Mask(Tensor::from_f32(&[1, height, width], values)?))
    }
}
