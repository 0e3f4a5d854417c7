//! DPM-Solver's single-step methods (Lu et al., arXiv 2206.00927, algorithms 1, 2 and appendix C) in VE, with
//! λ = -log σ: `dpm_fast` divides a number of evaluations into steps of third order, `dpm_adaptive` chooses its
//! steps by their error. k-diffusion's; `dpm_fast` is without noise.

use candle_core::Tensor;
use kosmograph_kernels::bounds::{at_least, larger};

use super::{Denoiser, Error, NoiseSampler, Observe, Result, Step, combine, down_and_up, noised};

/// DPM-Solver-fast: as many evaluations as there are steps in `sigmas`, of which the first and the last
/// level above 0 alone count. It ends at that last one, not at 0.
///
/// # Errors
/// What `model` and `observe` report.
pub fn dpm_fast(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let (Some((high, low)), evaluations) = (ends(sigmas), sigmas.len().saturating_sub(1)) else {
        return Ok(x);
    };
    // Steps of three evaluations, and the rest.
    let mut orders = vec![3; (evaluations / 3).saturating_sub(usize::from(evaluations % 3 == 0))];
    match evaluations % 3 {
        0 => orders.extend([2, 1]),
        rest => orders.push(rest),
    }
    let steps = orders.len();
    let level = |i: usize| high * (low / high).powf(i as f64 / steps as f64);
    for (i, order) in orders.into_iter().enumerate() {
        let (sigma, next) = (level(i), level(i + 1));
        let first = Evaluated::at(x, sigma, model)?;
        x = match order {
            1 => first.first_order(next)?,
            2 => first.second_order(next, 0.5, model)?,
            _ => first.third_order(next, model)?.1,
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &first.x0 })?;
    }
    Ok(x)
}

/// How exact [`dpm_adaptive`] is: a step's error stays below the larger of both, for a value's size.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub relative: f64,
    pub absolute: f64,
}

impl Default for Tolerance {
    /// k-diffusion's.
    fn default() -> Self {
        Self { relative: 0.05, absolute: 0.0078 }
    }
}

/// How [`dpm_adaptive`] chooses its steps.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    pub tolerance: Tolerance,
    /// Whether a step is of third order, its error told by one of second; else of second and first.
    pub third_order: bool,
    /// The first step in λ.
    pub first: f64,
    /// How much the errors of this step and of the two before it count: proportionally, summed, as they change.
    pub proportional: f64,
    pub integral: f64,
    pub derivative: f64,
    /// A step that would have to become shorter than by this factor is taken back.
    pub accepted: f64,
    /// Scales the ancestral noise of each step; 0 is the ODE.
    pub eta: f64,
}

impl Default for Adaptive {
    /// k-diffusion's.
    fn default() -> Self {
        Self {
            tolerance: Tolerance::default(),
            third_order: true,
            first: 0.05,
            proportional: 0.0,
            integral: 1.0,
            derivative: 0.0,
            accepted: 0.81,
            eta: 0.0,
        }
    }
}

impl Adaptive {
    /// No step grows by as much, so that none is taken where `accepted` is more.
    pub const MOST_GROWTH: f64 = 1.0 + std::f64::consts::FRAC_PI_2;

    /// The factor for the next step, from 1/error of this one and of those before.
    fn factor(&self, inverse: [f64; 3]) -> f64 {
        let order = match (self.eta > 0.0, self.third_order) {
            (true, _) => 1.5,
            (false, true) => 3.0,
            (false, false) => 2.0,
        };
        let (p, i, d) = (self.proportional, self.integral, self.derivative);
        let powers = [(p + i + d) / order, -(p + 2.0 * d) / order, d / order];
        let power = |(base, power): (f64, f64)| match power {
            // Exact, where all but everybody is.
            power if power == 1.0 / 3.0 => base.cbrt(),
            power => base.powf(power),
        };
        let factor: f64 = inverse.into_iter().zip(powers).map(power).product();
        1.0 + (factor - 1.0).atan()
    }
}

/// Tries after which there is no hope. Thirty are usual.
const MOST_TRIES: usize = 5_000;

