//! Pictures of the boundary as networks take them: RGB in 8 bits, one after the other.

use candle_core::{Device, Tensor as Candle};
use node::{Context, Error, Image, Result, memory};

/// The statistics of ImageNet's channels, in 0..1.
pub const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// An RGB picture in 8 bits, [height, width, 3].
pub struct Levels {
    pub pixels: Vec<u8>,
    pub width: usize,
    pub height: usize,
}

/// Each picture of a batch, in 8 bits the fraction dropped as ComfyUI does it; a grey one has three channels alike, a fourth is left out.
///
/// # Errors
/// The pictures have another number of channels, there is no memory, what `each` reports, or the wish to stop.
pub fn each<T>(
    cx: &Context,
    images: &Image,
    mut each: impl FnMut(Levels, usize) -> Result<T>,
) -> Result<Vec<T>> {
    let (batch, height, width, channels) = images.dims();
    if !matches!(channels, 1 | 3 | 4) {
        let sentence = format!("a picture has 1, 3 or 4 channels, this has {channels}");
        return Err(Error::at("image", sentence));
    }
    let values = images.0.to_f32()?;
    let level = |value: f32| (255.0 * value).clamp(0.0, 255.0) as u8;
    let mut made = Vec::with_capacity(batch);
    for (number, picture) in values.chunks(height * width * channels).enumerate().take(batch) {
        cx.cancelled()?;
        let mut pixels: Vec<u8> = memory::room("a picture in 8 bits", &[height, width, 3])?;
        pixels.extend(picture.chunks(channels).flat_map(|pixel| match *pixel {
            [red, green, blue, ..] => [level(red), level(green), level(blue)],
            [grey, ..] => [level(grey); 3],
            [] => [0; 3],
        }));
        made.push(each(Levels { pixels, width, height }, number)?);
    }
    Ok(made)
}

/// Values [height, width, 3], normalised by mean and deviation, as planes [1, 3, height, width].
///
/// # Errors
/// There is no memory.
pub fn planes(
    values: impl Fn(usize) -> f32,
    (height, width): (usize, usize),
    (mean, std): ([f32; 3], [f32; 3]),
) -> Result<Candle> {
    let mut planes = memory::room("a picture in planes", &[3, height, width])?;
    for channel in 0..3 {
        let of = |at: usize| (values(at * 3 + channel) - mean[channel]) / std[channel];
        planes.extend((0..height * width).map(of));
    }
    Ok(Candle::from_vec(planes, (1, 3, height, width), &Device::Cpu)?)
}
