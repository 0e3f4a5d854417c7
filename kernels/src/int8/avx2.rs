//! Vectors of 8 sums: AVX-VNNI, and AVX2 alone.
//!
//! All but the products is the same for both, and for a form of AVX-VNNI's instruction that processors of AVX-512 have: what is
//! tested there is all of AVX-VNNI's code but for how the one instruction is written.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::set::{Sums, WithSums};

#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(super) unsafe fn with_vnni<K: WithSums>(kernel: K) -> K::Output {
    kernel.run::<Eight<Vnni>>()
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn with_pairs<K: WithSums>(kernel: K) -> K::Output {
    kernel.run::<Eight<Pairs>>()
}

#[cfg(test)]
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn with_vnni_of_avx512<K: WithSums>(kernel: K) -> K::Output {
    kernel.run::<Eight<VnniOfAvx512>>()
}

/// Eight sums, to which `D` adds.
struct Eight<D>(__m256i, PhantomData<D>);

impl<D> Clone for Eight<D> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Eight<D> {}

/// What is added to each of eight sums: the products of four bytes by four others.
///
/// # Safety
/// All functions: those of [`Sums`].
trait Dot {
    const BYTES: usize;
    const OFFSET: i32;

    unsafe fn add(sums: __m256i, row: __m256i, w: __m256i) -> __m256i;
    unsafe fn write_numbers(bits: __m256i, to: *mut u8);
}

/// AVX-VNNI: numbers without a sign by numbers with one.
struct Vnni;
/// The same of AVX512_VNNI and AVX512VL.
#[cfg(test)]
struct VnniOfAvx512;
/// Two numbers of 16 bits by two others. Their products are exact in 32, where AVX2's product of bytes is cut off at 16.
struct Pairs;

// SAFETY, of every call in the rest of this file: the trait's: the processor has the instructions, and the pointers lead to the
// values.
impl Dot for Vnni {
    const BYTES: usize = 1;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn add(sums: __m256i, row: __m256i, w: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(sums, row, w) }
    }

    #[inline(always)]
    unsafe fn write_numbers(bits: __m256i, to: *mut u8) {
        unsafe { write_bytes(bits, to) }
    }
}

#[cfg(test)]
impl Dot for VnniOfAvx512 {
    const BYTES: usize = Vnni::BYTES;
    const OFFSET: i32 = Vnni::OFFSET;

    #[inline(always)]
    unsafe fn add(sums: __m256i, row: __m256i, w: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_epi32(sums, row, w) }
    }

    #[inline(always)]
    unsafe fn write_numbers(bits: __m256i, to: *mut u8) {
        unsafe { write_bytes(bits, to) }
    }
}

impl Dot for Pairs {
    const BYTES: usize = 2;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn add(sums: __m256i, row: __m256i, w: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(row, w)) }
    }

    #[inline(always)]
    unsafe fn write_numbers(bits: __m256i, to: *mut u8) {
        // The lower halves of each four to the front, then the two fours.
        unsafe {
            let fronts = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,
            ));
            let fours = _mm256_shuffle_epi8(bits, fronts);
            let eight = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(fours));
            _mm_storeu_si128(to.cast(), eight);
        }
    }
}

/// The lowest byte of each of eight.
///
/// # Safety
/// As [`Sums::write_numbers`].
#[inline(always)]
unsafe fn write_bytes(bits: __m256i, to: *mut u8) {
    unsafe {
        let fronts = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        ));
        let fours = _mm256_shuffle_epi8(bits, fronts);
        let (low, high) = (_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
        _mm_storel_epi64(to.cast(), _mm_unpacklo_epi32(low, high));
    }
}

impl<D: Dot> Sums for Eight<D> {
    type Floats = __m256;
    type OfRow = __m256i;

    const ROWS: usize = 6;
    const BYTES: usize = D::BYTES;
    const OFFSET: i32 = D::OFFSET;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Eight(unsafe { _mm256_setzero_si256() }, PhantomData)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        Eight(unsafe { _mm256_loadu_si256(from.cast()) }, PhantomData)
    }

    #[inline(always)]
    unsafe fn of_row(from: *const u8) -> __m256i {
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add_products(self, row: __m256i, _: usize, w: Self) -> Self {
        Eight(unsafe { D::add(self.0, row, w.0) }, PhantomData)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Eight(unsafe { _mm256_sub_epi32(self.0, other.0) }, PhantomData)
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn write_numbers(bits: __m256, to: *mut u8) {
        unsafe { D::write_numbers(_mm256_castps_si256(bits), to) }
    }
}
