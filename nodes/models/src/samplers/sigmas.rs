//! Noise levels for the VE samplers, by ComfyUI's names: falling, the last one 0.

use super::Schedule;
use super::schedule::linspace_fused;

/// The names that [`by_name`] knows.
pub const NAMES: &[&str] = &[
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
];

/// The noise levels that ComfyUI gives to a sampler: [`by_name`]'s, but for those that discard the
/// penultimate those of one step more without the last above 0.
pub fn for_sampler(
    sampler: &super::Sampler,
    scheduler: &str,
    schedule: &Schedule,
    steps: usize,
) -> Option<Vec<f64>> {
    if !sampler.discards_penultimate_sigma() {
        return by_name(scheduler, schedule, steps);
    }
    let mut sigmas = by_name(scheduler, schedule, steps + 1)?;
    if sigmas.len() > 2 {
        sigmas.remove(sigmas.len() - 2);
    }
    Some(sigmas)
}

/// The noise levels of `steps` steps: steps + 1 values (one or two more or less for "ddim_uniform", fewer
/// for "beta" where timesteps coincide). No steps have no levels. None for an unknown name.
pub fn by_name(name: &str, schedule: &Schedule, steps: usize) -> Option<Vec<f64>> {
    if !NAMES.contains(&name) {
        return None;
    }
    if steps == 0 {
        return Some(Vec::new());
    }
    let (min, max) = (schedule.sigma_min(), schedule.sigma_max());
    let mut sigmas = match name {
        "normal" => spaced_by_timestep(schedule, steps, steps),
        "sgm_uniform" => spaced_by_timestep(schedule, steps, steps + 1),
        "karras" => karras_between(min, max, steps),
        "exponential" => exponential_between(min, max, steps),
        "simple" => simple(schedule, steps),
        "ddim_uniform" => ddim_uniform(schedule, steps),
        "beta" => at_beta_quantiles(schedule, steps, 0.6, 0.6),
        "linear_quadratic" => linear_quadratic(max, steps),
        "kl_optimal" => kl_optimal(min, max, steps),
        _ => return None,
    };
    sigmas.push(0.0);
    Some(sigmas)
}

/// σ of the first `steps` of `points` timesteps that are equally far apart from the last to the first; to
/// the bit as in ComfyUI, where a range of the schedule may begin or end on such a level.
fn spaced_by_timestep(schedule: &Schedule, steps: usize, points: usize) -> Vec<f64> {
    let timesteps = linspace_fused((schedule.train_steps() - 1) as f32, 0.0, points);
    timesteps.into_iter().take(steps).map(|t| f64::from(schedule.sigma_f32(t))).collect()
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

/// Training timesteps at the quantiles of the beta distribution with `alpha` and `beta` (Lee et al., arXiv
/// 2407.12173, section 4.1, which has 0.6 for both: denser at both ends), from the noisiest; without the 0 at the
/// end. A timestep that comes twice is taken once.
pub fn at_beta_quantiles(schedule: &Schedule, steps: usize, alpha: f64, beta: f64) -> Vec<f64> {
    let last = (schedule.train_steps() - 1) as f64;
    let timestep = |i: usize| {
        let quantile = beta_quantile(alpha, beta, 1.0 - i as f64 / steps as f64);
        (quantile * last).round_ties_even() as usize
    };
    // Some 40 µs each. Where the work is to stop meanwhile, the rest is left off: whoever works with them hears of that
    // when he asks.
    let go_on = |_: &usize| kosmograph_interrupt::check().is_ok();
    let mut timesteps: Vec<usize> = (0..steps).take_while(go_on).map(timestep).collect();
    timesteps.dedup();
    timesteps.into_iter().map(|t| schedule.sigma_at(t)).collect()
}

/// The x in 0..=1 up to which the beta distribution with α and β, both above 0, has the probability `p`.
fn beta_quantile(alpha: f64, beta: f64, p: f64) -> f64 {
    if p >= 1.0 {
        return 1.0;
    }
    if alpha == beta {
        // The middle to the last bit: 499.5 of 999 is rounded to the even neighbour above.
        if p == 0.5 {
            return 0.5;
        }
        // The distribution is symmetric, so that the half where x is small, and exact, is enough.
        if p > 0.5 {
            return 1.0 - beta_quantile(alpha, beta, 1.0 - p);
        }
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if beta_distribution(alpha, beta, middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The probability below x, by the hypergeometric series of the incomplete beta function
/// (Abramowitz & Stegun 26.5.4) on the side of the mean where it falls quickly.
fn beta_distribution(alpha: f64, beta: f64, x: f64) -> f64 {
    if x > (alpha + 1.0) / (alpha + beta + 2.0) {
        return 1.0 - beta_distribution(beta, alpha, 1.0 - x);
    }
    if x <= 0.0 {
        return 0.0;
    }
    let (mut term, mut sum, mut n) = (1.0, 1.0, 0.0);
    while term > 1e-17 * sum && n < 1e4 {
        term *= (alpha + beta + n) / (alpha + 1.0 + n) * x;
        sum += term;
        n += 1.0;
    }
    let log_beta = log_gamma(alpha) + log_gamma(beta) - log_gamma(alpha + beta);
    (alpha * x.ln() + beta * (-x).ln_1p() - log_beta).exp() / alpha * sum
}

/// log Γ(x) for x > 0, by Stirling's series (Abramowitz & Stegun 6.1.41) from where it is exact.
fn log_gamma(x: f64) -> f64 {
    let (mut x, mut product) = (x, 1.0);
    while x < 15.0 {
        product *= x;
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - product.ln()
}

/// Falls from `max` linearly to 1 - 0.025 of it in the first half of the steps, then quadratically to 0
/// (Polyak et al., arXiv 2410.13720, section 3.4.2).
fn linear_quadratic(max: f64, steps: usize) -> Vec<f64> {
    const THRESHOLD: f64 = 0.025;
    if steps == 1 {
        return vec![max];
    }
    let (linear, all) = ((steps / 2) as f64, steps as f64);
    let quadratic = all - linear;
    let difference = linear - THRESHOLD * all;
    let (a, b) = (
        difference / (linear * quadratic * quadratic),
        THRESHOLD / linear - 2.0 * difference / (quadratic * quadratic),
    );
    let fallen = |i: usize| {
        let i = i as f64;
        if i < linear { i * THRESHOLD / linear } else { a * (i * i + linear * linear) + b * i }
    };
    (0..steps).map(|i| (1.0 - fallen(i)) * max).collect()
}

/// Equally far apart in arctan σ (Sabour et al., arXiv 2404.14507, theorem 3.1).
fn kl_optimal(min: f64, max: f64, steps: usize) -> Vec<f64> {
    let gaps = steps.saturating_sub(1).max(1) as f64;
    let level = |i: usize| {
        let share = i as f64 / gaps;
        (share * min.atan() + (1.0 - share) * max.atan()).tan()
    };
    (0..steps).map(level).collect()
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
