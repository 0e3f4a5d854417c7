//! DPM-Solver-2 (Lu et al., arXiv 2206.00927) in k-diffusion's form, on Karras' ODE: the slope halfway in
//! log σ carries the whole step. With its ancestral variant; in VE.

use candle_core::{Result, Tensor};

use super::{Denoiser, Noise, Observe, Step, ancestral_step, combine};

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
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let x0 = model(&x, pair[0])?;
        let (down, up) = ancestral_step(pair[0], pair[1], eta);
        x = midpoint(&x, &x0, pair[0], down, model)?;
        if up > 0.0 {
            x = combine(&[(1.0, &x), (up, &noise.unit()?)])?;
        }
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
    let halfway = combine(&[(middle / sigma, x), (1.0 - middle / sigma, x0)])?;
    let x0_there = model(&halfway, middle)?;
    let dt = (next - sigma) / middle;
    combine(&[(1.0, x), (dt, &halfway), (-dt, &x0_there)])
}
