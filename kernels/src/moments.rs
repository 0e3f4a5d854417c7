//! Mean and variance of many values, for the norms.

/// Independent sums, so that adding is vector code: two registers of the narrowest instruction set.
const LANES: usize = 8;

/// Values whose second pass finds them in a first-level cache, 16 KiB.
const BLOCK: usize = 4096;

/// The mean of `x` and the mean square distance from it. f64 sums and two passes: the result is then as
/// exact as f32 can hold. Both passes go over a block at a time, and the blocks' moments are put together as by Chan, Golub and
/// LeVeque (Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979): what no cache holds is read once.
#[inline(always)]
pub(crate) fn mean_and_variance(x: &[f32]) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for block in x.chunks(BLOCK) {
        let length = block.len() as f64;
        let of_block = sum(block, |x| x) / length;
        let within = sum(block, |x| (x - of_block) * (x - of_block));
        let (all, apart) = (count + length, of_block - mean);
        squares += within + apart * apart * (count * length / all);
        mean += apart * (length / all);
        count = all;
    }
    (mean, squares / count)
}

/// Σ f(x) in f64.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += f(f64::from(*value));
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| f(f64::from(*value))).sum::<f64>()
}

/// Σ a · f(b) in f64, in independent sums as above.
#[inline(always)]
pub(crate) fn sum_of_products(a: &[f32], b: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(a) * f(f64::from(b));
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f(f64::from(b)));
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mean that lies far from zero and drifts, so that blocks differ, in lengths that end within one.
    #[test]
    fn blocks_come_to_what_two_passes_over_all_do() {
        for length in [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 40_000] {
            let value = |i: usize| 1e4 + (i as f32 * 0.1).sin() + i as f32 * 1e-4;
            let x: Vec<f32> = (0..length).map(value).collect();
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / length as f64;
            let square = |&x: &f32| (f64::from(x) - mean).powi(2);
            let variance = x.iter().map(square).sum::<f64>() / length as f64;
            let found = mean_and_variance(&x);
            assert!((found.0 - mean).abs() <= 1e-12 * mean, "{length}: {found:?}, {mean}");
            let error = (found.1 - variance).abs();
            assert!(error <= 1e-9 * variance, "{length}: {found:?}, {variance}");
        }
    }
}
