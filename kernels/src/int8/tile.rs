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

/// The same for each row of a tile, whose number is a constant: an array that a loop goes through is kept in memory, and the sums
/// would be written to the stack at every step.
macro_rules! each_row {
    ($S:ident, $row:ident, $body:block) => {
        each_row!($S, $row, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($S:ident, $row:ident, $body:block, $($number:literal)*) => {
        $(if $number < $S::ROWS {
            let $row = $number;
            $body
        })*
    };
}

impl Block<'_> {
    /// At most a tile's rows of a panel.
    ///
    /// # Safety
    /// Within [`Set::run`](super::Set::run).
    #[inline(always)]
    unsafe fn tile<S: Sums>(&self, rows: Range<usize>, feature: usize) {
        let Block { x, w, bias, to, output, .. } = self;
        let lanes = S::Floats::LANES;
        let vector = lanes * GROUP_BYTES;
        let numbers = &x.numbers[rows.start * x.stride..(rows.start + S::ROWS) * x.stride];
        let panel = &w.panels[feature / width::<S>() * w.panel..][..w.panel];
        let groups = w.panel / (2 * vector);
        assert!(groups * GROUP_BYTES <= x.stride && groups.is_multiple_of(S::STEP));
        let scales = &x.scales[rows.start..rows.start + S::ROWS];
        let features = feature..feature + width::<S>();
        let (offset, by) = (&w.offsets[features.clone()], &w.scales[features]);
        let columns = (output - feature).min(width::<S>());
        let bias = bias.map(|bias| &bias[feature..feature + columns]);
        // Of the two vectors of features those that there are.
        let counts = [columns.min(lanes), columns.saturating_sub(lanes)];
        // SAFETY: the caller's; a group of each feature of the panel, and of each row, of which there are as many as whole tiles
        // have; scales and offsets for as many; the bias and y have `counts` values there.
        unsafe {
            let mut sums = [[S::zero(); 2]; MOST_ROWS];
            for first in (0..groups).step_by(S::STEP) {
                let numbers = numbers.as_ptr().add(first * GROUP_BYTES);
                let panel = panel.as_ptr().add(first * 2 * vector);
                step::<S, 0>(&mut sums, numbers, x.stride, panel);
                step::<S, 1>(&mut sums, numbers, x.stride, panel);
                step::<S, 2>(&mut sums, numbers, x.stride, panel);
                step::<S, 3>(&mut sums, numbers, x.stride, panel);
            }
            let offset = [0, lanes].map(|at| S::load(offset.as_ptr().add(at).cast()));
            let by = [0, lanes].map(|at| S::Floats::load(by.as_ptr().add(at)));
            let begin = match bias {
                None => [S::Floats::splat(0.0); 2],
                Some(bias) if columns == 2 * lanes => {
                    [0, lanes].map(|at| S::Floats::load(bias.as_ptr().add(at)))
                }
                Some(bias) => [
                    S::Floats::load_part(bias.as_ptr(), counts[0]),
                    S::Floats::load_part(bias.as_ptr().add(counts[0]), counts[1]),
                ],
            };
            let y = to.at(rows.start * output + feature);
            each_row!(S, row, {
                let scale = S::Floats::splat(scales[row]);
                let of_half = |half: usize| {
                    let sum = sums[row][half].sub(offset[half]).to_f32();
                    sum.mul_add(by[half].mul(scale), begin[half])
                };
                let (low, high, y) = (of_half(0), of_half(1), y.wrapping_add(row * output));
                if row >= rows.len() {
                    return;
                }
                if columns == 2 * lanes {
                    low.store(y);
                    high.store(y.add(lanes));
                } else {
                    low.store_part(y, counts[0]);
                    high.store_part(y.add(counts[0]), counts[1]);
                }
            });
        }
    }
}

/// Adds the products of group `GROUP` of a step, where it has as many.
///
/// # Safety
/// Within [`Set::run`](super::Set::run); the pointers lead to the step's groups of a tile's rows and of a panel.
#[inline(always)]
unsafe fn step<S: Sums, const GROUP: usize>(
    sums: &mut [[S; 2]; MOST_ROWS],
    numbers: *const u8,
    stride: usize,
    panel: *const u8,
) {
    if GROUP >= S::STEP {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        let vector = S::Floats::LANES * GROUP_BYTES;
        let panel = panel.add(GROUP * 2 * vector);
        let w = [S::load(panel), S::load(panel.add(vector))];
        each_row!(S, row, {
            let x = S::of_row(numbers.add(row * stride));
            sums[row][0] = sums[row][0].add_products(x, GROUP, w[0]);
            sums[row][1] = sums[row][1].add_products(x, GROUP, w[1]);
        });
    }
}
