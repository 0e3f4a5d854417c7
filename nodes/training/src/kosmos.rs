//! The losses of Kosmos-G's own training (arXiv 2310.02992, §2.3), as the authors' code computes them: `align` brings
//! the aligner's condition to CLIP's, `instruct` teaches the whole model through the frozen U-Net.

use candle_core::{DType, Tensor};
use kosmograph_models::kosmos::aligner::{
    Aligner, Reconstruction, alignment_loss, reconstruction_loss,
};
use kosmograph_models::samplers::Schedule;
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_models::text::kosmos_tokens::PAD;

use crate::error::{Error, Result};
use crate::noise::{add_noise, min_snr_weights, mse_of_rows, target};

/// Below this draw a row of `instruct` learns from the null condition.
pub const NULL_CONDITION_BELOW: f32 = 0.1;

/// 1 where `tokens` [B, T] are padding.
///
/// # Errors
/// Only what the tensor library reports.
pub fn padding(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.to_dtype(DType::U32)?.eq(PAD)?)
}

/// The two losses of `align`: of the condition against CLIP's hidden states `clip` [B, Q, D], and of the language
/// model's hidden states [B, T, C] against what is made of the condition again. Padded positions count in both.
///
/// # Errors
/// The shapes do not fit the networks.
pub fn align_losses(
    aligner: &Aligner,
    reconstruction: &Reconstruction,
    hidden: &Tensor,
    padding: &Tensor,
    clip: &Tensor,
) -> Result<[Tensor; 2]> {
    let condition = aligner.forward(hidden, Some(padding))?;
    let decoded = reconstruction.decode(&condition, hidden.dim(1)?)?;
    let again = reconstruction.project(&decoded)?;
    Ok([alignment_loss(&condition, clip)?, reconstruction_loss(&again, hidden, clip.dim(1)?)?])
}

/// `condition` [B, Q, D] with the rows whose draw is below a tenth replaced by `null` [1, Q, D], both with their
/// gradients.
///
/// # Errors
/// There is not one draw for each row.
pub fn drop_conditions(condition: &Tensor, null: &Tensor, draws: &[f32]) -> Result<Tensor> {
    if draws.len() != condition.dim(0)? {
        let sentence = format!("{} draws for {} conditions", draws.len(), condition.dim(0)?);
        return Err(Error::Data(sentence));
    }
    let rows = draws.iter().enumerate().map(|(row, draw)| match *draw < NULL_CONDITION_BELOW {
        true => null.get(0),
        false => condition.get(row),
    });
    Ok(Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

/// How far the rows of `condition` [B, Q, D] are from what the text encoder makes of the captions that say the same, `clip` [N, Q, D]
/// of the `rows`: the mean square of each, summed. `align`'s loss, of prompts with pictures, which the authors' `instruct` does not have.
///
/// # Errors
/// The shapes do not fit each other, or there is no such row.
pub fn anchor_loss(condition: &Tensor, clip: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let rows = Tensor::new(rows, condition.device())?;
    let said = condition.index_select(&rows, 0)?;
    Ok((alignment_loss(&said, clip)? * clip.dim(0)? as f64)?)
}

/// The loss of `instruct`: the mean square error of each row, summed over the batch; with γ each
/// weighted by min-SNR-γ, which the authors do not do.
///
/// # Errors
/// The shapes do not fit the U-Net.
pub fn instruct_loss(
    unet: &UNet,
    schedule: &Schedule,
    latents: &Tensor,
    noise: &Tensor,
    timesteps: &[usize],
    condition: &Tensor,
    min_snr: Option<f64>,
) -> Result<Tensor> {
    let noisy = add_noise(schedule, latents, noise, timesteps)?;
    let prediction = unet.forward(&noisy, &crate::timesteps(timesteps)?, condition, None)?;
    let target = target(schedule, latents, noise, timesteps)?;
    let mut losses = mse_of_rows(&prediction, &target)?;
    if let Some(gamma) = min_snr {
        let weights = min_snr_weights(schedule, timesteps, gamma);
        losses = (losses * Tensor::new(weights, condition.device())?)?;
    }
    Ok(losses.sum_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// The mean square of each named row, summed; the others learn nothing from it.
    #[test]
    fn an_anchor_holds_the_rows_that_have_one() -> Result<()> {
        let numbers = |count: usize, step: f32| (0..count).map(move |i| (i as f32 * step).sin());
        let condition: Vec<f32> = numbers(3 * 2 * 4, 0.7).collect();
        let clip: Vec<f32> = numbers(2 * 2 * 4, 0.3).collect();
        let rows = [2u32, 0];
        let mut want = 0.0;
        for (row, clip) in rows.iter().zip(clip.chunks(8)) {
            let row = &condition[*row as usize * 8..][..8];
            want += row.iter().zip(clip).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / 8.0;
        }
        let condition = Var::from_vec(condition, (3, 2, 4), &Device::Cpu)?;
        let clip = Tensor::from_vec(clip, (2, 2, 4), &Device::Cpu)?;
        let loss = anchor_loss(&condition, &clip, &rows)?;
        assert!((loss.to_scalar::<f32>()? - want).abs() < 1e-6);
        let slopes = loss.backward()?;
        let slope = slopes.get(&condition).expect("a gradient").abs()?.sum((1, 2))?;
        let slope = slope.to_vec1::<f32>()?;
        assert!(slope[0] > 0.0 && slope[1] == 0.0 && slope[2] > 0.0, "{slope:?}");
        assert!(anchor_loss(&condition, &clip, &[3, 0]).is_err());
        Ok(())
    }
}
