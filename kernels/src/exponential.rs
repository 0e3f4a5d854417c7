//! eˣ in f32 without a branch or a call, so that the compiler makes vector code of loops over it:
//! in attention there are more exponentials than anything else.

/// eˣ to two units in the last place; 0 below −87.3, where f32 has no normal number, and ∞ above
/// 88.3. NaN gives NaN.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 · 2²³: a float that it is added to has its integer part in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; a small integer times the first is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // eʳ = 1 + r + r² · P(r) for |r| ≤ ln 2 / 2 (Cephes' polynomial).
    const P: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let p = ((((P[0] * r + P[1]) * r + P[2]) * r + P[3]) * r + P[4]) * r + P[5];
    let power_of_2 = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let power_of_2 = f32::from_bits((power_of_2.wrapping_add(127) << 23) as u32);
    let y = (p * (r * r) + r + 1.0) * power_of_2;
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_library() {
        for i in -87_300..=88_300 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.5e-7, "e^{x} is off by {error:.1e} of itself");
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(-90.0)), (0.0, 0.0, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(1e30), exp(0.0)), (f32::INFINITY, f32::INFINITY, 1.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
