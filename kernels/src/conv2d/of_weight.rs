//! The weight's gradient: the product of dy [O, pixels] and the patches [pixels, C·kH·kW], summed over the samples.
//!
//! Of few rows of dy, making the patches costs more than multiplying them. A 3 × 3 kernel that keeps the size needs
//! none. With a zero behind each row and a row of zeros behind each sample (each
//! serves the next as its padding before), the pixels of all samples lie in one line, and what a tap multiplies a pixel of dy with
//! lies in that line a fixed distance on: dw\[o, c, ky, kx\] = Σ_p dy\[o, p\] · x\[c, p + ky · pitch + kx\], which is vector code
//! without an edge.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use rayon::prelude::*;

use super::cpu::Sizes;
use crate::gemm::{self, Columns, Product, Shared, Start, Transposed};
use crate::memory;
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::{WeightValues, f32_slice};

/// x, dy → dW.
pub(super) struct OfWeight(pub(super) Sizes);

impl CustomOp2 for OfWeight {
    fn name(&self) -> &'static str {
        "conv2d_backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let s = self.0;
        let x = f32_slice(x, x_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let _span = Span::new("conv2d, its weight's gradient", s.operations());
        let isa = Isa::get()?;
        let dw = match keeps_the_size(s) && s.out_channels <= FEW_ROWS {
            true => in_lines(isa, x, upstream, s),
            false => by_patches(isa, x, upstream, s),
        };
        let shape = Shape::from((s.out_channels, s.channels, s.kernel_h, s.kernel_w));
        Ok((CpuStorage::F32(dw), shape))
    }
}

fn by_patches(isa: Isa, x: &[f32], upstream: &[f32], s: Sizes) -> Vec<f32> {
    let plane = s.out_height * s.out_width;
    let columns = s.channels * s.kernel_h * s.kernel_w;
    let of_x = s.channels * s.height * s.width;
    assert!(x.len() == s.batch * of_x && upstream.len() == s.batch * s.out_channels * plane);
    let mut dw = memory::zeros(s.out_channels * columns);
    let to = Shared(dw.as_mut_ptr());
    let is_1x1 = (s.kernel_h, s.kernel_w, s.stride, s.padding) == (1, 1, 1, 0);
    let blocks = gemm::blocks(s.out_channels, columns);
    blocks.into_par_iter().for_each_init(Vec::new, |scratch, (rows, block)| {
        for sample in 0..s.batch {
            let x = &x[sample * of_x..][..of_x];
            let upstream = &upstream[sample * s.out_channels * plane..][..s.out_channels * plane];
            let a = upstream[rows.start * plane..rows.end * plane].as_ptr();
            let c = to.at(rows.start * columns + block.start);
            let (m, n) = (rows.len(), block.clone());
            // The first begins with the zeros that are there.
            let start = Start::Itself;
            // SAFETY (both): A is whole rows of dy; the blocks part dW among them, which is whole and of zeros
            // when they begin.
            if is_1x1 {
                let b = &Transposed { values: WeightValues::F32(x), k: plane };
                let (a_stride, c_stride) = (plane, columns);
                let product =
                    Product { m, k: plane, n, a, a_stride, b, c, c_stride, start, scratch };
                unsafe { product.compute(isa) };
            } else {
                let b = &Patches { x, s };
                let (a_stride, c_stride) = (plane, columns);
                let product =
                    Product { m, k: plane, n, a, a_stride, b, c, c_stride, start, scratch };
                unsafe { product.compute(isa) };
            }
        }
    });
    dw
}

/// One sample's patches by pixel: [pixels, C·kH·kW].
struct Patches<'a> {
    x: &'a [f32],
    s: Sizes,
}

impl Columns for Patches<'_> {
    #[inline(always)]
    fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, width: usize, panel: &mut [f32]) {
        let s = self.s;
        for (j, column) in n.clone().enumerate() {
            let (kx, ky) = (column % s.kernel_w, column / s.kernel_w % s.kernel_h);
            let channel = column / (s.kernel_w * s.kernel_h);
            let plane = &self.x[channel * s.height * s.width..][..s.height * s.width];
            let mut at = k.start;
            while at < k.end {
                let (row, first) = (at / s.out_width, at % s.out_width);
                let length = (s.out_width - first).min(k.end - at);
                let to = panel[(at - k.start) * width + j..].iter_mut().step_by(width);
                let y = (row * s.stride + ky).wrapping_sub(s.padding);
                let from: &[f32] =
                    if y < s.height { &plane[y * s.width..][..s.width] } else { &[] };
                for (i, to) in to.take(length).enumerate() {
                    let x = ((first + i) * s.stride + kx).wrapping_sub(s.padding);
                    *to = from.get(x).copied().unwrap_or(0.0);
                }
                at += length;
            }
        }
        for panel in panel.chunks_exact_mut(width).take(k.len()) {
            panel[n.len()..].fill(0.0);
        }
    }
}

/// The most rows of dy for which [`in_lines`] is the faster (kernels/README.md).
const FEW_ROWS: usize = 48;

