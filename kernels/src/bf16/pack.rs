//! Values as tiles of bf16.

use std::ops::Range;

use super::order::Order;
use super::unit::{Unit, WithUnit};
use super::{BLOCK, DEPTH, SIDE, Tile};
use crate::gemm::Columns;
use crate::storage::WeightValues;

/// Rows of A, one after the other, at most 16: all their tiles.
pub(super) struct Strip<'a> {
    pub(super) from: &'a [f32],
    pub(super) k: usize,
    pub(super) tiles: &'a mut [Tile],
}

impl WithUnit for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Strip { from, k, tiles } = self;
        // SAFETY: the processor has the unit, or this would not run; the rows are there.
        unsafe { U::Order::rows(from.as_ptr(), k, from.len() / k.max(1), k, tiles) };
    }
}

/// Rows `k` of the columns `n` ≤ 16 of B, which begin at a multiple of 16, to tiles.
///
/// # Safety
/// As [`Order`]'s functions.
#[inline(always)]
pub(crate) unsafe fn pack_columns<O: Order>(
    b: &impl Columns,
    k: Range<usize>,
    n: Range<usize>,
    tiles: &mut [Tile],
) {
    // SAFETY: the rows that B says are there; for the rest the caller's.
    unsafe {
        if let Some((values, stride)) = b.rows_of_columns() {
            return pack_turned::<O>(values, stride, k, n, tiles);
        }
        let mut panel = [0f32; DEPTH * SIDE];
        for (step, tile) in k.clone().step_by(DEPTH).zip(tiles) {
            let rows = step..k.end.min(step + DEPTH);
            let count = rows.len();
            b.pack::<O::V>(rows, n.clone(), SIDE, &mut panel[..count * SIDE]);
            panel[count * SIDE..].fill(0.0);
            O::columns(panel.as_ptr(), SIDE, DEPTH, SIDE, tile);
        }
    }
}

/// Columns that lie one after the other in memory, `stride` apart: rounded as rows, and turned.
///
/// # Safety
/// As [`Order`]'s functions.
#[inline(always)]
unsafe fn pack_turned<O: Order>(
    values: WeightValues,
    stride: usize,
    k: Range<usize>,
    n: Range<usize>,
    tiles: &mut [Tile],
) {
    let mut wide = [0f32; SIDE * DEPTH];
    let mut tile = Tile([0; SIDE * DEPTH]);
    for (step, to) in k.clone().step_by(DEPTH).zip(tiles) {
        let count = DEPTH.min(k.end - step);
        // SAFETY: the rows' values from `step` on; the rest is the caller's.
        unsafe {
            match values {
                WeightValues::F32(values) => {
                    let last = (n.end - 1) * stride + step + count;
                    let from = values[n.start * stride + step..last].as_ptr();
                    O::rows(from, stride, n.len(), count, std::slice::from_mut(&mut tile));
                }
                half => {
                    for (row, wide) in n.clone().zip(wide.chunks_exact_mut(DEPTH)) {
                        half.widen::<O::V>(row * stride + step, &mut wide[..count]);
                    }
                    let tile = std::slice::from_mut(&mut tile);
                    O::rows(wide.as_ptr(), DEPTH, n.len(), count, tile);
                }
            }
            O::turn(&tile, to);
        }
    }
}

const _: () = assert!(BLOCK == 2 * SIDE && DEPTH == 2 * SIDE);
