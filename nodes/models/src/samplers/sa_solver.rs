//! SA-Solver (Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", arXiv
//! 2309.05019): predictor and corrector for the SDE whose noise is scaled by τ, predicting x₀; in
//! VE.

use candle_core::Tensor;

use super::{Denoiser, NoiseSampler, Observe, Result, Schedule, Step, combine};

/// How much noise there is on the way to a level, and how exact the steps are.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// τ within `noisy`, at the level that a step goes to; outside it is 0, which is the ODE.
    pub eta: f64,
    /// The highest level and the lowest that are reached with noise.
    pub noisy: (f32, f32),
    /// Earlier levels that the predictor takes.
    pub predictor: usize,
    /// Levels that the corrector takes, the new one with them; 0 corrects nothing.
    pub corrector: usize,
    /// Predict, evaluate, correct, evaluate: two evaluations a step instead of one.
    pub evaluate_again: bool,
    /// Whether steps of second order have the simpler coefficients of the paper's appendix D.
    pub simple_second: bool,
}

impl Settings {
    /// ComfyUI's: noise between 20 % and 80 % of the training's timesteps.
    pub fn of_schedule(schedule: &Schedule, evaluate_again: bool) -> Self {
        let noisy = (schedule.sigma_of_percent(0.2), schedule.sigma_of_percent(0.8));
        let (predictor, corrector) = (3, 4);
        Self { eta: 1.0, noisy, predictor, corrector, evaluate_again, simple_second: false }
    }

    fn tau(&self, sigma: f64) -> f64 {
        let (from, to) = self.noisy;
        if (to..=from).contains(&(sigma as f32)) { self.eta } else { 0.0 }
    }
}

/// `sigmas` fall and end where the sample should be; where that is 0, the order falls towards it.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn sa_solver(
    sigmas: &[f64],
    settings: &Settings,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    let to_zero = sigmas.last() == Some(&0.0);
    // x₀ at the last levels, oldest first; the predicted place; and the step that led there.
    let mut known: Vec<Tensor> = Vec::new();
    let mut predicted = x.clone();
    let mut led: Option<Led> = None;
    for i in 0..steps {
        let (sigma, next) = (sigmas[i], sigmas[i + 1]);
        let mut x0 = model(&predicted, sigma)?;
        if known.len() == settings.predictor.max(settings.corrector).max(1) {
            known.remove(0);
        }
        known.push(x0.clone());
        let left = if to_zero { steps - i } else { usize::MAX };
        let corrector = match next > 0.0 || settings.evaluate_again {
            true => settings.corrector.min(known.len()).min(left),
            false => 0,
        };
        x = match &led {
            Some(led) if corrector > 0 => {
                let simple = settings.simple_second && corrector == 2;
                let corrected =
                    led.step(&x, sigmas, i, &known[known.len() - corrector..], simple)?;
                if settings.evaluate_again {
                    x0 = model(&corrected, sigma)?;
                    known.pop();
                    known.push(x0.clone());
                }
                corrected
            }
            _ => predicted,
        };
        predicted = if next > 0.0 {
            let tau = settings.tau(next);
            let mut way = Led { from: i, tau, noise: None };
            let scale = next * (-(2.0 * tau * tau * (next / sigma).ln()).exp_m1()).max(0.0).sqrt();
            if scale > 0.0 {
                way.noise = Some((noise.sample(sigma, next)? * scale)?);
            }
            let order = settings.predictor.min(known.len()).min(left - 1);
            let simple = settings.simple_second && order == 2;
            let place = way.step(&x, sigmas, i, &known[known.len() - order..], simple)?;
            led = Some(way);
            place
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &predicted, x0: &x0 })?;
    }
    Ok(predicted)
}

/// The step from the level `from` to the next: its noise is the same in prediction and correction.
struct Led {
    from: usize,
    tau: f64,
    noise: Option<Tensor>,
}

impl Led {
    /// x after the step from `x`, where `known` is x₀ at the levels that end with the level `newest`; of two levels
    /// by the coefficients of appendix D, where `simple`.
    fn step(
        &self,
        x: &Tensor,
        sigmas: &[f64],
        newest: usize,
        known: &[Tensor],
        simple: bool,
    ) -> Result<Tensor> {
        let (sigma, next) = (sigmas[self.from], sigmas[self.from + 1]);
        let h = (sigma / next).ln();
        // λ of the levels, counted from the step's end.
        let first = newest + 1 - known.len();
        let nodes: Vec<f64> =
            sigmas[first..=newest].iter().map(|level| (next / level).ln()).collect();
        let grown = 1.0 + self.tau * self.tau;
        let integrals = exponential_integrals(h, grown, nodes.len());
        let mut terms = vec![(next / sigma * (-self.tau * self.tau * h).exp(), x)];
        let of_basis = |j| basis(&nodes, j).iter().zip(&integrals).map(|(a, b)| a * b).sum();
        let weights: Vec<f64> = match (simple, newest > self.from) {
            (false, _) => (0..known.len()).map(of_basis).collect(),
            // The corrector's: the mean of both ends in first order.
            (true, true) => {
                let there = 0.5 * grown * h;
                vec![integrals[0] - there, there]
            }
            (true, false) => {
                let before = 0.5 * grown * h * h / (nodes[0] - nodes[1]);
                vec![before, integrals[0] - before]
            }
        };
        terms.extend(weights.into_iter().zip(known));
        terms.extend(self.noise.as_ref().map(|noise| (1.0, noise)));
        combine(&terms)
    }
}

/// a ∫ e^(a u) uᵖ du from -`h` to 0, for p = 0 … `count` - 1: each by parts from the one before.
fn exponential_integrals(h: f64, a: f64, count: usize) -> Vec<f64> {
    let mut integrals: Vec<f64> = Vec::with_capacity(count);
    for p in 0..count {
        let value = match integrals.last() {
            None => -(-a * h).exp_m1(),
            Some(before) => -(-h).powi(p as i32) * (-a * h).exp() - p as f64 / a * before,
        };
        integrals.push(value);
    }
    integrals
}

/// The coefficients, from the constant on, of the Lagrange polynomial that is 1 at `nodes[j]` and 0 at the
/// others.
fn basis(nodes: &[f64], j: usize) -> Vec<f64> {
    let mut coefficients = vec![1.0];
    for (_, node) in nodes.iter().enumerate().filter(|(k, _)| *k != j) {
        let gap = nodes[j] - node;
        let mut product = vec![0.0; coefficients.len() + 1];
        for (p, coefficient) in coefficients.iter().enumerate() {
            product[p] -= coefficient * node / gap;
            product[p + 1] += coefficient / gap;
        }
        coefficients = product;
    }
    coefficients
}
