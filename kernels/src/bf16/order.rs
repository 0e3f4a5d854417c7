//! The order of the values in a tile, which is the unit's, and how they get there.

use super::Tile;
use crate::simd::Vector;

/// What a unit's tiles are made with. Values are rounded to the nearest bf16, halves to even.
///
/// # Safety
/// All functions: called from within [`Set::run`](super::Set::run) with a unit that has this order; the values are there.
pub(crate) trait Order {
    /// The processor's vectors of f32, for what is no tile.
    type V: Vector;
    /// Bytes from a row of A to the next: of a tile, and of a plane, in which any row can be a tile's first.
    const ROW: usize;

    /// `rows` ≤ 16 rows of `k` values, `stride` apart, to ⌈k / 32⌉ tiles of A; what is past them is 0.
    unsafe fn rows(from: *const f32, stride: usize, rows: usize, k: usize, tiles: &mut [Tile]);

    /// 32 values that are `step` apart to row `row` of a tile of A.
    unsafe fn row_of_every(from: *const f32, step: usize, row: usize, tile: &mut Tile);

    /// `rows` ≤ 32 rows of `columns` ≤ 16 values, `stride` apart, to a tile of B; what is past them is 0.
    unsafe fn columns(from: *const f32, stride: usize, rows: usize, columns: usize, to: *mut Tile);

    /// A tile of A, as the tile of B whose columns are its rows.
    unsafe fn turn(from: &Tile, to: *mut Tile);

    /// The first `count` columns of a tile of B, as rows of a plane of A: those from number `at` on, of `rows` in all.
    unsafe fn columns_to_rows(from: &Tile, plane: *mut Tile, rows: usize, at: usize, count: usize);
}
