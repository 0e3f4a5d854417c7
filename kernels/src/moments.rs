//! Mean and variance of many values, for the norms.

/// Independent sums, so that adding is vector code: two registers of the narrowest instruction set.
const LANES: usize = 8;

/// The mean of `x` and the mean square distance from it. f64 sums and two passes: the result is then as
/// exact as f32 can hold.
#[inline(always)]
pub(crate) fn mean_and_variance(x: &[f32]) -> (f64, f64) {
    let mean = sum(x, |x| x) / x.len() as f64;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f64;
    (mean, variance)
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
