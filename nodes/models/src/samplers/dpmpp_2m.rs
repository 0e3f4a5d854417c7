//! DPM-Solver++(2M) (Lu et al., arXiv 2211.01095) as k-diffusion and ComfyUI run it: in VE, over any
//! noise levels, the multistep correction in exponential form.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

/// `model(x, σ)` gives x₀ for x [B, C, H, W]; `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model` and `observe` report.
pub fn dpmpp_2m(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // λ = -log σ; the previous x₀ and the step that led here.
    let mut previous: Option<(Tensor, f64)> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        let h = sigma.ln() - next.ln();
        // The step to σ = 0 has an infinite h: the sample becomes x₀.
        let target = match &previous {
            Some((x1, h_last)) if next > 0.0 => {
                let r = h_last / h;
                combine(&[(1.0 + 0.5 / r, &x0), (-0.5 / r, x1)])?
            }
            _ => x0.clone(),
        };
        x = combine(&[(next / sigma, &x), (-(-h).exp_m1(), &target)])?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some((x0, h));
    }
    Ok(x)
}
