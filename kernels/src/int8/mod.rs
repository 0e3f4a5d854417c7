//! Linear layers whose factors are rounded to whole numbers of 8 bits, for who asks for them (`KOSMOGRAPH_PRECISION=int8`):
//! y = s s' (q q') of x ≈ s q, a scale for each row, and w ≈ s' q', a scale for each feature (LLM.int8's vector-wise
//! quantisation, Dettmers et al., arXiv 2208.07339, without its outliers). Both scales are found at every call, from the values
//! that are there; sums are whole numbers and exact.
//!
//! What multiplies them is a [`Set`] of instructions; over it, rounding, packing and the tiles are written once, and to the bit
//! the result is the same with each. Where the instruction wants one factor without a sign, 128 is added to each q, and 128 times
//! the sum of a feature's q' taken from the result.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod pack;
mod set;
mod tile;

use rayon::prelude::*;

use crate::gemm::{Shared, blocks_of};
use crate::memory;
use crate::storage::WeightValues;
use pack::{Features, Rows};
pub(crate) use set::Set;
use tile::Block;

/// Bytes of a group, the numbers whose products an instruction adds to one sum.
const GROUP_BYTES: usize = 4;
/// Values of a row are filled up to a multiple of this, a whole number of vectors and of groups for every set.
const CHUNK: usize = 64;
/// The most values of a row whose sums are sure to fit into 32 bits.
const LONGEST: usize = 1 << 16;
/// The features from which on rounding the rows is worth it.
const FEWEST: usize = 32;

/// Whether a layer of this size is computed so: of few rows rounding the weights takes longer than multiplying them saves.
pub(crate) fn pays((rows, input, output): (usize, usize, usize)) -> bool {
    rows > 128 && (CHUNK..=LONGEST).contains(&input) && output >= FEWEST
}

/// y [rows, out] = x [rows, in] · wᵀ + bias, w [out, in]. A row of x with a value that is no number, or none that is finite, is
/// no number either.
pub(crate) fn linear(
    set: Set,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    (rows, input, output): (usize, usize, usize),
) -> Vec<f32> {
    assert!(x.len() == rows * input && w.len() == input * output);
    assert!(input <= LONGEST && bias.is_none_or(|bias| bias.len() == output));
    let x = Rows::of(set, x, (rows, input));
    let w = Features::of(set, w, (output, input));
    let sizes = set.sizes();
    let tasks = blocks_of((rows, output), (sizes.rows, sizes.width));
    let write = |y: &mut [f32]| {
        let to = Shared(y.as_mut_ptr());
        tasks.into_par_iter().for_each(|(rows, features)| {
            // Each value of y is in one block, and written there.
            set.run(Block { x: &x, w: &w, bias, rows, features, to, output });
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
                (sum as f32).mul_add(scale * by, bias.map_or(0.0, |bias| bias[feature]))
            };
            w.iter().enumerate().map(of_feature).collect::<Vec<_>>()
        };
        assert_eq!(w.len(), output);
        x.chunks(input).flat_map(of_row).collect()
    }

    /// What each set that this processor has finds, which is the same.
    fn of_all_sets(
        x: &[f32],
        w: WeightValues,
        bias: Option<&[f32]>,
        sizes: (usize, usize, usize),
    ) -> Vec<f32> {
        let mut sets = Set::tried().into_iter();
        let Some(first) = sets.next() else {
            panic!("there is nothing to try: this processor has neither AVX2 nor a dot product")
        };
        let found = linear(first, x, w, bias, sizes);
        for set in sets {
            let other = linear(set, x, w, bias, sizes);
            for (at, (a, b)) in found.iter().zip(&other).enumerate() {
                let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                assert!(same, "{sizes:?}, {at}: {a} by {first:?}, {b} by {set:?}");
            }
        }
        found
    }

    #[test]
    fn is_the_product_of_the_rounded_factors() {
        println!("{:?}", Set::tried());
        for sizes @ (rows, input, output) in [
            (1, 64, 32),
            (12, 64, 64),
            (13, 67, 33),
            (7, 191, 7),
            (200, 320, 320),
            (129, 1281, 100),
            (30, 4096, 40),
        ] {
            let (mut x, w) = (values(rows * input, 1), values(input * output, 2));
            let bias = values(output, 3);
            // A row of zeros has no scale.
            x[..input].fill(0.0);
            for bias in [None, Some(&bias[..])] {
                let found = of_all_sets(&x, WeightValues::F32(&w), bias, sizes);
                assert_eq!(found, definition(&x, &w, bias, sizes), "{sizes:?}");
            }
            let half: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let wide: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            let of_half = of_all_sets(&x, WeightValues::F16(&half), None, sizes);
            assert_eq!(of_half, of_all_sets(&x, WeightValues::F32(&wide), None, sizes));
        }
    }

    /// Halves of the largest number's step lie between two whole numbers: it is the even one.
    #[test]
    fn halves_are_rounded_to_even() {
        let mut x = vec![0f32; 64];
        x[0] = 127.0;
        for (at, value) in [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5].into_iter().enumerate()
        {
            x[1 + at] = value;
        }
        let mut w = vec![0f32; 9 * 64];
        for i in 0..9 {
            w[64 * i + i] = 127.0;
        }
        let found = of_all_sets(&x, WeightValues::F32(&w), None, (1, 64, 9));
        assert_eq!(
            found,
            [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0, -126.0].map(|y| 127.0 * y)
        );
    }

    #[test]
    fn what_is_no_number_stays_none_and_spoils_no_other_row() {
        let sizes @ (rows, input, output) = (16, 64, 32);
        let (x, w) = (values(rows * input, 1), values(input * output, 2));
        let whole = of_all_sets(&x, WeightValues::F32(&w), None, sizes);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = x.clone();
            x[3 * input + 5] = odd;
            let found = of_all_sets(&x, WeightValues::F32(&w), None, sizes);
            for (at, (found, whole)) in found.iter().zip(&whole).enumerate() {
                match at / output {
                    3 => assert!(found.is_nan(), "{odd}: {found}"),
                    _ => assert_eq!(found, whole),
                }
            }
            // And so with a feature.
            let mut w = w.clone();
            w[3 * input + 5] = odd;
            let found = of_all_sets(&x, WeightValues::F32(&w), None, sizes);
            assert!((0..rows).all(|row| found[row * output + 3].is_nan()));
        }
    }

    /// The largest sum that there can be.
    #[test]
    fn the_longest_row_does_not_overflow() {
        let sizes = (1, LONGEST, 32);
        for sign in [1.0, -1.0] {
            let (x, w) = (vec![1f32; LONGEST], vec![sign; 32 * LONGEST]);
            let found = of_all_sets(&x, WeightValues::F32(&w), None, sizes);
            assert!(
                found.iter().all(|value| (value - sign * LONGEST as f32).abs() < 1.0),
                "{found:?}"
            );
        }
    }
}
