//! SEEDS (Gonzalez et al., "SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion
//! Models", arXiv 2305.14267): single-step exponential solvers of the diffusion SDE with one and two places in
//! between, predicting x₀; in VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, SdeStep, Step, combine};

/// SEEDS-2, the place between at half the step in λ. `eta` scales the noise. Two evaluations a step, one for
/// a step to σ = 0.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn seeds_2(
    sigmas: &[f64],
    eta: f64,
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
            let mut way = Way::new(&x, sigma, next, eta);
            let halfway = way.to(0.5, &[(1.0, &x0)], noise)?;
            let there = model(&halfway, way.level(0.5))?;
            way.to(1.0, &[(1.0, &there)], noise)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// SEEDS-3, the places between at the thirds of the step in λ. `eta` scales the noise. Three evaluations a
/// step, one for a step to σ = 0.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn seeds_3(
    sigmas: &[f64],
    eta: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    const FIRST: f64 = 1.0 / 3.0;
    const SECOND: f64 = 2.0 / 3.0;
    let steps = sigmas.len().saturating_sub(1);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        x = if next > 0.0 {
            let mut way = Way::new(&x, sigma, next, eta);
            let place = way.to(FIRST, &[(1.0, &x0)], noise)?;
            let at_first = model(&place, way.level(FIRST))?;
            let bend = way.bend(SECOND) * SECOND / FIRST;
            let place = way.to(SECOND, &[(1.0 - bend, &x0), (bend, &at_first)], noise)?;
            let at_second = model(&place, way.level(SECOND))?;
            let bend = way.bend(1.0) / SECOND;
            way.to(1.0, &[(1.0 - bend, &x0), (bend, &at_second)], noise)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// The way of one step, from σ down to `next`, over places between.
struct Way<'a> {
    x: &'a Tensor,
    sigma: f64,
    /// The step in λ = -log σ.
    h: f64,
    eta: f64,
    /// The place that was reached last, as a share of the step.
    reached: f64,
    /// The noise of the way there, of variance 1 - e^(-2ηh·`reached`).
    noise: Option<Tensor>,
}

impl<'a> Way<'a> {
    fn new(x: &'a Tensor, sigma: f64, next: f64, eta: f64) -> Self {
        Self { x, sigma, h: (sigma / next).ln(), eta, reached: 0.0, noise: None }
    }

    /// σ at a share of the step.
    fn level(&self, share: f64) -> f64 {
        self.sigma * (-share * self.h).exp()
    }

    /// The exponent of x₀'s share.
    fn exponent(&self, share: f64) -> f64 {
        share * self.h * (self.eta + 1.0)
    }

    /// φ₂/φ₁ of the exponential integrator: how far along the mean of x₀ lies.
    fn bend(&self, share: f64) -> f64 {
        let h = self.exponent(share);
        ((-h).exp_m1() + h) / (-h * (-h).exp_m1())
    }

    /// x at a share of the step where x₀ is the mean `x0`, with the noise of all that way.
    fn to(
        &mut self,
        share: f64,
        x0: &[(f64, &Tensor)],
        noise: &mut dyn NoiseSampler,
    ) -> Result<Tensor> {
        let level = self.level(share);
        let SdeStep { kept, grown, .. } =
            SdeStep::new(level / self.sigma, share * self.h, self.eta);
        let mut terms = vec![(kept, self.x)];
        terms.extend(x0.iter().map(|(weight, x0)| (grown * weight, *x0)));
        // The noise so far fades as x does, and the rest of the way adds its own.
        let way = (share - self.reached) * self.h;
        let fresh = SdeStep::spread(way, self.eta);
        if fresh > 0.0 {
            let unit = noise.sample(self.level(self.reached), level)?;
            self.noise = Some(match &self.noise {
                None => (unit * fresh)?,
                Some(before) => combine(&[((-way * self.eta).exp(), before), (fresh, &unit)])?,
            });
        }
        self.reached = share;
        terms.extend(self.noise.as_ref().map(|noise| (level, noise)));
        combine(&terms)
    }
}
