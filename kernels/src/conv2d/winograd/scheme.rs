//! The two sizes of tiles, and their transforms.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use crate::simd::Vector;

/// The most outputs of a tile in a row, and the most inputs.
pub(super) const MOST_OUTPUTS: usize = 4;
pub(super) const MOST_INPUTS: usize = 6;

/// F(`OUTPUTS` × `OUTPUTS`, 3 × 3). Of the arrays only the first `OUTPUTS` or `INPUTS` vectors mean anything.
pub(super) trait Scheme: Sync + Send {
    /// Of a tile in a row.
    const OUTPUTS: usize;
    const INPUTS: usize = Self::OUTPUTS + 2;
    /// Numbers of a transformed tile.
    const POINTS: usize = Self::INPUTS * Self::INPUTS;

    /// Bᵀ d.
    ///
    /// # Safety
    /// [`Vector`]'s, as for the next two.
    unsafe fn input<V: Vector>(d: [V; MOST_INPUTS]) -> [V; MOST_INPUTS];

    /// G g.
    ///
    /// # Safety
    /// [`Vector`]'s.
    unsafe fn weight<V: Vector>(g: [V; 3]) -> [V; MOST_INPUTS];

    /// Aᵀ m.
    ///
    /// # Safety
    /// [`Vector`]'s.
    unsafe fn output<V: Vector>(m: [V; MOST_INPUTS]) -> [V; MOST_OUTPUTS];
}

/// The interpolation points 0, ±1 and ∞: 16 multiplications instead of 36.
pub(super) struct Of2;

impl Scheme for Of2 {
    const OUTPUTS: usize = 2;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST_INPUTS]) -> [V; MOST_INPUTS] {
        // SAFETY: the caller's.
        unsafe {
            let [d0, d1, d2, d3, ..] = d;
            let nothing = V::splat(0.0);
            [d0.sub(d2), d1.add(d2), d2.sub(d1), d1.sub(d3), nothing, nothing]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(g: [V; 3]) -> [V; MOST_INPUTS] {
        // SAFETY: the caller's.
        unsafe {
            let [g0, g1, g2] = g;
            let (half, nothing) = (V::splat(0.5), V::splat(0.0));
            let even = g0.add(g2).mul(half);
            [g0, g1.mul_add(half, even), g1.mul_add(V::splat(-0.5), even), g2, nothing, nothing]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST_INPUTS]) -> [V; MOST_OUTPUTS] {
        // SAFETY: the caller's.
        unsafe {
            let [m0, m1, m2, m3, ..] = m;
            let nothing = V::splat(0.0);
            [m0.add(m1).add(m2), m1.sub(m2).sub(m3), nothing, nothing]
        }
    }
}

/// The interpolation points 0, ±1/√2, ±√2 and ∞: 36 multiplications instead of 144. With the usual 0, ±1, ±2 and ∞ the
/// matrices hold larger numbers, and the error is larger (kernels/README.md).
pub(super) struct Of4;

impl Scheme for Of4 {
    const OUTPUTS: usize = 4;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST_INPUTS]) -> [V; MOST_INPUTS] {
        // SAFETY: the caller's.
        unsafe {
            let [d0, d1, d2, d3, d4, d5] = d;
            // The even and the odd part of each pair of opposite points.
            let even_1 = d2.mul_add(V::splat(-2.0), d4);
            let odd_1 = d3.mul_add(V::splat(FRAC_1_SQRT_2), d1.mul(V::splat(-SQRT_2)));
            let even_2 = d2.mul_add(V::splat(-0.5), d4);
            let odd_2 = d3.mul_add(V::splat(SQRT_2), d1.mul(V::splat(-FRAC_1_SQRT_2)));
            let middle = V::splat(-2.5);
            [
                d2.mul_add(middle, d0.add(d4)),
                even_1.add(odd_1),
                even_1.sub(odd_1),
                even_2.add(odd_2),
                even_2.sub(odd_2),
                d3.mul_add(middle, d1.add(d5)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(g: [V; 3]) -> [V; MOST_INPUTS] {
        // SAFETY: the caller's.
        unsafe {
            let [g0, g1, g2] = g;
            let even_1 = g0.mul_add(V::splat(-2.0 / 3.0), g2.mul(V::splat(-1.0 / 3.0)));
            let odd_1 = g1.mul(V::splat(-SQRT_2 / 3.0));
            let even_2 = g0.mul_add(V::splat(1.0 / 6.0), g2.mul(V::splat(1.0 / 3.0)));
            let odd_2 = g1.mul(V::splat(SQRT_2 / 6.0));
            [g0, even_1.add(odd_1), even_1.sub(odd_1), even_2.add(odd_2), even_2.sub(odd_2), g2]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST_INPUTS]) -> [V; MOST_OUTPUTS] {
        // SAFETY: the caller's.
        unsafe {
            let [m0, m1, m2, m3, m4, m5] = m;
            let (even_1, odd_1) = (m1.add(m2), m1.sub(m2));
            let (even_2, odd_2) = (m3.add(m4), m3.sub(m4));
            [
                m0.add(even_1).add(even_2),
                odd_1.mul_add(V::splat(FRAC_1_SQRT_2), odd_2.mul(V::splat(SQRT_2))),
                even_1.mul_add(V::splat(0.5), even_2.mul(V::splat(2.0))),
                odd_1.mul_add(V::splat(SQRT_2 / 4.0), odd_2.mul_add(V::splat(2.0 * SQRT_2), m5)),
            ]
        }
    }
}
