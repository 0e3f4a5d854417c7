//! Sums of products of whole numbers.

use std::ops::Range;

use super::GROUP_BYTES;
use super::pack::{Features, Rows};
use super::set::{MOST_ROWS, Sums, WithSums, width};
use crate::gemm::Shared;
use crate::simd::Vector;

/// Tiles of rows that every panel meets before the next ones: at the widths of Stable Diffusion they lie in a second-level cache.
const NEAR: usize = 16;

/// Some rows and features of y, which begin at a multiple of a tile's rows and of a panel's features.
pub(super) struct Block<'a> {
    pub x: &'a Rows,
    pub w: &'a Features,
    pub bias: Option<&'a [f32]>,
    pub rows: Range<usize>,
    pub features: Range<usize>,
    /// Leads to y, of which nobody else reads or writes this block.
    pub to: Shared,
    /// Features in all: the distance of two rows of y.
    pub output: usize,
}

impl WithSums for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Sums>(self) {
        for near in self.rows.clone().step_by(NEAR * S::ROWS) {
            let end = self.rows.end.min(near + NEAR * S::ROWS);
            for feature in self.features.clone().step_by(width::<S>()) {
                for row in (near..end).step_by(S::ROWS) {
                    // SAFETY: the processor has the instructions, or this would not run.
                    unsafe { self.tile::<S>(row..end.min(row + S::ROWS), feature) };
                }
            }
        }
    }
}

impl Block<'_> {
    /// At most a tile's rows of a panel.
    ///
    /// # Safety
    /// Within [`Set::run`](super::Set::run).
    #[inline(always)]
    unsafe fn tile<S: Sums>(&self, rows: Range<usize>, feature: usize) {
        let Block { x, w, bias, to, output, .. } = self;
        let vector = S::Floats::LANES * GROUP_BYTES;
        let numbers = &x.numbers[rows.start * x.stride..(rows.start + S::ROWS) * x.stride];
        let panel = &w.panels[feature / width::<S>() * w.panel..][..w.panel];
        let groups = w.panel / (2 * vector);
        assert!(groups * GROUP_BYTES <= x.stride && groups.is_multiple_of(S::STEP));
        // SAFETY: the caller's.
        let mut sums = unsafe { [[S::zero(); 2]; MOST_ROWS] };
        for first in (0..groups).step_by(S::STEP) {
            for group in 0..S::STEP {
                // SAFETY: a group of each feature of the panel, and of each row: there are as many rows as whole tiles have.
                unsafe {
                    let at = panel.as_ptr().add((first + group) * 2 * vector);
                    let of_w = [S::load(at), S::load(at.add(vector))];
                    for (row, sums) in sums[..S::ROWS].iter_mut().enumerate() {
                        let at = numbers.as_ptr().add(row * x.stride + first * GROUP_BYTES);
                        let of_x = S::of_row(at);
                        for (sum, of_w) in sums.iter_mut().zip(of_w) {
                            *sum = sum.add_products(of_x, group, of_w);
                        }
                    }
                }
            }
        }
        for half in 0..2 {
            let lanes = S::Floats::LANES;
            let first = feature + half * lanes;
            let count = output.saturating_sub(first).min(lanes);
            // SAFETY: scales and offsets are as many as whole panels have; the bias and y have `count` values there.
            unsafe {
                let offset = S::load(w.offsets[first..first + lanes].as_ptr().cast());
                let by = S::Floats::load(w.scales[first..first + lanes].as_ptr());
                let begin = match bias {
                    Some(bias) => S::Floats::load_part(bias.as_ptr().wrapping_add(first), count),
                    None => S::Floats::splat(0.0),
                };
                for (row, sums) in rows.clone().zip(&sums) {
                    let scale = by.mul(S::Floats::splat(x.scales[row]));
                    let y = sums[half].sub(offset).to_f32().mul_add(scale, begin);
                    let to = to.at(row * output + first);
                    match count == lanes {
                        true => y.store(to),
                        false => y.store_part(to, count),
                    }
                }
            }
        }
    }
}
