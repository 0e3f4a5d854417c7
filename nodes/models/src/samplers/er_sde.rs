//! ER-SDE-Solver-3 (Cui et al., "Elucidating the solution space of extended reverse-time SDE for diffusion
//! models", arXiv 2309.06169), in VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Step, combine, noised};

/// The integrals of a step are sums over so many points.
const POINTS: usize = 200;

/// How much of x a step keeps, by φ(σ) at its ends: the noise takes the place of the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoiseScale {
    /// ER-SDE 5 of the paper: noise falls faster than the SDE's own.
    Fast,
    /// σ^(1 + η): the reverse-time SDE whose noise η scales, and the ODE at 0.
    Power { eta: f64 },
}

impl NoiseScale {
    fn at(self, sigma: f64) -> f64 {
        match self {
            NoiseScale::Fast => sigma * (sigma.powf(0.3).exp() + 10.0),
            NoiseScale::Power { eta } => sigma.powf(1.0 + eta),
        }
    }
}

/// `sigmas` fall and end where the sample should be; x₀ comes from the last `stages`, 1 to 3.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn er_sde(
    sigmas: &[f64],
    noise_scale: NoiseScale,
    stages: usize,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let scale = |sigma: f64| noise_scale.at(sigma);
    let steps = sigmas.len().saturating_sub(1);
    // The previous x₀, and its previous divided difference.
    let (mut last, mut last_slope): (Option<Tensor>, Option<Tensor>) = (None, None);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        x = if next > 0.0 {
            let r = scale(next) / scale(sigma);
            let mut integrated = combine(&[(r, &x), (1.0 - r, &x0)])?;
            let mut slope = None;
            if let Some(last) = last.as_ref().filter(|_| stages > 1) {
                let dt = next - sigma;
                // ∫ 1/scale and ∫ (u - σ)/scale over the step, by the left rule from its lower end.
                let width = -dt / POINTS as f64;
                let points = (0..POINTS).map(|k| next + k as f64 * width);
                let (zeroth, first) = points.fold((0.0, 0.0), |(zeroth, first), u| {
                    (zeroth + width / scale(u), first + (u - sigma) * width / scale(u))
                });
                let gap = sigma - sigmas[i - 1];
                let own = combine(&[(1.0 / gap, &x0), (-1.0 / gap, last)])?;
                let weight = dt + zeroth * scale(next);
                integrated = combine(&[(1.0, &integrated), (weight, &own)])?;
                if let Some(last_slope) = last_slope.as_ref().filter(|_| stages > 2) {
                    let gap = (sigma - sigmas[i - 2]) / 2.0;
                    let weight = (0.5 * dt * dt + first * scale(next)) / gap;
                    let terms = [(1.0, &integrated), (weight, &own), (-weight, last_slope)];
                    integrated = combine(&terms)?;
                }
                slope = Some(own);
            }
            last_slope = slope;
            let variance = next * next - (sigma * r).powi(2);
            noised(integrated, variance.max(0.0).sqrt(), (sigma, next), noise)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        last = Some(x0);
    }
    Ok(x)
}
