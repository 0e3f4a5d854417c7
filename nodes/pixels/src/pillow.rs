//! Pillow's picture resize, level for level.
//!
//! Kosmos-G's pictures went through `PIL.Image.resize`, and so do ComfyUI's: an antialiased separable convolution, first along rows, then
//! along columns, each pass in 22-bit fixed point and rounded to 8 bits. Any other bicubic moves pixels by one or two levels, which a
//! vision transformer sees. Follows `src/libImaging/Resample.c` and, for nearest, `Geometry.c`, as they were from Pillow 3.3 to 12. (13.0
//! begins with the columns where a picture loses much of its height, which moves some of its pixels by a few levels.)

use std::ops::Range;

use kosmograph_memory::{ask, filled};

pub use crate::reduce::Filter;
use crate::reduce::shares;
use crate::work::{Undone, each_row};

/// A part of the resized picture, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// An 8-bit picture whose channels are interleaved: `pixels` is [height, width, channels].
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    pub pixels: &'a [u8],
    pub width: usize,
    pub height: usize,
    pub channels: usize,
}

/// Resizes to `to_width` × `to_height` pixels, as Pillow does for the modes `L`, `RGB`, `CMYK`: channels do not mix.
///
/// Returns [to_height, to_width, channels].
///
/// # Errors
/// [`Undone`].
pub fn resize(
    picture: Picture,
    to_width: usize,
    to_height: usize,
    filter: Filter,
) -> Result<Vec<u8>, Undone> {
    let all = Window { left: 0, top: 0, width: to_width, height: to_height };
    resize_window(picture, to_width, to_height, all, filter)
}

