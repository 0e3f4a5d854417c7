//! AVX-512 F, with 32 registers of 16 values, and AVX2 with FMA and F16C, 16 registers of 8.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Vector};

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<__m512>()
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<__m256>()
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn avx512_apart<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<__m512>()
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_apart<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<__m256>()
}

/// The same for both: the trait's names, and the intrinsics'.
macro_rules! vector {
    ($vector:ty, $lanes:literal, $rows:literal by $vectors:literal, $load:ident, $store:ident, $splat:ident,
     $mul_add:ident, $add:ident, $sub:ident, $mul:ident, $max:ident, $apart:ident; $($own:tt)*) => {
        // SAFETY, of every call in here: the trait's: the processor has the instructions, and the
        // pointers lead to the values.
        impl Vector for $vector {
            const LANES: usize = $lanes;
            const TILE_ROWS: usize = $rows;
            const TILE_VECTORS: usize = $vectors;

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { $splat(value) }
            }

            #[inline(always)]
            unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                unsafe { $mul_add(self, b, c) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                unsafe { $sub(self, other) }
            }

            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                unsafe { $mul(self, other) }
            }

            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                unsafe { $max(self, other) }
            }

            #[inline(always)]
            unsafe fn prefetch_to_write(at: *mut f32) {
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast_const().cast()) }
            }

            #[inline(always)]
            unsafe fn prefetch(at: *const u8) {
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
            }

            #[inline(always)]
            unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
                unsafe { $apart(kernel) }
            }

            $($own)*
        }
    };
}

vector! {
    __m256, 8, 6 by 2, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
    _mm256_fmadd_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_max_ps, avx2_apart;

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // The upper half of an f32's bits.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn times_power_of_2(self, n: Self) -> Self {
        // The exponent's bits; those of 2^-127 and less are 0's.
        unsafe {
            let n = _mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-127.0)));
            let bits = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
            _mm256_mul_ps(self, _mm256_castsi256_ps(bits))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        unsafe { transpose_8x8(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    unsafe fn by_fours(from: *const f32) -> [Self; 4] {
        // Fours 0 and 4, 1 and 5, 2 and 6, 3 and 7, then their columns.
        unsafe {
            let mut fours = [_mm256_setzero_ps(); 4];
            for (i, four) in fours.iter_mut().enumerate() {
                let low = _mm256_castps128_ps256(_mm_loadu_ps(from.add(4 * i)));
                *four = _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add(16 + 4 * i)));
            }
            let [a, b, c, d] = fours;
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xee>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
            ]
        }
    }
}

vector! {
    __m512, 16, 8 by 3, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
    _mm512_fmadd_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_max_ps, avx512_apart;

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        unsafe { _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, from) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << count) - 1) as u16, self) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn times_power_of_2(self, n: Self) -> Self {
        unsafe { _mm512_scalef_ps(self, n) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        unsafe { transpose_16x16(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    unsafe fn by_fours(from: *const f32) -> [Self; 4] {
        unsafe {
            // The first two of every four of the lower and of the upper half, and the other two; then halves.
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
            let others = _mm512_add_epi32(firsts, _mm512_set1_epi32(2));
            let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            let (c, d) = (_mm512_loadu_ps(from.add(32)), _mm512_loadu_ps(from.add(48)));
            let (ab, cd) =
                (_mm512_permutex2var_ps(a, firsts, b), _mm512_permutex2var_ps(c, firsts, d));
            let (ab_others, cd_others) =
                (_mm512_permutex2var_ps(a, others, b), _mm512_permutex2var_ps(c, others, d));
            [
                _mm512_shuffle_f32x4::<0x44>(ab, cd),
                _mm512_shuffle_f32x4::<0xee>(ab, cd),
                _mm512_shuffle_f32x4::<0x44>(ab_others, cd_others),
                _mm512_shuffle_f32x4::<0xee>(ab_others, cd_others),
            ]
        }
    }
}

/// Pairs, then pairs of pairs within quarters, then the quarters.
///
/// # Safety
/// As [`Vector::transpose`], for 16 lanes.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the index is the second of two")]
unsafe fn transpose_16x16(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        let row = |i: usize| _mm512_loadu_ps(from.add(i * from_stride));
        let mut quads = [[_mm512_setzero_ps(); 4]; 4];
        for (i, quads) in quads.iter_mut().enumerate() {
            let [a, b, c, d] = std::array::from_fn(|j| row(4 * i + j));
            let pairs = |a, b| {
                let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                [_mm512_castps_pd(low), _mm512_castps_pd(high)]
            };
            let ([ab, ab_high], [cd, cd_high]) = (pairs(a, b), pairs(c, d));
            *quads = [
                _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
                _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
            ];
        }
        for j in 0..4 {
            let [a, b, c, d] = std::array::from_fn(|i| quads[i][j]);
            let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
            _mm512_storeu_ps(to.add(j * to_stride), _mm512_shuffle_f32x4::<0x88>(ab, cd));
            _mm512_storeu_ps(to.add((4 + j) * to_stride), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let (ab, cd) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
            _mm512_storeu_ps(to.add((8 + j) * to_stride), _mm512_shuffle_f32x4::<0x88>(ab, cd));
            _mm512_storeu_ps(to.add((12 + j) * to_stride), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
        }
    }
}

/// Pairs, then pairs of pairs, then halves.
///
/// # Safety
/// As [`Vector::transpose`], for 8 lanes.
#[inline(always)]
unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        let row = |i: usize| _mm256_loadu_ps(from.add(i * from_stride));
        let mut quads = [_mm256_setzero_ps(); 8];
        for half in 0..2 {
            let [a, b, c, d] = std::array::from_fn(|i| row(4 * half + i));
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            quads[4 * half] = _mm256_shuffle_ps::<0x44>(ab, cd);
            quads[4 * half + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
            let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            quads[4 * half + 2] = _mm256_shuffle_ps::<0x44>(ab, cd);
            quads[4 * half + 3] = _mm256_shuffle_ps::<0xee>(ab, cd);
        }
        for j in 0..4 {
            let (low, high) = (quads[j], quads[4 + j]);
            let column = _mm256_permute2f128_ps::<0x20>(low, high);
            _mm256_storeu_ps(to.add(j * to_stride), column);
            let column = _mm256_permute2f128_ps::<0x31>(low, high);
            _mm256_storeu_ps(to.add((4 + j) * to_stride), column);
        }
    }
}
