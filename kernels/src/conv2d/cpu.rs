use std::ops::Range;

use rayon::prelude::*;

use super::runs::{Run, Runs};
use crate::gemm::{Columns, Product, ROW_STEP, Shared, Start};
use crate::memory;
use crate::simd::{Isa, Vector};
use crate::storage::WeightValues;

/// The sizes of one convolution: x [B, C, H, W] and w [O, C, kH, kW] to y [B, O, oH, oW].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) out_channels: usize,
    pub(super) kernel_h: usize,
    pub(super) kernel_w: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Sizes {
    /// What a profile calls it.
    pub(super) fn name(self) -> &'static str {
        match (self.kernel_h, self.kernel_w, self.stride) {
            (3, 3, 1) => "conv2d 3x3",
            (1, 1, 1) => "conv2d 1x1",
            _ => "conv2d, others",
        }
    }

    pub(super) fn operations(self) -> usize {
        let outputs = self.batch * self.out_channels * self.out_height * self.out_width;
        2 * outputs * self.channels * self.kernel_h * self.kernel_w
    }
}

/// What is added to what the weights make of the input.
#[derive(Clone, Copy, Default)]
pub(super) struct Added<'a> {
    /// [O]
    pub(super) bias: Option<&'a [f32]>,
    /// [B, O], a number for each channel of each sample, after the bias.
    pub(super) of_samples: Option<&'a [f32]>,
}

impl<'a> From<Option<&'a [f32]>> for Added<'a> {
    fn from(bias: Option<&'a [f32]>) -> Self {
        Added { bias, of_samples: None }
    }
}

impl Added<'_> {
    pub(super) fn fits(self, s: Sizes) -> bool {
        self.bias.is_none_or(|bias| bias.len() == s.out_channels)
            && self.of_samples.is_none_or(|values| values.len() == s.batch * s.out_channels)
    }

    /// What is added after the bias; where there is nothing, the zero with which every sum is the other number to the bit.
    #[inline(always)]
    pub(super) fn of_sample(self, s: Sizes, sample: usize, channel: usize) -> f32 {
        match self.of_samples {
            Some(values) => values[sample * s.out_channels + channel],
            None => -0.0,
        }
    }
}

/// Columns of a task: some panels, and few enough that its part of the output stays in a cache.
const COLUMNS: usize = 192;
/// The most rows of a task: the patches are made anew for each.
const ROWS: usize = 384;

