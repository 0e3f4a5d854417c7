//! `torch.nn.functional.interpolate` with a given size, `align_corners=False`, without antialiasing; and adaptive average pooling, which
//! torch calls the mode "area". This is what ComfyUI's scaling nodes do in every mode but Lanczos.
//!
//! All modes are separable, so each is a list of (source pixel, weight) per output pixel along one axis, and one loop serves all.

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

/// Scales pictures [B, H, W, C] to [B, `height`, `width`, C]. No size is 0.
///
/// # Errors
/// [`Undone`].
pub fn interpolate(
    values: &[f32],
    shape: Shape,
    height: usize,
    width: usize,
    mode: Mode,
) -> Result<Vec<f32>, Undone> {
    let narrowed = Shape { width, ..shape };
    let resized = Shape { height, width, ..shape };
    let (columns, rows) =
        (Taps::new(shape.width, width, mode), Taps::new(shape.height, height, mode));

    let mut between = narrowed.zeros()?;
    each_row(&mut between, narrowed.row(), |i, out| {
        let row = &values[i * shape.row()..][..shape.row()];
        for (pixel, taps) in out.chunks_mut(shape.channels).zip(columns.iter()) {
            for (source, weight) in taps {
                let source = &row[source * shape.channels..];
                for (value, source) in pixel.iter_mut().zip(source) {
                    *value += weight * source;
                }
            }
        }
    })?;

    let mut out = resized.zeros()?;
    each_row(&mut out, resized.row(), |i, out| {
        let (picture, y) = (i / height, i % height);
        let picture = &between[picture * narrowed.picture()..][..narrowed.picture()];
        for (source, weight) in rows.of(y) {
            let source = &picture[source * narrowed.row()..];
            for (value, source) in out.iter_mut().zip(source) {
                *value += weight * source;
            }
        }
    })?;
    Ok(out)
}

/// For each output pixel along one axis, the source pixels it is made of.
struct Taps {
    taps: Vec<(usize, f32)>,
    /// Where each output pixel's taps end in `taps`.
    ends: Vec<usize>,
}

impl Taps {
    fn new(from: usize, to: usize, mode: Mode) -> Taps {
        let mut taps = Vec::new();
        let mut ends = Vec::with_capacity(to);
        // torch computes positions in f32 with one rounding for the multiplication and the subtraction, and where two pixels are
        // equally near that rounding decides.
        let scale = from as f32 / to as f32;
        let position = |out: usize| scale.mul_add(out as f32 + 0.5, -0.5);
        let clamp = |i: i64| i.clamp(0, from as i64 - 1) as usize;
        for out in 0..to {
            match mode {
                Mode::NearestExact => {
                    let nearest = position(out).max(0.0) + 0.5;
                    taps.push(((nearest as usize).min(from - 1), 1.0));
                }
                Mode::Bilinear => {
                    let x = position(out).max(0.0);
                    let first = (x as usize).min(from - 1);
                    let t = (x - first as f32).min(1.0);
                    taps.extend([(first, 1.0 - t), ((first + 1).min(from - 1), t)]);
                }
                Mode::Bicubic => {
                    let x = position(out);
                    let first = x.floor();
                    let (before, after) = (x - first, 1.0 - (x - first));
                    let first = first as i64;
                    taps.extend([
                        (clamp(first - 1), outer_cubic(before + 1.0)),
                        (clamp(first), inner_cubic(before)),
                        (clamp(first + 1), inner_cubic(after)),
                        (clamp(first + 2), outer_cubic(after + 1.0)),
                    ]);
                }
                Mode::Area => {
                    let (first, end) = (out * from / to, ((out + 1) * from).div_ceil(to));
                    let share = 1.0 / (end - first) as f32;
                    taps.extend((first..end).map(|source| (source, share)));
                }
            }
            ends.push(taps.len());
        }
        Taps { taps, ends }
    }

    fn of(&self, out: usize) -> impl Iterator<Item = (usize, f32)> {
        let start = if out == 0 { 0 } else { self.ends[out - 1] };
        self.taps[start..self.ends[out]].iter().copied()
    }

    fn iter(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, f32)>> {
        (0..self.ends.len()).map(|out| self.of(out))
    }
}

// Keys' weights, with a multiplication and an addition rounded once as torch's compiled loops have them: far from 0 the terms are large
// and cancel, and rounding each would be off by a millionth.
const A: f32 = -0.75;

/// The cubic at a distance below one: (a + 2)x³ - (a + 3)x² + 1.
fn inner_cubic(x: f32) -> f32 {
    ((A + 2.0).mul_add(x, -(A + 3.0)) * x).mul_add(x, 1.0)
}

/// The cubic at a distance from one to two: ax³ - 5ax² + 8ax - 4a.
fn outer_cubic(x: f32) -> f32 {
    A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A).mul_add(x, -4.0 * A)
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
                prop_assert_eq!(&interpolate(&values, shape, height, width, mode).unwrap(), &values);
            }
        }

        #[test]
        fn a_plain_picture_stays_plain(
            width in 1usize..40, height in 1usize..40, to_width in 1usize..60, to_height in 1usize..60,
            level in 0f32..1.0,
        ) {
            let shape = Shape { batch: 1, height, width, channels: 3 };
            let values = vec![level; width * height * 3];
            for mode in MODES {
                let out = interpolate(&values, shape, to_height, to_width, mode).unwrap();
                prop_assert_eq!(out.len(), to_width * to_height * 3);
                prop_assert!(out.iter().all(|value| (value - level).abs() < 1e-5), "{:?}", mode);
            }
        }
    }
}
