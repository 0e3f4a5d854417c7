//! Pillow's Lanczos resize, bit for bit: ComfyUI scales through it, in 8 bits.
//!
//! A separable convolution with sinc(x) · sinc(x / 3), stretched when shrinking; first along rows, then along columns, each pass with
//! weights of 22 bits after the point and rounded to 8 bits. Follows `src/libImaging/Resample.c` as it was from Pillow 3.3 to 12;
//! Pillow 13.0 begins with the columns where a picture loses much of its height, which moves some pixels by a few levels. (The model
//! library has Pillow's other filters as well, but links a tensor library; this one does not.)

use std::f64::consts::PI;
use std::ops::Range;

use node::memory::ask;

use crate::work::{Undone, each_row};

/// [height, width, channels] → [to_height, to_width, channels], channels each for itself, as Pillow's modes `L` and `RGB`.
///
/// `pixels` holds width · height · channels values and no size is 0.
///
/// # Errors
/// [`Undone`].
pub fn lanczos(
    pixels: &[u8],
    (width, channels): (usize, usize),
    (to_height, to_width): (usize, usize),
) -> Result<Vec<u8>, Undone> {
    let height = pixels.len() / (width * channels);
    ask("the scaled pictures", &[height + to_height, to_width, channels], 1)?;
    let columns = Taps::new(width, to_width);
    let rows = Taps::new(height, to_height);
    let narrowed = resize_rows(pixels, width, channels, &columns)?;
    resize_columns(&narrowed, to_width * channels, &rows)
}

/// The same for pictures whose fourth channel is alpha: Pillow's mode `RGBA` multiplies the colours by alpha, resizes, and divides, so
/// that the colours of transparent pixels do not bleed.
///
/// # Errors
/// [`Undone`].
pub fn lanczos_rgba(pixels: &[u8], width: usize, to: (usize, usize)) -> Result<Vec<u8>, Undone> {
    let multiplied: Vec<u8> = pixels
        .chunks_exact(4)
        .flat_map(|p| [by_alpha(p[0], p[3]), by_alpha(p[1], p[3]), by_alpha(p[2], p[3]), p[3]])
        .collect();
    let mut resized = lanczos(&multiplied, (width, 4), to)?;
    for pixel in resized.chunks_exact_mut(4) {
        let alpha = u32::from(pixel[3]);
        if alpha != 0 && alpha != 255 {
            for colour in &mut pixel[..3] {
                *colour = (255 * u32::from(*colour) / alpha).min(255) as u8;
            }
        }
    }
    Ok(resized)
}

/// colour · alpha / 255, rounded to nearest.
fn by_alpha(colour: u8, alpha: u8) -> u8 {
    let product = u32::from(colour) * u32::from(alpha) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Bits after the point of a weight: 32 less 8 for the pixel and 2 for the sum's overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// One half, so that the shift right rounds to nearest.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// The source pixels that make each output pixel along one axis, with their weights.
struct Taps {
    /// For each output pixel: its first source pixel and its range in `weights`.
    spans: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(from: usize, to: usize) -> Taps {
        let scale = from as f64 / to as f64;
        // Shrinking stretches the filter over the source pixels that fall together: this is the antialiasing.
        let stretch = scale.max(1.0);
        let support = 3.0 * stretch;
        let mut spans = Vec::with_capacity(to);
        let mut weights = Vec::new();
        for out in 0..to {
            let centre = (out as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let exact: Vec<f64> =
                (first..end).map(|x| weight((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = exact.iter().sum();
            let begin = weights.len();
            weights.extend(exact.iter().map(|weight| {
                let normalised = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = normalised * f64::from(1u32 << PRECISION_BITS);
                (scaled + 0.5f64.copysign(scaled)) as i32
            }));
            spans.push((first, begin..weights.len()));
        }
        Taps { spans, weights }
    }
}

fn weight(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// [rows, width, channels] → [rows, columns, channels].
fn resize_rows(
    pixels: &[u8],
    width: usize,
    channels: usize,
    columns: &Taps,
) -> Result<Vec<u8>, Undone> {
    let rows = pixels.len() / (width * channels);
    let out_row = columns.spans.len() * channels;
    let mut out = vec![0; rows * out_row];
    each_row(&mut out, out_row, |i, out| {
        let row = &pixels[i * width * channels..][..width * channels];
        for (pixel, (first, span)) in out.chunks_mut(channels).zip(&columns.spans) {
            let weights = &columns.weights[span.clone()];
            for (channel, value) in pixel.iter_mut().enumerate() {
                let source = row[first * channels + channel..].iter().step_by(channels);
                let products =
                    source.zip(weights).map(|(level, weight)| i32::from(*level) * weight);
                *value = clip(products.fold(HALF, i32::wrapping_add));
            }
        }
    })?;
    Ok(out)
}

/// [rows, row] → [taps, row].
fn resize_columns(pixels: &[u8], row: usize, rows: &Taps) -> Result<Vec<u8>, Undone> {
    let mut out = vec![0; rows.spans.len() * row];
    each_row(&mut out, row, |i, out| {
        let (first, span) = &rows.spans[i];
        let mut sums = vec![HALF; row];
        let sources = pixels.chunks(row).skip(*first);
        for (source, weight) in sources.zip(&rows.weights[span.clone()]) {
            for (sum, level) in sums.iter_mut().zip(source) {
                *sum = sum.wrapping_add(i32::from(*level) * weight);
            }
        }
        for (value, sum) in out.iter_mut().zip(&sums) {
            *value = clip(*sum);
        }
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_same_size_is_the_same_picture(
            (width, pixels) in (1usize..12, 1usize..12)
                .prop_flat_map(|(w, h)| (Just(w), prop::collection::vec(any::<u8>(), w * h * 3))),
        ) {
            let height = pixels.len() / width / 3;
            prop_assert_eq!(lanczos(&pixels, (width, 3), (height, width)).unwrap(), pixels);
        }

        #[test]
        fn a_plain_picture_stays_plain(
            width in 1usize..30, height in 1usize..30, to_width in 1usize..50, to_height in 1usize..50,
            level in any::<u8>(),
        ) {
            let pixels = vec![level; width * height];
            let out = lanczos(&pixels, (width, 1), (to_height, to_width)).unwrap();
            prop_assert_eq!(out, vec![level; to_width * to_height]);
        }
    }
}
