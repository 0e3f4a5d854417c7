//! `torch.nn.functional.interpolate` in f32 with a given size and `align_corners=False`: what ComfyUI scales pictures, masks and latents
//! with, in every mode but Lanczos.
//!
//! The same to the bit as torch 2.15 on a processor with fused multiplication (all that have AVX2). Where torch rounds differs by mode
//! and size, and where two pixels are equally near one rounding decides which is taken:
//!
//! | mode | position on the axis | sum |
//! |---|---|---|
//! | nearest-exact | fused; direct: not | the pixel itself |
//! | bilinear | not fused; direct: fused | along rows, then columns, each `fma(a, w, b·v)`; direct: one sum of four pixels with products of weights |
//! | bicubic | fused | along rows, then columns, `fma(d, z, fma(c, y, fma(a, w, b·v)))` |
//! | area | whole pixels | row by row, divided by the height and then by the width |
//!
//! "Direct" are results of up to 128 pixels in width and height together, and interleaved pictures of more than three channels
//! (`_use_vectorized_kernel_cond_2d` of torch's `UpSampleKernel.cpp`). An average over a whole picture has another order of additions
//! in torch, which is not followed here.

use kosmograph_memory::filled;

pub use crate::reduce::Filter;
use crate::reduce::shares;
use crate::shape::Shape;
use crate::work::{Undone, each_row};

/// torch's `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The pixel under the centre of the output pixel.
    NearestExact,
    /// The two nearest on each axis. Shrinking by more than two skips pixels.
    Bilinear,
    /// The mean of all pixels that the output pixel touches.
    Area,
    /// Keys' cubic with a = -0.75 over four on each axis; overshoots 0..1 at edges.
    Bicubic,
}

impl Mode {
    /// The mode of that name in torch; `None` for a name that is none of these.
    pub fn named(name: &str) -> Option<Mode> {
        Some(match name {
            "nearest-exact" => Mode::NearestExact,
            "bilinear" => Mode::Bilinear,
            "area" => Mode::Area,
            "bicubic" => Mode::Bicubic,
            _ => return None,
        })
    }
}

/// Scales pictures [B, H, W, C] to [B, `height`, `width`, C]. No size is 0. Planes [B, C, H, W], as latents are, have the shape
/// [B · C, H, W, 1].
///
/// # Errors
/// [`Undone`].
pub fn interpolate(
    values: &[f32],
    shape: Shape,
    (height, width): (usize, usize),
    mode: Mode,
) -> Result<Vec<f32>, Undone> {
    let direct = is_direct(height, width, shape.channels);
    let axes = [(shape.height, height), (shape.width, width)];
    match mode {
        Mode::NearestExact => {
            let [rows, columns] = axes.map(|(from, to)| nearest(from, to, !direct));
            pick(values, shape, &rows, &columns)
        }
        Mode::Area => area(values, shape, (height, width)),
        Mode::Bilinear if direct => {
            let [rows, columns] = axes.map(|(from, to)| bilinear(from, to, true));
            four_at_once(values, shape, &rows, &columns)
        }
        Mode::Bilinear => {
            let [rows, columns] = axes.map(|(from, to)| bilinear(from, to, false));
            along_both(values, shape, &rows, &columns)
        }
        Mode::Bicubic => {
            let [rows, columns] = axes.map(|(from, to)| bicubic(from, to));
            along_both(values, shape, &rows, &columns)
        }
    }
}

/// For each pixel of [`Mode::NearestExact`]'s result its row and column in the source. No size is 0.
pub fn nearest_exact(
    (from_height, from_width): (usize, usize),
    (height, width): (usize, usize),
) -> (Vec<usize>, Vec<usize>) {
    let fused = !is_direct(height, width, 1);
    (nearest(from_height, height, fused), nearest(from_width, width, fused))
}

