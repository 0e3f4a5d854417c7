//! 3 × 3 convolution of stride 1 to few channels, as the last of a decoder and of a U-Net: a picture's three, a latent's four.
//!
//! A tile of a product would have three of its eight rows, and nine patches would be written for them to be read once. Here the
//! sums of all output channels at some pixels stay in registers while input channels go by, and pixels are read where they lie.

use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

use super::cpu::{Added, Sizes};
use crate::gemm::Shared;
use crate::memory;
use crate::simd::{Isa, Kernel, MOST_LANES, Vector};
use crate::storage::WeightValues;

/// The numbers of output channels: with three vectors of pixels each, the sums fill the registers. Others are compiled for nobody.
const OUTPUTS: RangeInclusive<usize> = 3..=4;
/// Output rows of a task.
const ROWS: usize = 8;
/// Input channels that go by at once: three rows of each, 512 pixels wide, are 96 KiB.
const CHANNELS: usize = 16;

pub(super) fn pays(s: Sizes) -> bool {
    let is_3x3 = (s.kernel_h, s.kernel_w, s.stride, s.padding) == (3, 3, 1, 1);
    // Columns but the first and the last are at least a vector.
    is_3x3
        && OUTPUTS.contains(&s.out_channels)
        && s.channels >= CHANNELS
        && s.width >= MOST_LANES + 2
}

/// y [B, O, H, W] = w ⋆ x and what is added for x [B, C, H, W], w [O, C, 3, 3], padding 1, where it [`pays`].
pub(super) fn conv2d(isa: Isa, x: &[f32], w: WeightValues, added: Added, s: Sizes) -> Vec<f32> {
    assert!(x.len() == s.batch * s.channels * s.height * s.width && pays(s));
    assert!(w.len() == s.out_channels * s.channels * 9 && added.fits(s));
    let mut wide = vec![0f32; w.len()];
    w.widen_into(isa, 0, &mut wide);
    // [channel, ky, kx, O]: what a pixel is multiplied with lies side by side.
    let mut weights = vec![0f32; w.len()];
    for (output, of_output) in wide.chunks_exact(s.channels * 9).enumerate() {
        for (at, value) in of_output.iter().enumerate() {
            weights[at * s.out_channels + output] = *value;
        }
    }
    let values = s.batch * s.out_channels * s.height * s.width;
    let mut y = memory::reserve(values);
    let to = Shared(y.as_mut_ptr());
    let bands = s.height.div_ceil(ROWS);
    (0..s.batch * bands).into_par_iter().for_each_init(Vec::new, |sums, task| {
        let (sample, band) = (task / bands, task % bands);
        let rows = band * ROWS..s.height.min((band + 1) * ROWS);
        let weights = &weights;
        match s.out_channels {
            3 => isa.run(Band::<3> { x, weights, added, s, sample, rows, sums, y: to }),
            _ => isa.run(Band::<4> { x, weights, added, s, sample, rows, sums, y: to }),
        }
    });
    // SAFETY: the bands are all rows of all samples, and each was written.
    unsafe { y.set_len(values) };
    y
}

/// Some rows of a sample's output of `O` channels.
struct Band<'a, const O: usize> {
    x: &'a [f32],
    /// [channel, ky, kx, O]
    weights: &'a [f32],
    added: Added<'a>,
    s: Sizes,
    sample: usize,
    rows: Range<usize>,
    /// [row, O, W]
    sums: &'a mut Vec<f32>,
    y: Shared,
}

impl<const O: usize> Kernel for Band<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Band { x, weights, added, s, sample, rows, sums, y } = self;
        let (width, plane) = (s.width, s.height * s.width);
        assert!(O == s.out_channels && width >= V::LANES + 2);
        assert!(weights.len() == s.channels * 9 * O);
        let x = &x[sample * s.channels * plane..][..s.channels * plane];
        let sums = memory::aligned(sums, rows.len() * O * width);
        for (at, line) in sums.chunks_exact_mut(width).enumerate() {
            line.fill(added.bias.map_or(0.0, |bias| bias[at % O]));
        }
        for first in (0..s.channels).step_by(CHANNELS) {
            let channels = first..s.channels.min(first + CHANNELS);
            for (row, sums) in rows.clone().zip(sums.chunks_exact_mut(O * width)) {
                let part = Part::<O> { x, weights, s, row, channels: channels.clone() };
                // The columns that have both neighbours, three vectors at once as long as there are so many.
                let (mut column, end) = (1, width - 1);
                while column + 3 * V::LANES <= end {
                    // SAFETY: columns 1 to width - 1, by the condition; the processor has V, or this would not run.
                    let of = unsafe { part.at::<V, 3>(column) };
                    for (of, sums) in of.into_iter().zip(sums.chunks_exact_mut(width)) {
                        let sums = sums[column..].chunks_exact_mut(V::LANES);
                        for (of, sums) in of.into_iter().zip(sums) {
                            // SAFETY: a vector's values.
                            unsafe { of.add(V::load(sums.as_ptr())).store(sums.as_mut_ptr()) };
                        }
                    }
                    column += 3 * V::LANES;
                }
                while column < end {
                    let wanted = V::LANES.min(end - column);
                    // The last vector ends where the columns do, and of it only the columns count that had nothing yet.
                    // SAFETY: as above: a vector has room between the two, by the assert.
                    let of = unsafe { part.at::<V, 1>(column + wanted - V::LANES) };
                    for ([of], sums) in of.into_iter().zip(sums.chunks_exact_mut(width)) {
                        let mut values = [0f32; MOST_LANES];
                        // SAFETY: there is room for the longest vector.
                        unsafe { of.store(values.as_mut_ptr()) };
                        let values = &values[V::LANES - wanted..V::LANES];
                        let sums = &mut sums[column..][..wanted];
                        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                    column += wanted;
                }
                part.add_edge(0, sums);
                part.add_edge(width - 1, sums);
            }
        }
        for (row, sums) in rows.zip(sums.chunks_exact(O * width)) {
            for (channel, sums) in sums.chunks_exact(width).enumerate() {
                let more = added.of_sample(s, sample, channel);
                // SAFETY: this row of this channel is this task's alone, and was reserved.
                let to = unsafe {
                    let at = (sample * O + channel) * plane + row * width;
                    std::slice::from_raw_parts_mut(
                        y.at(at).cast::<std::mem::MaybeUninit<f32>>(),
                        width,
                    )
                };
                for (value, sum) in to.iter_mut().zip(sums) {
                    value.write(sum + more);
                }
            }
        }
    }
}

