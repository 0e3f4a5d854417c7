//! The nodes that make noise levels.

use kosmograph_models::samplers::sigmas;
use node::*;

use super::{MOST, Sigmas};
use crate::sampling::schedule_of;

/// `count` numbers, equally far apart, from `first` to `last`; of one alone the first.
fn linspace(first: f64, last: f64, count: usize) -> impl Iterator<Item = f64> {
    let gaps = count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |i| first + (last - first) * (i as f64 / gaps))
}

/// What a formula with two ends is given.
fn ends(sigma_max: f64, sigma_min: f64) -> Result<()> {
    if sigma_min <= 0.0 {
        return Err(Error::at(
            "sigma_min",
            format!("{sigma_min} has no logarithm; more than 0 would be right"),
        ));
    }
    if sigma_max < sigma_min {
        return Err(Error::at(
            "sigma_max",
            format!("{sigma_max} lies below sigma_min, {sigma_min}; noise levels fall"),
        ));
    }
    Ok(())
}

/// The noise levels that KSampler would take.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct BasicScheduler {
    /// Whose training says which levels there are.
    model: Model,
    /// How the noise falls over the steps.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// Steps.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// How much of the schedule is run, its end; 0 is nothing.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
}

impl Node for BasicScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, cx: &Context) -> Result<Sigmas> {
        if self.denoise <= 0.0 {
            return Ok(Sigmas(Vec::new()));
        }
        let steps = self.steps as usize;
        let total = steps as f64 / self.denoise;
        if total > MOST as f64 {
            return Err(Error::at(
                "denoise",
                format!(
                    "{} of a schedule for {steps} steps makes it one of {total:.3e} steps in all, more than {MOST}",
                    self.denoise
                ),
            ));
        }
        let schedule = schedule_of(cx, &self.model)?;
        let levels = sigmas::by_name(&self.scheduler, &schedule, total as usize);
        interrupt::check()?;
        let levels = levels.ok_or_else(|| {
            Error::at("scheduler", format!("there is no scheduler \"{}\"", self.scheduler))
        })?;
        Ok(Sigmas::of(levels[levels.len().saturating_sub(steps + 1)..].iter().copied()))
    }
}

/// Falls as Karras et al. have it (arXiv 2206.00364, equation 5).
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct KarrasScheduler {
    /// Steps.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// The first level.
    #[widget(default = 14.614642, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_max: f64,
    /// The last one above 0.
    #[widget(default = 0.0291675, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_min: f64,
    /// The more, the denser at the end.
    #[widget(default = 7.0, min = 0.0, max = 100.0, step = 0.01)]
    rho: f64,
}

impl Node for KarrasScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        ends(self.sigma_max, self.sigma_min)?;
        if self.rho <= 0.0 {
            return Err(Error::at("rho", "0 divides by itself; more than 0 would be right"));
        }
        let (high, low) =
            (self.sigma_max.powf(1.0 / self.rho), self.sigma_min.powf(1.0 / self.rho));
        let levels = linspace(high, low, self.steps as usize).map(|level| level.powf(self.rho));
        Ok(Sigmas::ending_in_zero(levels))
    }
}

/// Equally far apart in log σ.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct ExponentialScheduler {
    /// Steps.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// The first level.
    #[widget(default = 14.614642, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_max: f64,
    /// The last one above 0.
    #[widget(default = 0.0291675, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_min: f64,
}

impl Node for ExponentialScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        polynomial(self.steps, self.sigma_max, self.sigma_min, 1.0)
    }
}

/// A polynomial in log σ: ExponentialScheduler where `rho` is 1.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct PolyexponentialScheduler {
    /// Steps.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// The first level.
    #[widget(default = 14.614642, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_max: f64,
    /// The last one above 0.
    #[widget(default = 0.0291675, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_min: f64,
    /// The power.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    rho: f64,
}

impl Node for PolyexponentialScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        polynomial(self.steps, self.sigma_max, self.sigma_min, self.rho)
    }
}

fn polynomial(steps: i64, sigma_max: f64, sigma_min: f64, rho: f64) -> Result<Sigmas> {
    ends(sigma_max, sigma_min)?;
    let (high, low) = (sigma_max.ln(), sigma_min.ln());
    let levels =
        linspace(1.0, 0.0, steps as usize).map(|x| (x.powf(rho) * (high - low) + low).exp());
    Ok(Sigmas::ending_in_zero(levels))
}

/// log σ at the quantiles of a Laplace distribution (Hang et al., arXiv 2407.03297); it ends above 0.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct LaplaceScheduler {
    /// Levels.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// The most.
    #[widget(default = 14.614642, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_max: f64,
    /// The least.
    #[widget(default = 0.0291675, min = 0.0, max = 5000.0, step = 0.01)]
    sigma_min: f64,
    /// Where log σ is densest.
    #[widget(default = 0.0, min = -10.0, max = 10.0, step = 0.1)]
    mu: f64,
    /// How wide it spreads.
    #[widget(default = 0.5, min = 0.0, max = 10.0, step = 0.1)]
    beta: f64,
}

impl Node for LaplaceScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        ends(self.sigma_max, self.sigma_min)?;
        // Against the logarithm of 0 at both ends.
        const LEAST: f64 = 1e-5;
        let level = |x: f64| {
            let side = 0.5 - x;
            let sign = if side == 0.0 { 0.0 } else { side.signum() };
            let log = self.mu - self.beta * sign * (1.0 - 2.0 * side.abs() + LEAST).ln();
            log.exp().clamp(self.sigma_min, self.sigma_max)
        };
        Ok(Sigmas::of(linspace(0.0, 1.0, self.steps as usize).map(level)))
    }
}

