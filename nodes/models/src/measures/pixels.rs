//! Pictures as the measuring networks take them: the short edge resized in 8 bits by Pillow's bicubic filter, the middle
//! cut out, normalised.

use candle_core::{Device, Tensor};
use kosmograph_pixels::Undone;
use kosmograph_pixels::pillow::{Filter, Picture, Window, resize_window};

use crate::error::{Error, Result};

/// Where the middle of an odd margin lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Half a pixel goes to the even side (torchvision).
    Even,
    /// Half a pixel is dropped (transformers).
    Down,
}

/// The way to the pixels of one network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// The short edge after resizing.
    pub short_edge: usize,
    /// The side of the square that is cut out.
    pub size: usize,
    pub half: Half,
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

/// DINO's, by torchvision, with the statistics of ImageNet.
pub const DINO: Preprocess = Preprocess {
    short_edge: 256,
    size: 224,
    half: Half::Even,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};

/// CLIP's, by transformers' processor.
pub const CLIP: Preprocess = Preprocess {
    short_edge: 224,
    size: 224,
    half: Half::Down,
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
};

impl Preprocess {
    /// The square in 8 bits, [size, size, 3].
    ///
    /// # Errors
    /// The picture has no pixels.
    pub fn square(&self, picture: Picture) -> Result<Vec<u8>, Undone> {
        let (width, height) = (picture.width, picture.height);
        let short = width.min(height).max(1);
        let scaled =
            |edge: usize| (self.short_edge as u128 * edge as u128 / short as u128) as usize;
        let (to_width, to_height) = (scaled(width), scaled(height));
        let first = |edge: usize| {
            let margin = edge.saturating_sub(self.size);
            let half = margin / 2;
            match self.half {
                Half::Even if margin % 2 == 1 && half % 2 == 1 => half + 1,
                _ => half,
            }
        };
        let (left, top) = (first(to_width), first(to_height));
        let window = Window { left, top, width: self.size, height: self.size };
        resize_window(picture, to_width, to_height, window, Filter::Bicubic)
    }

    /// The network's pixels [1, 3, size, size] of an RGB picture.
    ///
    /// # Errors
    /// The picture has no pixels, or not three channels.
    pub fn pixels(&self, picture: Picture) -> Result<Tensor> {
        of_three_channels(picture)?;
        let square = self.square(picture)?;
        let value = |channel: usize, level: &u8| {
            ((f64::from(*level) / 255.0 - self.mean[channel]) / self.std[channel]) as f32
        };
        let planes = (0..3).flat_map(|channel| {
            square[channel..].iter().step_by(3).map(move |level| value(channel, level))
        });
        let planes: Vec<f32> = planes.collect();
        Ok(Tensor::from_vec(planes, (1, 3, self.size, self.size), &Device::Cpu)?)
    }
}

/// Whether it is a picture in RGB that has pixels.
///
/// # Errors
/// It is none.
pub fn of_three_channels(picture: Picture) -> Result<()> {
    let Picture { pixels, width, height, channels } = picture;
    if channels != 3 || pixels.is_empty() || pixels.len() != width * height * 3 {
        let sentence =
            format!("{width} x {height} pixels of {channels} channels; RGB would be right");
        return Err(Error::Input(sentence));
    }
    Ok(())
}
