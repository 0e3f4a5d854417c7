//! Values as tiles of bf16, rounded to the nearest, halves to even.

use std::arch::x86_64::*;
use std::ops::Range;

use super::unit::{Unit, WithUnit};
use super::{BLOCK, DEPTH, SIDE, Tile};
use crate::gemm::Columns;
use crate::simd::Vector;
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
        // SAFETY: the processor has the instructions, or this would not run; the rows are there.
        unsafe { pack_rows(from.as_ptr(), k, from.len() / k.max(1), k, tiles) };
    }
}

/// `rows` ≤ 16 rows of `k` values, `stride` apart, to ⌈k / 32⌉ tiles; what is past them is 0.
///
/// # Safety
/// The values are there; the processor has AVX-512 with BW and BF16.
#[inline(always)]
pub(crate) unsafe fn pack_rows(
    from: *const f32,
    stride: usize,
    rows: usize,
    k: usize,
    tiles: &mut [Tile],
) {
    for (step, tile) in tiles.iter_mut().enumerate().take(k.div_ceil(DEPTH)) {
        let count = DEPTH.min(k - step * DEPTH);
        for row in 0..SIDE {
            let to = tile.0[row * DEPTH..][..DEPTH].as_mut_ptr();
            // SAFETY: `count` values of this row; a tile's row has 32.
            unsafe {
                let rounded = if row < rows {
                    let at = from.add(row * stride + step * DEPTH);
                    if count == DEPTH {
                        rounded(__m512::load(at), __m512::load(at.add(16)))
                    } else {
                        let second = count.saturating_sub(16);
                        let high = __m512::load_part(at.wrapping_add(16), second);
                        rounded(__m512::load_part(at, count.min(16)), high)
                    }
                } else {
                    _mm512_setzero_si512()
                };
                _mm512_storeu_si512(to.cast(), rounded);
            }
        }
    }
}

/// 32 values as bf16, those of `low` first.
///
/// # Safety
/// The processor has AVX512_BF16.
#[inline(always)]
unsafe fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: the caller's; both are 512 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The pairs of two rows of 16: of each column the value of the `even` row, then that of the `odd` one.
///
/// # Safety
/// As [`rounded`].
#[inline(always)]
pub(crate) unsafe fn pairs(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let both = rounded(even, odd);
        let even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
        let odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(both));
        _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd))
    }
}

/// A tile of A as the tile of its transpose's columns: 16 × 16 pairs turned.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(crate) unsafe fn turn(from: &Tile, to: *mut Tile) {
    // SAFETY: both are 16 × 16 values of 32 bits, which are only moved.
    unsafe { __m512::transpose(from.0.as_ptr().cast(), 16, to.cast(), 16) }
}

/// Rows `k` of the columns `n` ≤ 16 of B, which begin at a multiple of 16, to tiles.
///
/// # Safety
/// The processor has AVX-512 with BW and BF16.
#[inline(always)]
pub(crate) unsafe fn pack_columns(
    b: &impl Columns,
    k: Range<usize>,
    n: Range<usize>,
    tiles: &mut [Tile],
) {
    // SAFETY: the rows that B says are there; for the rest the caller's.
    unsafe {
        if let Some((values, stride)) = b.rows_of_columns() {
            return pack_turned(values, stride, k, n, tiles);
        }
        let mut panel = [0f32; DEPTH * SIDE];
        for (step, tile) in k.clone().step_by(DEPTH).zip(tiles) {
            let rows = step..k.end.min(step + DEPTH);
            let count = rows.len();
            b.pack::<__m512>(rows, n.clone(), SIDE, &mut panel[..count * SIDE]);
            panel[count * SIDE..].fill(0.0);
            pack_pairs(panel.as_ptr(), SIDE, DEPTH, tile);
        }
    }
}

/// `rows` ≤ 32 rows of 16 values, `stride` apart, to a tile of columns; what is past them is 0.
///
/// # Safety
/// As [`pack_rows`].
#[inline(always)]
pub(crate) unsafe fn pack_pairs(from: *const f32, stride: usize, rows: usize, tile: *mut Tile) {
    for pair in 0..SIDE {
        // SAFETY: the rows are there; a tile has 16 rows of 16 pairs.
        unsafe {
            let row = |at: usize| match at < rows {
                true => __m512::load(from.add(at * stride)),
                false => _mm512_setzero_ps(),
            };
            let (even, odd) = (row(2 * pair), row(2 * pair + 1));
            _mm512_storeu_si512(tile.cast::<__m512i>().add(pair).cast(), pairs(even, odd));
        }
    }
}

/// Columns that lie one after the other in memory, `stride` apart: rounded as rows, and turned.
///
/// # Safety
/// As [`pack_rows`].
#[inline(always)]
unsafe fn pack_turned(
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
                    pack_rows(from, stride, n.len(), count, std::slice::from_mut(&mut tile));
                }
                half => {
                    for (row, wide) in n.clone().zip(wide.chunks_exact_mut(DEPTH)) {
                        half.widen::<__m512>(row * stride + step, &mut wide[..count]);
                    }
                    let tile = std::slice::from_mut(&mut tile);
                    pack_rows(wide.as_ptr(), DEPTH, n.len(), count, tile);
                }
            }
            turn(&tile, to);
        }
    }
}

const _: () = assert!(BLOCK == 2 * SIDE && DEPTH == 2 * SIDE);
