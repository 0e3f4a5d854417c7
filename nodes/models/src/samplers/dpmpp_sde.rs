//! DPM-Solver++ for the diffusion SDE (Lu et al., arXiv 2211.01095, section 4.3), as k-diffusion has it, in
//! VE: single-step with a place between, and multistep of second and third order.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, SdeStep, Step, ancestral, combine, noised};

/// The single-step solver. `sigmas` fall and end where the sample should be; `eta` scales the noise. The place
/// between is at the share `r` of the step in λ, within 0..1. Two evaluations a step, one for a step to σ = 0.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpmpp_sde(
    sigmas: &[f64],
    eta: f64,
    r: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        x = if next > 0.0 {
            // Both halves start from x: their noises are increments of one Brownian motion.
            let middle =
                if r == 0.5 { (sigma * next).sqrt() } else { sigma * (next / sigma).powf(r) };
            let halfway = ancestral(&x, &x0, (sigma, middle), eta, noise)?;
            let x0_there = model(&halfway, middle)?;
            let weight = 1.0 / (2.0 * r);
            // With r = ½ the first evaluation has the weight 0.
            let mean = match weight == 1.0 {
                true => x0_there,
                false => combine(&[(1.0 - weight, &x0), (weight, &x0_there)])?,
            };
            ancestral(&x, &mean, (sigma, next), eta, noise)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// The form of second order that [`dpmpp_2m_sde`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondOrder {
    Midpoint,
    Heun,
}

/// The multistep solver of second order.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpmpp_2m_sde(
    sigmas: &[f64],
    eta: f64,
    form: SecondOrder,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // The previous x₀ and the step in λ that led here.
    let mut previous: Option<(Tensor, f64)> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        let h = (sigma / next).ln();
        x = if next > 0.0 {
            let SdeStep { kept, grown, spread } = SdeStep::new(next / sigma, h, eta);
            let mut terms = vec![(kept, &x), (grown, &x0)];
            if let Some((x1, h_last)) = &previous {
                let h_eta = h * (eta + 1.0);
                let slope = match form {
                    SecondOrder::Midpoint => 0.5 * grown * h / h_last,
                    SecondOrder::Heun => (1.0 - grown / h_eta) * h / h_last,
                };
                terms.extend([(slope, &x0), (-slope, x1)]);
            }
            noised(combine(&terms)?, next * spread, (sigma, next), noise)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some((x0, h));
    }
    Ok(x)
}

/// The multistep solver of third order.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpmpp_3m_sde(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // The previous values of x₀ and the steps in λ after them, newest first.
    let mut previous: Vec<(Tensor, f64)> = Vec::with_capacity(2);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        let h = (sigma / next).ln();
        x = if next > 0.0 {
            let h_eta = h * (eta + 1.0);
            let SdeStep { kept, grown, spread } = SdeStep::new(next / sigma, h, eta);
            let first = combine(&[(kept, &x), (grown, &x0)])?;
            let phi_2 = (-h_eta).exp_m1() / h_eta + 1.0;
            let corrected = match &previous[..] {
                [] => first,
                [(x1, h_1)] => {
                    let slope = phi_2 * h / h_1;
                    combine(&[(1.0, &first), (slope, &x0), (-slope, x1)])?
                }
                [(x1, h_1), (x2, h_2), ..] => {
                    let (r0, r1) = (h_1 / h, h_2 / h);
                    let phi_3 = phi_2 / h_eta - 0.5;
                    // Divided differences of x₀ in λ.
                    let d_0 = combine(&[(1.0 / r0, &x0), (-1.0 / r0, x1)])?;
                    let d_1 = combine(&[(1.0 / r1, x1), (-1.0 / r1, x2)])?;
                    let bend = (phi_2 * r0 - phi_3) / (r0 + r1);
                    combine(&[(1.0, &first), (phi_2 + bend, &d_0), (-bend, &d_1)])?
                }
            };
            noised(corrected, next * spread, (sigma, next), noise)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous.truncate(1);
        previous.insert(0, (x0, h));
    }
    Ok(x)
}
