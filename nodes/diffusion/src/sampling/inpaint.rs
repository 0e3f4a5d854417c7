//! Sampling inside a mask: outside it the latents are, at every noise level, the given ones with that much
//! noise, and in the end the given ones to the last bit (ComfyUI's noise mask; Lugmayr et al., arXiv
//! 2201.09865, without its resampling).

use candle_core::{Device, Result as CandleResult, Tensor as Candle};
use node::*;
use node_candle::import;

use super::entry::rows_for;
use super::resize::bilinear;

/// Where sampling may change the latents.
pub struct NoiseMask {
    /// [1 or B, 1, H, W], 1 where it may.
    pub mask: Candle,
    /// 1 - mask.
    rest: Candle,
}

impl NoiseMask {
    /// The noise mask of a LATENT, scaled to its samples.
    ///
    /// # Errors
    /// It is no mask.
    pub fn of(latent: &Latent, device: &Device) -> Result<Option<Self>> {
        let Some(mask) = latent.noise_mask()? else { return Ok(None) };
        Self::for_shape(&mask.0, &latent.samples()?.shape(), device).map(Some)
    }

    /// A mask [b, h, w] of any size, scaled to latents of the shape [B, C, H, W].
    ///
    /// # Errors
    /// It is no mask.
    pub fn for_shape(mask: &Tensor, shape: &[usize], device: &Device) -> Result<Self> {
        let mask = import(mask, device)?.unsqueeze(1)?;
        let mask = rows_for(&bilinear(&mask, shape[2], shape[3])?, shape[0])?;
        let rest = (1.0 - &mask)?;
        Ok(Self { mask, rest })
    }

    /// The mask at a step that `share` of all are left with: 1 where it is not below that, else 0; `strength` of it and the rest
    /// the mask as it is (ComfyUI's differential diffusion).
    pub fn at(&self, share: f64, strength: f64) -> CandleResult<Self> {
        let taken_up = self.mask.ge(share as f32)?.to_dtype(self.mask.dtype())?;
        let mask = ((taken_up * strength)? + (&self.mask * (1.0 - strength))?)?;
        let rest = (1.0 - &mask)?;
        Ok(Self { mask, rest })
    }

    /// `inside` where the mask is 1, `outside` where it is 0, between them in between.
    pub fn mix(&self, inside: &Candle, outside: &Candle) -> CandleResult<Candle> {
        inside.broadcast_mul(&self.mask)? + outside.broadcast_mul(&self.rest)?
    }

    /// `samples`, but `latents` to the last bit where the mask is 0: for samplers that end above σ = 0.
    pub fn restore(&self, samples: &Candle, latents: &Candle) -> CandleResult<Candle> {
        let kept = self.mask.eq(0f32)?.broadcast_as(samples.shape())?;
        kept.where_cond(latents, samples)
    }
}
