//! 64-bit ARM's dot product: four products of numbers with signs are added to each of 4 sums. Those of a row are taken by element
//! of a vector of four groups.

use std::arch::aarch64::*;
use std::arch::asm;

use super::set::{Sums, WithSums};

#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn with_dot_product<K: WithSums>(kernel: K) -> K::Output {
    kernel.run::<int32x4_t>()
}

/// The instruction, whose intrinsic is not stable yet.
macro_rules! sdot {
    ($sums:expr, $w:expr, $row:expr, $group:literal) => {{
        let mut sums: int32x4_t = $sums;
        asm!(concat!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[", $group, "]"), inout(vreg) sums, in(vreg) $w, in(vreg) $row,
            options(pure, nomem, nostack, preserves_flags));
        sums
    }};
}

// SAFETY, of every call in here: the trait's: the processor has the instructions, and the pointers lead to the values.
impl Sums for int32x4_t {
    type Floats = float32x4_t;
    type OfRow = int32x4_t;

    // 16 registers of sums, 8 of the rows' four groups, and two of the panel's.
    const ROWS: usize = 8;
    const BYTES: usize = 1;
    const OFFSET: i32 = 0;
    const STEP: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn of_row(from: *const u8) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn add_products(self, row: int32x4_t, group: usize, w: Self) -> Self {
        unsafe {
            match group {
                0 => sdot!(self, w, row, 0),
                1 => sdot!(self, w, row, 1),
                2 => sdot!(self, w, row, 2),
                _ => sdot!(self, w, row, 3),
            }
        }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { vsubq_s32(self, other) }
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> float32x4_t {
        unsafe { vcvtq_f32_s32(self) }
    }

    #[inline(always)]
    unsafe fn write_numbers(bits: float32x4_t, to: *mut u8) {
        unsafe {
            let halves = vmovn_u32(vreinterpretq_u32_f32(bits));
            let bytes = vmovn_u16(vcombine_u16(halves, halves));
            to.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
        }
    }
}