/// What some input channels give to a row.
struct Part<'a, const O: usize> {
    /// [C, H, W]
    x: &'a [f32],
    weights: &'a [f32],
    s: Sizes,
    row: usize,
    channels: Range<usize>,
}

impl<const O: usize> Part<'_, O> {
    /// The rows of the kernel that meet the picture.
    #[inline(always)]
    fn kernel_rows(&self) -> Range<usize> {
        usize::from(self.row == 0)..3 - usize::from(self.row + 1 == self.s.height)
    }

    /// Where the pixel begins that the kernel's row `ky` meets in the column 0.
    #[inline(always)]
    fn start(&self, channel: usize, ky: usize) -> usize {
        (channel * self.s.height + self.row + ky - 1) * self.s.width
    }

    /// What they give at N vectors of columns from `column` on.
    ///
    /// # Safety
    /// [`Vector`]'s; the columns lie between the first and the last.
    #[inline(always)]
    unsafe fn at<V: Vector, const N: usize>(&self, column: usize) -> [[V; N]; O] {
        debug_assert!(column >= 1 && column + N * V::LANES < self.s.width);
        // SAFETY: rows and columns that are read lie in the picture, by what is told and by `kernel_rows`; the weights are there
        // for each channel, by the assert of who made this.
        unsafe {
            let mut of = [[V::splat(0.0); N]; O];
            for channel in self.channels.clone() {
                for ky in self.kernel_rows() {
                    let x = self.x.as_ptr().add(self.start(channel, ky) + column - 1);
                    let w = self.weights.as_ptr().add((channel * 3 + ky) * 3 * O);
                    for kx in 0..3 {
                        let mut pixels = [V::splat(0.0); N];
                        for (i, pixels) in pixels.iter_mut().enumerate() {
                            *pixels = V::load(x.add(kx + i * V::LANES));
                        }
                        for (output, of) in of.iter_mut().enumerate() {
                            let w = V::splat(*w.add(kx * O + output));
                            for (sum, pixels) in of.iter_mut().zip(pixels) {
                                *sum = w.mul_add(pixels, *sum);
                            }
                        }
                    }
                }
            }
            of
        }
    }

    /// Adds to `sums` [O, W] in a column at the edge.
    #[inline(always)]
    fn add_edge(&self, column: usize, sums: &mut [f32]) {
        let width = self.s.width;
        let mut of = [0f32; O];
        for channel in self.channels.clone() {
            for ky in self.kernel_rows() {
                let x = &self.x[self.start(channel, ky)..][..width];
                for kx in usize::from(column == 0)..3 - usize::from(column + 1 == width) {
                    let w = &self.weights[((channel * 3 + ky) * 3 + kx) * O..][..O];
                    for (sum, w) in of.iter_mut().zip(w) {
                        *sum += w * x[column + kx - 1];
                    }
                }
            }
        }
        for (output, sum) in of.into_iter().enumerate() {
            sums[output * width + column] += sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conv2d::cpu;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn agrees_with_the_product_of_patches(
            batch in 1usize..3, channels in 16usize..40, out_channels in OUTPUTS, height in 1usize..20,
            width in 18usize..140, seed in 0u32..1000,
        ) {
            let s = Sizes {
                batch, channels, height, width, out_channels, kernel_h: 3, kernel_w: 3, stride: 1, padding: 1,
                out_height: height, out_width: width,
            };
            let values = |count: usize, step: f32| -> Vec<f32> {
                (0..count).map(|i| ((i as f32 + seed as f32) * step).sin()).collect()
            };
            let x = values(batch * channels * height * width, 0.37);
            let w = values(out_channels * channels * 9, 0.73);
            let half: Vec<half::f16> = w.iter().map(|w| half::f16::from_f32(*w)).collect();
            let w: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            let (bias, more) = (values(out_channels, 0.9), values(batch * out_channels, 0.3));
            prop_assert!(pays(s));
            for isa in Isa::available() {
                let w = WeightValues::F32(&w);
                let plain = Added::from(Some(&bias[..]));
                let found = conv2d(isa, &x, w, plain, s);
                let want = cpu::conv2d(isa, &x, w, plain, s);
                prop_assert_eq!(found.len(), want.len());
                for (found, want) in found.iter().zip(&want) {
                    prop_assert!((found - want).abs() < 1e-4, "{isa:?}: {found}, {want}");
                }
                // What is added is added to the result, to the bit, and half weights are what they are wide.
                let added = Added { of_samples: Some(&more), ..plain };
                let of_half = conv2d(isa, &x, WeightValues::F16(&half), added, s);
                for (at, (all, found)) in of_half.iter().zip(&found).enumerate() {
                    prop_assert_eq!(*all, found + more[at / (height * width)]);
                }
            }
        }
    }
}
