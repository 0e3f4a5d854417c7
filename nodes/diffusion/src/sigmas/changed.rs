//! The nodes that cut, turn and fill in noise levels.

use std::f64::consts::FRAC_PI_2;

use node::*;

use super::{MOST, Number, Sigmas};
use crate::sampling::schedule_of;

/// Noise levels in two parts, which share the level between them.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/sigmas")]
pub struct SplitSigmas {
    /// The levels.
    sigmas: Sigmas,
    /// After so many steps.
    #[widget(default = 0, min = 0, max = 10000)]
    step: i64,
}

impl Node for SplitSigmas {
    outputs![high_sigmas: Sigmas, low_sigmas: Sigmas];

    fn run(self, _cx: &Context) -> Result<(Sigmas, Sigmas)> {
        let levels = self.sigmas.0;
        let at = (self.step as usize).min(levels.len());
        let until = (at + 1).min(levels.len());
        Ok((Sigmas(levels[..until].to_vec()), Sigmas(levels[at..].to_vec())))
    }
}

/// Noise levels in two parts, the second so much of the steps as `denoise` says.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/sigmas")]
pub struct SplitSigmasDenoise {
    /// The levels.
    sigmas: Sigmas,
    /// The share of the second part.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
}

impl Node for SplitSigmasDenoise {
    outputs![high_sigmas: Sigmas, low_sigmas: Sigmas];

    fn run(self, _cx: &Context) -> Result<(Sigmas, Sigmas)> {
        let levels = self.sigmas.0;
        let steps = levels.len().saturating_sub(1);
        let low = (steps as f64 * self.denoise).round_ties_even() as usize;
        // Where nothing is left for the second part, ComfyUI gives the first none either.
        let high = if low == 0 { 0 } else { levels.len().saturating_sub(low) };
        let from = levels.len().saturating_sub(low + 1);
        Ok((Sigmas(levels[..high].to_vec()), Sigmas(levels[from..].to_vec())))
    }
}

/// Noise levels the other way round: from picture to noise.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/sigmas")]
pub struct FlipSigmas {
    /// The levels.
    sigmas: Sigmas,
}

impl Node for FlipSigmas {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        let mut levels = self.sigmas.0;
        levels.reverse();
        // No step begins without any noise.
        if let Some(first) = levels.first_mut().filter(|first| **first == 0.0) {
            *first = 0.0001;
        }
        Ok(Sigmas(levels))
    }
}

/// Noise levels with another first one.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/sigmas")]
pub struct SetFirstSigma {
    /// The levels.
    sigmas: Sigmas,
    /// The first.
    #[widget(default = 136.0, min = 0.0, max = 20000.0, step = 0.001)]
    sigma: f64,
}

impl Node for SetFirstSigma {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        let mut levels = self.sigmas.0;
        match levels.first_mut() {
            Some(first) => *first = self.sigma as f32,
            None => {
                return Err(Error::at("sigmas", "there are no noise levels, and so no first one"));
            }
        }
        Ok(Sigmas(levels))
    }
}

/// Noise levels with others between them.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/sigmas")]
pub struct ExtendIntermediateSigmas {
    /// The levels.
    sigmas: Sigmas,
    /// How many steps each step becomes.
    #[widget(default = 2, min = 1, max = 100)]
    steps: i64,
    /// From which level on, falling; -1 is from the first.
    #[widget(default = -1.0, min = -1.0, max = 20000.0, step = 0.01)]
    start_at_sigma: f64,
    /// Down to which level.
    #[widget(default = 12.0, min = 0.0, max = 20000.0, step = 0.01)]
    end_at_sigma: f64,
    /// How the new ones lie between two old ones.
    #[widget(choices = ["linear", "cosine", "sine"], default = "linear")]
    spacing: String,
}

impl Node for ExtendIntermediateSigmas {
    outputs![SIGMAS: Sigmas];

    fn run(self, _cx: &Context) -> Result<Sigmas> {
        let levels = self.sigmas.0;
        let steps = self.steps as usize;
        if levels.len().saturating_mul(steps) > MOST {
            let asked = levels.len();
            return Err(Error::at(
                "steps",
                format!("{steps} for each of {asked} levels are more than {MOST}"),
            ));
        }
        let start = if self.start_at_sigma < 0.0 { f64::INFINITY } else { self.start_at_sigma };
        let spaced = |x: f64| match self.spacing.as_str() {
            "cosine" => (x * FRAC_PI_2).sin(),
            "sine" => 1.0 - (x * FRAC_PI_2).cos(),
            _ => x,
        };
        let places: Vec<f64> = (1..steps).map(|i| spaced(i as f64 / steps as f64)).collect();
        let mut extended = Vec::with_capacity(levels.len() * steps);
        for pair in levels.windows(2) {
            let (here, next) = (f64::from(pair[0]), f64::from(pair[1]));
            extended.push(here);
            if self.end_at_sigma <= here && here <= start {
                extended.extend(places.iter().map(|place| place * (next - here) + here));
            }
        }
        extended.extend(levels.last().copied().map(f64::from));
        Ok(Sigmas::of(extended))
    }
}

/// The noise level where a share of the model's schedule is over.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/sigmas")]
pub struct SamplingPercentToSigma {
    /// Whose schedule it is.
    model: Model,
    /// The share: 0 is before all noise levels, 1 behind them.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.0001)]
    sampling_percent: f64,
    /// Whether the ends are the model's highest and lowest level, and not the values that stand for before and behind.
    #[widget(default = false)]
    return_actual_sigma: bool,
}

impl Node for SamplingPercentToSigma {
    outputs![sigma_value: Number];

    fn run(self, cx: &Context) -> Result<Number> {
        let schedule = schedule_of(cx, &self.model)?;
        Ok(Number(match self.sampling_percent {
            percent if percent <= 0.0 && self.return_actual_sigma => schedule.sigma_max(),
            percent if percent >= 1.0 && self.return_actual_sigma => schedule.sigma_min(),
            // What ComfyUI has for before all levels.
            percent if percent <= 0.0 => 999_999_999.9,
            percent => f64::from(schedule.sigma_of_percent(percent)),
        }))
    }
}