/// The same for the mode `RGBA`: colours are multiplied by the fourth channel, resized, and divided, so that those of transparent pixels
/// do not bleed. (For [`Filter::Nearest`] Pillow does not, and [`resize`] is the one to call.)
///
/// # Errors
/// [`Undone`].
pub fn resize_rgba(
    pixels: &[u8],
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>, Undone> {
    let multiplied: Vec<u8> = pixels
        .chunks_exact(4)
        .flat_map(|p| [by_alpha(p[0], p[3]), by_alpha(p[1], p[3]), by_alpha(p[2], p[3]), p[3]])
        .collect();
    let picture = Picture { pixels: &multiplied, width, height, channels: 4 };
    let mut resized = resize(picture, to_width, to_height, filter)?;
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

/// The `window` of what [`resize`] would return, computing no other pixel: a strip of 1 × 30,000 pixels whose short edge grows to 224
/// would be millions of pixels long, of which a centre crop wants 224.
///
/// Returns [window.height, window.width, channels].
///
/// # Errors
/// [`Undone`].
pub fn resize_window(
    picture: Picture,
    to_width: usize,
    to_height: usize,
    window: Window,
    filter: Filter,
) -> Result<Vec<u8>, Undone> {
    let Picture { pixels, width, height, channels } = picture;
    if [width, height, channels, to_width, to_height].contains(&0) {
        return Err(Undone::Empty { from_width: width, from_height: height, to_width, to_height });
    }
    let bytes = width.checked_mul(height).and_then(|area| area.checked_mul(channels));
    if bytes != Some(pixels.len()) {
        return Err(Undone::Length { width, height, channels, found: pixels.len() });
    }
    let within = |start: usize, length: usize, whole: usize| {
        length > 0 && start.checked_add(length).is_some_and(|end| end <= whole)
    };
    if !within(window.left, window.width, to_width) || !within(window.top, window.height, to_height)
    {
        return Err(Undone::Window {
            left: window.left,
            top: window.top,
            width: window.width,
            height: window.height,
            to_width,
            to_height,
        });
    }

    if filter == Filter::Nearest {
        return nearest(picture, to_width, to_height, window);
    }
    // Pillow leaves out a pass that would change no size; the pass with unit weights gives the same pixels.
    let columns = Taps::new(width, to_width, window.left..window.left + window.width, filter);
    let rows = Taps::new(height, to_height, window.top..window.top + window.height, filter);
    let (first_row, end_row) = rows.reach();
    let used = end_row - first_row;
    ask("the scaled pictures", &[used + window.height, window.width, channels], 1)?;
    let row_bytes = width * channels;
    let pixels = &pixels[first_row * row_bytes..end_row * row_bytes];
    let narrowed = resize_rows(pixels, width, channels, &columns)?;
    resize_columns(&narrowed, window.width * channels, first_row, &rows)
}

/// Bits after the point of a weight: 32 less 8 for the pixel and 2 for the sum's overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The source pixels that make each output pixel along one axis, with their weights.
struct Taps {
    /// For each output pixel: its first source pixel and its range in `weights`.
    spans: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(from: usize, to: usize, outs: Range<usize>, filter: Filter) -> Taps {
        let mut spans = Vec::with_capacity(outs.len());
        let mut weights = Vec::new();
        for (first, shares) in shares(from, to, outs, filter) {
            let begin = weights.len();
            weights.extend(shares.map(|share| {
                let scaled = share * f64::from(1u32 << PRECISION_BITS);
                (scaled + 0.5f64.copysign(scaled)) as i32
            }));
            spans.push((first, begin..weights.len()));
        }
        Taps { spans, weights }
    }

    /// First and one past the last source pixel that any output pixel needs.
    fn reach(&self) -> (usize, usize) {
        let first = self.spans.iter().map(|(first, _)| *first).min();
        let end = self.spans.iter().map(|(first, span)| first + span.len());
        (first.unwrap_or(0), end.max().unwrap_or(0))
    }
}

/// One half, so that the shift right rounds to nearest.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn clip8(sum: i32) -> u8 {
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
    let out_bytes = columns.spans.len() * channels;
    let mut out = vec![0; rows * out_bytes];
    each_row(&mut out, out_bytes, |i, out| {
        let row = &pixels[i * width * channels..][..width * channels];
        for (pixel, (first, span)) in out.chunks_mut(channels).zip(&columns.spans) {
            let weights = &columns.weights[span.clone()];
            for (channel, value) in pixel.iter_mut().enumerate() {
                let source = row[first * channels + channel..].iter().step_by(channels);
                let sum = source
                    .zip(weights)
                    .map(|(source, weight)| i32::from(*source) * weight)
                    .fold(HALF, i32::wrapping_add);
                *value = clip8(sum);
            }
        }
    })?;
    Ok(out)
}

/// [rows, row_bytes], of which the first is row `first_row` of the picture, → [taps, row_bytes].
fn resize_columns(
    pixels: &[u8],
    row_bytes: usize,
    first_row: usize,
    rows: &Taps,
) -> Result<Vec<u8>, Undone> {
    let mut out = vec![0; rows.spans.len() * row_bytes];
    each_row(&mut out, row_bytes, |i, out| {
        let (first, span) = &rows.spans[i];
        let mut sums = vec![HALF; row_bytes];
        for (offset, weight) in rows.weights[span.clone()].iter().enumerate() {
            let row = &pixels[(first + offset - first_row) * row_bytes..][..row_bytes];
            for (sum, source) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i32::from(*source) * weight);
            }
        }
        for (value, sum) in out.iter_mut().zip(&sums) {
            *value = clip8(*sum);
        }
    })?;
    Ok(out)
}

fn nearest(
    picture: Picture,
    to_width: usize,
    to_height: usize,
    window: Window,
) -> Result<Vec<u8>, Undone> {
    let Picture { pixels, width, height, channels } = picture;
    let columns = nearest_positions(width, to_width, window.left, window.width);
    let rows = nearest_positions(height, to_height, window.top, window.height);
    let mut out = filled("the scaled pictures", &[window.height, window.width, channels], 0)?;
    each_row(&mut out, window.width * channels, |y, out| {
        for (out, column) in out.chunks_mut(channels).zip(&columns) {
            let start = (rows[y] * width + column) * channels;
            out.copy_from_slice(&pixels[start..start + channels]);
        }
    })?;
    Ok(out)
}

