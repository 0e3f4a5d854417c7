//! DPM-Solver++(2S) (Lu et al., arXiv 2211.01095, algorithm 1, r = ½) with ancestral noise, as k-diffusion
//! has it, in VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Step, ancestral, down_and_up, toward};

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
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        let (down, _) = down_and_up(sigma, next, eta);
        x = if down > 0.0 {
            // Halfway in λ = -log σ.
            let middle = (sigma * down).sqrt();
            let x0_there = model(&toward(&x, &x0, sigma, middle)?, middle)?;
            ancestral(&x, &x0_there, (sigma, next), eta, noise)?
        } else {
            ancestral(&x, &x0, (sigma, next), eta, noise)?
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
