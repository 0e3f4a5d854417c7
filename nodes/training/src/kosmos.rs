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
