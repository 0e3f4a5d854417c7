//! Linear layer: y = x Wᵀ + b.

use candle_core::{Result, Tensor, bail};

/// y = x Wᵀ + b over the last dimension.
///
/// `x` [..., in], `weight` [out, in], `bias` [out]; returns [..., out].
///
/// # Errors
/// The last dimension of `x` is not `in`, or the bias is not [out].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == in_features => *last = out_features,
        _ => bail!(
            "linear: the input {:?} does not end in the weight's {in_features} features",
            x.shape()
        ),
    }
    // One large matrix product instead of one for each row of the batch.
    let y = x.reshape(((), in_features))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn is_the_matrix_product_with_the_transpose() -> Result<()> {
        let dev = Device::Cpu;
        let x = Tensor::new(&[[[1f32, 2.], [3., 4.]]], &dev)?;
        let w = Tensor::new(&[[1f32, 10.], [0., 1.], [-1., 0.]], &dev)?;
        let b = Tensor::new(&[0f32, 100., 0.], &dev)?;
        let y = linear(&x, &w, Some(&b))?;
        assert_eq!(y.to_vec3::<f32>()?, [[[21., 102., -1.], [43., 104., -3.]]]);
        Ok(())
    }

    #[test]
    fn refuses_another_width() -> Result<()> {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        let w = Tensor::zeros((5, 4), candle_core::DType::F32, &Device::Cpu)?;
        assert!(linear(&x, &w, None).is_err());
        Ok(())
    }
}
