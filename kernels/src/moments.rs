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

#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += f(f64::from(*value));
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| f(f64::from(*value))).sum::<f64>()
}
