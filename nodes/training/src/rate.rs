//! How the learning rate changes over the updates.

use serde::{Deserialize, Serialize};

/// The course of the learning rate behind the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    Constant,
    /// Straight down to 0 at the last update.
    Linear,
    /// Half a cosine down to 0.
    Cosine,
}

/// A learning rate's course, as diffusers and fairseq compute it: both count the updates that are finished, so with a
/// warm-up the first has the rate 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateConfig {
    pub course: Course,
    /// Updates of a straight rise from 0.
    pub warmup: usize,
    /// The share of the updates behind the warm-up for which the rate stays before its course begins.
    pub hold: f64,
}

impl Default for RateConfig {
    fn default() -> Self {
        RateConfig { course: Course::Constant, warmup: 0, hold: 0.0 }
    }
}

impl RateConfig {
    /// What the learning rate is multiplied by after `finished` of `total` updates.
    pub fn factor(&self, finished: usize, total: usize) -> f64 {
        if finished < self.warmup {
            return finished as f64 / self.warmup as f64;
        }
        let left = total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((finished - self.warmup) as f64 / left).min(1.0);
        let done = ((done - self.hold) / (1.0 - self.hold)).max(0.0);
        match self.course {
            Course::Constant => 1.0,
            Course::Linear => 1.0 - done,
            Course::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_and_falls() {
        let rate =
            |course, finished| RateConfig { course, warmup: 2, hold: 0.0 }.factor(finished, 8);
        for course in [Course::Constant, Course::Linear, Course::Cosine] {
            assert_eq!([0, 1, 2].map(|finished| rate(course, finished)), [0.0, 0.5, 1.0]);
        }
        assert_eq!(rate(Course::Linear, 5), 0.5);
        assert!((rate(Course::Cosine, 5) - 0.5).abs() < 1e-12);
        assert_eq!([rate(Course::Constant, 99), rate(Course::Linear, 99)], [1.0, 0.0]);
        let held = RateConfig { course: Course::Linear, warmup: 2, hold: 0.5 };
        assert_eq!([1, 2, 5, 8].map(|finished| held.factor(finished, 8)), [0.5, 1.0, 1.0, 0.0]);
        assert!((held.factor(6, 8) - 2.0 / 3.0).abs() < 1e-12);
    }
}