/// Whether [`in_lines`] can compute it.
fn keeps_the_size(s: Sizes) -> bool {
    (s.kernel_h, s.kernel_w, s.stride, s.padding) == (3, 3, 1, 1)
}

/// Rows of dy whose part of dw is a task's; whole blocks of rows on every instruction set.
const ROWS: usize = 12;
/// Channels of x of a task.
const CHANNELS: usize = 16;
/// Positions in the line of a task. What a task is hangs on sizes alone, so that sums are the same on any number of threads.
const POSITIONS: usize = 1 << 14;
/// Positions for which the rows of dy stay in the first cache while they meet all channels.
const AT_ONCE: usize = 1024;
/// From a row of dy to the next: by a power of 2 all would meet in the same few places of the first cache.
const ROW_STRIDE: usize = AT_ONCE + 5 * LONGEST;
/// Taps of the kernel.
const TAPS: usize = 9;
/// What a task makes.
const PART: usize = ROWS * CHANNELS * TAPS;
/// Values of the longest vector.
const LONGEST: usize = 16;

fn in_lines(isa: Isa, x: &[f32], upstream: &[f32], s: Sizes) -> Vec<f32> {
    let plane = s.height * s.width;
    assert!(x.len() == s.batch * s.channels * plane);
    assert!(upstream.len() == s.batch * s.out_channels * plane);
    let mut dw = memory::zeros(s.out_channels * s.channels * TAPS);
    if dw.is_empty() || x.is_empty() {
        return dw;
    }
    let positions = s.batch * (s.height + 1) * (s.width + 1);
    let (groups, blocks) = (s.out_channels.div_ceil(ROWS), s.channels.div_ceil(CHANNELS));
    let slabs = positions.div_ceil(POSITIONS);
    let mut parts = memory::zeros(slabs * groups * blocks * PART);
    parts.par_chunks_mut(PART).enumerate().for_each(|(task, part)| {
        let (slab, row) = (task / (groups * blocks), task / blocks % groups * ROWS);
        let channel = task % blocks * CHANNELS;
        isa.run(Task {
            x,
            upstream,
            s,
            positions: slab * POSITIONS..positions.min((slab + 1) * POSITIONS),
            rows: row..s.out_channels.min(row + ROWS),
            channels: channel..s.channels.min(channel + CHANNELS),
            part,
        });
    });
    for (i, dw) in dw.chunks_exact_mut(TAPS).enumerate() {
        let (o, c) = (i / s.channels, i % s.channels);
        let of_slab = o / ROWS * blocks + c / CHANNELS;
        let at = (o % ROWS * CHANNELS + c % CHANNELS) * TAPS;
        for (tap, dw) in dw.iter_mut().enumerate() {
            let of = |slab| parts[(slab * groups * blocks + of_slab) * PART + at + tap];
            *dw = (0..slabs).map(|slab| f64::from(of(slab))).sum::<f64>() as f32;
        }
    }
    dw
}

/// Pixels of a sample that lie beside each other in a line.
struct Run {
    /// Their place in what is cut of the line.
    at: usize,
    sample: usize,
    pixel: usize,
    length: usize,
}

/// Pixels among the `count` positions of a line from `start` on, before which there is nothing.
fn runs(s: Sizes, start: isize, count: usize) -> Vec<Run> {
    let (pitch, end) = (s.width + 1, start + count as isize);
    let mut runs = Vec::new();
    let first = usize::try_from(start).unwrap_or(0);
    let rows = first / pitch..usize::try_from(end).unwrap_or(0).div_ceil(pitch);
    for line in rows {
        let (sample, row) = (line / (s.height + 1), line % (s.height + 1));
        if row == s.height || sample >= s.batch {
            continue;
        }
        let begin = (line * pitch).max(first);
        let length = ((line * pitch + s.width) as isize).min(end) - begin as isize;
        let pixel = row * s.width + begin - line * pitch;
        if length > 0 {
            let at = (begin as isize - start) as usize;
            runs.push(Run { at, sample, pixel, length: length as usize });
        }
    }
    runs
}

/// Lays the pixels of a channel of [B, C, H, W] where they belong, zeros elsewhere.
fn lay(from: &[f32], s: Sizes, (channels, channel): (usize, usize), runs: &[Run], to: &mut [f32]) {
    let plane = s.height * s.width;
    to.fill(0.0);
    for Run { at, sample, pixel, length } in runs {
        let from = &from[(sample * channels + channel) * plane + pixel..][..*length];
        to[*at..at + length].copy_from_slice(from);
    }
}

