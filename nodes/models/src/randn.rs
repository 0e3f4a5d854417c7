//! torch's CPU `randn`, so that a seed gives the noise that it gives in diffusers and ComfyUI.
//!
//! The generator is mt19937 (Matsumoto & Nishimura 1998). torch fills 16 values or more in blocks of 16 by
//! Box-Muller in f32, the cosines first; the tail of a size that is no multiple of 16 draws the last 16
//! anew. Fewer than 16 values are drawn one by one in f64, and the second of each pair is kept for the
//! next draw.

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

    /// The next `count` values of the standard normal distribution, as one call of `torch.randn`.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.normal_f64() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        values.chunks_exact_mut(16).for_each(box_muller_16);
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
fn box_muller_16(values: &mut [f32]) {
    for j in 0..8 {
        let radius = (-2.0 * (1.0 - values[j]).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * values[j + 8]).sin_cos();
        values[j] = radius * cos;
        values[j + 8] = radius * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_a_normal_distribution() {
        let values = Generator::new(1).randn(100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
