//! The order of BFMMLA, which multiplies two rows of four values by two columns of four: of A and of B alike, a tile is eight
//! times the next four values of each of its 16 rows or columns. So a register is two neighbours' fours, from any row on, as
//! they lie in memory.

use std::arch::aarch64::*;
use std::arch::asm;

use super::order::Order;
use super::unit::FOURS;
use super::{DEPTH, SIDE, Tile};
use crate::simd::Vector;

pub(crate) struct Fours;

/// Values of each row in a register.
const FOUR: usize = 4;

/// Eight values as bf16, those of `low` first.
///
/// # Safety
/// The processor has FEAT_BF16.
#[inline(always)]
unsafe fn rounded(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
    let both: uint16x8_t;
    // The compiler's names for these instructions are not stable. It is told that they exist, in case a function is compiled
    // apart from the one that says so.
    // SAFETY: the caller's; only a register changes.
    unsafe {
        asm!(
            ".arch_extension bf16",
            "bfcvtn {both:v}.4h, {low:v}.4s",
            "bfcvtn2 {both:v}.8h, {high:v}.4s",
            both = out(vreg) both, low = in(vreg) low, high = in(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    both
}

/// How many of `count` there are from number `first` on, of four.
#[inline(always)]
fn up_to_four(count: usize, first: usize) -> usize {
    count.saturating_sub(first).min(FOUR)
}

/// Where the fours number `four` begin, at that of row or column `row`.
#[inline(always)]
fn place(tile: *mut Tile, four: usize, row: usize) -> *mut u16 {
    tile.wrapping_byte_add(four * FOURS + row * Fours::ROW).cast()
}

// SAFETY, of every call in here: the trait's: the processor has NEON and FEAT_BF16, or no unit with this order would run; the
// values are there, and the places are a tile's or a plane's.
impl Order for Fours {
    type V = float32x4_t;
    const ROW: usize = FOUR * size_of::<u16>();

    #[inline(always)]
    unsafe fn rows(from: *const f32, stride: usize, rows: usize, k: usize, tiles: &mut [Tile]) {
        for (step, tile) in tiles.iter_mut().enumerate().take(k.div_ceil(DEPTH)) {
            let count = DEPTH.min(k - step * DEPTH);
            for row in (0..SIDE).step_by(2) {
                let at = from.wrapping_add(row * stride + step * DEPTH);
                if row + 1 < rows && count == DEPTH {
                    for four in 0..DEPTH / FOUR {
                        unsafe {
                            let at = at.add(four * FOUR);
                            let both = rounded(vld1q_f32(at), vld1q_f32(at.add(stride)));
                            vst1q_u16(place(tile, four, row), both);
                        }
                    }
                    continue;
                }
                for four in 0..DEPTH / FOUR {
                    let left = |row| if row < rows { up_to_four(count, four * FOUR) } else { 0 };
                    let at = at.wrapping_add(four * FOUR);
                    unsafe {
                        let second = float32x4_t::load_part(at.wrapping_add(stride), left(row + 1));
                        let both = rounded(float32x4_t::load_part(at, left(row)), second);
                        vst1q_u16(place(tile, four, row), both);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn row_of_every(from: *const f32, step: usize, row: usize, tile: &mut Tile) {
        for four in 0..DEPTH / FOUR {
            unsafe {
                let at = from.add(four * FOUR * step);
                let values = [*at, *at.add(step), *at.add(2 * step), *at.add(3 * step)];
                let values = vld1q_f32(values.as_ptr());
                vst1_u16(place(tile, four, row), vget_low_u16(rounded(values, values)));
            }
        }
    }

    #[inline(always)]
    unsafe fn columns(from: *const f32, stride: usize, rows: usize, columns: usize, to: *mut Tile) {
        for four in 0..DEPTH / FOUR {
            for first in (0..SIDE).step_by(2 * FOUR) {
                // Of eight columns the values of a row, which go to every fourth place.
                let is_whole = columns == SIDE && rows >= (four + 1) * FOUR;
                let row = |i: usize| {
                    let row = four * FOUR + i;
                    if is_whole {
                        unsafe {
                            let at = from.add(row * stride + first);
                            return rounded(vld1q_f32(at), vld1q_f32(at.add(FOUR)));
                        }
                    }
                    let left = |first| if row < rows { up_to_four(columns, first) } else { 0 };
                    let at = from.wrapping_add(row * stride + first);
                    let part = |at, count| unsafe { float32x4_t::load_part(at, count) };
                    let second = part(at.wrapping_add(FOUR), left(first + FOUR));
                    unsafe { rounded(part(at, left(first)), second) }
                };
                let fours = uint16x8x4_t(row(0), row(1), row(2), row(3));
                unsafe { vst4q_u16(place(to, four, first), fours) };
            }
        }
    }

    /// A's tiles are as B's.
    #[inline(always)]
    unsafe fn turn(from: &Tile, to: *mut Tile) {
        unsafe { std::ptr::copy_nonoverlapping(from, to, 1) };
    }

    #[inline(always)]
    unsafe fn columns_to_rows(from: &Tile, plane: *mut Tile, rows: usize, at: usize, count: usize) {
        let plane: *mut [u16; FOUR] = plane.cast();
        for four in 0..DEPTH / FOUR {
            unsafe {
                let from: *const [u16; FOUR] = (&raw const *from).cast();
                let (from, to) = (from.add(four * SIDE), plane.add(four * rows + at));
                match count {
                    SIDE => std::ptr::copy_nonoverlapping(from, to, SIDE),
                    _ => std::ptr::copy_nonoverlapping(from, to, count),
                }
            }
        }
    }
}
