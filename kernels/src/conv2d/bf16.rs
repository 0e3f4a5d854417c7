//! Convolutions with factors that are rounded to bf16: sixteen pixels that follow each other, with 32 channels of each, are a
//! tile as they lie in memory, so that a kernel of 3 × 3 is nine products of shifted tiles and no patch is ever made
//! (Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures, 2018, for tiles).

use std::ops::Range;

use rayon::prelude::*;

use super::cpu::{Patches, Sizes};
use super::winograd;
use crate::bf16::{
    BLOCK, Begin, DEPTH, Order, SIDE, Set, Steps, Tile, Unit, WithUnit, product_to, written_by,
};
use crate::gemm::{Shared, Start};
use crate::memory;
use crate::simd::Vector;
use crate::storage::WeightValues;

/// Blocks of pixels of a task: their part of the picture stays in a second-level cache.
const BLOCKS: usize = 16;

/// Whether Winograd's tiles in f32 take less time.
pub(super) fn is_slower(set: Set, side: Option<winograd::Side>) -> bool {
    side.is_some() && !set.outruns_winograd()
}

/// y = w ⋆ x + bias, as [`super::cpu::conv2d`].
pub(super) fn conv2d(
    set: Set,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    s: Sizes,
) -> Vec<f32> {
    let taps = s.kernel_h * s.kernel_w;
    assert!(x.len() == s.batch * s.channels * s.height * s.width);
    assert!(w.len() == s.out_channels * s.channels * taps);
    assert!(bias.is_none_or(|bias| bias.len() == s.out_channels));
    let outputs = s.batch * s.out_channels * s.out_height * s.out_width;
    let mut y = memory::reserve(outputs);
    let to = Shared(y.as_mut_ptr());
    if s.stride == 1 && taps > 1 {
        // SAFETY: there is room for all outputs.
        unsafe { by_shifts(set, x, w, bias, s, to) };
    } else {
        // SAFETY: as above.
        unsafe { by_patches(set, x, w, bias, s, to) };
    }
    // SAFETY: all were written.
    unsafe { y.set_len(outputs) };
    y
}

/// The weights [O, K] times the patches [K, pixels] of each sample.
///
/// # Safety
/// `to` leads to room for the outputs, which nobody else reads or writes meanwhile.
unsafe fn by_patches(
    set: Set,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    s: Sizes,
    to: Shared,
) {
    let k = s.channels * s.kernel_h * s.kernel_w;
    let mut wide = Vec::new();
    let weights = match w {
        WeightValues::F32(values) => values,
        half => {
            wide.resize(half.len(), 0.0);
            half.widen_into(set.isa(), 0, &mut wide);
            &wide
        }
    };
    let plane = s.out_height * s.out_width;
    let of_sample = Sizes { batch: 1, ..s };
    for (sample, x) in x.chunks_exact((s.channels * s.height * s.width).max(1)).enumerate() {
        let patches = Patches { x, s: of_sample };
        let to = Shared(to.at(sample * s.out_channels * plane));
        let start = bias.map_or(Start::Zero, Start::Rows);
        // SAFETY: the caller's; a sample's outputs lie one after the other.
        unsafe { product_to(set, (s.out_channels, k, plane), weights, &patches, start, to) };
    }
}

/// # Safety
/// As [`by_patches`].
unsafe fn by_shifts(
    set: Set,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    s: Sizes,
    to: Shared,
) {
    let taps = s.kernel_h * s.kernel_w;
    let depth = s.channels.div_ceil(DEPTH);
    let plane = Padded::new(s).tiles();
    let pack = |tiles: &mut [Tile]| {
        tiles.par_chunks_mut(plane).enumerate().for_each(|(i, tiles)| {
            let (sample, first) = (i / depth, i % depth * DEPTH);
            let channels = first..s.channels.min(first + DEPTH);
            let size = s.height * s.width;
            let x = &x[sample * s.channels * size..][channels.start * size..channels.end * size];
            set.run(Picture { x, s, tiles });
        });
    };
    // SAFETY: each plane is written by its task.
    let picture = unsafe { written_by(s.batch * depth * plane, pack) };
    let pack = |tiles: &mut [Tile]| {
        tiles.par_chunks_mut(depth * taps).enumerate().for_each(|(i, tiles)| {
            let outs = i * SIDE..s.out_channels.min((i + 1) * SIDE);
            set.run(Weights { w, s, outs, tiles });
        });
    };
    // SAFETY: as above.
    let weights = unsafe { written_by(s.out_channels.div_ceil(SIDE) * depth * taps, pack) };
    let (groups, chunk) = (s.out_channels.div_ceil(BLOCK), BLOCK * BLOCKS);
    let positions = Padded::new(s).positions();
    let chunks = positions.div_ceil(chunk);
    (0..s.batch * groups * chunks).into_par_iter().for_each(|task| {
        let (sample, group) = (task / (groups * chunks), task / chunks % groups);
        let first = task % chunks * chunk;
        set.run(Block {
            picture: &picture[sample * depth * plane..][..depth * plane],
            weights: &weights,
            bias,
            s,
            sample,
            outs: group * BLOCK..s.out_channels.min((group + 1) * BLOCK),
            positions: first..positions.min(first + chunk),
            to,
        });
    });
}

