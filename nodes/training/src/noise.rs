//! The diffusion loss: noise is added at a timestep, and the network is to tell it (Ho et al., arXiv 2006.11239).

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_models::samplers::{Prediction, Schedule};

/// √ᾱ and √(1 − ᾱ) of each row's timestep, [B, 1, 1, 1] each.
fn shares(schedule: &Schedule, timesteps: &[usize], like: &Tensor) -> CandleResult<[Tensor; 2]> {
    let column = |f: fn(f64) -> f64| {
        let values = timesteps.iter().map(|t| f(schedule.alphas_cumprod[*t]) as f32);
        let values: Vec<f32> = values.collect();
        Tensor::from_vec(values, (timesteps.len(), 1, 1, 1), like.device())
    };
    Ok([column(f64::sqrt)?, column(|alpha| (1.0 - alpha).sqrt())?])
}

/// Latents [B, C, H, W] with `noise` added, each row at its own timestep, which the schedule has.
///
/// # Errors
/// The shapes do not fit each other.
pub fn add_noise(
    schedule: &Schedule,
    latents: &Tensor,
    noise: &Tensor,
    timesteps: &[usize],
) -> CandleResult<Tensor> {
    let [signal, share] = shares(schedule, timesteps, latents)?;
    latents.broadcast_mul(&signal)? + noise.broadcast_mul(&share)?
}

/// What the network is to predict: the noise, or the velocity (Salimans and Ho, arXiv 2202.00512).
///
/// # Errors
/// The shapes do not fit each other.
pub fn target(
    schedule: &Schedule,
    latents: &Tensor,
    noise: &Tensor,
    timesteps: &[usize],
) -> CandleResult<Tensor> {
    match schedule.prediction {
        Prediction::VPrediction => {
            let [signal, share] = shares(schedule, timesteps, latents)?;
            noise.broadcast_mul(&signal)? - latents.broadcast_mul(&share)?
        }
        Prediction::Epsilon => Ok(noise.clone()),
        Prediction::Sample => Ok(latents.clone()),
        Prediction::Edm => candle_core::bail!(
            "a network of EDM's kind (Playground 2.5) is not trained here; one that predicts the noise, the velocity or the picture \
             would be right"
        ),
    }
}

/// ᾱ / (1 − ᾱ), the ratio of signal to noise at a timestep.
pub fn signal_to_noise(schedule: &Schedule, timestep: usize) -> f64 {
    let alpha = schedule.alphas_cumprod[timestep];
    alpha / (1.0 - alpha)
}

/// The weight of each row by min-SNR-γ (Hang et al., arXiv 2303.09556): min(SNR, γ) / SNR, or / (SNR + 1) where the
/// velocity is predicted, or by nothing where the picture is.
pub fn min_snr_weights(schedule: &Schedule, timesteps: &[usize], gamma: f64) -> Vec<f32> {
    let weight = |timestep: &usize| {
        let snr = signal_to_noise(schedule, *timestep);
        let divisor = match schedule.prediction {
            Prediction::VPrediction => snr + 1.0,
            Prediction::Epsilon => snr,
            Prediction::Sample | Prediction::Edm => 1.0,
        };
        (snr.min(gamma) / divisor) as f32
    };
    timesteps.iter().map(weight).collect()
}

/// Each row's mean square error [B] of a prediction [B, C, H, W].
///
/// # Errors
/// The shapes differ.
pub fn mse_of_rows(prediction: &Tensor, target: &Tensor) -> CandleResult<Tensor> {
    (prediction - target)?.sqr()?.flatten_from(1)?.mean(1)
}

/// The mean over the rows of their mean square error times their weight; a scalar.
///
/// # Errors
/// The shapes do not fit each other.
pub fn weighted_mse(
    prediction: &Tensor,
    target: &Tensor,
    weights: Option<&[f32]>,
) -> CandleResult<Tensor> {
    let rows = mse_of_rows(prediction, target)?;
    match weights {
        None => rows.mean_all(),
        Some(weights) => (rows * Tensor::new(weights, prediction.device())?)?.mean_all(),
    }
}

/// Cross entropy of logits [N, V] with `targets`, N of them, of which negative ones are left out; with a share of
/// `smoothing` the target is all V alike. The sum over the rows, and how many there are.
///
/// # Errors
/// The logits are of another shape, or a target is no column.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &[i64],
    smoothing: f64,
) -> CandleResult<(Tensor, usize)> {
    let (rows, columns) = logits.dims2()?;
    if targets.len() != rows || targets.iter().any(|t| *t >= columns as i64) {
        candle_core::bail!(
            "cross_entropy: {rows} × {columns} logits and {} targets do not fit, or one is no column",
            targets.len()
        )
    }
    let largest = logits.detach().max_keepdim(1)?;
    let shifted = logits.broadcast_sub(&largest)?;
    let logs = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let mut wanted = vec![0f32; rows * columns];
    for (row, target) in wanted.chunks_mut(columns.max(1)).zip(targets) {
        if let Ok(target) = usize::try_from(*target) {
            row.fill((smoothing / columns as f64) as f32);
            row[target] += (1.0 - smoothing) as f32;
        }
    }
    let wanted = Tensor::from_vec(wanted, (rows, columns), logits.device())?;
    let kept = targets.iter().filter(|target| **target >= 0).count();
    let sum = (logs * wanted.to_dtype(DType::F32)?)?.sum_all()?.neg()?;
    Ok((sum, kept))
}
