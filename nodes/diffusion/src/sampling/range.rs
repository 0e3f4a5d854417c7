//! The part of a sampling in which something acts.

use kosmograph_models::samplers::Schedule;

/// σ at which something begins and ends to act: the noise falls from the one to the other.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    from: f32,
    to: f32,
}

impl Range {
    /// `start` and `end` in 0..1 of the training's timesteps, 0 the noisiest.
    pub fn new(schedule: &Schedule, start: f64, end: f64) -> Self {
        Self { from: schedule.sigma_of_percent(start), to: schedule.sigma_of_percent(end) }
    }

    /// Compared in f32, as ComfyUI does, so that a boundary on a step's own noise level decides as there.
    pub fn holds(&self, sigma: f64) -> bool {
        let sigma = sigma as f32;
        sigma <= self.from && sigma >= self.to
    }
}