/// The two source pixels of each of `to` output pixels along one axis and how far it lies from the first to the second, in 0..=1: the
/// positions of [`Mode::Bilinear`]. No size is 0.
pub fn between(from: usize, to: usize) -> impl Iterator<Item = (usize, usize, f32)> {
    bilinear(from, to, true).into_iter().map(|[(first, _), (second, t)]| (first, second, t))
}

/// `interpolate(mode="bicubic", antialias=True)` of one axis: for each of the output pixels `outs` of `to`, the first source pixel and the
/// weights from there on. Keys' cubic with a = -0.5, stretched when shrinking. No size is 0.
pub fn antialiased_bicubic(
    from: usize,
    to: usize,
    outs: std::ops::Range<usize>,
) -> Vec<(usize, Vec<f32>)> {
    if from == to {
        return outs.map(|i| (i, vec![1.0])).collect();
    }
    let taps = shares(from, to, outs, Filter::Bicubic);
    taps.map(|(first, shares)| (first, shares.map(|share| share as f32).collect())).collect()
}

/// `interpolate(antialias=True)` of whole pictures [B, H, W, C] to [B, `height`, `width`, C], rows first: where a picture shrinks every pixel
/// of it counts. [`Filter::Bilinear`] and [`Filter::Bicubic`] are torch's. No size is 0.
///
/// # Errors
/// [`Undone`].
pub fn antialiased(
    values: &[f32],
    shape: Shape,
    (height, width): (usize, usize),
    filter: Filter,
) -> Result<Vec<f32>, Undone> {
    let taps = |from: usize, to: usize| -> Vec<(usize, Vec<f32>)> {
        if from == to {
            return (0..to).map(|i| (i, vec![1.0])).collect();
        }
        let taps = shares(from, to, 0..to, filter);
        taps.map(|(first, shares)| (first, shares.map(|share| share as f32).collect())).collect()
    };
    let channels = shape.channels;
    let across = Shape { width, ..shape };
    let columns = taps(shape.width, width);
    let mut between = across.zeros()?;
    each_row(&mut between, across.row(), |i, row| {
        let source = &values[i * shape.row()..][..shape.row()];
        for (pixel, (first, weights)) in row.chunks_exact_mut(channels).zip(&columns) {
            let source = source[first * channels..].chunks_exact(channels);
            for (source, weight) in source.zip(weights) {
                for (value, source) in pixel.iter_mut().zip(source) {
                    *value += weight * source;
                }
            }
        }
    })?;
    let to = Shape { height, ..across };
    let rows = taps(shape.height, height);
    let mut out = to.zeros()?;
    each_row(&mut out, to.row(), |i, row| {
        let (picture, y) = (i / height, i % height);
        let (first, weights) = &rows[y];
        for (line, weight) in (*first..).zip(weights) {
            let source = &between[picture * across.picture() + line * across.row()..];
            for (value, source) in row.iter_mut().zip(source) {
                *value += weight * source;
            }
        }
    })?;
    Ok(out)
}

fn is_direct(height: usize, width: usize, channels: usize) -> bool {
    height + width <= 128 || channels > 3
}

/// N source pixels and their weights.
type Taps<const N: usize> = [(usize, f32); N];

/// Where the output pixel's centre lies in the source, 0 being the centre of its first pixel.
fn position(from: usize, to: usize, fused: bool) -> impl Fn(usize) -> f32 {
    let scale = from as f32 / to as f32;
    move |out| {
        let centre = out as f32 + 0.5;
        if fused { scale.mul_add(centre, -0.5) } else { scale * centre - 0.5 }
    }
}

fn nearest(from: usize, to: usize, fused: bool) -> Vec<usize> {
    let position = position(from, to, fused);
    (0..to).map(|out| ((position(out).max(0.0) + 0.5) as usize).min(from - 1)).collect()
}

