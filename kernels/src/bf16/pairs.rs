//! The order of AMX and of AVX512_BF16. A row of A is 32 values, one after the other; of B the row p of a tile has the pairs
//! (2p, 2p + 1) of 16 columns.

use std::arch::x86_64::*;

use super::order::Order;
use super::{DEPTH, SIDE, Tile};
use crate::simd::Vector;

pub(crate) struct Pairs;

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
unsafe fn pairs(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let both = rounded(even, odd);
        let even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
        let odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(both));
        _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd))
    }
}

/// 16 values, `step` apart.
///
/// # Safety
/// They are there; the processor has AVX-512.
#[inline(always)]
unsafe fn every(from: *const f32, step: usize) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(step as i32));
        _mm512_i32gather_ps::<4>(places, from)
    }
}

// SAFETY, of every call in here: the trait's: the processor has AVX-512 with BW and BF16, or no unit with this order would
// run; the values are there.
impl Order for Pairs {
    type V = __m512;
    const ROW: usize = DEPTH * size_of::<u16>();

    #[inline(always)]
    unsafe fn rows(from: *const f32, stride: usize, rows: usize, k: usize, tiles: &mut [Tile]) {
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

    #[inline(always)]
    unsafe fn row_of_every(from: *const f32, step: usize, row: usize, tile: &mut Tile) {
        let to = tile.0[row * DEPTH..][..DEPTH].as_mut_ptr();
        unsafe {
            let rounded = rounded(every(from, step), every(from.add(16 * step), step));
            _mm512_store_si512(to.cast(), rounded);
        }
    }

    #[inline(always)]
    unsafe fn columns(from: *const f32, stride: usize, rows: usize, columns: usize, to: *mut Tile) {
        for pair in 0..SIDE {
            // SAFETY: the rows are there; a tile has 16 rows of 16 pairs.
            unsafe {
                let row = |at: usize| match at < rows {
                    true => __m512::load_part(from.add(at * stride), columns),
                    false => _mm512_setzero_ps(),
                };
                let (even, odd) = (row(2 * pair), row(2 * pair + 1));
                _mm512_storeu_si512(to.cast::<__m512i>().add(pair).cast(), pairs(even, odd));
            }
        }
    }

    /// 16 × 16 pairs turned.
    #[inline(always)]
    unsafe fn turn(from: &Tile, to: *mut Tile) {
        // SAFETY: both are 16 × 16 values of 32 bits, which are only moved.
        unsafe { __m512::transpose(from.0.as_ptr().cast(), 16, to.cast(), 16) }
    }

    #[inline(always)]
    unsafe fn columns_to_rows(from: &Tile, plane: *mut Tile, _: usize, at: usize, count: usize) {
        // SAFETY: `count` rows of the plane from `at` on, 16 values of 32 bits each.
        unsafe {
            let to: *mut f32 = plane.cast::<f32>().add(at * SIDE);
            if count == SIDE {
                return Self::turn(from, to.cast());
            }
            let mut turned = Tile([0; SIDE * DEPTH]);
            Self::turn(from, &mut turned);
            std::ptr::copy_nonoverlapping(turned.0.as_ptr().cast(), to, count * SIDE);
        }
    }
}
