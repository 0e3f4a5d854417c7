//! Euler's method and its ancestral variant on the probability-flow ODE (Karras et al., arXiv 2206.00364,
//! algorithm 1 without its second-order correction; Song et al., arXiv 2011.13456), in VE.

use candle_core::{Result, Tensor};

use super::{Observe, Step, combine};

/// `model(x, σ)` gives x₀ for x [B, C, H, W]; `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model` and `observe` report.
pub fn euler(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        // x + (σ' - σ) (x - x₀)/σ, with x and x₀ gathered.
        x = combine(&[(next / sigma, &x), (1.0 - next / sigma, &x0)])?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// As [`euler`], with fresh noise after each step: `noise()` gives unit noise of x's shape.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn euler_ancestral(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
    noise: &mut dyn FnMut() -> Result<Tensor>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        // Down to σ_down without noise, then up to σ' with it: σ'² = σ_down² + σ_up².
        let variance = next * next;
        let up = (variance * (sigma * sigma - variance) / (sigma * sigma)).sqrt();
        let down = (variance - up * up).sqrt();
        x = combine(&[(down / sigma, &x), (1.0 - down / sigma, &x0)])?;
        if next > 0.0 {
            x = combine(&[(1.0, &x), (up, &noise()?)])?;
        }
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
