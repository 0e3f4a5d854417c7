//! Linear layers whose factors are rounded to whole numbers of 8 bits, for who asks for them (`KOSMOGRAPH_PRECISION=int8`):
//! y = s s' (q q') of x ≈ s q, a scale for each row, and w ≈ s' q', a scale for each feature (LLM.int8's vector-wise
//! quantisation, Dettmers et al., arXiv 2208.07339, without its outliers). Both scales are found at every call, from the values
//! that are there; sums are whole numbers and exact.
//!
//! The instruction is AVX512_VNNI's, which multiplies numbers without a sign by numbers with one: 128 is added to each q, and 128
//! times the sum of a feature's q' taken from the result.

mod pack;
mod tile;

use rayon::prelude::*;

use crate::gemm::{Shared, blocks_of};
use crate::memory;
use crate::storage::WeightValues;
use pack::{Features, Rows};
use tile::{Block, ROWS};

/// Features of a panel: two vectors of sums.
const WIDTH: usize = 32;
/// Values that one instruction multiplies for each sum.
const GROUP: usize = 4;
/// Added to each q of x.
const OFFSET: i32 = 128;
/// The most values of a row whose sums are sure to fit into 32 bits.
const LONGEST: usize = 1 << 16;

/// Whether this processor multiplies so.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Whether a layer of this size is computed so: of few rows rounding the weights takes longer than multiplying them saves.
pub(crate) fn pays((rows, input, output): (usize, usize, usize)) -> bool {
    rows > 128 && (GROUP * 16..=LONGEST).contains(&input) && output >= WIDTH
}

/// y [rows, out] = x [rows, in] · wᵀ + bias, w [out, in]. A row of x with a value that is no number, or none that is finite, is
/// no number either.
pub(crate) fn linear(
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    (rows, input, output): (usize, usize, usize),
) -> Vec<f32> {
    assert!(is_available() && x.len() == rows * input && w.len() == input * output);
    assert!(input <= LONGEST && bias.is_none_or(|bias| bias.len() == output));
    let x = Rows::of(x, (rows, input));
    let w = Features::of(w, (output, input));
    let tasks = blocks_of((rows, output), (ROWS, WIDTH));
    let write = |y: &mut [f32]| {
        let to = Shared(y.as_mut_ptr());
        tasks.into_par_iter().for_each(|(rows, features)| {
            // SAFETY: the processor has the instructions, as asserted; each value of y is in one block, and written there.
            unsafe { Block { x: &x, w: &w, bias, rows, features, to, output }.run() }
        });
    };
    // SAFETY: the blocks are all of y.
    unsafe { memory::written_by(rows * output, write) }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// Numbers without a pattern, a few of them larger than the rest.
    fn values(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| {
            let x = (i ^ seed).wrapping_mul(0x9E37_79B1);
            let x = (x ^ x >> 15).wrapping_mul(0x85EB_CA6B);
            let value = (x >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if x.is_multiple_of(97) { 4.0 * value } else { value }
        };
        (0..count as u32).map(number).collect()
    }

    /// A row as whole numbers and its scale.
    fn rounded(row: &[f32]) -> (Vec<i64>, f32) {
        let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let q = row.iter().map(|value| (value * inverse).round_ties_even() as i64);
        (q.collect(), largest / 127.0)
    }

    fn definition(
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        (_, input, output): (usize, usize, usize),
    ) -> Vec<f32> {
        let w: Vec<_> = w.chunks(input).map(rounded).collect();
        let of_row = |row: &[f32]| {
            let (q, scale) = rounded(row);
            let of_feature = |(feature, (other, by)): (usize, &(Vec<i64>, f32))| {
                let sum: i64 = q.iter().zip(other).map(|(a, b)| a * b).sum();
                sum as f32 * (scale * by) + bias.map_or(0.0, |bias| bias[feature])
            };
            w.iter().enumerate().map(of_feature).collect::<Vec<_>>()
        };
        assert_eq!(w.len(), output);
        x.chunks(input).flat_map(of_row).collect()
    }

    #[test]
    fn is_the_product_of_the_rounded_factors() {
        if !is_available() {
            println!("this processor has no AVX512_VNNI: nothing was tried");
            return;
        }
        for sizes @ (rows, input, output) in [
            (1, 64, 32),
            (12, 64, 64),
            (13, 67, 33),
            (200, 320, 320),
            (129, 1281, 100),
            (30, 4096, 40),
        ] {
            let (mut x, w) = (values(rows * input, 1), values(input * output, 2));
            let bias = values(output, 3);
            // A row of zeros has no scale.
            x[..input].fill(0.0);
            for bias in [None, Some(&bias[..])] {
                let found = linear(&x, WeightValues::F32(&w), bias, sizes);
                let want = definition(&x, &w, bias, sizes);
                for (at, (found, want)) in found.iter().zip(&want).enumerate() {
                    let apart = (found - want).abs();
                    assert!(
                        apart <= 1e-5 * want.abs().max(1.0),
                        "{sizes:?}, {at}: {found}, {want}"
                    );
                }
            }
            let half: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let wide: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            let of_half = linear(&x, WeightValues::F16(&half), None, sizes);
            assert_eq!(of_half, linear(&x, WeightValues::F32(&wide), None, sizes));
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_spoils_no_other_row() {
        if !is_available() {
            println!("this processor has no AVX512_VNNI: nothing was tried");
            return;
        }
        let sizes @ (rows, input, output) = (16, 64, 32);
        let (x, w) = (values(rows * input, 1), values(input * output, 2));
        let whole = linear(&x, WeightValues::F32(&w), None, sizes);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = x.clone();
            x[3 * input + 5] = odd;
            let found = linear(&x, WeightValues::F32(&w), None, sizes);
            for (at, (found, whole)) in found.iter().zip(&whole).enumerate() {
                match at / output {
                    3 => assert!(found.is_nan(), "{odd}: {found}"),
                    _ => assert_eq!(found, whole),
                }
            }
        }
    }

    /// The largest sum that there can be.
    #[test]
    fn the_longest_row_does_not_overflow() {
        if !is_available() {
            println!("this processor has no AVX512_VNNI: nothing was tried");
            return;
        }
        let sizes = (1, LONGEST, 32);
        for sign in [1.0, -1.0] {
            let (x, w) = (vec![1f32; LONGEST], vec![sign; 32 * LONGEST]);
            let found = linear(&x, WeightValues::F32(&w), None, sizes);
            assert!(
                found.iter().all(|value| (value - sign * LONGEST as f32).abs() < 1.0),
                "{found:?}"
            );
        }
    }
}
