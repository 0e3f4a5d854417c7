//! diffusers' schedulers that no node runs: held against the golden values by what the samplers are made of. Their
//! timesteps (`timestep_spacing` in `scheduler_config.json`), and how they step.

use candle_core::{Result as CandleResult, Tensor};
use kosmograph_models::samplers::sigmas::karras_between;
use kosmograph_models::samplers::uni_pc::Update;
use kosmograph_models::samplers::{
    self, Denoiser, Ending, NoiseSampler, Observe, Result, Schedule, Step, Variant,
};

/// Σ aᵢ xᵢ.
fn combine(terms: &[(f64, &Tensor)]) -> CandleResult<Tensor> {
    let mut terms = terms.iter().map(|(a, x)| *x * *a);
    let first = terms.next().expect("a sum of something")?;
    terms.try_fold(first, |sum, term| sum + term?)
}

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

/// The timesteps of `steps` steps, falling, for [`samplers::ddim`] and [`samplers::euler`]; "linspace"
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

/// The timesteps of `steps` steps, falling, for [`samplers::dpm_solver`], whose last step is one to
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
        Spacing::Linspace => return samplers::dpm_timesteps(schedule, steps),
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

/// As [`samplers::ddim`], with fresh noise in every step: equation 16, η = `eta`. 0 is [`samplers::ddim`], 1 is DDPM's
/// variance.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
#[allow(clippy::too_many_arguments)] // ddim's, and what the noise needs
pub fn ddim_stochastic(
    schedule: &Schedule,
    timesteps: &[usize],
    stride: usize,
    eta: f64,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    for (i, &t) in timesteps.iter().enumerate() {
        let alpha_t = schedule.alphas_cumprod[t];
        let alpha_prev = schedule.alphas_cumprod[t.saturating_sub(stride)];
        let output = model(&x, t as f64)?;
        let (a, s) = (alpha_t.sqrt(), (1.0 - alpha_t).sqrt());
        let x0 = schedule.x0(&x, &output, a, s)?;
        let eps = schedule.epsilon(&x, &output, a, s)?;
        let variance = (1.0 - alpha_prev) / (1.0 - alpha_t) * (1.0 - alpha_t / alpha_prev);
        let sigma = eta * variance.max(0.0).sqrt();
        let direction = (1.0 - alpha_prev - sigma * sigma).max(0.0).sqrt();
        x = combine(&[
            (alpha_prev.sqrt(), &x0),
            (direction, &eps),
            (sigma, &noise.sample(alpha_t, alpha_prev)?),
        ])?;
        observe(Step { done: i + 1, steps: timesteps.len(), x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// As [`samplers::dpm_solver`], for the diffusion SDE (section 4.3, with all of its noise): diffusers'
/// `sde-dpmsolver++`. A unit noise is drawn for every step, the last one to σ = 0 too, where it is
/// multiplied by 0.
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn dpm_solver_sde(
    schedule: &Schedule,
    levels: &[(usize, f64)],
    ending: Ending,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = levels.len();
    let last_sigma = match ending {
        Ending::SigmaMin => schedule.sigma_min(),
        Ending::Zero => 0.0,
    };
    let vp = |sigma: f64| {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        (alpha, sigma * alpha)
    };
    let mut previous: Option<(Tensor, f64)> = None;
    for (i, &(t, sigma)) in levels.iter().enumerate() {
        let next_sigma = levels.get(i + 1).map_or(last_sigma, |level| level.1);
        let ((alpha_s, sigma_s), (alpha_t, sigma_t)) = (vp(sigma), vp(next_sigma));
        let (lambda_s, lambda_t) = (-sigma.ln(), -next_sigma.ln());
        let h = lambda_t - lambda_s;
        let output = model(&x, t as f64)?;
        let x0 = schedule.x0(&x, &output, alpha_s, sigma_s)?;
        let grow = -alpha_t * (-2.0 * h).exp_m1();
        let drawn = noise.sample(sigma, next_sigma)?;
        let spread = sigma_t * (-(-2.0 * h).exp_m1()).max(0.0).sqrt();
        let mut terms = vec![(sigma_t / sigma_s * (-h).exp(), &x), (grow, &x0), (spread, &drawn)];
        let is_last = i + 1 == steps;
        let first_order = is_last && (steps < 15 || ending == Ending::Zero);
        if let (Some((x1, lambda_1)), false) = (&previous, first_order) {
            let slope = 0.5 * grow * h / (lambda_s - lambda_1);
            terms.extend([(slope, &x0), (-slope, x1)]);
        }
        x = combine(&terms)?;
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
        previous = Some((x0, lambda_s));
    }
    Ok(x)
}

/// UniPC as diffusers' `UniPCMultistepScheduler` steps, in VP: `model(x, timestep)` gives the network's
/// output for x [B, C, H, W]; `levels` are the timesteps, falling, each with its σ; `order` is at least 1.
///
/// A step ends with its prediction, and is corrected when the next has the output there: what `observe` is
/// told of is not yet corrected.
///
/// # Errors
/// What `model` and `observe` report.
#[allow(clippy::too_many_arguments)] // dpm_solver's, and what UniPC leaves open
pub fn uni_pc_by_timesteps(
    schedule: &Schedule,
    levels: &[(usize, f64)],
    ending: Ending,
    variant: Variant,
    order: usize,
    x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = levels.len();
    let last_sigma = match ending {
        Ending::SigmaMin => schedule.sigma_min(),
        Ending::Zero => 0.0,
    };
    let mut x = x;
    // x₀ at the last levels with λ of each, newest first.
    let mut history: Vec<(Tensor, f64)> = Vec::with_capacity(order + 1);
    // Where the last step started from, in VE, and its equations.
    let mut last: Option<(Tensor, Update)> = None;
    for (i, &(timestep, sigma)) in levels.iter().enumerate() {
        let next = levels.get(i + 1).map_or(last_sigma, |level| level.1);
        // 1/α of the sample's level and of the next: VE is VP with x/α.
        let (scale, next_scale) = ((sigma * sigma + 1.0).sqrt(), (next * next + 1.0).sqrt());
        let output = model(&x, timestep as f64)?;
        let x0 = schedule.x0(&x, &output, 1.0 / scale, sigma / scale)?;
        let corrected = match &last {
            Some((start, update)) => {
                update.apply(start, &update.corrector(), &history, Some(&x0))?
            }
            None => (&x * scale)?,
        };
        history.truncate(order.saturating_sub(1));
        history.insert(0, (x0, -sigma.ln()));
        let order = order.min(steps - i).min(history.len());
        let update = Update::new(&history, -next.ln(), order, variant);
        let x0 = &history[0].0;
        let start = combine(&[(next / sigma, &corrected), (1.0 - next / sigma, x0)])?;
        x = (update.apply(&start, &update.predictor(), &history, None)? / next_scale)?;
        observe(Step { done: i + 1, steps, x: &x, x0 })?;
        last = Some((start, update));
    }
    Ok(x)
}

/// The timesteps of `steps` steps, falling: evenly picked from the `original_steps` of the distillation
/// (diffusers' `original_inference_steps`, 50).
///
/// # Errors
/// No steps, or more than `original_steps`, or more of these than timesteps of training.
pub fn lcm_timesteps(
    schedule: &Schedule,
    original_steps: usize,
    steps: usize,
) -> Result<Vec<usize>> {
    let train = schedule.train_steps();
    if steps == 0 || steps > original_steps || original_steps > train {
        return Err(samplers::Error::Tensor(candle_core::Error::Msg(format!(
            "{steps} steps of an LCM distilled in {original_steps} steps of {train} timesteps: there must \
             be 1 to {original_steps} steps, and no more of these than timesteps"
        ))));
    }
    let stride = train / original_steps;
    // numpy's linspace, rounded down.
    let gap = original_steps as f64 / steps as f64;
    let timestep = |i: usize| (original_steps - (i as f64 * gap) as usize) * stride - 1;
    Ok((0..steps).map(timestep).collect())
}

/// As [`samplers::lcm`], in VP: `model(x, timestep)` gives the network's output, and x₀ is mixed with x by the
/// boundary condition's c_skip and c_out (Luo et al., section 3, σ_data = ½, timesteps scaled by 10).
///
/// # Errors
/// What `model`, `noise` and `observe` report.
pub fn lcm_by_timesteps(
    schedule: &Schedule,
    timesteps: &[usize],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    noise: &mut dyn NoiseSampler,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    const SIGMA_DATA: f64 = 0.5;
    const TIMESTEP_SCALING: f64 = 10.0;
    let steps = timesteps.len();
    for (i, &t) in timesteps.iter().enumerate() {
        let alpha = schedule.alphas_cumprod[t];
        let output = model(&x, t as f64)?;
        let x0 = schedule.x0(&x, &output, alpha.sqrt(), (1.0 - alpha).sqrt())?;
        let scaled = t as f64 * TIMESTEP_SCALING;
        let length = scaled.hypot(SIGMA_DATA);
        let skip = (SIGMA_DATA / length).powi(2);
        let x0 = combine(&[(scaled / length, &x0), (skip, &x)])?;
        x = match timesteps.get(i + 1) {
            Some(&next) => schedule.add_noise(
                &x0,
                &noise.sample(schedule.sigma_at(t), schedule.sigma_at(next))?,
                next,
            )?,
            None => x0.clone(),
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}