/// DPM-Solver-23 and -12: steps of the higher order, as long as their difference to those of the lower lets them be.
/// Of `sigmas`, the first and the last level above 0 alone count, and it ends at the latter. One length for
/// the whole batch.
///
/// `observe` is told of every try; how many there will be is an estimate.
///
/// # Errors
/// What `model`, `noise` and `observe` report; and numbers from `model` that are none, which no step is short enough
/// for.
pub fn dpm_adaptive(
    sigmas: &[f64],
    settings: &Adaptive,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let Some((high, low)) = ends(sigmas) else { return Ok(x) };
    let (mut at, end) = (-high.ln(), -low.ln());
    let (mut h, mut before, mut tries) = (settings.first, x.clone(), 0);
    let mut inverse: Option<[f64; 3]> = None;
    while at < end - 1e-5 {
        let to = end.min(at + h);
        let (sigma, reached) = ((-at).exp(), (-to).exp());
        // With noise the step goes further down first, but not below the end.
        let (next, up) = match settings.eta > 0.0 {
            true => {
                let down = down_and_up(sigma, reached, settings.eta).0.max(low);
                (down, (reached * reached - down * down).max(0.0).sqrt())
            }
            false => (reached, 0.0),
        };
        let first = Evaluated::at(x, sigma, model)?;
        let (lower, higher) = match settings.third_order {
            true => first.third_order(next, model)?,
            false => (first.first_order(next)?, first.second_order(next, 0.5, model)?),
        };
        let error = distance(&lower, &higher, &before, settings.tolerance)?;
        if !error.is_finite() {
            return Err(Error::NotANumber);
        }
        let now = 1.0 / (error + 1e-8);
        let [_, last, earlier] = inverse.unwrap_or([now; 3]);
        let factor = settings.factor([now, last, earlier]);
        let x0 = first.x0;
        x = first.x;
        inverse = Some([now, last, earlier]);
        if factor >= settings.accepted {
            inverse = Some([now, now, last]);
            (before, x, at) = (lower, noised(higher, up, (sigma, reached), noise)?, to);
        }
        h *= factor;
        tries += 1;
        if tries == MOST_TRIES {
            return Err(Error::Endless(tries));
        }
        let left = ((end - at - 1e-5).max(0.0) / h).ceil() as usize;
        observe(Step { done: tries, steps: tries + left, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// The first level and the last that is above 0.
fn ends(sigmas: &[f64]) -> Option<(f64, f64)> {
    match sigmas {
        [] | [_] => None,
        [high, .., before, 0.0] => Some((*high, *before)),
        [high, 0.0] => Some((*high, *high)),
        [high, .., low] => Some((*high, *low)),
    }
}

/// The root of the mean square of the difference, in units of what is tolerated at each value.
fn distance(lower: &Tensor, higher: &Tensor, before: &Tensor, tolerance: Tolerance) -> Result<f64> {
    let size = (larger(&lower.abs()?, &before.abs()?)? * tolerance.relative)?;
    let tolerated = at_least(&size, tolerance.absolute)?;
    let mean = ((lower - higher)? / tolerated)?.sqr()?.mean_all()?;
    Ok(mean.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?.sqrt())
}

/// x at σ, and what the model says there.
struct Evaluated {
    x: Tensor,
    sigma: f64,
    x0: Tensor,
    eps: Tensor,
}

impl Evaluated {
    fn at(x: Tensor, sigma: f64, model: &mut Denoiser<'_>) -> Result<Self> {
        let x0 = model(&x, sigma)?;
        let eps = combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &x0)])?;
        Ok(Self { x, sigma, x0, eps })
    }

    /// The share `share` of the step in λ to `next`: its level and its length.
    fn part(&self, next: f64, share: f64) -> (f64, f64) {
        let h = (self.sigma / next).ln() * share;
        (self.sigma * (-h).exp(), h)
    }

    fn first_order(&self, next: f64) -> Result<Tensor> {
        let (sigma, h) = self.part(next, 1.0);
        combine(&[(1.0, &self.x), (-sigma * h.exp_m1(), &self.eps)])
    }

    /// What the noise is at `share` of the step, less what it is here; and the place where it was asked.
    fn change(&self, place: Tensor, sigma: f64, model: &mut Denoiser<'_>) -> Result<Tensor> {
        Ok((Self::at(place, sigma, model)?.eps - &self.eps)?)
    }

    fn second_order(&self, next: f64, share: f64, model: &mut Denoiser<'_>) -> Result<Tensor> {
        let (middle, _) = self.part(next, share);
        let change = self.change(self.first_order(middle)?, middle, model)?;
        self.with_change(next, share, &change)
    }

    fn with_change(&self, next: f64, share: f64, change: &Tensor) -> Result<Tensor> {
        let (sigma, h) = self.part(next, 1.0);
        let slope = -sigma / (2.0 * share) * h.exp_m1();
        combine(&[(1.0, &self.x), (-sigma * h.exp_m1(), &self.eps), (slope, change)])
    }

    /// By second order and by third, over thirds of the step.
    fn third_order(&self, next: f64, model: &mut Denoiser<'_>) -> Result<(Tensor, Tensor)> {
        let (first, second) = (1.0 / 3.0, 2.0 / 3.0);
        let (level, _) = self.part(next, first);
        let change = self.change(self.first_order(level)?, level, model)?;
        let lower = self.with_change(next, first, &change)?;
        let (level, h) = self.part(next, second);
        let place = combine(&[
            (1.0, &self.x),
            (-level * h.exp_m1(), &self.eps),
            (-level * second / first * rest(h), &change),
        ])?;
        let change = self.change(place, level, model)?;
        let (sigma, h) = self.part(next, 1.0);
        let higher = combine(&[
            (1.0, &self.x),
            (-sigma * h.exp_m1(), &self.eps),
            (-sigma / second * rest(h), &change),
        ])?;
        Ok((lower, higher))
    }
}

/// (eʰ - 1)/h - 1, which is 0 for no step.
fn rest(h: f64) -> f64 {
    if h == 0.0 { 0.0 } else { h.exp_m1() / h - 1.0 }
}
