//! Heun++ on the probability-flow ODE, as ComfyUI has it: the slopes at this level and the next two, weighted
//! by their noise levels; in VE.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

/// `sigmas` fall and end where the sample should be. Three evaluations a step, two for the last but one, one
/// for the last.
///
/// # Errors
/// What `model` and `observe` report.
pub fn heunpp2(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for i in 0..steps {
        let (sigma, next) = (sigmas[i], sigmas[i + 1]);
        let x0 = model(&x, sigma)?;
        let mut slopes = vec![slope(&x, &x0, sigma)?];
        // Euler's steps onwards to the levels whose slopes count too.
        let ahead = (steps - 1 - i).min(2);
        let mut there = x.clone();
        for k in 0..ahead {
            let (from, to) = (sigmas[i + k], sigmas[i + k + 1]);
            there = combine(&[(1.0, &there), (to - from, &slopes[k])])?;
            let x0_there = model(&there, to)?;
            slopes.push(slope(&there, &x0_there, to)?);
        }
        let whole = slopes.len() as f64 * sigmas[0];
        let shares: Vec<f64> = (1..slopes.len()).map(|k| sigmas[i + k] / whole).collect();
        let first = 1.0 - shares.iter().sum::<f64>();
        let mut terms = vec![(1.0, &x), (first * (next - sigma), &slopes[0])];
        terms.extend(shares.iter().map(|share| share * (next - sigma)).zip(&slopes[1..]));
        // The last step takes all noise away.
        x = if next > 0.0 { combine(&terms)? } else { x0.clone() };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// dx/dσ.
fn slope(x: &Tensor, x0: &Tensor, sigma: f64) -> Result<Tensor> {
    combine(&[(1.0 / sigma, x), (-1.0 / sigma, x0)])
}
