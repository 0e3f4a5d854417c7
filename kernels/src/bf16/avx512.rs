//! AVX512_BF16: the products of pairs, of a row's pair and sixteen columns'.

use std::arch::x86_64::*;

use super::pairs::Pairs;
use super::sums::Sums;
use super::unit::{Begin, Steps, Unit, WithUnit};
use super::{BLOCK, SIDE, Tile};

/// Whether the processor has it, and what else of AVX-512 the order of its tiles takes.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// For AMX, too.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn with<U: Unit, K: WithUnit>(kernel: K) -> K::Output {
    kernel.run::<U>()
}

/// The sums lie in memory between two calls.
pub(crate) struct Avx512 {
    sums: Sums,
}

/// A tile's row of pairs.
///
/// # Safety
/// The tile is there; the processor has AVX-512.
#[inline(always)]
unsafe fn pairs(tile: *const i32, row: usize) -> __m512bh {
    // SAFETY: the caller's; both are 512 bits.
    unsafe { std::mem::transmute(_mm512_load_si512(tile.add(row * SIDE).cast())) }
}

/// Rows whose sums are registers, with two vectors of columns: 16 of 32.
const ROWS: usize = 8;

impl Unit for Avx512 {
    type Order = Pairs;

    #[inline(always)]
    unsafe fn open() -> Self {
        Avx512 { sums: Sums([0.0; BLOCK * BLOCK]) }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, _: Begin, _: *const f32, _: usize, _: (usize, usize)) {
        self.sums.0.fill(0.0);
    }

    #[inline(always)]
    unsafe fn add(&mut self, a: [*const Tile; 2], steps: Steps, b: [*const Tile; 2], count: usize) {
        for first in (0..BLOCK).step_by(ROWS) {
            // SAFETY: the caller's tiles, each 16 rows of 16 pairs.
            unsafe {
                let to = self.sums.0.as_mut_ptr().add(first * BLOCK);
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_load_ps(to.add(row * BLOCK + 16 * i));
                    }
                }
                let mut a = a[first / SIDE].cast::<i32>().add(first % SIDE * SIDE);
                let [mut b0, mut b1] = b.map(|tile| tile.cast::<i32>());
                for _ in 0..count {
                    for pair in 0..SIDE {
                        let of_b = [pairs(b0, pair), pairs(b1, pair)];
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let a = _mm512_set1_epi32(*a.add(row * SIDE + pair));
                            for (sum, b) in sums.iter_mut().zip(of_b) {
                                *sum = _mm512_dpbf16_ps(
                                    *sum,
                                    std::mem::transmute::<__m512i, __m512bh>(a),
                                    b,
                                );
                            }
                        }
                    }
                    a = a.byte_add(steps.tile);
                    b0 = b0.byte_add(size_of::<Tile>());
                    b1 = b1.byte_add(size_of::<Tile>());
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (i, sum) in sums.iter().enumerate() {
                        _mm512_store_ps(to.add(row * BLOCK + 16 * i), *sum);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, from: Begin, c: *mut f32, stride: usize, size: (usize, usize)) {
        // SAFETY: the caller's.
        unsafe { self.sums.write::<__m512>(from, c, stride, size) }
    }

    #[inline(always)]
    unsafe fn close(self) {}
}
