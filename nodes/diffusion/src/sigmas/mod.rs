//! SIGMAS: noise levels as values, made by schedulers, cut, turned and filled in.
//!
//! Some need a model, whose training says which levels there are; the others are formulas of their own.

mod changed;
mod scheduled;

use node::*;

pub use changed::{
    ExtendIntermediateSigmas, FlipSigmas, SamplingPercentToSigma, SetFirstSigma, SplitSigmas,
    SplitSigmasDenoise,
};
pub use scheduled::{
    AlignYourStepsScheduler, BasicScheduler, BetaSamplingScheduler, ExponentialScheduler,
    KarrasScheduler, LaplaceScheduler, PolyexponentialScheduler, SDTurboScheduler, VPScheduler,
};

/// Noise levels, falling; none where there is nothing to do.
#[derive(Clone, Debug)]
pub struct Sigmas(pub Vec<f32>);

/// More levels than anybody samples over.
const MOST: usize = 1 << 20;

impl Socket for Sigmas {
    const TYPE: &'static str = "SIGMAS";

    fn from_value(value: Value) -> Result<Self> {
        let wrong = || {
            Error::new(format!(
                "SIGMAS (an f32 tensor [N]) is wanted, but {} was given",
                value.kind_name()
            ))
        };
        let tensor = value.as_tensor().ok_or_else(wrong)?;
        let shape = tensor.shape();
        if shape.len() != 1 || shape[0] > MOST {
            return Err(Error::new(format!(
                "SIGMAS has one axis of at most {MOST} levels, but a tensor of shape {shape:?} was given"
            )));
        }
        let levels = tensor.to_vec()?;
        match levels.iter().find(|level| !(level.is_finite() && **level >= 0.0)) {
            None => Ok(Self(levels)),
            Some(level) => Err(Error::new(format!(
                "SIGMAS holds the noise level {level}; a number of 0 or more would be right"
            ))),
        }
    }

    fn into_value(self) -> Value {
        let shape = [self.0.len()];
        // As many numbers as the shape says.
        Tensor::from_f32(&shape, self.0).map_or(Value::NONE, Tensor::into_value)
    }
}

impl Sigmas {
    fn of(levels: impl IntoIterator<Item = f64>) -> Self {
        Self(levels.into_iter().map(|level| level as f32).collect())
    }

    fn ending_in_zero(levels: impl IntoIterator<Item = f64>) -> Self {
        Self::of(levels.into_iter().chain([0.0]))
    }
}

/// A number.
pub struct Number(pub f64);

impl Socket for Number {
    const TYPE: &'static str = "FLOAT";

    fn from_value(value: Value) -> Result<Self> {
        let wrong =
            || Error::new(format!("a number is wanted, but {} was given", value.kind_name()));
        value.as_f64().map(Self).ok_or_else(wrong)
    }

    fn into_value(self) -> Value {
        self.0.into()
    }
}
