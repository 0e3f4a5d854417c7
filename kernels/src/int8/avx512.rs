//! AVX512_VNNI: four products of numbers without a sign by numbers with one are added to each of 16 sums.

use std::arch::x86_64::*;

use super::set::{Sums, WithSums};

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn with_vnni<K: WithSums>(kernel: K) -> K::Output {
    kernel.run::<__m512i>()
}

// SAFETY, of every call in here: the trait's: the processor has the instructions, and the pointers lead to the values.
impl Sums for __m512i {
    type Floats = __m512;
    type OfRow = __m512i;

    const ROWS: usize = 12;
    const BYTES: usize = 1;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn of_row(from: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add_products(self, row: __m512i, _: usize, w: Self) -> Self {
        unsafe { _mm512_dpbusd_epi32(self, row, w) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { _mm512_sub_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(self) }
    }

    #[inline(always)]
    unsafe fn write_numbers(bits: __m512, to: *mut u8) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(bits))) }
    }
}