fn bilinear(from: usize, to: usize, fused: bool) -> Vec<Taps<2>> {
    let position = position(from, to, fused);
    let taps = |out| {
        let x = position(out).max(0.0);
        let first = (x as usize).min(from - 1);
        let t = (x - first as f32).min(1.0);
        [(first, 1.0 - t), ((first + 1).min(from - 1), t)]
    };
    (0..to).map(taps).collect()
}

fn bicubic(from: usize, to: usize) -> Vec<Taps<4>> {
    let position = position(from, to, true);
    let taps = |out| {
        let x = position(out);
        let (before, after) = (x - x.floor(), 1.0 - (x - x.floor()));
        let at = |offset: i64| (x.floor() as i64 + offset).clamp(0, from as i64 - 1) as usize;
        [
            (at(-1), outer_cubic(before + 1.0)),
            (at(0), inner_cubic(before)),
            (at(1), inner_cubic(after)),
            (at(2), outer_cubic(after + 1.0)),
        ]
    };
    (0..to).map(taps).collect()
}

// Keys' weights. Far from 0 the terms are large and cancel, so what is rounded is seen: the first multiplications are fused with the
// addition behind them, the last is not.
const A: f32 = -0.75;

/// The cubic at a distance below one: (a + 2)x³ - (a + 3)x² + 1.
fn inner_cubic(x: f32) -> f32 {
    (A + 2.0).mul_add(x, -(A + 3.0)) * x * x + 1.0
}

/// The cubic at a distance from one to two: ax³ - 5ax² + 8ax - 4a.
fn outer_cubic(x: f32) -> f32 {
    A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A) * x - 4.0 * A
}

/// a · b + c rounded once. The product is exact in f64 and the sum rounded there to 53 bits, which the second rounding does not see but
/// for one in half a billion; `mul_add` would be a call on processors that are built for without it.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(c)) as f32
}

/// The sum under the taps, of which `value` gives the source's.
fn sum<const N: usize>(taps: &Taps<N>, value: impl Fn(usize) -> f32) -> f32 {
    let (a, b) = (taps[0], taps[1]);
    let first = fused(value(a.0), a.1, value(b.0) * b.1);
    taps[2..].iter().fold(first, |sum, (source, weight)| fused(value(*source), *weight, sum))
}

fn along_both<const N: usize>(
    values: &[f32],
    shape: Shape,
    rows: &[Taps<N>],
    columns: &[Taps<N>],
) -> Result<Vec<f32>, Undone> {
    let Shape { channels, .. } = shape;
    let narrowed = Shape { width: columns.len(), ..shape };
    let resized = Shape { height: rows.len(), ..narrowed };
    let mut between = narrowed.zeros()?;
    each_row(&mut between, narrowed.row(), |i, out| {
        let row = &values[i * shape.row()..][..shape.row()];
        for (pixel, taps) in out.chunks_mut(channels).zip(columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = sum(taps, |source| row[source * channels + channel]);
            }
        }
    })?;
    let mut out = resized.zeros()?;
    each_row(&mut out, resized.row(), |i, out| {
        let (picture, taps) = (i / resized.height, &rows[i % resized.height]);
        let picture = &between[picture * narrowed.picture()..][..narrowed.picture()];
        let lines = taps.map(|(source, _)| &picture[source * narrowed.row()..][..narrowed.row()]);
        let in_order: Taps<N> = std::array::from_fn(|i| (i, taps[i].1));
        for (i, value) in out.iter_mut().enumerate() {
            *value = sum(&in_order, |line| lines[line][i]);
        }
    })?;
    Ok(out)
}

