//! Values as whole numbers of 8 bits: rows of x one after the other, features of w in panels.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::tile::ROWS;
use super::{GROUP, OFFSET, WIDTH};
use crate::simd::{Isa, Vector};
use crate::storage::WeightValues;

/// x as numbers 1 … 255, 128 for 0.
pub(super) struct Rows {
    /// Rows of `stride` numbers, as many as strips of [`ROWS`] need.
    pub numbers: Vec<u8>,
    pub stride: usize,
    /// What each row is multiplied by; no number where the row is none.
    pub scales: Vec<f32>,
}

/// w as numbers −127 … 127.
pub(super) struct Features {
    /// A panel for each [`WIDTH`] features: of each group of [`GROUP`] values those of the first feature, the second …
    pub panels: Vec<u8>,
    /// Bytes of a panel.
    pub panel: usize,
    /// What each feature is multiplied by.
    pub scales: Vec<f32>,
    /// 128 times the sum of each feature's numbers.
    pub offsets: Vec<i32>,
}

/// Values of a row with its end filled up to whole vectors.
fn whole(input: usize) -> usize {
    input.next_multiple_of(16 * GROUP)
}

impl Rows {
    pub(super) fn of(x: &[f32], (rows, input): (usize, usize)) -> Rows {
        // A cache line more: rows a power of 2 apart would share the sets of a cache.
        let stride = whole(input) + 64;
        let mut numbers = vec![OFFSET as u8; rows.next_multiple_of(ROWS) * stride];
        let mut scales = vec![0f32; rows.next_multiple_of(ROWS)];
        let strips = numbers.par_chunks_mut(ROWS * stride).zip(scales.par_chunks_mut(ROWS));
        x.par_chunks(ROWS * input).zip(strips).for_each(|(x, (numbers, scales))| {
            for ((x, to), scale) in x.chunks(input).zip(numbers.chunks_mut(stride)).zip(scales) {
                // SAFETY: `linear` asserts that the processor has the instructions.
                (*scale, _) = unsafe { round(x, OFFSET, &mut to[..whole(input)]) };
            }
        });
        Rows { numbers, stride, scales }
    }
}

impl Features {
    pub(super) fn of(w: WeightValues, (output, input): (usize, usize)) -> Features {
        let length = whole(input);
        let panel = WIDTH * length;
        let count = output.div_ceil(WIDTH);
        let mut panels = vec![0u8; count * panel];
        let (mut scales, mut offsets) = (vec![0f32; count * WIDTH], vec![0i32; count * WIDTH]);
        let each = panels.par_chunks_mut(panel).zip(scales.par_chunks_mut(WIDTH));
        let each = each.zip(offsets.par_chunks_mut(WIDTH)).enumerate();
        each.for_each_init(
            || (vec![0f32; input], vec![0u8; panel]),
            |(wide, flat), (number, ((panel, scales), offsets))| {
                let first = number * WIDTH;
                for (i, flat) in flat.chunks_exact_mut(length).enumerate() {
                    if first + i >= output {
                        flat.fill(0);
                        continue;
                    }
                    let at = (first + i) * input;
                    let feature = match w {
                        WeightValues::F32(values) => &values[at..at + input],
                        half => {
                            half.widen_into(Isa::Avx512, at, wide);
                            &wide[..]
                        }
                    };
                    // SAFETY: `linear` asserts that the processor has the instructions.
                    let (scale, sum) = unsafe { round(feature, 0, flat) };
                    // Of a feature that is no number the sum says nothing.
                    (scales[i], offsets[i]) = (scale, OFFSET.wrapping_mul(sum));
                }
                // SAFETY: as above.
                unsafe { interleave(flat, panel) };
            },
        );
        Features { panels, panel, scales, offsets }
    }
}

/// The values of `from` as whole numbers, `offset` added to each, in 8 bits; the rest of `to`, as many as there are in whole
/// vectors, is `offset`. Returns what they are multiplied by and the sum of the numbers without the offset.
///
/// # Safety
/// The processor has AVX-512 with BW.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
unsafe fn round(from: &[f32], offset: i32, to: &mut [u8]) -> (f32, i32) {
    assert!(to.len() == whole(from.len()));
    let part = |at: usize| {
        let count = from.len().saturating_sub(at).min(16);
        // SAFETY: `count` values from there on, none where it is past the end; the processor has AVX-512.
        unsafe {
            _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, from.as_ptr().wrapping_add(at))
        }
    };
    let mut largest = _mm512_setzero_si512();
    for at in (0..from.len()).step_by(16) {
        // As whole numbers without their signs, what is infinite is larger than all numbers, and what is none larger yet.
        let magnitude = _mm512_castps_si512(_mm512_abs_ps(part(at)));
        largest = _mm512_max_epu32(largest, magnitude);
    }
    let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
    let (scale, inverse) = match largest {
        // So small that its inverse would be infinite: nothing comes of it.
        _ if largest < f32::MIN_POSITIVE * 256.0 => (0.0, 0.0),
        _ if largest.is_finite() => (largest / MOST, MOST / largest),
        _ => (f32::NAN, 0.0),
    };
    let (inverse, offset) = (_mm512_set1_ps(inverse), _mm512_set1_epi32(offset));
    let mut sum = _mm512_setzero_si512();
    for (i, to) in to.chunks_exact_mut(16).enumerate() {
        let q = _mm512_cvtps_epi32(_mm512_mul_ps(part(16 * i), inverse));
        sum = _mm512_add_epi32(sum, q);
        // SAFETY: sixteen bytes.
        unsafe {
            _mm_storeu_si128(
                to.as_mut_ptr().cast(),
                _mm512_cvtepi32_epi8(_mm512_add_epi32(q, offset)),
            )
        };
    }
    (scale, _mm512_reduce_add_epi32(sum))
}

/// The largest of the whole numbers: as many below 0 as above it.
const MOST: f32 = 127.0;

/// [`WIDTH`] features, one after the other, to a panel: groups of four numbers are what is turned.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
unsafe fn interleave(features: &[u8], panel: &mut [u8]) {
    assert!(features.len() == panel.len() && features.len().is_multiple_of(WIDTH * 16 * GROUP));
    let groups = features.len() / WIDTH / GROUP;
    let (from, to) = (features.as_ptr().cast::<f32>(), panel.as_mut_ptr().cast::<f32>());
    for first in (0..WIDTH).step_by(16) {
        for group in (0..groups).step_by(16) {
            // SAFETY: 16 × 16 groups of each, which are only moved.
            unsafe {
                let from = from.add(first * groups + group);
                __m512::transpose(from, groups, to.add(group * WIDTH + first), WIDTH);
            }
        }
    }
}
