//! Classifier-free guidance (Ho & Salimans, arXiv 2207.12598).

use candle_core::{Result, Tensor};

/// uncond + `guidance_scale` · (cond − uncond): 1 is no guidance, more follows the condition more.
///
/// # Errors
/// The predictions have different shapes.
pub fn guide(uncond: &Tensor, cond: &Tensor, guidance_scale: f64) -> Result<Tensor> {
    uncond + ((cond - uncond)? * guidance_scale)?
}

/// The guided prediction for `x` [B, C, H, W]. `predict` is asked once, with the rows twice over:
/// [2B, C, H, W], the first half for the unconditional context, the second for the condition.
///
/// # Errors
/// What `predict` reports; a prediction with another number of rows.
pub fn guided(
    x: &Tensor,
    guidance_scale: f64,
    predict: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let batch = x.dim(0)?;
    let both = predict(&Tensor::cat(&[x, x], 0)?)?;
    guide(&both.narrow(0, 0, batch)?, &both.narrow(0, batch, batch)?, guidance_scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn goes_from_the_first_half_past_the_second() -> Result<()> {
        let x = Tensor::new(&[[1f32]], &Device::Cpu)?;
        let out = guided(&x, 3.0, |rows| {
            assert_eq!(rows.dims(), [2, 1]);
            Tensor::new(&[[10f32], [12.]], &Device::Cpu)
        })?;
        assert_eq!(out.to_vec2::<f32>()?, [[16.]]);
        Ok(())
    }
}