/// What some positions add to dw for some rows of dy and some channels of x.
struct Task<'a> {
    x: &'a [f32],
    upstream: &'a [f32],
    s: Sizes,
    positions: Range<usize>,
    rows: Range<usize>,
    channels: Range<usize>,
    /// [ROWS, CHANNELS, TAPS], of zeros.
    part: &'a mut [f32],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        // As many sums as registers hold, with a vector of x for each tap of a row and one of dy.
        match V::TILE_ROWS {
            8 => self.by_blocks::<V, 6>(),
            _ => self.by_blocks::<V, 4>(),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn by_blocks<V: Vector, const O: usize>(self) {
        let Task { x, upstream, s, positions, rows, channels, part } = self;
        let (blocks, pitch) = (rows.len().div_ceil(O), s.width + 1);
        // SAFETY: within `Isa::run`.
        let zero = unsafe { V::splat(0.0) };
        let mut sums = vec![[[zero; 3]; O]; blocks * channels.len() * 3];
        // To the last tap of the last position, and to the end of its vector.
        let long = (AT_ONCE + 2 * pitch + 2).next_multiple_of(LONGEST);
        let (mut of_x, mut of_dy) = (Vec::new(), Vec::new());
        let of_x = memory::aligned(&mut of_x, channels.len() * long);
        let of_dy = memory::aligned(&mut of_dy, ROWS * ROW_STRIDE);
        for start in positions.clone().step_by(AT_ONCE) {
            // What lies behind the positions is zeros in dy.
            let count = AT_ONCE.min(positions.end - start);
            let in_dy = runs(s, start as isize, count);
            for (row, line) in rows.clone().zip(of_dy.chunks_exact_mut(ROW_STRIDE)) {
                lay(upstream, s, (s.out_channels, row), &in_dy, line);
            }
            // A row and a pixel back, so that no tap lies before the first.
            let in_x = runs(s, start as isize - pitch as isize - 1, long);
            for (channel, line) in channels.clone().zip(of_x.chunks_exact_mut(long)) {
                lay(x, s, (s.channels, channel), &in_x, line);
            }
            let mut sums = sums.iter_mut();
            for dy in of_dy.chunks_exact(O * ROW_STRIDE).take(blocks) {
                for x in of_x.chunks_exact(long) {
                    for (ky, sums) in sums.by_ref().take(3).enumerate() {
                        let x = &x[ky * pitch..][..AT_ONCE + 2];
                        let count = count.next_multiple_of(V::LANES);
                        // SAFETY: `count` is at most AT_ONCE, of which each of O rows of dy and x has as many, x and two more.
                        unsafe { add_taps(dy.as_ptr(), x.as_ptr(), count, sums) };
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let (block, channel, ky) = (i / (3 * channels.len()), i / 3 % channels.len(), i % 3);
            for (o, sums) in sums.iter().enumerate() {
                let row = block * O + o;
                for (kx, sum) in sums.iter().enumerate() {
                    let mut values = [0f32; LONGEST];
                    // SAFETY: no vector has more values.
                    unsafe { sum.store(values.as_mut_ptr()) };
                    let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
                    part[(row * CHANNELS + channel) * TAPS + ky * 3 + kx] = sum as f32;
                }
            }
        }
    }
}

/// Adds Σ_p dy[o, p] · x[p + kx] over `count` positions to the sums of each o and kx.
///
/// # Safety
/// Within [`Isa::run`]; `count` is a whole number of vectors, `dy` leads to as many values of each of O rows, [`ROW_STRIDE`] apart, and `x`
/// to two more.
#[inline(always)]
unsafe fn add_taps<V: Vector, const O: usize>(
    dy: *const f32,
    x: *const f32,
    count: usize,
    sums: &mut [[V; 3]; O],
) {
    let mut taps = *sums;
    let mut p = 0;
    while p < count {
        // SAFETY: the caller's values.
        unsafe {
            let x = [V::load(x.add(p)), V::load(x.add(p + 1)), V::load(x.add(p + 2))];
            for (o, taps) in taps.iter_mut().enumerate() {
                let dy = V::load(dy.add(o * ROW_STRIDE + p));
                for (tap, x) in taps.iter_mut().zip(x) {
                    *tap = dy.mul_add(x, *tap);
                }
            }
        }
        p += V::LANES;
    }
    *sums = taps;
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// One pixel, one column, rows and channels that fill a task or do not, and positions of several tasks.
    #[test]
    fn lines_are_the_product_of_patches() -> candle_core::Result<()> {
        let sizes = [
            [1, 1, 1, 1, 1],
            [3, 2, 5, 6, 1],
            [2, 16, 12, 1, 7],
            [2, 17, 13, 8, 8],
            [5, 3, 25, 16, 16],
            [2, 3, 4, 100, 111],
        ];
        for [batch, channels, out_channels, height, width] in sizes {
            let s = Sizes {
                batch,
                channels,
                height,
                width,
                out_channels,
                kernel_h: 3,
                kernel_w: 3,
                stride: 1,
                padding: 1,
                out_height: height,
                out_width: width,
            };
            assert!(keeps_the_size(s));
            let random = |channels: usize| {
                let count = batch * channels * height * width;
                Tensor::randn(0f32, 1., count, &Device::Cpu)?.to_vec1::<f32>()
            };
            let (x, dy) = (random(channels)?, random(out_channels)?);
            for isa in Isa::available() {
                let (found, want) = (in_lines(isa, &x, &dy, s), by_patches(isa, &x, &dy, s));
                let largest = want.iter().fold(0f32, |a, b| a.max(b.abs()));
                assert_eq!(found.len(), want.len());
                for (found, want) in found.iter().zip(want) {
                    assert!((found - want).abs() <= 2e-5 * largest, "{isa:?}, {s:?}");
                }
            }
        }
        Ok(())
    }
}