/// A plane with zeros around it, row after row: a place in it and a tap's shift are one number.
#[derive(Clone, Copy)]
struct Padded {
    width: usize,
    height: usize,
    s: Sizes,
}

impl Padded {
    fn new(s: Sizes) -> Self {
        Padded { width: s.width + 2 * s.padding, height: s.height + 2 * s.padding, s }
    }

    /// Places from the first output's to the last one's; those that no output has are among them.
    fn positions(self) -> usize {
        match self.s.out_height {
            0 => 0,
            rows => (rows - 1) * self.width + self.s.out_width,
        }
    }

    /// Tiles of a plane, with what a last block's tiles read past it.
    fn tiles(self) -> usize {
        (self.width * self.height + BLOCK).div_ceil(SIDE)
    }
}

/// At most 32 channels of a sample, [C, H, W], to a padded plane.
struct Picture<'a> {
    x: &'a [f32],
    s: Sizes,
    tiles: &'a mut [Tile],
}

impl WithUnit for Picture<'_> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Picture { x, s, tiles } = self;
        let padded = Padded::new(s);
        let size = s.height * s.width;
        let channels = x.len() / size.max(1);
        // SAFETY, of all below: the processor has the unit, or this would not run; places lie within the plane, by their bounds.
        unsafe {
            std::ptr::write_bytes(tiles.as_mut_ptr(), 0, tiles.len());
        }
        let places = tiles.len() * SIDE;
        let mut pixels = Tile([0; SIDE * DEPTH]);
        for y in 0..s.height {
            for first in (0..s.width).step_by(SIDE) {
                let count = SIDE.min(s.width - first);
                let at = (y + s.padding) * padded.width + s.padding + first;
                assert!(at + count <= places);
                // SAFETY: `count` pixels of a row of each channel, and as many places from `at` on.
                unsafe {
                    let from = x.as_ptr().wrapping_add(y * s.width + first);
                    U::Order::columns(from, size, channels, count, &mut pixels);
                    U::Order::columns_to_rows(&pixels, tiles.as_mut_ptr(), places, at, count);
                }
            }
        }
    }
}

/// Kernels [O, C, kH, kW] of at most 16 outputs, to tiles [C / 32, kH, kW] of columns.
struct Weights<'a> {
    w: WeightValues<'a>,
    s: Sizes,
    outs: Range<usize>,
    tiles: &'a mut [Tile],
}

/// Values of 32 channels' kernels of 3 × 3; larger kernels are read with fewer channels at a time.
const WIDE: usize = 9 * DEPTH;

impl WithUnit for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Weights { w, s, outs, tiles } = self;
        let taps = s.kernel_h * s.kernel_w;
        let mut wide = vec![0f32; WIDE.max(taps * DEPTH)];
        let mut rows = vec![Tile([0; SIDE * DEPTH]); taps];
        for (step, tiles) in tiles.chunks_exact_mut(taps).enumerate() {
            let count = DEPTH.min(s.channels - step * DEPTH) * taps;
            wide[count..].fill(0.0);
            for (row, out) in outs.clone().enumerate() {
                w.widen::<<U::Order as Order>::V>(
                    (out * s.channels + step * DEPTH) * taps,
                    &mut wide[..count],
                );
                for (tap, rows) in rows.iter_mut().enumerate() {
                    // SAFETY: the processor has the unit, or this would not run; the places are below 32 · taps; a tile has 16
                    // rows.
                    unsafe { U::Order::row_of_every(wide.as_ptr().add(tap), taps, row, rows) };
                }
            }
            for (rows, tile) in rows.iter().zip(tiles) {
                // SAFETY: as above.
                unsafe { U::Order::turn(rows, tile) };
            }
        }
    }
}

