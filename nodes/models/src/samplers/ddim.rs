//! DDIM, deterministic (Song et al., arXiv 2010.02502, equation 12 with σ = 0), in VP.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Schedule, Step, combine};

/// The timesteps of `steps` steps, falling: diffusers' "leading" spacing with Stable Diffusion's offset 1.
pub fn ddim_timesteps(schedule: &Schedule, steps: usize) -> Vec<usize> {
    let last = schedule.train_steps() - 1;
    let ratio = schedule.train_steps() / steps.clamp(1, last + 1);
    (0..steps.min(last + 1)).rev().map(|i| (i * ratio + 1).min(last)).collect()
}

/// `model(x, timestep)` gives the network's output for x [B, C, H, W] at the noise of `timesteps[0]`.
///
/// `stride` is the distance between two timesteps, train steps / steps: what the last step falls by.
///
/// # Errors
/// What `model` and `observe` report.
pub fn ddim(
    schedule: &Schedule,
    timesteps: &[usize],
    stride: usize,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    for (i, &t) in timesteps.iter().enumerate() {
        let alpha_t = schedule.alphas_cumprod[t];
        // Below the first timestep diffusers takes ᾱ₀ (set_alpha_to_one is false for SD 1.5).
        let alpha_prev = schedule.alphas_cumprod[t.saturating_sub(stride)];
        let output = model(&x, t as f64)?;
        let (a, s) = (alpha_t.sqrt(), (1.0 - alpha_t).sqrt());
        let x0 = schedule.x0(&x, &output, a, s)?;
        let eps = schedule.epsilon(&x, &output, a, s)?;
        x = combine(&[(alpha_prev.sqrt(), &x0), ((1.0 - alpha_prev).sqrt(), &eps)])?;
        observe(Step { done: i + 1, steps: timesteps.len(), x: &x, x0: &x0 })?;
    }
    Ok(x)
}
