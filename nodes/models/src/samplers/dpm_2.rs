//! DPM-Solver-2 (Lu et al., arXiv 2206.00927) in k-diffusion's form, on Karras' ODE: the slope halfway in
//! log σ carries the whole step. With its ancestral variant; in VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Step, combine, down_and_up, noised, toward};

/// `sigmas` fall and end where the sample should be. Two evaluations a step, one for a step to σ = 0.
///
/// # Errors
/// What `model` and `observe` report.
pub fn dpm_2(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let x0 = model(&x, pair[0])?;
        x = midpoint(&x, &x0, pair[0], pair[1], model)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// As [`dpm_2`], each step down to σ_down and up again with fresh noise.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpm_2_ancestral(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        let (down, up) = down_and_up(sigma, next, eta);
        x = midpoint(&x, &x0, sigma, down, model)?;
        x = noised(x, up, (sigma, next), noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// From σ to `next`, with x₀ at (x, σ) known.
fn midpoint(
    x: &Tensor,
    x0: &Tensor,
    sigma: f64,
    next: f64,
    model: &mut Denoiser<'_>,
) -> Result<Tensor> {
    if next <= 0.0 {
        return Ok(x0.clone());
    }
    let middle = (sigma * next).sqrt();
    let halfway = toward(x, x0, sigma, middle)?;
    let x0_there = model(&halfway, middle)?;
    let dt = (next - sigma) / middle;
    combine(&[(1.0, x), (dt, &halfway), (-dt, &x0_there)])
}
