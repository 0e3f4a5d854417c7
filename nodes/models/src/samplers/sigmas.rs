//! Noise levels for the VE samplers, by ComfyUI's names: falling, the last one 0.

use super::Schedule;

/// The names that [`by_name`] knows.
pub const NAMES: &[&str] =
    &["normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform"];

/// The noise levels of `steps` steps: steps + 1 values (one or two more or less for "ddim_uniform").
/// None for an unknown name.
pub fn by_name(name: &str, schedule: &Schedule, steps: usize) -> Option<Vec<f64>> {
    let (min, max) = (schedule.sigma_min(), schedule.sigma_max());
    let mut sigmas = match name {
        "normal" => spaced_by_timestep(schedule, steps, steps),
        "sgm_uniform" => spaced_by_timestep(schedule, steps, steps + 1),
        "karras" => karras_between(min, max, steps),
        "exponential" => exponential_between(min, max, steps),
        "simple" => simple(schedule, steps),
        "ddim_uniform" => ddim_uniform(schedule, steps),
        _ => return None,
    };
    sigmas.push(0.0);
    Some(sigmas)
}

/// σ of the first `steps` of `points` timesteps that are equally far apart from the last to the first.
fn spaced_by_timestep(schedule: &Schedule, steps: usize, points: usize) -> Vec<f64> {
    let last = (schedule.train_steps() - 1) as f64;
    let gaps = (points.max(2) - 1) as f64;
    (0..steps).map(|i| schedule.sigma(last * (1.0 - i as f64 / gaps))).collect()
}

/// Karras et al., arXiv 2206.00364, equation 5, ρ = 7.
pub fn karras_between(min: f64, max: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    let gaps = steps.saturating_sub(1).max(1) as f64;
    (0..steps).map(|i| (high + i as f64 / gaps * (low - high)).powf(RHO)).collect()
}

/// Equally far apart in log σ.
fn exponential_between(min: f64, max: f64, steps: usize) -> Vec<f64> {
    let gaps = steps.saturating_sub(1).max(1) as f64;
    (0..steps).map(|i| (max.ln() + i as f64 / gaps * (min.ln() - max.ln())).exp()).collect()
}

/// Every so-many-th training timestep, from the last.
fn simple(schedule: &Schedule, steps: usize) -> Vec<f64> {
    let count = schedule.train_steps();
    let stride = count as f64 / steps as f64;
    (0..steps).map(|i| schedule.sigma_at(count - 1 - (i as f64 * stride) as usize)).collect()
}

/// Every so-many-th training timestep, from the second.
fn ddim_uniform(schedule: &Schedule, steps: usize) -> Vec<f64> {
    let stride = (schedule.train_steps() / steps.max(1)).max(1);
    let mut sigmas: Vec<f64> =
        (1..schedule.train_steps()).step_by(stride).map(|t| schedule.sigma_at(t)).collect();
    sigmas.reverse();
    sigmas
}

#[cfg(test)]
mod tests {
    use super::super::SchedulerConfig;
    use super::*;

    #[test]
    fn every_schedule_falls_to_zero() {
        let schedule = Schedule::new(&SchedulerConfig::default()).unwrap();
        for name in NAMES {
            for steps in [1, 2, 5, 20, 50] {
                let sigmas = by_name(name, &schedule, steps).unwrap();
                assert!(sigmas.is_sorted_by(|a, b| a > b), "{name} {steps}: {sigmas:?}");
                assert_eq!(sigmas.last(), Some(&0.0));
                assert!(sigmas.len() == steps + 1 || *name == "ddim_uniform");
            }
        }
        assert_eq!(by_name("none", &schedule, 5), None);
    }
}
