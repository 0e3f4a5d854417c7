//! NEON, which every 64-bit ARM processor has: 32 registers of 4 values.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::{Kernel, Vector};

#[target_feature(enable = "neon")]
pub(super) unsafe fn neon<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<float32x4_t>()
}

#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn neon_apart<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<float32x4_t>()
}

// SAFETY, of every call in here: the trait's: the processor has the instructions, and the pointers lead to the
// values.
impl Vector for float32x4_t {
    const LANES: usize = 4;
    // 16 registers of sums, 8 of four steps of B, and as many of four steps of A.
    const TILE_ROWS: usize = 8;
    const TILE_VECTORS: usize = 2;
    const BY_LANE: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn by_fours(from: *const f32) -> [Self; 4] {
        unsafe {
            let float32x4x4_t(a, b, c, d) = vld4q_f32(from);
            [a, b, c, d]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // The conversion belongs to every 64-bit ARM processor, its intrinsic not yet to Rust 1.89.
        unsafe {
            let halves = vld1_u16(from.cast());
            let wide: float32x4_t;
            asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) wide, in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags));
            wide
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // The upper half of an f32's bits.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        unsafe {
            let two = || vcombine_f32(vld1_f32(from), vdup_n_f32(0.0));
            match count {
                0 => vdupq_n_f32(0.0),
                1 => vld1q_lane_f32::<0>(from, vdupq_n_f32(0.0)),
                2 => two(),
                3 => vld1q_lane_f32::<2>(from.add(2), two()),
                _ => vld1q_f32(from),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        unsafe {
            match count {
                0 => (),
                1 => vst1q_lane_f32::<0>(to, self),
                2 => vst1_f32(to, vget_low_f32(self)),
                3 => {
                    vst1_f32(to, vget_low_f32(self));
                    vst1q_lane_f32::<2>(to.add(2), self);
                }
                _ => vst1q_f32(to, self),
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        unsafe { vfmaq_f32(c, self, b) }
    }

    #[inline(always)]
    unsafe fn mul_add_lane(self, lane: usize, b: Self, c: Self) -> Self {
        unsafe {
            match lane {
                0 => vfmaq_laneq_f32::<0>(c, b, self),
                1 => vfmaq_laneq_f32::<1>(c, b, self),
                2 => vfmaq_laneq_f32::<2>(c, b, self),
                _ => vfmaq_laneq_f32::<3>(c, b, self),
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { vaddq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { vsubq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { vmulq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // By a comparison, which no number fails: NEON's own maxima give what is no number of either, or of none.
        unsafe { vbslq_f32(vcgtq_f32(self, other), self, other) }
    }

    #[inline(always)]
    unsafe fn times_power_of_2(self, n: Self) -> Self {
        // The exponent's bits; those of 2^-127 and less are 0's.
        unsafe {
            let n = vcvtq_s32_f32(vmaxq_f32(n, vdupq_n_f32(-127.0)));
            let bits = vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)));
            vmulq_f32(self, vreinterpretq_f32_s32(bits))
        }
    }

    #[inline(always)]
    unsafe fn prefetch_to_write(at: *mut f32) {
        // Rust 1.89 has no intrinsic for it. Memory stays as it is, but not told so, or the compiler would leave it out.
        unsafe {
            asm!("prfm pstl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // As above.
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags))
        }
    }

    #[inline(always)]
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
        unsafe { neon_apart(kernel) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // Rows two apart are mixed value by value, then the two mixtures.
        unsafe {
            let [a, b, c, d] = std::array::from_fn(|i| vld1q_f32(from.add(i * from_stride)));
            let (low, high) =
                ((vzip1q_f32(a, c), vzip1q_f32(b, d)), (vzip2q_f32(a, c), vzip2q_f32(b, d)));
            vst1q_f32(to, vzip1q_f32(low.0, low.1));
            vst1q_f32(to.add(to_stride), vzip2q_f32(low.0, low.1));
            vst1q_f32(to.add(2 * to_stride), vzip1q_f32(high.0, high.1));
            vst1q_f32(to.add(3 * to_stride), vzip2q_f32(high.0, high.1));
        }
    }
}
