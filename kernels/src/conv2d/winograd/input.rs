//! The input: how a picture is read, and Bᵀ d B of its tiles.

use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;

use super::scheme::Scheme;
use super::{Panels, Tiles};
use crate::conv2d::cpu::Sizes;
use crate::conv2d::runs::Run;
use crate::memory;
use crate::simd::{Kernel, Vector, copy};

/// What is convolved, as it lies in memory.
#[derive(Clone, Copy)]
pub(in crate::conv2d) struct Picture<'a> {
    /// [B, C, H, W], or [B, C, H/2, W/2].
    pub(in crate::conv2d) values: &'a [f32],
    /// Whether each pixel stands for four, in a picture twice as high and as wide.
    pub(in crate::conv2d) is_doubled: bool,
}

impl<'a> From<&'a [f32]> for Picture<'a> {
    fn from(values: &'a [f32]) -> Self {
        Picture { values, is_doubled: false }
    }
}

impl<'a> Picture<'a> {
    /// A channel's pixels as they lie, and the length of their rows.
    #[inline(always)]
    fn plane(self, s: Sizes, sample: usize, channel: usize) -> (&'a [f32], usize) {
        let by = if self.is_doubled { 2 } else { 1 };
        let (height, width) = (s.height / by, s.width / by);
        (&self.values[(sample * s.channels + channel) * height * width..][..height * width], width)
    }

    /// Row `row`, which may lie without, with a zero before it and zeros after it, from column `first` on.
    #[inline(always)]
    fn line<V: Vector>(
        self,
        (plane, width): (&[f32], usize),
        row: usize,
        s: Sizes,
        first: usize,
        line: &mut [f32],
    ) {
        let at = if self.is_doubled { row / 2 } else { row };
        let row = if row < s.height { &plane[at * width..][..width] } else { &[] };
        match self.is_doubled {
            true => padded_doubled(row, first, line),
            false => padded::<V>(row, first, line),
        }
    }
}

/// Bᵀ d B of one channel's tiles of a group.
pub(super) struct TransformInput<'a, S> {
    pub(super) x: Picture<'a>,
    pub(super) s: Sizes,
    pub(super) tiles: Tiles,
    pub(super) group: Range<usize>,
    pub(super) channel: usize,
    pub(super) v: Panels,
    pub(super) scratch: &'a mut Vec<f32>,
    pub(super) scheme: PhantomData<S>,
}

impl<S: Scheme> Kernel for TransformInput<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let TransformInput { x, s, tiles, group, channel, v, scratch, .. } = self;
        // What is read and written a vector at a time may go a vector too far.
        let line_size = S::OUTPUTS * (tiles.columns + 1 + V::LANES);
        let d_size = V::WIDTH + V::LANES;
        let scratch = memory::aligned(scratch, S::POINTS * d_size + line_size);
        let (d, line) = scratch.split_at_mut(S::POINTS * d_size);
        d.fill(0.0);
        for panel in 0..v.count {
            let first = group.start + panel * V::WIDTH;
            let part = first..group.end.min(first + V::WIDTH);
            let vectors = part.len().div_ceil(V::LANES);
            // d B [row, column, tile]: what the same place of neighbouring tiles holds lies side by side.
            for Run { sample, row: tile_row, column, at, length } in tiles.runs(part) {
                let plane = x.plane(s, sample, channel);
                // Where all that is read lies in the picture, it is read there; where a tile reaches over an edge, from a copy.
                let read = S::OUTPUTS * (length.next_multiple_of(V::LANES) + 1);
                let is_inside = !x.is_doubled && column > 0 && column + length < tiles.columns;
                for r in 0..S::INPUTS {
                    let row = (S::OUTPUTS * tile_row + r).wrapping_sub(1);
                    let inside = match is_inside && row < s.height {
                        true => plane.0[row * s.width + S::OUTPUTS * column - 1..].get(..read),
                        false => None,
                    };
                    let line = match inside {
                        Some(inside) => inside,
                        None => {
                            let padded = &mut line[..S::OUTPUTS * length + 2];
                            x.line::<V>(plane, row, s, S::OUTPUTS * column, padded);
                            &line[..read]
                        }
                    };
                    let d = &mut d[S::INPUTS * r * d_size + at..];
                    apart::<S, V>(line, length, d, d_size);
                }
            }
            for lane in (0..vectors * V::LANES).step_by(V::LANES) {
                // SAFETY: d has a panel's width for each point; V has room for every panel, and no other task
                // writes this channel's values.
                unsafe {
                    for c in 0..S::INPUTS {
                        let column = S::input(from_fn(|r| match r < S::INPUTS {
                            true => V::load(d.as_ptr().add((S::INPUTS * r + c) * d_size + lane)),
                            false => V::splat(0.0),
                        }));
                        for (r, value) in column.into_iter().enumerate().take(S::INPUTS) {
                            value.store(v.at::<V>(S::INPUTS * r + c, panel, channel).add(lane));
                        }
                    }
                }
            }
        }
    }
}

