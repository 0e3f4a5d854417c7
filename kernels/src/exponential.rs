//! eˣ and 2ˣ in f32 without a branch or a call, so that loops over them are vector code: in attention there are more
//! exponentials than anything else.

use crate::simd::Vector;

/// 2ˣ to two units in the last place for x ≤ 127; where that is no normal number, at most the smallest of them. NaN gives
/// NaN. Half of the operations of [`exp`], since nothing is split off but the whole part.
///
/// # Safety
/// [`Vector`]'s.
#[inline(always)]
pub(crate) unsafe fn exp2<V: Vector>(x: V) -> V {
    // 1.5 · 2²³: a float that it is added to is rounded to a whole number.
    const ROUND: f32 = 12_582_912.0;
    // 2ʳ for |r| ≤ 1/2, fitted to the least largest relative error, 1.9e-9; 2⁰ is 1.
    const P: [f32; 7] = [
        1.534_582e-4,
        1.339_993_1e-3,
        9.618_489e-3,
        5.550_329e-2,
        0.240_226_47,
        std::f32::consts::LN_2,
        1.0,
    ];
    // SAFETY: the caller's.
    unsafe {
        // So that −∞ is 0 and not the difference of two of them; `max` leaves what is no number.
        let x = V::splat(-200.0).max(x);
        let n = x.add(V::splat(ROUND)).sub(V::splat(ROUND));
        let r = x.sub(n);
        let mut p = V::splat(P[0]);
        for coefficient in &P[1..] {
            p = p.mul_add(r, V::splat(*coefficient));
        }
        p.times_power_of_2(n)
    }
}

/// eˣ to two units in the last place; 0 below −87.3, where f32 has no normal number, and ∞ above
/// 88.3. NaN gives NaN.
#[inline(always)]
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

/// erf x to 1.5e-7. NaN gives NaN.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    // erf x = x · P(x²) for |x| ≤ 1, and 1 − e^−Q(|x|) beyond, Q = −ln erfc. Both fitted by iterated least squares to
    // the largest error, in f64; beyond 4 the result is 1 in f32.
    const P: [f32; 7] = [
        7.889_123e-5,
        -8.020_842e-4,
        5.189_535_7e-3,
        -2.685_444_4e-2,
        1.128_36e-1,
        -3.761_262_6e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const Q: [f32; 8] = [
        2.168_676_3e-5,
        -4.413_353e-4,
        4.204_556_3e-3,
        -2.520_824e-2,
        1.084_185_54e-1,
        6.332_199e-1,
        1.129_578_4,
        -1.880_370_4e-4,
    ];
    let horner = |coefficients: &[f32], x: f32| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let near = x * horner(&P, x * x);
    let magnitude = x.abs();
    let bounded = if magnitude > 4.0 { 4.0 } else { magnitude };
    let far = (1.0 - exp(-horner(&Q, bounded))).copysign(x);
    if magnitude > 1.0 { far } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    #[test]
    fn powers_of_2_agree_with_the_library_on_every_instruction_set() {
        struct Powers;
        impl Kernel for Powers {
            type Output = ();

            #[inline(always)]
            fn run<V: Vector>(self) {
                let mut x: Vec<f32> = (-150_000..=127_000).map(|i| i as f32 * 1e-3).collect();
                x.extend([f32::NEG_INFINITY, f32::NAN, -1e30, 0.0, -0.0, -1e-30]);
                x.resize(x.len().next_multiple_of(V::LANES), 0.0);
                for x in x.chunks_exact(V::LANES) {
                    let mut found = [0f32; 16];
                    // SAFETY: a vector of values, and room for one.
                    unsafe { exp2(V::load(x.as_ptr())).store(found.as_mut_ptr()) };
                    for (x, found) in x.iter().zip(found) {
                        let want = f64::from(*x).exp2();
                        let error = (f64::from(found) - want).abs();
                        let fits = match want {
                            want if want.is_nan() => found.is_nan(),
                            0.0 => found == 0.0,
                            want if want < f64::from(f32::MIN_POSITIVE) => {
                                (0.0..=f32::MIN_POSITIVE).contains(&found)
                            }
                            want => error <= 2.4e-7 * want,
                        };
                        assert!(fits, "2^{x} is {want:e} and not {found:e}");
                    }
                }
            }
        }
        Isa::available().into_iter().for_each(|isa| isa.run(Powers));
    }

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
    fn erf_agrees_with_the_library() {
        for i in -60_000..=60_000 {
            let x = i as f32 / 10_000.0;
            let error = (f64::from(erf(x)) - candle_core::cpu::erf::erf_f64(f64::from(x))).abs();
            assert!(error < 1.6e-7, "erf {x} is off by {error:.1e}");
        }
        assert_eq!((erf(f32::INFINITY), erf(f32::NEG_INFINITY), erf(0.0)), (1.0, -1.0, 0.0));
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(-90.0)), (0.0, 0.0, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(1e30), exp(0.0)), (f32::INFINITY, f32::INFINITY, 1.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
