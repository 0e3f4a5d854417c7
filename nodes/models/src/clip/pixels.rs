//! Pictures as CLIP's vision transformer takes them, prepared as ComfyUI prepares them: the short side resized with an antialiased
//! bicubic filter in floating point, the middle cut out, rounded to 8 bits, normalised.
//!
//! [`crate::kosmos::preprocess`] does the same in the 8 bits of PIL, which is what Kosmos-G was trained with. The filter is torch's
//! `interpolate(mode="bicubic", antialias=True)`.

use candle_core::{DType, Device, Tensor};
use kosmograph_pixels::torch::antialiased_bicubic;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// OpenAI's mean and standard deviation of the channels.
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Pictures [B, H, W, C] in 0..1, C = 1, 3 or 4, as pixels [B, 3, `size`, `size`]. With `crop` the middle square is taken, else the
/// picture is squeezed.
///
/// # Errors
/// The pictures are empty or have another number of channels.
pub fn clip_pixels(images: &Tensor, size: usize, crop: bool) -> Result<Tensor> {
    let (batch, height, width, channels) = images.dims4()?;
    if images.elem_count() == 0 || !matches!(channels, 1 | 3 | 4) || size == 0 {
        return Err(Error::Input(format!(
            "pictures [B, H, W, C] with 1, 3 or 4 channels are wanted, not {:?}",
            images.dims()
        )));
    }
    let images = images.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
    let values = images.to_vec1::<f32>()?;
    let factor = size as f64 / height.min(width) as f64;
    let resized = |side: usize| {
        if crop { ((factor * side as f64).round_ties_even() as usize).max(size) } else { size }
    };
    let rows = Taps::middle(height, resized(height), size);
    let columns = Taps::middle(width, resized(width), size);
    let mut pixels = vec![0.0; batch * 3 * size * size];
    pixels.par_chunks_mut(size * size).enumerate().for_each(|(plane, out)| {
        let (picture, channel) = (plane / 3, plane % 3);
        let picture = &values[picture * height * width * channels..][..height * width * channels];
        let source = channel.min(channels - 1);
        // Of the rows those alone that the middle needs.
        let used = rows.span();
        let mut wide = vec![0.0f32; used.len() * size];
        for (y, line) in used.clone().zip(wide.chunks_mut(size)) {
            let row = &picture[y * width * channels..][..width * channels];
            for (value, (first, weights)) in line.iter_mut().zip(&columns.0) {
                let taps = row[first * channels + source..].iter().step_by(channels);
                *value = taps.zip(weights).map(|(value, weight)| value * weight).sum();
            }
        }
        for (line, (first, weights)) in out.chunks_mut(size).zip(&rows.0) {
            for (i, weight) in weights.iter().enumerate() {
                let row = &wide[(first - used.start + i) * size..][..size];
                line.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
            for value in line {
                let level = (255.0 * *value).clamp(0.0, 255.0).round_ties_even() / 255.0;
                *value = (level - MEAN[channel]) / STD[channel];
            }
        }
    });
    Ok(Tensor::from_vec(pixels, (batch, 3, size, size), &Device::Cpu)?)
}

/// For each new pixel along one axis, the first old one that makes it and the weights from there on.
struct Taps(Vec<(usize, Vec<f32>)>);

impl Taps {
    /// The middle `size` of `to` pixels, made from `from`.
    fn middle(from: usize, to: usize, size: usize) -> Taps {
        let start = (to - size) / 2;
        Taps(antialiased_bicubic(from, to, start..start + size))
    }

    fn span(&self) -> std::ops::Range<usize> {
        let start = self.0.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.0.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_torchs() -> Result<()> {
        let text = include_str!("../../tests/data/clip_pixels.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        for case in cases.as_array().unwrap() {
            let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
            let (height, width) = (number(&case["from"][0]), number(&case["from"][1]));
            let levels = (0..height * width * 3).map(|i| ((i * i * 7 + i * 31) % 256) as f32);
            let images = Tensor::from_iter(levels.map(|level| level / 255.0), &Device::Cpu)?;
            let images = images.reshape((1, height, width, 3))?;
            let crop = case["crop"] == true;
            let found = clip_pixels(&images, number(&case["size"]), crop)?.flatten_all()?;
            let expected = case["values"].as_array().unwrap();
            assert_eq!(found.elem_count(), expected.len());
            for (found, expected) in found.to_vec1::<f32>()?.iter().zip(expected) {
                let error = (f64::from(*found) - expected.as_f64().unwrap()).abs();
                assert!(error < 2e-5, "{height} x {width}, crop {crop}: off by {error}");
            }
        }
        Ok(())
    }

    #[test]
    fn any_channels_and_thin_strips() -> Result<()> {
        for shape in [(2, 3, 5000, 1), (1, 5000, 1, 4), (1, 1, 1, 3)] {
            let images = Tensor::ones(shape, DType::F32, &Device::Cpu)?;
            for crop in [true, false] {
                let pixels = clip_pixels(&images, 8, crop)?;
                assert_eq!(pixels.dims(), [shape.0, 3, 8, 8]);
                let plane = pixels.get(0)?.flatten_from(1)?.to_vec2::<f32>()?;
                assert!((plane[0][0] - (1.0 - MEAN[0]) / STD[0]).abs() < 1e-6);
            }
        }
        let two = Tensor::ones((1, 4, 4, 2), DType::F32, &Device::Cpu)?;
        assert!(clip_pixels(&two, 8, true).is_err());
        Ok(())
    }
}
