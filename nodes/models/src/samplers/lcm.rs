//! Multistep consistency sampling (Song et al., arXiv 2303.01469, algorithm 1; Luo et al., arXiv 2310.04378,
//! for latent models): the model's x₀ is noised to the next level. In VE, where x₀ is taken as it is, and
//! on timesteps in VP, as diffusers has it.

use candle_core::{Result, Tensor};

use super::{Denoiser, Noise, Observe, Schedule, Step, combine};

/// `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn lcm(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let x0 = model(&x, pair[0])?;
        x = match pair[1] > 0.0 {
            true => combine(&[(1.0, &x0), (pair[1], &noise.unit()?)])?,
            false => x0.clone(),
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// The timesteps of `steps` steps, falling: evenly picked from the `original_steps` of the distillation
/// (diffusers' `original_inference_steps`, 50).
///
/// # Errors
/// No steps, or more than `original_steps`, or more of these than timesteps of training.
pub fn lcm_timesteps(
    schedule: &Schedule,
    original_steps: usize,
    steps: usize,
) -> Result<Vec<usize>> {
    let train = schedule.train_steps();
    if steps == 0 || steps > original_steps || original_steps > train {
        candle_core::bail!(
            "{steps} steps of an LCM distilled in {original_steps} steps of {train} timesteps: there must \
             be 1 to {original_steps} steps, and no more of these than timesteps"
        );
    }
    let stride = train / original_steps;
    // numpy's linspace, rounded down.
    let gap = original_steps as f64 / steps as f64;
    let timestep = |i: usize| (original_steps - (i as f64 * gap) as usize) * stride - 1;
    Ok((0..steps).map(timestep).collect())
}

/// As [`lcm`], in VP: `model(x, timestep)` gives the network's output, and x₀ is mixed with x by the
/// boundary condition's c_skip and c_out (Luo et al., section 3, σ_data = ½, timesteps scaled by 10).
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn lcm_by_timesteps(
    schedule: &Schedule,
    timesteps: &[usize],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn Noise,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    const SIGMA_DATA: f64 = 0.5;
    const TIMESTEP_SCALING: f64 = 10.0;
    let steps = timesteps.len();
    for (i, &t) in timesteps.iter().enumerate() {
        let alpha = schedule.alphas_cumprod[t];
        let output = model(&x, t as f64)?;
        let x0 = schedule.x0(&x, &output, alpha.sqrt(), (1.0 - alpha).sqrt())?;
        let scaled = t as f64 * TIMESTEP_SCALING;
        let length = scaled.hypot(SIGMA_DATA);
        let skip = (SIGMA_DATA / length).powi(2);
        let x0 = combine(&[(scaled / length, &x0), (skip, &x)])?;
        x = match timesteps.get(i + 1) {
            Some(&next) => schedule.add_noise(&x0, &noise.unit()?, next)?,
            None => x0.clone(),
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
