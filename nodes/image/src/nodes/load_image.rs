//! LoadImage: a picture, or the frames of an animation, from a file.

use std::path::PathBuf;

use node::{Context, Image, Inputs, Mask, Node, Result, Tensor, outputs};

use super::image;
use crate::decode::decode;

/// Loads a picture (PNG, JPEG, WebP, BMP, GIF or TIFF) as RGB, turned as its EXIF data says; an animation gives a batch of its frames.
/// The mask is 1 where the picture is transparent, and 64 x 64 zeros where it has no transparency.
#[derive(Inputs)]
#[node(category = "image", checked)]
pub struct LoadImage {
    /// The picture's file, looked for in the input folder.
    #[file(folder = "input", entry = "file")]
    pub image: PathBuf,
}

impl Node for LoadImage {
    outputs![image: Image, mask: Mask];

    fn run(self, _cx: &Context) -> Result<(Image, Mask)> {
        let decoded = decode(&self.image).map_err(|error| node::Error::at("image", error))?;
        let shape = decoded.shape;
        let mask = match decoded.mask {
            Some(mask) => Tensor::from_f32(&[shape.batch, shape.height, shape.width], mask)?,
            None => Tensor::from_f32(&[shape.batch, 64, 64], vec![0.0; shape.batch * 64 * 64])?,
        };
        Ok((image(shape, decoded.pixels)?, Mask(mask)))
    }
}

/// Loads a picture that was saved: as LoadImage, but from the output folder.
#[derive(Inputs)]
#[node(category = "image", checked)]
pub struct LoadImageOutput {
    /// The picture's file, looked for in the output folder. A name may end in " [output]".
    #[file(folder = "output", entry = "file")]
    pub image: PathBuf,
}

impl Node for LoadImageOutput {
    outputs![image: Image, mask: Mask];

    fn run(self, cx: &Context) -> Result<(Image, Mask)> {
        LoadImage { image: self.image }.run(cx)
    }
}
