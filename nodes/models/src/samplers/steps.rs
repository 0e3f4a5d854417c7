//! The steps that samplers are made of, in VE: x = x₀ + σ ε.

use candle_core::Tensor;
use kosmograph_kernels::linear_combination;

use super::{NoiseSampler, Result};

/// Σ aᵢ xᵢ over tensors of one shape; at least one.
pub(super) fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    Ok(linear_combination(terms)?)
}

/// x + (σ' - σ) (x - x₀)/σ with x and x₀ gathered: Euler's step from σ to `next` where x₀ is known, and the
/// exponential integrator's of first order.
pub(super) fn toward(x: &Tensor, x0: &Tensor, sigma: f64, next: f64) -> Result<Tensor> {
    combine(&[(next / sigma, x), (1.0 - next / sigma, x0)])
}

/// `x` with noise of the deviation `up` for the step from σ to `next`; without any where that is 0.
pub(super) fn noised(
    x: Tensor,
    up: f64,
    (sigma, next): (f64, f64),
    noise: &mut dyn NoiseSampler,
) -> Result<Tensor> {
    match up > 0.0 {
        true => combine(&[(1.0, &x), (up, &noise.sample(sigma, next)?)]),
        false => Ok(x),
    }
}

/// An ancestral step from σ to `next` goes down to the first value without noise, then up by noise of the
/// second: σ'² = σ_down² + σ_up². `eta` scales the noise.
pub(super) fn down_and_up(sigma: f64, next: f64, eta: f64) -> (f64, f64) {
    let share = 1.0 - (next / sigma).powi(2);
    let up = (eta * next * share.max(0.0).sqrt()).min(next);
    ((next * next - up * up).max(0.0).sqrt(), up)
}

/// [`toward`] x₀ down to σ_down, and up to `next` again by noise ([`down_and_up`]).
pub(super) fn ancestral(
    x: &Tensor,
    x0: &Tensor,
    (sigma, next): (f64, f64),
    eta: f64,
    noise: &mut dyn NoiseSampler,
) -> Result<Tensor> {
    let (down, up) = down_and_up(sigma, next, eta);
    noised(toward(x, x0, sigma, down)?, up, (sigma, next), noise)
}

/// A step of `h` in λ = -log σ along the reverse SDE, whose noise `eta` scales (DPM-Solver++, arXiv
/// 2211.01095, section 4.3; SEEDS, arXiv 2305.14267).
#[derive(Clone, Copy)]
pub(super) struct SdeStep {
    /// The share of x that is left.
    pub(super) kept: f64,
    /// The share that x₀ takes.
    pub(super) grown: f64,
    /// The noise's deviation, as a share of the level that is stepped to.
    pub(super) spread: f64,
}

impl SdeStep {
    /// `ratio` is σ'/σ, e^(-h).
    pub(super) fn new(ratio: f64, h: f64, eta: f64) -> Self {
        Self {
            kept: ratio * (-h * eta).exp(),
            grown: -(-h * (eta + 1.0)).exp_m1(),
            spread: Self::spread(h, eta),
        }
    }

    /// √(1 - e^(-2ηh)).
    pub(super) fn spread(h: f64, eta: f64) -> f64 {
        (-(-2.0 * h * eta).exp_m1()).max(0.0).sqrt()
    }
}
