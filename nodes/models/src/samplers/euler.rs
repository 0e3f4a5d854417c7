//! Euler's method and its ancestral variant on the probability-flow ODE (Karras et al., arXiv 2206.00364,
//! algorithm 1 without its second-order correction; Song et al., arXiv 2011.13456), in VE.

use candle_core::{Result, Tensor};

use super::{Denoiser, Noise, Observe, Step, ancestral_step, combine};

/// `model(x, σ)` gives x₀ for x [B, C, H, W]; `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model` and `observe` report.
pub fn euler(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
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

/// As [`euler`], each step down to σ_down and up again with fresh noise; `eta` scales it.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn euler_ancestral(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let x0 = model(&x, pair[0])?;
        let (down, up) = ancestral_step(pair[0], pair[1], eta);
        x = combine(&[(down / pair[0], &x), (1.0 - down / pair[0], &x0)])?;
        if up > 0.0 {
            x = combine(&[(1.0, &x), (up, &noise.unit()?)])?;
        }
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
