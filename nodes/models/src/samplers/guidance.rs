//! Classifier-free guidance (Ho & Salimans, arXiv 2207.12598).

use candle_core::{Result, Tensor};

/// uncond + `guidance_scale` · (cond − uncond): 1 is no guidance, more follows the condition more.
///
/// # Errors
/// The predictions have different shapes.
pub fn guide(uncond: &Tensor, cond: &Tensor, guidance_scale: f64) -> Result<Tensor> {
    uncond + ((cond - uncond)? * guidance_scale)?
}
