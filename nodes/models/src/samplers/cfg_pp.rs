//! CFG++ (Chung et al., arXiv 2406.08070): guidance says where the data is, and what the model says without
//! guidance how to get there. The forms that ComfyUI has of Euler's method, DPM-Solver++(2S) and (2M); in VE.
//! Where both halves say the same each is its plain form.

use candle_core::Tensor;

use super::{
    Guided, GuidedDenoiser, NoiseSampler, Observe, Result, Step, combine, down_and_up, noised,
    toward,
};

/// Euler's method with ancestral noise, which `eta` scales; 0 is `euler_cfg_pp`.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn euler_ancestral_cfg_pp(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let Guided { x0, uncond } = model(&x, sigma)?;
        let (down, up) = down_and_up(sigma, next, eta);
        x = match next > 0.0 {
            true => combine(&[(1.0, &x0), (down / sigma, &x), (-down / sigma, &uncond)])?,
            false => x0.clone(),
        };
        x = noised(x, up, (sigma, next), noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// DPM-Solver++(2S) with ancestral noise, which `eta` scales: integrated without guidance, and then moved by
/// what guidance adds to x₀. Two evaluations a step, one for a step to σ = 0.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpmpp_2s_ancestral_cfg_pp(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let Guided { x0, uncond } = model(&x, sigma)?;
        let (down, up) = down_and_up(sigma, next, eta);
        x = if down > 0.0 {
            let middle = (sigma * down).sqrt();
            let halfway = toward(&x, &uncond, sigma, middle)?;
            let there = model(&halfway, middle)?.uncond;
            let share = down / sigma;
            combine(&[(share, &x), (1.0 - share, &there), (1.0, &x0), (-1.0, &uncond)])?
        } else {
            x0.clone()
        };
        x = noised(x, up, (sigma, next), noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// DPM-Solver++(2M). The difference that it carries on is of x₀ with guidance to the last one without, as
/// ComfyUI has it.
///
/// # Errors
/// What `model` and `observe` report.
pub fn dpmpp_2m_cfg_pp(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // The previous x₀ without guidance, and the step in λ that led here.
    let mut previous: Option<(Tensor, f64)> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let Guided { x0, uncond } = model(&x, sigma)?;
        let (h, share) = ((sigma / next).ln(), next / sigma);
        let mut terms = vec![(1.0, &x0), (share, &x), (-share, &uncond)];
        if let Some((last, h_last)) = previous.as_ref().filter(|_| next > 0.0) {
            let slope = (1.0 - share) * 0.5 * h / h_last;
            terms.extend([(slope, &x0), (-slope, last)]);
        }
        x = if next > 0.0 { combine(&terms)? } else { x0.clone() };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some((uncond, h));
    }
    Ok(x)
}

/// Euler's method along the slope from twice x₀ with guidance less x₀ without: ComfyUI's "alternative" form.
///
/// # Errors
/// What `model` and `observe` report.
pub fn euler_pp(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let Guided { x0, uncond } = model(&x, pair[0])?;
        let step = pair[1] / pair[0] - 1.0;
        x = combine(&[(1.0 + step, &x), (-2.0 * step, &x0), (step, &uncond)])?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
