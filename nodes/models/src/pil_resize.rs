//! Pillow's picture resize, bit for bit.
//!
//! Kosmos-G's pictures went through `PIL.Image.resize`, and so do ComfyUI's: an antialiased
//! separable convolution, first along rows, then along columns, each pass in 22-bit fixed point and
//! rounded to 8 bits. Any other bicubic moves pixels by one or two levels, which a vision
//! transformer sees. Follows `src/libImaging/Resample.c` and, for nearest, `Geometry.c` (Pillow
//! 13).
//!
//! Plain slices in and out: nothing here knows of tensors.

use std::f64::consts::PI;

use rayon::prelude::*;

/// Which neighbours an output pixel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel under the centre of the output pixel. No antialiasing.
    Nearest,
    /// The mean over the area of the output pixel (`BOX`; "area" in ComfyUI).
    Box,
    /// A triangle, one source pixel to each side.
    Bilinear,
    /// Keys' cubic with a = -0.5, two source pixels to each side.
    Bicubic,
    /// A sinc windowed by a sinc, three source pixels to each side.
    Lanczos,
}

impl Filter {
    /// How far the filter reaches, in source pixels at scale one.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

/// Why a picture could not be resized.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResizeError {
    /// The slice is not width · height · channels bytes long.
    #[error("a picture of {width} x {height} pixels with {channels} channels has {} bytes, but {found} were given", width * height * channels)]
    Length { width: usize, height: usize, channels: usize, found: usize },
    /// A picture without pixels, on either side.
    #[error(
        "a picture cannot be resized from {from_width} x {from_height} to {to_width} x {to_height} pixels: every side needs at least one pixel"
    )]
    Empty { from_width: usize, from_height: usize, to_width: usize, to_height: usize },
    /// The window reaches beyond the resized picture.
    #[error(
        "the window of {width} x {height} pixels at ({left}, {top}) does not lie within the resized picture of {to_width} x {to_height} pixels"
    )]
    Window {
        left: usize,
        top: usize,
        width: usize,
        height: usize,
        to_width: usize,
        to_height: usize,
    },
}

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

/// Resizes to `to_width` × `to_height` pixels, as Pillow does for the modes `L`, `RGB`, `CMYK`:
/// channels do not mix. (Pillow multiplies the colours of `RGBA` by alpha first; whoever has alpha
/// does the same before and divides after.)
///
/// Returns [to_height, to_width, channels].
pub fn pil_resize(
    picture: Picture,
    to_width: usize,
    to_height: usize,
    filter: Filter,
) -> Result<Vec<u8>, ResizeError> {
    let all = Window { left: 0, top: 0, width: to_width, height: to_height };
    pil_resize_window(picture, to_width, to_height, all, filter)
}

/// The `window` of what [`pil_resize`] would return, computing no other pixel: a strip of 1 ×
/// 30,000 pixels whose short edge grows to 224 would be millions of pixels long, of which a centre
/// crop wants 224.
///
/// Returns [window.height, window.width, channels].
pub fn pil_resize_window(
    picture: Picture,
    to_width: usize,
    to_height: usize,
    window: Window,
    filter: Filter,
) -> Result<Vec<u8>, ResizeError> {
    let Picture { pixels, width, height, channels } = picture;
    if [width, height, channels, to_width, to_height].contains(&0) {
        return Err(ResizeError::Empty {
            from_width: width,
            from_height: height,
            to_width,
            to_height,
        });
    }
    let bytes = width.checked_mul(height).and_then(|area| area.checked_mul(channels));
    if bytes != Some(pixels.len()) {
        return Err(ResizeError::Length { width, height, channels, found: pixels.len() });
    }
    let within = |start: usize, length: usize, whole: usize| {
        length > 0 && start.checked_add(length).is_some_and(|end| end <= whole)
    };
    if !within(window.left, window.width, to_width) || !within(window.top, window.height, to_height)
    {
        return Err(ResizeError::Window {
            left: window.left,
            top: window.top,
            width: window.width,
            height: window.height,
            to_width,
            to_height,
        });
    }

    if filter == Filter::Nearest {
        return Ok(nearest(picture, to_width, to_height, window));
    }
    // Pillow leaves out a pass that would change no size; the pass with unit weights gives the same
    // pixels.
    let columns = Taps::new(width, to_width, window.left, window.width, filter);
    let rows = Taps::new(height, to_height, window.top, window.height, filter);
    let (first_row, end_row) = rows.reach();
    let row_bytes = width * channels;
    let narrowed =
        resize_rows(&pixels[first_row * row_bytes..end_row * row_bytes], width, channels, &columns);
    Ok(resize_columns(&narrowed, window.width * channels, first_row, &rows))
}

