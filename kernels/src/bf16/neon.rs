//! BFMMLA of 64-bit ARM processors with FEAT_BF16: two rows by two columns of four values each, the sums of an instruction a
//! register.

use std::arch::aarch64::*;
use std::arch::asm;

use super::fours::Fours;
use super::order::Order;
use super::sums::Sums;
use super::unit::{Begin, FOURS, Steps, Unit, WithUnit};
use super::{BLOCK, SIDE, Tile};

/// The sums lie in memory between two calls, those of a register one after the other: of the rows 2r and 2r + 1 the columns 0
/// and 1, then 2 and 3.
pub(crate) struct Neon {
    sums: Sums,
}

/// Whether the processor has the instructions.
pub(super) fn is_there() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn with<K: WithUnit>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

/// Rows, and columns, whose sums are 16 of the 32 registers.
const AT_ONCE: usize = 8;
/// Registers of each.
const TWOS: usize = AT_ONCE / 2;
/// Tiles of all four strips, 32 KiB, that are multiplied before the next: they stay in a first-level cache.
const DEEP: usize = 8;

/// sum + a b, of 2 rows and 2 columns.
///
/// # Safety
/// The processor has FEAT_BF16.
#[inline(always)]
unsafe fn add_product(mut sum: float32x4_t, a: uint16x8_t, b: uint16x8_t) -> float32x4_t {
    // Why in assembly, and the first line, as in [`super::fours`].
    // SAFETY: the caller's; only a register changes.
    unsafe {
        asm!(
            ".arch_extension bf16",
            "bfmmla {sum:v}.4s, {a:v}.8h, {b:v}.8h",
            sum = inlateout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Adds to the sums of 8 rows and 8 columns the products of `count` tiles.
///
/// # Safety
/// The processor has FEAT_BF16; rows and columns begin at `a` and `b`, and the sums at `sums` of a block's.
#[inline(always)]
unsafe fn add_tiles(sums: *mut f32, a: *const u16, steps: Steps, b: *const u16, count: usize) {
    // SAFETY: the caller's.
    unsafe {
        let at = |row: usize, column: usize| sums.add(2 * row * BLOCK + 4 * column);
        let mut registers = [[vdupq_n_f32(0.0); TWOS]; TWOS];
        for (row, registers) in registers.iter_mut().enumerate() {
            for (column, register) in registers.iter_mut().enumerate() {
                *register = vld1q_f32(at(row, column));
            }
        }
        let mut b = b;
        for tile in 0..count {
            let mut a = a.byte_add(tile * steps.tile);
            for _ in 0..size_of::<Tile>() / FOURS {
                let of_a: [_; TWOS] = std::array::from_fn(|i| vld1q_u16(a.add(8 * i)));
                let of_b: [_; TWOS] = std::array::from_fn(|i| vld1q_u16(b.add(8 * i)));
                for (registers, a) in registers.iter_mut().zip(of_a) {
                    for (register, b) in registers.iter_mut().zip(of_b) {
                        *register = add_product(*register, a, b);
                    }
                }
                a = a.byte_add(steps.fours);
                b = b.byte_add(FOURS);
            }
        }
        for (row, registers) in registers.iter().enumerate() {
            for (column, register) in registers.iter().enumerate() {
                vst1q_f32(at(row, column), *register);
            }
        }
    }
}

impl Unit for Neon {
    type Order = Fours;

    #[inline(always)]
    unsafe fn open() -> Self {
        Neon { sums: Sums([0.0; BLOCK * BLOCK]) }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, _: Begin, _: *const f32, _: usize, _: (usize, usize)) {
        self.sums.0.fill(0.0);
    }

    #[inline(always)]
    unsafe fn add(&mut self, a: [*const Tile; 2], steps: Steps, b: [*const Tile; 2], count: usize) {
        for first in (0..count).step_by(DEEP) {
            let count = DEEP.min(count - first);
            for row in (0..BLOCK).step_by(AT_ONCE) {
                for column in (0..BLOCK).step_by(AT_ONCE) {
                    // SAFETY: the caller's tiles, of which rows and columns are these; a block has sums for them.
                    unsafe {
                        let sums = self.sums.0.as_mut_ptr().add(row * BLOCK + 2 * column);
                        let a = a[row / SIDE].byte_add(first * steps.tile);
                        let a = a.byte_add(row % SIDE * Fours::ROW);
                        let b = b[column / SIDE].add(first).byte_add(column % SIDE * Fours::ROW);
                        add_tiles(sums, a.cast(), steps, b.cast(), count);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, from: Begin, c: *mut f32, stride: usize, size: (usize, usize)) {
        // The two rows of registers come apart, in their own place.
        for rows in self.sums.0.chunks_exact_mut(2 * BLOCK).take(size.0.div_ceil(2)) {
            // SAFETY: two rows of values, all of which are read before any is written.
            unsafe {
                let rows = rows.as_mut_ptr().cast::<f64>();
                let both: [_; BLOCK / 2] = std::array::from_fn(|i| vld1q_f64(rows.add(2 * i)));
                for (i, both) in both.chunks_exact(2).enumerate() {
                    let (upper, lower) =
                        (vtrn1q_f64(both[0], both[1]), vtrn2q_f64(both[0], both[1]));
                    vst1q_f64(rows.add(2 * i), upper);
                    vst1q_f64(rows.add(BLOCK / 2 + 2 * i), lower);
                }
            }
        }
        // SAFETY: the caller's.
        unsafe { self.sums.write::<float32x4_t>(from, c, stride, size) }
    }

    #[inline(always)]
    unsafe fn close(self) {}
}