/// The continuous VP schedule of Song et al. (arXiv 2011.13456).
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct VPScheduler {
    /// Steps.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// How much β grows.
    #[widget(default = 19.9, min = 0.0, max = 5000.0, step = 0.01)]
    beta_d: f64,
    /// The least β.
    #[widget(default = 0.1, min = 0.0, max = 5000.0, step = 0.01)]
    beta_min: f64,
    /// The last time above 0.
    #[widget(default = 0.001, min = 0.0, max = 1.0, step = 0.0001)]
    eps_s: f64,
}

impl Node for VPScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        let level = |t: f64| (self.beta_d * t * t / 2.0 + self.beta_min * t).exp_m1().sqrt();
        let levels = linspace(1.0, self.eps_s, self.steps as usize).map(level);
        let levels = Sigmas::ending_in_zero(levels);
        match levels.0.iter().all(|level| level.is_finite()) {
            true => Ok(levels),
            false => Err(Error::at(
                "beta_d",
                format!("{} makes noise levels past all numbers; 19.9 is usual", self.beta_d),
            )),
        }
    }
}

/// The levels that SD-Turbo and SDXL-Turbo were distilled at.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct SDTurboScheduler {
    /// Whose levels they are.
    model: Model,
    /// Steps.
    #[widget(default = 1, min = 1, max = 10)]
    steps: i64,
    /// How much of the ten levels is left to begin from.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
}

impl Node for SDTurboScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, cx: &Context) -> Result<Sigmas> {
        let schedule = schedule_of(cx, &self.model)?;
        let start = 10 - (10.0 * self.denoise) as usize;
        let timesteps = (1..=10).rev().map(|i| i * 100 - 1).skip(start).take(self.steps as usize);
        let levels = timesteps.map(|t| f64::from(schedule.sigma_f32(t as f32)));
        Ok(Sigmas::ending_in_zero(levels))
    }
}

/// Which models the levels of AlignYourSteps were found for, and the levels, from noise to picture (Sabour et al., arXiv 2404.14507; the
/// authors' published tables of ten steps).
const ALIGNED: [(&str, [f64; 11]); 3] = [
    (
        "SD1",
        [
            14.6146412293,
            6.4745760956,
            3.8636745985,
            2.6946151520,
            1.8841921177,
            1.3943805092,
            0.9642583904,
            0.6523686016,
            0.3977456272,
            0.1515232662,
            0.0291671582,
        ],
    ),
    (
        "SDXL",
        [
            14.6146412293,
            6.3184485287,
            3.7681790315,
            2.1811480769,
            1.3405244945,
            0.8620721141,
            0.5550693289,
            0.3798540708,
            0.2332364134,
            0.1114188177,
            0.0291671582,
        ],
    ),
    ("SVD", [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]),
];

/// Levels that were optimised for a family of models.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct AlignYourStepsScheduler {
    /// The family.
    #[widget(choices = ["SD1", "SDXL", "SVD"], default = "SD1")]
    model_type: String,
    /// Steps; other numbers than 10 lie between the levels of 10, in log σ.
    #[widget(default = 10, min = 1, max = 10000)]
    steps: i64,
    /// How much of the schedule is run, its end; 0 is nothing.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
}

impl Node for AlignYourStepsScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        let known = ALIGNED.iter().find(|(name, _)| *name == self.model_type);
        let (_, levels) = known.ok_or_else(|| {
            Error::at("model_type", format!("there are no levels for \"{}\"", self.model_type))
        })?;
        let steps = self.steps as usize;
        let taken = match self.denoise {
            denoise if denoise <= 0.0 => return Ok(Sigmas(Vec::new())),
            denoise if denoise < 1.0 => (steps as f64 * denoise).round_ties_even() as usize,
            _ => steps,
        };
        let last = (levels.len() - 1) as f64;
        // From the picture's end, as the authors interpolate.
        let between = |x: f64| {
            let (low, part) = ((x * last).floor().min(last - 1.0), x * last);
            let (part, at) = (part - low, levels.len() - 1 - low as usize);
            (levels[at].ln() * (1.0 - part) + levels[at - 1].ln() * part).exp()
        };
        let mut all: Vec<f64> = match steps + 1 == levels.len() {
            true => levels.to_vec(),
            false => linspace(0.0, 1.0, steps + 1)
                .map(between)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect(),
        };
        all.drain(..all.len() - (taken + 1));
        if let Some(end) = all.last_mut() {
            *end = 0.0;
        }
        Ok(Sigmas::of(all))
    }
}

/// Training timesteps at the quantiles of a beta distribution (Lee et al., arXiv 2407.12173): with 0.6 and 0.6 denser at
/// both ends.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/schedulers")]
pub struct BetaSamplingScheduler {
    /// Whose levels they are.
    model: Model,
    /// Steps; fewer where timesteps coincide.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// The less, the denser at the end.
    #[widget(default = 0.6, min = 0.0, max = 50.0, step = 0.01)]
    alpha: f64,
    /// The less, the denser at the beginning.
    #[widget(default = 0.6, min = 0.0, max = 50.0, step = 0.01)]
    beta: f64,
}

impl Node for BetaSamplingScheduler {
    outputs![SIGMAS: Sigmas];

    fn run(self, cx: &Context) -> Result<Sigmas> {
        for (input, value) in [("alpha", self.alpha), ("beta", self.beta)] {
            if value <= 0.0 {
                return Err(Error::at(
                    input,
                    "there is no beta distribution of 0; more than 0 would be right",
                ));
            }
        }
        let (schedule, steps) = (schedule_of(cx, &self.model)?, self.steps as usize);
        let levels = sigmas::at_beta_quantiles(&schedule, steps, self.alpha, self.beta);
        interrupt::check()?;
        Ok(Sigmas::ending_in_zero(levels))
    }
}
