//! Euler's method and its ancestral variant on the probability-flow ODE (Karras et al., arXiv 2206.00364,
//! algorithm 1 without its second-order correction; Song et al., arXiv 2011.13456), in VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Step, ancestral, toward};

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
        x = toward(&x, &x0, sigma, next)?;
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
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let x0 = model(&x, pair[0])?;
        x = ancestral(&x, &x0, (pair[0], pair[1]), eta, noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
