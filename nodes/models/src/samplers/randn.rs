//! torch's CPU `randn`, so that a seed gives the noise that it gives in diffusers and ComfyUI.
//!
//! The generator is mt19937 (Matsumoto & Nishimura 1998). torch fills 16 values or more in blocks of 16 by
//! Box-Muller in f32, the cosines first; the tail of a size that is no multiple of 16 draws the last 16
//! anew. Fewer than 16 values are drawn one by one in f64, and the second of each pair is kept for the
//! next draw.

use kosmograph_interrupt as interrupt;

/// A generator in the state that `torch.Generator("cpu").manual_seed(seed)` has.
#[derive(Clone)]
pub struct Generator {
    state: [u32; N],
    /// The next word of `state`; at N, the state is renewed.
    next: usize,
    /// The second value of the last pair in f64, for draws of fewer than 16 values.
    cached: Option<f64>,
}

const N: usize = 624;
const M: usize = 397;

impl Generator {
    /// torch seeds mt19937 with the lower half of the seed.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N, cached: None }
    }

    fn random(&mut self) -> u32 {
        if self.next == N {
            self.renew();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn renew(&mut self) {
        for i in 0..N {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if mixed & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (mixed >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// In [0, 1), from 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.random() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// In [0, 1), from 53 bits; the first word drawn is the upper one.
    fn uniform_f64(&mut self) -> f64 {
        let word = (u64::from(self.random()) << 32) | u64::from(self.random());
        (word & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// The next `count` values of the standard normal distribution, as one call of `torch.randn`. Where the work is to
    /// stop meanwhile, the rest is 0: whoever works with it hears of that when he asks.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.normal_f64() as f32).collect();
        }
        // A multiple of 16; below a hundredth of a second.
        const PORTION: usize = 1 << 20;
        let mut values = vec![0f32; count];
        for values in values.chunks_mut(PORTION) {
            if interrupt::check().is_err() {
                break;
            }
            values.iter_mut().for_each(|value| *value = self.uniform_f32());
            values.chunks_exact_mut(16).for_each(box_muller_16);
        }
        if !count.is_multiple_of(16) {
            let tail = &mut values[count - 16..];
            tail.iter_mut().for_each(|value| *value = self.uniform_f32());
            box_muller_16(tail);
        }
        values
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.cached = Some(radius * sin);
        radius * cos
    }
}

/// 16 uniform values to 16 normal ones: the radius from the first eight, the angle from the others.
///
/// torch's vector code takes ln, sin and cos from the Cephes library's polynomials, and the compiler
/// fuses its products and sums; done in the same order, the values are torch's to the last bit.
fn box_muller_16(values: &mut [f32]) {
    for j in 0..8 {
        let radius = (-2.0 * ln(1.0 - values[j])).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * values[j + 8]);
        values[j] = radius * cos;
        values[j + 8] = radius * sin;
    }
}

/// Cephes' `logf` for positive, normal x.
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    // ln 2 in two parts.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // x = m · 2ᵉ with m in √½..√2.
    let mut e = ((x.to_bits() >> 23) as i32 - 126) as f32;
    let m = f32::from_bits((x.to_bits() & 0x007f_ffff) | 0x3f00_0000);
    let mut m1 = m - 1.0;
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        m1 += m;
    }
    let square = m1 * m1;
    let y = P[1..].iter().fold(P[0], |y, p| y.mul_add(m1, *p)) * m1;
    let y = y.mul_add(square, e * LN_2[1]) - 0.5 * square;
    e.mul_add(LN_2[0], m1 + y)
}

/// Cephes' `sinf` and `cosf` for 0 ≤ x < 8192.
fn sin_cos(x: f32) -> (f32, f32) {
    // π/4 in three parts, negative.
    const PI_4: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    let octant = ((x * (4.0 / std::f32::consts::PI)) as i32 + 1) & !1;
    let x = PI_4.iter().fold(x, |x, part| (octant as f32).mul_add(*part, x));
    let z = x * x;
    let polynomial = |p: [f32; 3]| p[0].mul_add(z, p[1]).mul_add(z, p[2]);
    let cos = (polynomial(COS) * z).mul_add(z, -(0.5 * z)) + 1.0;
    let sin = (polynomial(SIN) * z).mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sign = |negative: bool| if negative { -1.0 } else { 1.0 };
    (sign(octant & 4 != 0) * sin, sign((octant - 2) & 4 == 0) * cos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torchs_values_to_the_last_bit() {
        // torch.randn(16, generator=torch.Generator("cpu").manual_seed(42))
        let torch: [u32; 16] = [
            0x3ff6_a529,
            0x3fbe_5f53,
            0x3f66_9567,
            0xc006_c0db,
            0x3f2d_acd5,
            0xbf9e_0591,
            0xbd30_6786,
            0xbfcd_65ba,
            0xbf40_8bf0,
            0x3fd3_095b,
            0xbec8_f2f6,
            0xbfb3_a966,
            0xbf3a_566e,
            0xbf0f_36d1,
            0xbf44_d2a0,
            0x3f43_2f9f,
        ];
        let ours = Generator::new(42).randn(16);
        assert_eq!(ours.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), torch);
    }

    #[test]
    fn many_values_are_torchs_too() {
        // The FNV-1a hash, word by word, of two draws of randn(1, 4, 64, 64) from the seed 0.
        let mut generator = Generator::new(0);
        let values = [generator.randn(1 << 14), generator.randn(1 << 14)].concat();
        let hash = values.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, value| {
            (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(hash, 0x370f_7bae_ffe6_00cc);
    }

    #[test]
    fn elementary_functions_are_near_the_library_s() {
        for i in 1..=10_000 {
            let x = i as f32 / 10_000.0;
            assert!((ln(x) - x.ln()).abs() <= 1e-6 * x.ln().abs() + 1e-7, "ln {x}");
            let angle = x * std::f32::consts::TAU;
            let (sin, cos) = sin_cos(angle);
            assert!(
                (sin - angle.sin()).abs() < 2e-7 && (cos - angle.cos()).abs() < 2e-7,
                "{angle}"
            );
        }
    }

    #[test]
    fn moments_of_a_normal_distribution() {
        let values = Generator::new(1).randn(100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