/// y = w ⋆ x and what is added, as the product of the weights [O, K] with the patches [K, pixels of all samples],
/// K = C·kH·kW. The patches are made panel by panel, where the product takes them from, and never whole.
pub(super) fn conv2d(isa: Isa, x: &[f32], w: WeightValues, added: Added, s: Sizes) -> Vec<f32> {
    let plane = s.out_height * s.out_width;
    let pixels = s.batch * plane;
    let k = s.channels * s.kernel_h * s.kernel_w;
    assert!(x.len() == s.batch * s.channels * s.height * s.width && w.len() == s.out_channels * k);
    assert!(added.fits(s));
    let mut y = memory::reserve(pixels * s.out_channels);
    let to = Shared(y.as_mut_ptr());
    let patches = Patches { x, s };
    // Blocks of a sample's pixels where these are many, and their part of the output is written where it belongs.
    let (samples, pixels) = if plane >= COLUMNS { (s.batch, plane) } else { (1, pixels) };
    let blocks_of_columns = samples * pixels.div_ceil(COLUMNS);
    let least = (2 * rayon::current_num_threads()).div_ceil(blocks_of_columns.max(1));
    let parts = s.out_channels.div_ceil(ROWS).max(least);
    let rows = s.out_channels.div_ceil(parts).next_multiple_of(ROW_STEP);
    // Blocks of the same rows follow each other: what is read of the weights is then in a cache.
    let tasks = s.out_channels.div_ceil(rows.max(1)) * blocks_of_columns;
    (0..tasks).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let (row, block) = (task / blocks_of_columns * rows, task % blocks_of_columns);
        let blocks_of_sample = blocks_of_columns / samples;
        let (sample, column) = (block / blocks_of_sample, block % blocks_of_sample * COLUMNS);
        let rows = row..s.out_channels.min(row + rows);
        let columns = sample * pixels + column..sample * pixels + pixels.min(column + COLUMNS);
        let Scratch { wide, panels, block } = scratch;
        let weights = match w {
            WeightValues::F32(values) => &values[rows.start * k..rows.end * k],
            half => {
                wide.resize(rows.len() * k, 0.0);
                half.widen_into(isa, rows.start * k, wide);
                &wide[..]
            }
        };
        let in_place = samples > 1 || s.batch == 1;
        let (c, c_stride) = if in_place {
            (to.at((sample * s.out_channels + rows.start) * plane + column), plane)
        } else {
            block.resize(rows.len() * columns.len(), 0.0);
            (block.as_mut_ptr(), columns.len())
        };
        let product = Product {
            m: rows.len(),
            k,
            n: columns.clone(),
            a: weights.as_ptr(),
            a_stride: k,
            b: &patches,
            c,
            c_stride,
            start: added.bias.map_or(Start::Zero, |bias| Start::Rows(&bias[rows.clone()])),
            scratch: panels,
        };
        // SAFETY: the weights are rows of k values; the block has a value for each row and column, or these pixels of the output's
        // channels, which was reserved, are this task's alone.
        unsafe { product.compute(isa) };
        if in_place {
            for row in rows.filter(|_| added.of_samples.is_some()) {
                let first = (sample * s.out_channels + row) * plane + column;
                // SAFETY: what the product has just written of this channel, which is this task's alone.
                let values = unsafe { std::slice::from_raw_parts_mut(to.at(first), columns.len()) };
                let value = added.of_sample(s, sample, row);
                values.iter_mut().for_each(|sum| *sum += value);
            }
            return;
        }
        for (row, values) in rows.zip(block.chunks_exact_mut(columns.len())) {
            let mut at = columns.start;
            while at < columns.end {
                let (sample, pixel) = (at / plane, at % plane);
                let length = (plane - pixel).min(columns.end - at);
                let values = &mut values[at - columns.start..][..length];
                if added.of_samples.is_some() {
                    let value = added.of_sample(s, sample, row);
                    values.iter_mut().for_each(|sum| *sum += value);
                }
                // SAFETY: these pixels of this channel, within the output that was reserved, and no other
                // task's.
                unsafe {
                    let to = to.at((sample * s.out_channels + row) * plane + pixel);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), to, length);
                }
                at += length;
            }
        }
    });
    // SAFETY: the tasks are all channels and pixels, and each was written.
    unsafe { y.set_len(s.batch * plane * s.out_channels) };
    y
}

#[derive(Default)]
struct Scratch {
    /// The weights of some rows, where they are kept in half precision.
    wide: Vec<f32>,
    /// The packed patches.
    panels: Vec<f32>,
    /// Some rows and columns of the output.
    block: Vec<f32>,
}

/// What each weight (c, ky, kx) is multiplied with at each pixel of the output of each sample, [K, pixels].
pub(super) struct Patches<'a> {
    pub(super) x: &'a [f32],
    pub(super) s: Sizes,
}

/// The most columns of a panel, and so the most runs.
const MAX_WIDTH: usize = 48;

impl Columns for Patches<'_> {
    #[inline(always)]
    fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, width: usize, panel: &mut [f32]) {
        let s = self.s;
        let mut runs = [Run::default(); MAX_WIDTH];
        let mut count = 0;
        for run in Runs::new(n.clone(), s.out_height, s.out_width) {
            runs[count] = run;
            count += 1;
        }
        for (k, panel) in k.zip(panel.chunks_exact_mut(width)) {
            let (kx, ky) = (k % s.kernel_w, k / s.kernel_w % s.kernel_h);
            let channel = k / (s.kernel_w * s.kernel_h);
            panel[n.len()..].fill(0.0);
            for run in &runs[..count] {
                let panel = &mut panel[run.at..run.at + run.length];
                let row = (run.row * s.stride + ky).wrapping_sub(s.padding);
                if row >= s.height {
                    panel.fill(0.0);
                    continue;
                }
                let row = ((run.sample * s.channels + channel) * s.height + row) * s.width;
                let row = &self.x[row..row + s.width];
                let first = (run.column * s.stride + kx).wrapping_sub(s.padding);
                if s.stride == 1 && first < s.width && first + run.length <= s.width {
                    panel.copy_from_slice(&row[first..first + run.length]);
                    continue;
                }
                for (i, value) in panel.iter_mut().enumerate() {
                    let column = first.wrapping_add(i * s.stride);
                    *value = row.get(column).copied().unwrap_or(0.0);
                }
            }
        }
    }
}