fn four_at_once(
    values: &[f32],
    shape: Shape,
    rows: &[Taps<2>],
    columns: &[Taps<2>],
) -> Result<Vec<f32>, Undone> {
    let Shape { channels, .. } = shape;
    let resized = Shape { height: rows.len(), width: columns.len(), ..shape };
    let mut out = resized.zeros()?;
    each_row(&mut out, resized.row(), |i, out| {
        let (picture, [(above, h), (below, k)]) = (i / resized.height, rows[i % resized.height]);
        let picture = &values[picture * shape.picture()..][..shape.picture()];
        let line = |y: usize| &picture[y * shape.row()..][..shape.row()];
        let lines = [line(above), line(below)];
        for (pixel, [(left, w), (right, v)]) in out.chunks_mut(channels).zip(columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let (left, right) = (left * channels + channel, right * channels + channel);
                let taps = [(0, h * w), (1, h * v), (2, k * w), (3, k * v)];
                let four = [lines[0][left], lines[0][right], lines[1][left], lines[1][right]];
                *value = sum(&taps, |i| four[i]);
            }
        }
    })?;
    Ok(out)
}

fn pick(
    values: &[f32],
    shape: Shape,
    rows: &[usize],
    columns: &[usize],
) -> Result<Vec<f32>, Undone> {
    let Shape { channels, .. } = shape;
    let resized = Shape { height: rows.len(), width: columns.len(), ..shape };
    let mut out = resized.zeros()?;
    each_row(&mut out, resized.row(), |i, out| {
        let (picture, y) = (i / resized.height, rows[i % resized.height]);
        let row = &values[picture * shape.picture() + y * shape.row()..][..shape.row()];
        for (pixel, x) in out.chunks_mut(channels).zip(columns) {
            pixel.copy_from_slice(&row[x * channels..][..channels]);
        }
    })?;
    Ok(out)
}

fn area(values: &[f32], shape: Shape, (height, width): (usize, usize)) -> Result<Vec<f32>, Undone> {
    let Shape { channels, .. } = shape;
    let resized = Shape { height, width, ..shape };
    let mut out = filled("the pictures", &resized.dims(), 0.0)?;
    let span =
        |out: usize, from: usize, to: usize| out * from / to..((out + 1) * from).div_ceil(to);
    each_row(&mut out, resized.row(), |i, out| {
        let (picture, y) = (i / height, i % height);
        let picture = &values[picture * shape.picture()..][..shape.picture()];
        let rows = span(y, shape.height, height);
        for (x, pixel) in out.chunks_mut(channels).enumerate() {
            let columns = span(x, shape.width, width);
            for row in rows.clone() {
                let start = row * shape.row() + columns.start * channels;
                for source in picture[start..][..columns.len() * channels].chunks(channels) {
                    pixel.iter_mut().zip(source).for_each(|(sum, value)| *sum += value);
                }
            }
            for value in pixel {
                *value = *value / rows.len() as f32 / columns.len() as f32;
            }
        }
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODES: [Mode; 4] = [Mode::NearestExact, Mode::Bilinear, Mode::Area, Mode::Bicubic];

    proptest! {
        #[test]
        fn the_same_size_is_the_same_picture(
            (width, values) in (1usize..12, 1usize..12)
                .prop_flat_map(|(w, h)| (Just(w), prop::collection::vec(0f32..1.0, 2 * w * h))),
        ) {
            let height = values.len() / 2 / width;
            let shape = Shape { batch: 2, height, width, channels: 1 };
            for mode in MODES {
                prop_assert_eq!(&interpolate(&values, shape, (height, width), mode).unwrap(), &values);
            }
        }

        #[test]
        fn a_plain_picture_stays_plain(
            width in 1usize..40, height in 1usize..40, to_width in 1usize..90, to_height in 1usize..90,
            level in 0f32..1.0,
        ) {
            let shape = Shape { batch: 1, height, width, channels: 3 };
            let values = vec![level; width * height * 3];
            for mode in MODES {
                let out = interpolate(&values, shape, (to_height, to_width), mode).unwrap();
                prop_assert_eq!(out.len(), to_width * to_height * 3);
                prop_assert!(out.iter().all(|value| (value - level).abs() < 1e-5), "{:?}", mode);
            }
        }
    }
}
