//! Hints for ControlNets that need no network: binary, scribble, tile; as the preprocessors of that name make them, in 8 bits.
//!
//! Pictures are levels [H, W, 3]. Sizes follow the preprocessors' habit of bringing the shorter side to a "resolution" first.

use node::memory::ask;

use crate::blur::{blur, opencv_kernel};
use crate::canny::grey;
use crate::levels::from_levels;
use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;
use kosmograph_pixels::opencv::{area, area_to, lanczos4, pyramid_up};
use kosmograph_pixels::torch::{Mode, interpolate};

/// What a pixel of a hint takes on its way, of its three channels: numbers between, levels, a grey, levels of the hint, numbers again.
const BYTES_A_PIXEL: usize = 3 * 4 + 3 + 1 + 3 + 3 * 4;

/// Levels [height, width, 3].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    pub pixels: Vec<u8>,
    pub width: usize,
}

impl Levels {
    pub fn height(&self) -> usize {
        self.pixels.len() / (3 * self.width)
    }

    fn grey(&self) -> Vec<u8> {
        self.pixels.chunks_exact(3).map(|p| grey(p[0], p[1], p[2])).collect()
    }

    fn of_grey(levels: impl IntoIterator<Item = u8>, width: usize) -> Levels {
        Levels { pixels: levels.into_iter().flat_map(|level| [level; 3]).collect(), width }
    }

    /// The picture with `resolution` pixels on its shorter side: shrunk by areas, enlarged by a cubic.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn resized(&self, resolution: usize) -> Result<Levels, Undone> {
        let (height, width) = (self.height(), self.width);
        let factor = resolution as f64 / height.min(width) as f64;
        let times = |side: usize| ((side as f64 * factor).round_ties_even() as usize).max(1);
        let (to_height, to_width) = (times(height), times(width));
        ask("the hint", &[to_height, to_width], BYTES_A_PIXEL)?;
        let pixels = if factor > 1.0 {
            let shape = Shape { batch: 1, height, width, channels: 3 };
            let values = from_levels(&self.pixels);
            let values = interpolate(&values, shape, (to_height, to_width), Mode::Bicubic)?;
            // To nearest, as OpenCV does.
            values.iter().map(|value| (value * 255.0).round_ties_even() as u8).collect()
        } else {
            area(&self.pixels, (height, width, 3), (to_height, to_width))?
        };
        Ok(Levels { pixels, width: to_width })
    }
}

impl Levels {
    /// The picture with about `resolution` pixels on its longer side, both sides multiples of 64: shrunk by areas, enlarged by Lanczos'
    /// filter. So Kosmos-G's authors bring a hint to size.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn resized_to_64s(&self, resolution: usize) -> Result<Levels, Undone> {
        let (height, width) = (self.height(), self.width);
        let factor = resolution as f64 / height.max(width) as f64;
        let times =
            |side: usize| ((side as f64 * factor / 64.0).round_ties_even() as usize).max(1) * 64;
        let (to_height, to_width) = (times(height), times(width));
        ask("the hint", &[to_height, to_width], BYTES_A_PIXEL)?;
        let (from, to) = ((height, width, 3), (to_height, to_width));
        let pixels = match (height, width) == to {
            true => self.pixels.clone(),
            false if factor > 1.0 => lanczos4(&self.pixels, from, to)?,
            false => area_to(&self.pixels, from, to)?,
        };
        Ok(Levels { pixels, width: to_width })
    }
}

/// White where the picture is brighter than `threshold`, black elsewhere; 0 and 255 stand for the threshold that Otsu's method finds.
pub fn binary(picture: &Levels, threshold: u8) -> Levels {
    let greys = picture.grey();
    let threshold = if matches!(threshold, 0 | 255) { otsu(&greys) } else { threshold };
    let white = greys.iter().map(|level| if *level > threshold { 255 } else { 0 });
    Levels::of_grey(white, picture.width)
}

/// A drawn scribble made hard: black where a channel is below 127, white elsewhere.
pub fn scribble(picture: &Levels) -> Levels {
    let white = |p: &[u8]| if p.iter().all(|level| *level >= 127) { 255 } else { 0 };
    Levels::of_grey(picture.pixels.chunks_exact(3).map(white), picture.width)
}

/// White strokes on black where a picture is darker than around: the difference of two Gaussians, sigma 0.5 and 5 pixels, above half of
/// `threshold` in one channel. After Winnemöller, Kyprianidis and Olsen, "XDoG" (2012), in the form that scribble ControlNets know.
///
/// # Errors
/// As [`blur`].
pub fn xdog(picture: &Levels, threshold: u8) -> Result<Levels, Undone> {
    let shape = Shape { batch: 1, height: picture.height(), width: picture.width, channels: 3 };
    let values: Vec<f32> = picture.pixels.iter().map(|level| f32::from(*level)).collect();
    let narrow = blur(&values, shape, &opencv_kernel(0.5))?;
    let wide = blur(&values, shape, &opencv_kernel(5.0))?;
    let strokes = wide.chunks_exact(3).zip(narrow.chunks_exact(3)).map(|(wide, narrow)| {
        let differences = wide.iter().zip(narrow).map(|(wide, narrow)| wide - narrow);
        let smallest = differences.fold(f32::INFINITY, f32::min);
        // The fraction is dropped before it is compared.
        let brightness = (255.0 - smallest).clamp(0.0, 255.0) as u8;
        if 2 * u32::from(255 - brightness) > u32::from(threshold) { 255 } else { 0 }
    });
    Ok(Levels::of_grey(strokes, picture.width))
}

