//! From a picture to the pixels that a vision transformer takes: short edge to the model's size, centre crop, normalise.
//!
//! Follows torchvision's `Resize` and `CenterCrop` on PIL pictures and the authors' `NumpyNormalize`, for which the 8-bit stage is
//! exact.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::pil_resize::{Filter, Picture, ResizeError, Window, pil_resize_window};

/// Resizes so that the short edge has `size` pixels (the long edge truncated, as torchvision does) and cuts the `size` × `size` pixels
/// in the middle.
///
/// Returns [size, size, channels].
pub fn resize_and_crop(
    picture: Picture,
    size: usize,
    filter: Filter,
) -> std::result::Result<Vec<u8>, ResizeError> {
    let (width, height) = (picture.width, picture.height);
    let short = width.min(height).max(1);
    // In 128 bits, so that no width overflows.
    let scaled = |edge: usize| (size as u128 * edge as u128 / short as u128) as usize;
    let (to_width, to_height) = (scaled(width), scaled(height));
    let window = Window {
        left: centre(to_width.saturating_sub(size)),
        top: centre(to_height.saturating_sub(size)),
        width: size,
        height: size,
    };
    pil_resize_window(picture, to_width, to_height, window, filter)
}

/// Half of the margin. A half pixel goes to the even side, as Python's `round` has it.
fn centre(margin: usize) -> usize {
    let half = margin / 2;
    if margin % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

/// The transform of one vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureTransform {
    /// The side of the square it makes, in pixels.
    pub size: usize,
    /// Subtracted from a channel in 0..1.
    pub mean: [f64; 3],
    /// Divides what is left.
    pub std: [f64; 3],
}

impl PictureTransform {
    /// The pixels of an RGB picture, [3, size, size] in f32.
    ///
    /// # Errors
    /// The picture has no pixels, or not three channels.
    pub fn pixels(&self, picture: Picture) -> Result<Tensor> {
        let cut = resize_and_crop(picture, self.size, Filter::Bicubic)?;
        if picture.channels != 3 {
            return Err(Error::Input(format!(
                "a vision transformer takes 3 channels, the picture has {}",
                picture.channels
            )));
        }
        // In f64 and rounded once, like the reference.
        let planes: Vec<f32> = (0..3)
            .flat_map(|channel| {
                let values = cut[channel..].iter().step_by(3);
                values.map(move |value| {
                    let value = f64::from(*value) / 255.0;
                    ((value - self.mean[channel]) / self.std[channel]) as f32
                })
            })
            .collect();
        Ok(Tensor::from_vec(planes, (3, self.size, self.size), &Device::Cpu)?)
    }

    /// The pixels of a batch of pictures [B, H, W, 3] in 0..1, as nodes hand them around: [B, 3, size, size] in f32.
    ///
    /// Values are rounded to 8 bits first: for a picture that came from a file this gives back the file's own.
    ///
    /// # Errors
    /// The tensor has another shape, or the pictures have no pixels.
    pub fn batch(&self, images: &Tensor) -> Result<Tensor> {
        let (_, height, width, channels) = images.dims4()?;
        if images.elem_count() == 0 {
            return Err(Error::Input(format!(
                "a batch of pictures of the shape {:?} has no pixels",
                images.dims()
            )));
        }
        let images = images.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
        let values = images.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> =
            values.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
        let pictures = bytes
            .chunks(height * width * channels)
            .map(|pixels| self.pixels(Picture { pixels, width, height, channels }));
        let pictures: Vec<Tensor> = pictures.collect::<Result<_>>()?;
        Ok(Tensor::stack(&pictures, 0)?)
    }
}
