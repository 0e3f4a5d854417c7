//! DPM-Solver++(2M), midpoint (Lu et al., arXiv 2211.01095, algorithm 2), in VP, on diffusers' timesteps:
//! Kosmos-G's `dpms`.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Schedule, Step, combine, sigmas};

/// Where the last step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At σ of timestep 0, as diffusers 0.21.4 and so the published Kosmos-G. The noise levels of the
    /// other steps are those of the integer timesteps.
    SigmaMin,
    /// At σ = 0, today's default of diffusers.
    Zero,
}

/// The timesteps of `steps` steps, falling: diffusers' "linspace" spacing, the last one (0) left off.
pub fn dpm_timesteps(schedule: &Schedule, steps: usize) -> Vec<usize> {
    let last = (schedule.train_steps() - 1) as f64;
    let timestep = |i: usize| (i as f64 * last / steps as f64).round_ties_even() as usize;
    (1..=steps).rev().map(timestep).collect()
}

/// The timesteps nearest to Karras' noise levels (arXiv 2206.00364, equation 5), falling, with their σ.
///
/// diffusers 0.21.4 uses the timesteps alone and leaves out repeated ones; today's uses the σ.
pub fn dpm_timesteps_karras(schedule: &Schedule, steps: usize) -> Vec<(usize, f64)> {
    let levels = sigmas::karras_between(schedule.sigma_min(), schedule.sigma_max(), steps);
    let timestep = |sigma| schedule.fractional_timestep(sigma).round_ties_even() as usize;
    levels.into_iter().map(|sigma| (timestep(sigma), sigma)).collect()
}

/// `model(x, timestep)` gives the network's output for x [B, C, H, W]. `levels` are the timesteps, falling,
/// each with its σ; they may be the last of a schedule of `scheduled` steps.
///
/// # Errors
/// What `model` and `observe` report.
pub fn dpm_solver(
    schedule: &Schedule,
    levels: &[(usize, f64)],
    scheduled: usize,
    ending: Ending,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = levels.len();
    let last_sigma = match ending {
        Ending::SigmaMin => schedule.sigma_min(),
        Ending::Zero => 0.0,
    };
    // σ in VE to (α, σ) in VP.
    let vp = |sigma: f64| {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        (alpha, sigma * alpha)
    };
    // The previous data prediction and the log signal-to-noise ratio it was made at.
    let mut previous: Option<(Tensor, f64)> = None;
    for (i, &(t, sigma)) in levels.iter().enumerate() {
        let next_sigma = levels.get(i + 1).map_or(last_sigma, |level| level.1);
        let ((alpha_s, sigma_s), (alpha_t, sigma_t)) = (vp(sigma), vp(next_sigma));
        // λ = log(α/σ) = -log of the VE σ.
        let (lambda_s, lambda_t) = (-sigma.ln(), -next_sigma.ln());
        let h = lambda_t - lambda_s;
        let output = model(&x, t as f64)?;
        let x0 = schedule.x0(&x, &output, alpha_s, sigma_s)?;
        // e^(-h) - 1, which is -1 for the step to σ = 0.
        let shrink = (-h).exp_m1();
        let first = [(sigma_t / sigma_s, &x), (-alpha_t * shrink, &x0)];
        let is_last = i + 1 == steps;
        // diffusers' lower_order_final: a schedule of fewer than 15 steps ends with one of first order,
        // however many of them are taken, as does a step to σ = 0, whose λ is infinite.
        let first_order = is_last && (scheduled < 15 || ending == Ending::Zero);
        x = match &previous {
            Some((x1, lambda_1)) if !first_order => {
                let r = (lambda_s - lambda_1) / h;
                let slope = combine(&[(1.0 / r, &x0), (-1.0 / r, x1)])?;
                combine(&[first[0], first[1], (-0.5 * alpha_t * shrink, &slope)])?
            }
            _ => combine(&first)?,
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some((x0, lambda_s));
    }
    Ok(x)
}