/// Some outputs at some places of one sample.
struct Block<'a> {
    /// Planes of the sample.
    picture: &'a [Tile],
    weights: &'a [Tile],
    bias: Option<&'a [f32]>,
    s: Sizes,
    sample: usize,
    outs: Range<usize>,
    positions: Range<usize>,
    to: Shared,
}

/// A block of sums, and its transpose.
#[repr(C, align(64))]
struct Values([f32; BLOCK * BLOCK]);

/// # Safety
/// [`Vector`]'s.
#[inline(always)]
unsafe fn turn_block<V: Vector>(from: &Values, to: &mut Values) {
    for i in (0..BLOCK).step_by(V::LANES) {
        for j in (0..BLOCK).step_by(V::LANES) {
            // SAFETY: LANES divides a block's rows and columns; for the rest the caller's.
            unsafe {
                let from = from.0.as_ptr().add(i * BLOCK + j);
                V::transpose(from, BLOCK, to.0.as_mut_ptr().add(j * BLOCK + i), BLOCK);
            }
        }
    }
}

/// Runs of a block's outputs: a row of one pixel each, at most.
const RUNS: usize = BLOCK;

impl WithUnit for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Block { picture, weights, bias, s, sample, outs, positions, to } = self;
        let padded = Padded::new(s);
        let (taps, plane) = (s.kernel_h * s.kernel_w, padded.tiles());
        let depth = picture.len() / plane;
        let steps = Steps::of_plane::<U::Order>(plane);
        let size = (BLOCK, outs.len());
        let strips = outs.start / SIDE;
        let strips = [strips, strips + usize::from(outs.len() > SIDE)];
        let begin = bias.map_or(Begin::Zero, |bias| Begin::Columns(&bias[outs.clone()]));
        let (mut sums, mut turned) = (Values([0.0; BLOCK * BLOCK]), Values([0.0; BLOCK * BLOCK]));
        // SAFETY, of all below: the processor has the unit, or this would not run. A block's places and the taps' shifts stay
        // within a plane's tiles ([`Padded::tiles`]); the weights have a tile for each strip, 32 channels and tap.
        // These outputs are this task's alone.
        let mut unit = unsafe { U::open() };
        for first in positions.clone().step_by(BLOCK) {
            unsafe {
                unit.begin(begin, sums.0.as_ptr(), BLOCK, size);
                for step in 0..depth {
                    let plane = picture.as_ptr().add(step * plane);
                    for ky in 0..s.kernel_h {
                        let a = plane.byte_add((first + ky * padded.width) * U::Order::ROW);
                        let tap = step * taps + ky * s.kernel_w;
                        let b = strips.map(|strip| weights[strip * depth * taps + tap..].as_ptr());
                        let a = [a, a.byte_add(SIDE * U::Order::ROW)];
                        unit.add(a, steps, b, s.kernel_w);
                    }
                }
                unit.end(begin, sums.0.as_mut_ptr(), BLOCK, size);
                turn_block::<<U::Order as Order>::V>(&sums, &mut turned);
            }
            // Where in the block, where in the plane of outputs, and how many.
            let mut runs = [(0, 0, 0); RUNS];
            let mut count = 0;
            let end = positions.end.min(first + BLOCK);
            let mut at = first;
            while at < end {
                let (row, column) = (at / padded.width, at % padded.width);
                let length = (padded.width - column).min(end - at);
                if column < s.out_width {
                    let outputs = length.min(s.out_width - column);
                    runs[count] = (at - first, row * s.out_width + column, outputs);
                    count += 1;
                }
                at += length;
            }
            let size = s.out_height * s.out_width;
            for (i, out) in outs.clone().enumerate() {
                for (from, at, length) in &runs[..count] {
                    let values = &turned.0[i * BLOCK + from..][..*length];
                    let place = (sample * s.out_channels + out) * size + at;
                    unsafe {
                        std::ptr::copy_nonoverlapping(values.as_ptr(), to.at(place), *length);
                    }
                }
            }
        }
        unsafe { unit.close() };
    }
}
