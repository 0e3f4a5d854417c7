//! Gradient estimation (Permenter & Yuan, "Interpreting and Improving Diffusion Models from an Optimization
//! Perspective", arXiv 2306.04848, algorithm 2): Euler's method, the change of the slope added once more; in
//! VE, and in its CFG++ form as ComfyUI has it.

use candle_core::Tensor;

use super::{Guided, GuidedDenoiser, Observe, Result, Step, combine};

/// How much of the last slope's change is added, plus 1.
const GAMMA: f64 = 2.0;

/// `sigmas` fall and end where the sample should be. Where the model says the same with and without guidance,
/// it is the plain form, else the one of CFG++ (arXiv 2406.08070).
///
/// # Errors
/// What `model` and `observe` report.
pub fn gradient_estimation(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    let mut previous: Option<Tensor> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let Guided { x0, uncond } = model(&x, sigma)?;
        let slope = combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &uncond)])?;
        x = match &previous {
            _ if next <= 0.0 => x0.clone(),
            None => combine(&[(1.0, &x0), (next, &slope)])?,
            Some(last) => {
                let more = (GAMMA - 1.0) * (next - sigma);
                combine(&[(1.0, &x0), (next + more, &slope), (-more, last)])?
            }
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some(slope);
    }
    Ok(x)
}
