//! Multistep consistency sampling (Song et al., arXiv 2303.01469, algorithm 1; Luo et al., arXiv 2310.04378,
//! for latent models): the model's x₀ is noised to the next level. In VE, where x₀ is taken as it is.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Step, noised};

/// `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn lcm(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let x0 = model(&x, pair[0])?;
        x = noised(x0.clone(), pair[1], (pair[0], pair[1]), noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
