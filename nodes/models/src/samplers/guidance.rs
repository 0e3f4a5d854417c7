//! Classifier-free guidance (Ho & Salimans, arXiv 2207.12598).

use candle_core::{DType, Result, Tensor};
use kosmograph_kernels::linear_combination_from;

/// uncond + `guidance_scale` · (cond − uncond): 1 is no guidance, more follows the condition more.
///
/// # Errors
/// The predictions have different shapes.
pub fn guide(uncond: &Tensor, cond: &Tensor, guidance_scale: f64) -> Result<Tensor> {
    linear_combination_from(uncond, &[(guidance_scale, cond)])
}

/// empty + cfg · (cond - `negative` · p), where both directions are those from `empty` and p is the part of the negative's
/// that is perpendicular to the positive's (Armandpour et al., arXiv 2304.04968, equation 9). Of the whole batch at once, as
/// ComfyUI has it.
///
/// # Errors
/// The predictions have different shapes.
pub fn perpendicular(
    cond: &Tensor,
    uncond: &Tensor,
    empty: &Tensor,
    cfg: f64,
    negative: f64,
) -> Result<Tensor> {
    let (toward, away) = ((cond - empty)?, (uncond - empty)?);
    let sum = |tensor: Tensor| -> Result<f64> {
        tensor.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()
    };
    let (along, length) = (sum((&away * &toward)?)?, sum(toward.sqr()?)?);
    // A positive that says nothing has no direction.
    let share = if length > 0.0 { along / length } else { 0.0 };
    let perpendicular = (away - (&toward * share)?)?;
    empty + ((toward - (perpendicular * negative)?)? * cfg)?
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_part_of_the_negative_along_the_positive_does_not_count() -> Result<()> {
        let tensor = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu);
        let (cond, uncond, empty) =
            (tensor([2.0, 1.0, 0.0])?, tensor([1.0, 3.0, 1.0])?, tensor([0.0, 1.0, 1.0])?);
        // Toward (2, 0, -1), away (1, 2, 0): 2/5 of the one lies along the other, and (0.2, 2, 0.4) beside it.
        let found = perpendicular(&cond, &uncond, &empty, 3.0, 0.5)?.to_vec1::<f32>()?;
        for (found, expected) in found.iter().zip([5.7, -2.0, -2.6]) {
            assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
        }
        assert_eq!(
            perpendicular(&empty, &uncond, &empty, 2.0, 1.0)?.to_vec1::<f32>()?,
            [-2.0, -3.0, 1.0]
        );
        Ok(())
    }
}