/// The row d B of `length` neighbouring tiles, of which `line` is a row of d: what the same place of the tiles holds, side by side,
/// column c from `d[c · d_size]` on.
#[inline(always)]
fn apart<S: Scheme, V: Vector>(line: &[f32], length: usize, d: &mut [f32], d_size: usize) {
    let whole = length.next_multiple_of(V::LANES);
    assert!(line.len() >= S::OUTPUTS * (whole + 1));
    assert!(d.len() >= (S::INPUTS - 1) * d_size + whole);
    if S::OUTPUTS != 4 {
        for c in 0..S::INPUTS {
            let tiles = line[c..].iter().step_by(S::OUTPUTS);
            let d = &mut d[c * d_size..][..length];
            d.iter_mut().zip(tiles).for_each(|(d, value)| *d = *value);
        }
        for i in (0..whole).step_by(V::LANES) {
            // SAFETY: by the asserts. What is multiplied too far is of tiles that come later, or of none.
            unsafe {
                let row = S::input(from_fn(|c| match c < S::INPUTS {
                    true => V::load(d[c * d_size + i..].as_ptr()),
                    false => V::splat(0.0),
                }));
                for (c, value) in row.into_iter().enumerate().take(S::INPUTS) {
                    value.store(d[c * d_size + i..].as_mut_ptr());
                }
            }
        }
        return;
    }
    for i in (0..whole).step_by(V::LANES) {
        // SAFETY: by the asserts. What is written too far is of tiles that come later, or of none.
        unsafe {
            let [a, b, c, d_] = V::by_fours(line.as_ptr().add(4 * i));
            let [e, f, ..] = V::by_fours(line.as_ptr().add(4 * (i + 1)));
            for (column, values) in S::input([a, b, c, d_, e, f]).into_iter().enumerate() {
                values.store(d[column * d_size + i..].as_mut_ptr());
            }
        }
    }
}

/// The row with a zero before it and zeros after it, from column `first` on.
#[inline(always)]
fn padded<V: Vector>(row: &[f32], first: usize, line: &mut [f32]) {
    let (before, line) = line.split_at_mut(usize::from(first == 0));
    before.fill(0.0);
    let row = &row[(first + before.len()).saturating_sub(1).min(row.len())..];
    let (inside, after) = line.split_at_mut(row.len().min(line.len()));
    copy::<V>(&row[..inside.len()], inside);
    after.fill(0.0);
}

/// The same of a row whose values each stand twice, from an even column on.
#[inline(always)]
fn padded_doubled(row: &[f32], first: usize, line: &mut [f32]) {
    let half = first / 2;
    let before = half.checked_sub(1).and_then(|at| row.get(at));
    let row = &row[half.min(row.len())..];
    let [place, line @ ..] = line else { return };
    *place = before.copied().unwrap_or(0.0);
    let (inside, after) = line.split_at_mut(line.len().min(2 * row.len()));
    let (pairs, rest) = inside.as_chunks_mut::<2>();
    pairs.iter_mut().zip(row).for_each(|(pair, value)| *pair = [*value; 2]);
    rest.fill(row.get(pairs.len()).copied().unwrap_or(0.0));
    after.fill(0.0);
}