/// Bits after the point of a weight: 32 less 8 for the pixel and 2 for the sum's overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The source pixels that make each output pixel along one axis, with their weights.
struct Taps {
    /// For each output pixel: its first source pixel and its range in `weights`.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(from: usize, to: usize, start: usize, length: usize, filter: Filter) -> Taps {
        let scale = from as f64 / to as f64;
        // Shrinking stretches the filter over the source pixels that fall together: this is the
        // antialiasing.
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let mut spans = Vec::with_capacity(length);
        let mut weights = Vec::new();
        for out in start..start + length {
            let centre = (out as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let exact: Vec<f64> = (first..end)
                .map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
                .collect();
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
fn resize_rows(pixels: &[u8], width: usize, channels: usize, columns: &Taps) -> Vec<u8> {
    let rows = pixels.len() / (width * channels);
    let out_bytes = columns.spans.len() * channels;
    let mut out = vec![0; rows * out_bytes];
    out.par_chunks_mut(out_bytes).zip(pixels.par_chunks(width * channels)).for_each(
        |(out, row)| {
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
        },
    );
    out
}

/// [rows, row_bytes], of which the first is row `first_row` of the picture, → [taps, row_bytes].
fn resize_columns(pixels: &[u8], row_bytes: usize, first_row: usize, rows: &Taps) -> Vec<u8> {
    let mut out = vec![0; rows.spans.len() * row_bytes];
    out.par_chunks_mut(row_bytes).zip(&rows.spans).for_each(|(out, (first, span))| {
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
    });
    out
}

fn nearest(picture: Picture, to_width: usize, to_height: usize, window: Window) -> Vec<u8> {
    let Picture { pixels, width, height, channels } = picture;
    let columns = nearest_positions(width, to_width, window.left, window.width);
    let rows = nearest_positions(height, to_height, window.top, window.height);
    let mut out = Vec::with_capacity(window.width * window.height * channels);
    for row in rows {
        for column in &columns {
            let start = (row * width + column) * channels;
            out.extend_from_slice(&pixels[start..start + channels]);
        }
    }
    out
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

    const FILTERS: [Filter; 5] =
        [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    fn picture(pixels: &[u8], width: usize, height: usize, channels: usize) -> Picture<'_> {
        Picture { pixels, width, height, channels }
    }

    /// A picture without symmetry, the same as in the script that made the numbers below.
    fn pattern(width: usize, height: usize) -> Vec<u8> {
        (0..width * height).map(|i| ((i * i * 7 + i * 31) % 256) as u8).collect()
    }

    #[test]
    fn the_pixels_are_pillows() {
        type Case = (Filter, (usize, usize), (usize, usize), &'static [u8]);
        let cases: &[Case] = &[
            (
                Filter::Nearest,
                (9, 7),
                (4, 3),
                &[242, 100, 14, 240, 212, 62, 224, 186, 110, 208, 106, 60],
            ),
            (
                Filter::Nearest,
                (5, 4),
                (8, 7),
                &[
                    0, 0, 38, 90, 90, 156, 236, 236, 0, 0, 38, 90, 90, 156, 236, 236, 74, 74, 182,
                    48, 48, 184, 78, 78, 74, 74, 182, 48, 48, 184, 78, 78, 242, 242, 164, 100, 100,
                    50, 14, 14, 248, 248, 240, 246, 246, 10, 44, 44, 248, 248, 240, 246, 246, 10,
                    44, 44,
                ],
            ),
            (
                Filter::Box,
                (9, 7),
                (4, 3),
                &[90, 133, 130, 180, 126, 104, 162, 138, 122, 118, 112, 78],
            ),
            (
                Filter::Box,
                (5, 4),
                (8, 7),
                &[
                    0, 0, 38, 90, 90, 156, 236, 236, 0, 0, 38, 90, 90, 156, 236, 236, 74, 74, 182,
                    48, 48, 184, 78, 78, 242, 242, 164, 100, 100, 50, 14, 14, 242, 242, 164, 100,
                    100, 50, 14, 14, 248, 248, 240, 246, 246, 10, 44, 44, 248, 248, 240, 246, 246,
                    10, 44, 44,
                ],
            ),
            (
                Filter::Bilinear,
                (9, 7),
                (4, 3),
                &[92, 131, 121, 172, 125, 105, 150, 151, 128, 123, 115, 92],
            ),
            (
                Filter::Bilinear,
                (5, 4),
                (8, 7),
                &[
                    0, 17, 41, 74, 111, 152, 201, 236, 26, 54, 89, 80, 104, 161, 173, 180, 69, 114,
                    165, 89, 92, 174, 129, 89, 158, 165, 167, 105, 88, 115, 77, 46, 242, 211, 166,
                    129, 90, 51, 30, 16, 246, 232, 211, 200, 141, 35, 29, 33, 248, 245, 240, 244,
                    172, 25, 29, 44,
                ],
            ),
            (
                Filter::Bicubic,
                (9, 7),
                (4, 3),
                &[85, 135, 120, 176, 129, 100, 155, 150, 132, 120, 115, 91],
            ),
            (
                Filter::Bicubic,
                (5, 4),
                (8, 7),
                &[
                    0, 3, 30, 72, 111, 149, 214, 255, 13, 42, 84, 72, 100, 165, 187, 192, 57, 115,
                    174, 76, 80, 185, 134, 80, 161, 174, 174, 90, 73, 122, 72, 28, 254, 218, 163,
                    125, 88, 47, 23, 11, 255, 239, 215, 215, 152, 24, 17, 33, 249, 247, 246, 255,
                    189, 15, 18, 49,
                ],
            ),
            (
                Filter::Lanczos,
                (9, 7),
                (4, 3),
                &[79, 138, 116, 176, 132, 99, 156, 152, 133, 117, 118, 89],
            ),
            (
                Filter::Lanczos,
                (5, 4),
                (8, 7),
                &[
                    0, 0, 24, 75, 109, 142, 216, 255, 3, 40, 84, 73, 97, 169, 196, 194, 48, 119,
                    172, 75, 78, 184, 142, 77, 162, 187, 176, 75, 62, 126, 70, 6, 255, 220, 161,
                    126, 92, 45, 20, 15, 255, 238, 215, 217, 153, 19, 6, 41, 243, 240, 253, 255,
                    191, 20, 11, 62,
                ],
            ),
        ];
        for (filter, (width, height), (to_width, to_height), expected) in cases {
            let pixels = pattern(*width, *height);
            let out =
                pil_resize(picture(&pixels, *width, *height, 1), *to_width, *to_height, *filter);
            assert_eq!(
                out.unwrap(),
                *expected,
                "{filter:?} {width}x{height} -> {to_width}x{to_height}"
            );
        }
    }

    #[test]
    fn a_wrong_length_is_named() {
        let error = pil_resize(picture(&[0; 11], 2, 2, 3), 1, 1, Filter::Box).unwrap_err();
        assert!(error.to_string().contains("has 12 bytes, but 11"), "{error}");
        let empty = pil_resize(picture(&[], 0, 2, 3), 1, 1, Filter::Box).unwrap_err();
        assert!(matches!(empty, ResizeError::Empty { .. }));
        let window = Window { left: 3, top: 0, width: 2, height: 1 };
        let outside = pil_resize_window(picture(&[0; 12], 2, 2, 3), 4, 4, window, Filter::Box);
        assert!(matches!(outside, Err(ResizeError::Window { .. })));
    }

    proptest! {
        #[test]
        fn the_same_size_is_the_same_picture(width in 1usize..20, height in 1usize..20, which in 0usize..5) {
            let pixels = pattern(width, height);
            let out = pil_resize(picture(&pixels, width, height, 1), width, height, FILTERS[which]).unwrap();
            prop_assert_eq!(out, pixels);
        }

        #[test]
        fn a_plain_picture_stays_plain(
            width in 1usize..40, height in 1usize..40, to_width in 1usize..60, to_height in 1usize..60,
            level in any::<u8>(), which in 0usize..5,
        ) {
            let pixels = vec![level; width * height * 3];
            let out = pil_resize(picture(&pixels, width, height, 3), to_width, to_height, FILTERS[which]).unwrap();
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
            let whole = pil_resize(source, to_width, to_height, FILTERS[which]).unwrap();
            let part = pil_resize_window(source, to_width, to_height, window, FILTERS[which]).unwrap();
            for (row, out) in part.chunks(window.width * 3).enumerate() {
                let start = ((window.top + row) * to_width + window.left) * 3;
                prop_assert_eq!(out, &whole[start..start + window.width * 3]);
            }
        }
    }
}
