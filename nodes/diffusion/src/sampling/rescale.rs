//! Guidance brought back to the spread that the positive alone has: strong guidance burns out the pictures of networks that were
//! trained to the end of the noise (Lin et al., arXiv 2305.08891, section 3.4).

use candle_core::{Result, Tensor};
use kosmograph_models::samplers::Schedule;

/// `share` of the guided output at x (VP) of noise level σ (VE) with the spread of the positive's, the rest as it is. It is
/// velocities that are compared, as in ComfyUI, whatever the network predicts.
pub fn rescaled(
    schedule: &Schedule,
    x: &Tensor,
    [positive, guided]: [&Tensor; 2],
    sigma: f64,
    share: f64,
) -> Result<Tensor> {
    let (alpha, noise) = schedule.shares(sigma);
    let velocity = |output: &Tensor| {
        let x0 = schedule.x0(x, output, alpha, noise)?;
        ((x * alpha)? - x0)? / noise
    };
    let (positive, guided) = (velocity(positive)?, velocity(guided)?);
    let factor = spread(&positive)?.broadcast_div(&spread(&guided)?)?;
    let velocity = ((guided.broadcast_mul(&factor)? * share)? + (&guided * (1.0 - share))?)?;
    let x0 = ((x * alpha)? - (velocity * noise)?)?;
    schedule.output_for_x0(x, &x0, alpha, noise)
}

/// The standard deviation of each row of [B, C, H, W], [B, 1, 1, 1]; 1 of a row without any, which no factor changes.
fn spread(rows: &Tensor) -> Result<Tensor> {
    let flat = rows.flatten_from(1)?;
    let count = flat.dim(1)?.max(2);
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    let spread = (centred.sqr()?.sum_keepdim(1)? / (count - 1) as f64)?.sqrt()?;
    let even = spread.eq(0f32)?.to_dtype(spread.dtype())?;
    (spread + even)?.unsqueeze(2)?.unsqueeze(3)
}

#[cfg(test)]
mod tests {
    use super::super::guided::output_for_x0;
    use super::*;
    use candle_core::Device;
    use kosmograph_models::samplers::{Prediction, SchedulerConfig};

    /// The formula as ComfyUI has it, in VE and of noise, against ours.
    #[test]
    fn a_row_has_the_positives_spread() -> Result<()> {
        const X: [f64; 4] = [0.5, -1.5, 2.0, 0.25];
        const COND: [f64; 4] = [1.0, -0.5, 0.75, 0.1];
        const UNCOND: [f64; 4] = [0.25, 0.5, -0.5, 0.3];
        let (sigma, cfg, share) = (2.5f64, 4.0, 0.7);
        let square = sigma * sigma + 1.0;
        // Velocities of x₀ = x - σ ε.
        let v = |eps: &[f64; 4], i: usize| {
            (X[i] / square - (X[i] - sigma * eps[i])) * square.sqrt() / sigma
        };
        let cond: Vec<f64> = (0..4).map(|i| v(&COND, i)).collect();
        let guided: Vec<f64> =
            (0..4).map(|i| v(&UNCOND, i) + cfg * (cond[i] - v(&UNCOND, i))).collect();
        let spread = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / 4.0;
            (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 3.0).sqrt()
        };
        let factor = share * spread(&cond) / spread(&guided) + 1.0 - share;
        let x0 = |i: usize| X[i] / square - guided[i] * factor * sigma / square.sqrt();
        for prediction in [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample] {
            let config = SchedulerConfig { prediction_type: prediction, ..Default::default() };
            let schedule = Schedule::new(&config)?;
            let row = |values: Vec<f64>| {
                let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                Tensor::from_vec(values, (1, 1, 2, 2), &Device::Cpu)
            };
            let alpha = 1.0 / square.sqrt();
            let x = row(X.iter().map(|x| x * alpha).collect())?;
            let said = |eps: &[f64; 4]| {
                let x0 = row((0..4).map(|i| X[i] - sigma * eps[i]).collect())?;
                output_for_x0(&schedule, &x, &x0, sigma)
            };
            let (cond, uncond) = (said(&COND)?, said(&UNCOND)?);
            let guided = (&uncond + ((&cond - &uncond)? * cfg)?)?;
            let found = rescaled(&schedule, &x, [&cond, &guided], sigma, share)?;
            let found = schedule.x0(&x, &found, alpha, sigma * alpha)?;
            for (i, found) in found.flatten_all()?.to_vec1::<f32>()?.into_iter().enumerate() {
                assert!((f64::from(found) - x0(i)).abs() < 1e-5, "{prediction:?}, {i}: {found}");
            }
        }
        Ok(())
    }

    #[test]
    fn an_even_row_stays() -> Result<()> {
        let schedule = Schedule::new(&SchedulerConfig::default())?;
        let x = Tensor::zeros((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu)?;
        let even = (x.ones_like()? * 0.5)?;
        let found = rescaled(&schedule, &x, [&even, &(&even * 3.0)?], 1.0, 1.0)?;
        let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
        assert!(found.iter().all(|value| (value - 1.5).abs() < 1e-5), "{found:?}");
        Ok(())
    }
}
