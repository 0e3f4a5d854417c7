//! DPM-Solver++(2S) (Lu et al., arXiv 2211.01095, algorithm 1, r = ½) with ancestral noise, as k-diffusion
//! has it, in VE.

use candle_core::{Result, Tensor};

use super::{Denoiser, Noise, Observe, Step, ancestral_step, combine};

/// `sigmas` fall and end where the sample should be. `eta` scales the ancestral noise: 0 is
/// DPM-Solver++(2S) itself. Two evaluations a step, one for a step to σ = 0.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpmpp_2s_ancestral(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        let (down, up) = ancestral_step(sigma, next, eta);
        x = if down > 0.0 {
            // Halfway in λ = -log σ.
            let middle = (sigma * down).sqrt();
            let halfway = combine(&[(middle / sigma, &x), (1.0 - middle / sigma, &x0)])?;
            let x0_there = model(&halfway, middle)?;
            combine(&[(down / sigma, &x), (1.0 - down / sigma, &x0_there)])?
        } else {
            x0.clone()
        };
        if up > 0.0 {
            x = combine(&[(1.0, &x), (up, &noise.unit()?)])?;
        }
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
