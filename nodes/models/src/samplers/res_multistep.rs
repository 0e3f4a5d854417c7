//! RES (Zhang et al., "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models
//! Sampling", arXiv 2308.02157): the exponential multistep method of second order, with ancestral noise and in
//! its CFG++ form as ComfyUI has both; in VE.

use candle_core::Tensor;

use super::{
    Guided, GuidedDenoiser, NoiseSampler, Observe, Result, Step, combine, down_and_up, noised,
};

/// `eta` scales the ancestral noise; 0 is the method itself. Where the model says the same with and without
/// guidance, it is the plain form, else the one of CFG++ (arXiv 2406.08070).
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn res_multistep(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut GuidedDenoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // The previous x₀ without guidance, its level, and where its step went down to.
    let mut previous: Option<(Tensor, f64, f64)> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let Guided { x0, uncond } = model(&x, sigma)?;
        let (down, up) = down_and_up(sigma, next, eta);
        let share = down / sigma;
        x = match &previous {
            Some((last, last_sigma, last_down)) if down > 0.0 => {
                let h = (sigma / down).ln();
                // φ₁ and φ₂ at -h, and where x₀ was known last, in steps of h.
                let phi_1 = -(-h).exp_m1() / h;
                let phi_2 = (1.0 - phi_1) / h;
                let c_2 = (last_down / last_sigma).ln() / h;
                let (b_1, b_2) = (h * (phi_1 - phi_2 / c_2), h * phi_2 / c_2);
                combine(&[(share, &x), (share, &x0), (b_1 - share, &uncond), (b_2, last)])?
            }
            // Euler's step, which to σ = 0 is x₀.
            _ if down > 0.0 => combine(&[(1.0, &x0), (share, &x), (-share, &uncond)])?,
            _ => x0.clone(),
        };
        x = noised(x, up, (sigma, next), noise)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some((uncond, sigma, down));
    }
    Ok(x)
}
