//! Which timesteps diffusers' schedulers take for a number of steps, besides those that Kosmos-G's
//! own samplers take: the choices of `timestep_spacing` in `scheduler_config.json`.

use super::{Schedule, sigmas::karras_between};

/// `timestep_spacing`: how the timesteps lie within the training's (Lin et al., arXiv 2305.08891,
/// table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Equally far apart from the last to the first, both among them.
    Linspace,
    /// Multiples of train steps / steps, counted from the first.
    Leading,
    /// The same, counted from the last.
    Trailing,
}

/// The timesteps of `steps` steps, falling, for [`super::ddim`] and [`super::euler`]; "linspace"
/// ones may be fractions. `offset` is added to "leading" ones (`steps_offset`).
pub fn timesteps(schedule: &Schedule, spacing: Spacing, steps: usize, offset: usize) -> Vec<f64> {
    let train = schedule.train_steps();
    let steps = steps.clamp(1, train);
    match spacing {
        Spacing::Linspace => {
            let gaps = (steps - 1).max(1) as f64;
            (0..steps).rev().map(|i| i as f64 * (train - 1) as f64 / gaps).collect()
        }
        Spacing::Leading => leading(train, train / steps, offset, 0..steps),
        Spacing::Trailing => trailing(train, steps),
    }
}

/// The timesteps of `steps` steps, falling, for [`super::dpm_solver`], whose last step is one to
/// timestep 0 or beyond: that one is counted, then left off.
pub fn dpm_timesteps(
    schedule: &Schedule,
    spacing: Spacing,
    steps: usize,
    offset: usize,
) -> Vec<usize> {
    let train = schedule.train_steps();
    let steps = steps.clamp(1, train);
    let timesteps = match spacing {
        Spacing::Linspace => return super::dpm_timesteps(schedule, steps),
        Spacing::Leading => leading(train, train / (steps + 1), offset, 1..steps + 1),
        Spacing::Trailing => trailing(train, steps),
    };
    timesteps.into_iter().map(|t| t as usize).collect()
}

/// Each timestep of [`timesteps`] with its σ, linear between the integers' (diffusers'
/// `interpolation_type` "linear"; k-diffusion's is linear in log σ).
pub fn euler_levels(
    schedule: &Schedule,
    spacing: Spacing,
    steps: usize,
    offset: usize,
) -> Vec<(f64, f64)> {
    let with_sigma = |t: f64| {
        let (a, b) = (schedule.sigma_at(t as usize), schedule.sigma_at(t as usize + 1));
        (t, a + t.fract() * (b - a))
    };
    timesteps(schedule, spacing, steps, offset).into_iter().map(with_sigma).collect()
}

/// Karras' noise levels between the ends of [`euler_levels`], with their timesteps.
pub fn euler_levels_karras(
    schedule: &Schedule,
    spacing: Spacing,
    steps: usize,
    offset: usize,
) -> Vec<(f64, f64)> {
    let levels = euler_levels(schedule, spacing, steps, offset);
    let (max, min) = (levels[0].1, levels[levels.len() - 1].1);
    let sigmas = karras_between(min, max, steps).into_iter();
    sigmas.map(|sigma| (schedule.fractional_timestep(sigma), sigma)).collect()
}

fn leading(
    train: usize,
    stride: usize,
    offset: usize,
    multiples: std::ops::Range<usize>,
) -> Vec<f64> {
    multiples.rev().map(|i| (i * stride + offset).min(train - 1) as f64).collect()
}

fn trailing(train: usize, steps: usize) -> Vec<f64> {
    let stride = train as f64 / steps as f64;
    let timestep = |i: usize| (train as f64 - i as f64 * stride).round_ties_even() - 1.0;
    (0..steps).map(timestep).map(|t| t.max(0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::SchedulerConfig;
    use super::*;

    #[test]
    fn spacings_of_ten_of_a_thousand() {
        // The table of arXiv 2305.08891, counted from 0.
        let schedule = Schedule::new(&SchedulerConfig::default()).unwrap();
        let ten = |spacing| timesteps(&schedule, spacing, 10, 0);
        assert_eq!(
            ten(Spacing::Leading),
            [900., 800., 700., 600., 500., 400., 300., 200., 100., 0.]
        );
        assert_eq!(
            ten(Spacing::Linspace),
            [999., 888., 777., 666., 555., 444., 333., 222., 111., 0.]
        );
        assert_eq!(
            ten(Spacing::Trailing),
            [999., 899., 799., 699., 599., 499., 399., 299., 199., 99.]
        );
    }

    #[test]
    fn no_number_of_steps_leaves_the_schedule() {
        let schedule = Schedule::new(&SchedulerConfig::default()).unwrap();
        for spacing in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
            for steps in [1, 2, 3, 7, 499, 999, 1000] {
                let t = timesteps(&schedule, spacing, steps, 1);
                assert!(t.len() == steps && t.iter().all(|t| (0.0..=999.0).contains(t)));
                let t = dpm_timesteps(&schedule, spacing, steps, 1);
                assert!(t.len() == steps && t.iter().all(|t| *t < 1000));
            }
        }
    }
}
