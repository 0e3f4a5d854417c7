//! From a picture to the pixels that a vision transformer takes: short edge to the model's size,
//! centre crop, normalise.
//!
//! Follows torchvision's `Resize` and `CenterCrop` on PIL pictures and the authors'
//! `NumpyNormalize`, for which the 8-bit stage is exact.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use kosmograph_pixels::Undone;
use kosmograph_pixels::pillow::{Filter, Picture, Window, resize_window};

/// Resizes so that the short edge has `size` pixels (the long edge truncated, as torchvision does)
/// and cuts the `size` × `size` pixels in the middle.
///
/// Returns [size, size, channels].
pub fn resize_and_crop(picture: Picture, size: usize, filter: Filter) -> Result<Vec<u8>, Undone> {
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
    resize_window(picture, to_width, to_height, window, filter)
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

    /// The pixels of a batch of pictures [B, H, W, 3] in 0..1, as nodes hand them around: [B, 3,
    /// size, size] in f32.
    ///
    /// Values are rounded to 8 bits first: for a picture that came from a file this gives back the
    /// file's own.
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

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSFORM: PictureTransform =
        PictureTransform { size: 4, mean: [0.5, 0.25, 0.0], std: [0.5, 0.25, 1.0] };

    fn picture(pixels: &[u8], width: usize, height: usize, channels: usize) -> Picture<'_> {
        Picture { pixels, width, height, channels }
    }

    #[test]
    fn half_pixels_go_to_the_even_side() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(centre), [0, 0, 1, 2, 2, 2, 4]);
    }

    #[test]
    fn pixels_are_normalised_by_channel() -> Result<()> {
        let pixels = TRANSFORM.pixels(picture(&[255, 0, 51].repeat(16), 4, 4, 3))?;
        assert_eq!(pixels.dims(), [3, 4, 4]);
        let planes = pixels.flatten_from(1)?.to_vec2::<f32>()?;
        for (plane, value) in planes.iter().zip([1.0, -1.0, 0.2]) {
            assert_eq!(plane, &[value; 16]);
        }
        Ok(())
    }

    #[test]
    fn a_batch_in_0_to_1_gives_the_pixels_of_its_bytes() -> Result<()> {
        let bytes: Vec<u8> = (0..2 * 5 * 7 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let values: Vec<f32> = bytes.iter().map(|byte| f32::from(*byte) / 255.0).collect();
        let batch = TRANSFORM.batch(&Tensor::from_vec(values, (2, 5, 7, 3), &Device::Cpu)?)?;
        for (index, pixels) in bytes.chunks(5 * 7 * 3).enumerate() {
            let alone = TRANSFORM.pixels(picture(pixels, 7, 5, 3))?.flatten_all()?;
            let in_batch = batch.get(index)?.flatten_all()?;
            assert_eq!(in_batch.to_vec1::<f32>()?, alone.to_vec1::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn a_long_strip_costs_no_more_than_its_middle() -> Result<()> {
        let strip = vec![9; 1 << 20];
        let cut = resize_and_crop(picture(&strip, 1, 1 << 20, 1), 224, Filter::Bicubic)?;
        assert_eq!(cut, vec![9; 224 * 224]);
        Ok(())
    }

    #[test]
    fn what_is_no_picture_is_refused() -> Result<()> {
        let gray = TRANSFORM.pixels(picture(&[0; 16], 4, 4, 1)).unwrap_err().to_string();
        assert!(gray.contains("3 channels, the picture has 1"), "{gray}");
        let none = Tensor::zeros((1, 0, 4, 3), candle_core::DType::F32, &Device::Cpu)?;
        let none = TRANSFORM.batch(&none).unwrap_err().to_string();
        assert!(none.contains("no pixels"), "{none}");
        Ok(())
    }
}
