//! DDPM's ancestral sampling (Ho et al., arXiv 2006.11239, algorithm 2, variance β̃) between any two noise
//! levels, in VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Step, combine, noised};

/// `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn ddpm(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        // The posterior's mean, algorithm 2, line 4, with x_t = x/√(σ²+1): in VE its weights are the
        // shares of variance. Its variance is β̃ = β (1-ᾱ')/(1-ᾱ), scaled back by σ'²+1.
        let kept = next * next / (sigma * sigma);
        x = combine(&[(kept, &x), (1.0 - kept, &x0)])?;
        let up = next * (1.0 - kept).max(0.0).sqrt();
        x = noised(x, up, (sigma, next), noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