/// A blurred picture for the tile ControlNet: shrunk 2^`halvings` times and enlarged again by as many steps of the Gaussian pyramid. Sides
/// become multiples of 64.
///
/// # Errors
/// [`Undone`].
pub fn tile(picture: &Levels, halvings: u32) -> Result<Levels, Undone> {
    let side = |side: usize| ((side as f64 / 64.0).round_ties_even() as usize).max(1) * 64;
    let small = |side: usize| (side >> halvings.min(31)).max(1);
    let (mut height, mut width) = (small(side(picture.height())), small(side(picture.width)));
    // A side that is smaller than its small one is enlarged, which areas do not do.
    let (from_height, from_width) = (picture.height(), picture.width);
    let mut pixels = if height <= from_height && width <= from_width {
        area(&picture.pixels, (from_height, from_width, 3), (height, width))?
    } else {
        let shape = Shape { batch: 1, height: from_height, width: from_width, channels: 3 };
        let values = from_levels(&picture.pixels);
        let values = interpolate(&values, shape, (height, width), Mode::Bilinear)?;
        values.iter().map(|value| (value * 255.0).round_ties_even() as u8).collect()
    };
    for _ in 0..halvings {
        // Rows of doubled length in 32 bits lie between.
        ask("the hint", &[height, 2 * width, 3], 4 + 2)?;
        pixels = pyramid_up(&pixels, (height, width, 3))?;
        (height, width) = (2 * height, 2 * width);
    }
    Ok(Levels { pixels, width })
}

/// The level that divides the greys into two groups whose means are farthest apart, weighted by their sizes. N. Otsu, "A Threshold
/// Selection Method from Gray-Level Histograms" (1979).
fn otsu(greys: &[u8]) -> u8 {
    let mut histogram = [0u64; 256];
    greys.iter().for_each(|level| histogram[usize::from(*level)] += 1);
    let total = greys.len() as f64;
    let sum: f64 = (0u32..).zip(histogram).map(|(level, n)| f64::from(level) * n as f64).sum();
    let (mut below, mut below_sum) = (0.0, 0.0);
    let (mut best, mut largest) = (0, 0.0);
    for (level, n) in (0u8..=255).zip(histogram) {
        below += n as f64;
        below_sum += f64::from(level) * n as f64;
        let above = total - below;
        if below == 0.0 || above == 0.0 {
            continue;
        }
        let apart = below_sum / below - (sum - below_sum) / above;
        let variance = below * above * apart * apart;
        if variance > largest {
            (best, largest) = (level, variance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_greys_are_divided_between_them() {
        let greys: Vec<u8> = (0..100).map(|i| if i < 40 { 30 } else { 200 }).collect();
        let threshold = otsu(&greys);
        assert!((30..200).contains(&threshold), "{threshold}");
        assert_eq!(otsu(&[7; 5]), 0);
    }

    #[test]
    fn a_dark_line_becomes_a_stroke() {
        let width = 32;
        let pixels = (0..32 * 32).flat_map(|i| [if i % width == 16 { 0u8 } else { 255 }; 3]);
        let picture = Levels { pixels: pixels.collect(), width };
        let strokes = xdog(&picture, 32).unwrap();
        assert_eq!(strokes.pixels[3 * 16..][..3], [255; 3]);
        assert_eq!(strokes.pixels[..3], [0; 3]);
        let scribbled = scribble(&picture);
        assert_eq!((scribbled.pixels[0], scribbled.pixels[3 * 16]), (255, 0));
    }

    proptest! {
        #[test]
        fn any_size_has_hints(
            (width, pixels) in (1usize..20, 1usize..20)
                .prop_flat_map(|(w, h)| (Just(w), prop::collection::vec(any::<u8>(), w * h * 3))),
            threshold in any::<u8>(), halvings in 1u32..11, resolution in 1usize..70,
        ) {
            let picture = Levels { pixels, width };
            let pixels = picture.pixels.len();
            prop_assert_eq!(binary(&picture, threshold).pixels.len(), pixels);
            prop_assert_eq!(xdog(&picture, threshold).unwrap().pixels.len(), pixels);
            let tiled = tile(&picture, halvings).unwrap();
            prop_assert!(tiled.width >= 64 && tiled.height() >= 64);
            let resized = picture.resized(resolution).unwrap();
            prop_assert_eq!(resized.width.min(resized.height()), resolution);
        }
    }
}
