//! Heun's method on the probability-flow ODE (Karras et al., arXiv 2206.00364, algorithm 1), in VE.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

/// `sigmas` fall and end where the sample should be. Two evaluations a step, one for a step to σ = 0.
///
/// # Errors
/// What `model` and `observe` report.
pub fn heun(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let dt = next - sigma;
        let x0 = model(&x, sigma)?;
        x = if next > 0.0 {
            let slope = combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &x0)])?;
            let guess = combine(&[(1.0, &x), (dt, &slope)])?;
            let x0_there = model(&guess, next)?;
            let slope_there = combine(&[(1.0 / next, &guess), (-1.0 / next, &x0_there)])?;
            combine(&[(1.0, &x), (0.5 * dt, &slope), (0.5 * dt, &slope_there)])?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