/// Pillow steps along the source by adding the scale again and again; where the sum meets a pixel's
/// edge its rounding decides, so the additions are repeated here and not multiplied.
fn nearest_positions(from: usize, to: usize, start: usize, length: usize) -> Vec<usize> {
    let scale = from as f64 / to as f64;
    let mut position = scale * 0.5;
    let mut positions = Vec::with_capacity(length);
    for out in 0..start + length {
        if out >= start {
            positions.push((position as usize).min(from - 1));
        }
        position += scale;
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILTERS: [Filter; 6] = [
        Filter::Nearest,
        Filter::Box,
        Filter::Bilinear,
        Filter::Hamming,
        Filter::Bicubic,
        Filter::Lanczos,
    ];

    fn picture(pixels: &[u8], width: usize, height: usize, channels: usize) -> Picture<'_> {
        Picture { pixels, width, height, channels }
    }

    /// A picture without symmetry, the same as in `tests/data/make.py`.
    fn pattern(width: usize, height: usize) -> Vec<u8> {
        (0..width * height).map(|i| ((i * i * 7 + i * 31) % 256) as u8).collect()
    }

    #[test]
    fn a_wrong_length_is_named() {
        let error = resize(picture(&[0; 11], 2, 2, 3), 1, 1, Filter::Box).unwrap_err();
        assert!(error.to_string().contains("has 12 bytes, but 11"), "{error}");
        let empty = resize(picture(&[], 0, 2, 3), 1, 1, Filter::Box).unwrap_err();
        assert!(matches!(empty, Undone::Empty { .. }));
        let window = Window { left: 3, top: 0, width: 2, height: 1 };
        let outside = resize_window(picture(&[0; 12], 2, 2, 3), 4, 4, window, Filter::Box);
        assert!(matches!(outside, Err(Undone::Window { .. })));
    }

    proptest! {
        #[test]
        fn the_same_size_is_the_same_picture(width in 1usize..20, height in 1usize..20, which in 0usize..5) {
            let pixels = pattern(width, height);
            let out = resize(picture(&pixels, width, height, 1), width, height, FILTERS[which]).unwrap();
            prop_assert_eq!(out, pixels);
        }

        #[test]
        fn a_plain_picture_stays_plain(
            width in 1usize..40, height in 1usize..40, to_width in 1usize..60, to_height in 1usize..60,
            level in any::<u8>(), which in 0usize..5,
        ) {
            let pixels = vec![level; width * height * 3];
            let out = resize(picture(&pixels, width, height, 3), to_width, to_height, FILTERS[which]).unwrap();
            prop_assert_eq!(out, vec![level; to_width * to_height * 3]);
        }

        #[test]
        fn a_window_is_cut_from_the_whole(
            width in 1usize..30, height in 1usize..30, to_width in 1usize..50, to_height in 1usize..50,
            left in 0.0f64..1.0, top in 0.0f64..1.0, which in 0usize..5,
        ) {
            let pixels = pattern(width * 3, height);
            let source = picture(&pixels, width, height, 3);
            let (left, top) = ((left * to_width as f64) as usize, (top * to_height as f64) as usize);
            let window = Window { left, top, width: to_width - left, height: (to_height - top).div_ceil(2) };
            let whole = resize(source, to_width, to_height, FILTERS[which]).unwrap();
            let part = resize_window(source, to_width, to_height, window, FILTERS[which]).unwrap();
            for (row, out) in part.chunks(window.width * 3).enumerate() {
                let start = ((window.top + row) * to_width + window.left) * 3;
                prop_assert_eq!(out, &whole[start..start + window.width * 3]);
            }
        }
    }
}
