//! Layer normalisation over the last dimension (Ba et al., arXiv 1607.06450):
//! y = (x − mean) / √(var + ε) · w + b, var the biased variance.

mod backward;
mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, in_f32};
use crate::tape::{Reads, apply3};

/// `x` [..., n], `weight` [n], `bias` [n]; returns the shape of `x`.
///
/// # Errors
/// The last dimension of `x` is not n, an input is of another type, or its device has no twin.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    begin("layer_norm", x, x.dims())?;
    let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
    in_f32(&x.contiguous()?, |x| apply3([x, &weight, &bias], LayerNorm { eps }, Reads::INPUTS))
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        width(shape, weight_layout, bias_layout)?;
        let x = f32_slice(x, x_layout, self.name())?;
        let weight = f32_slice(weight, weight_layout, self.name())?;
        let bias = f32_slice(bias, bias_layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        Ok((
            CpuStorage::F32(cpu::layer_norm(Isa::get()?, x, weight, bias, self.eps)),
            shape.clone(),
        ))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        let (name, shape) = (self.name(), x_layout.shape());
        let number_type = device::number_type(x, name)?;
        let n = width(shape, weight_layout, bias_layout)?;
        let values = shape.elem_count();
        let plan = cuda::plan(number_type, values / n, n, self.eps)?;
        let inputs = [
            device::Input::new(x, x_layout, name)?,
            device::Input::weight(weight, weight_layout, Type::F32, name)?,
            device::Input::weight(bias, bias_layout, Type::F32, name)?,
        ];
        Ok((device::run(&plan, &inputs, (number_type, values))?, shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        backward::gradients(self, [x, weight, bias], upstream).map(Into::into)
    }
}

/// The last dimension of the input, which weight and bias have too.
fn width(shape: &Shape, weight: &Layout, bias: &Layout) -> Result<usize> {
    let n = weight.shape().elem_count();
    if n == 0 || shape.dims().last() != Some(&n) || bias.shape().elem_count() != n {
        bail!(
            "layer_norm: the input {shape:?} does not end in the weight's {n} values, or the bias \
             {:?} differs from it",
            bias.shape()
        )
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn agrees_with_the_formula_in_f64() -> Result<()> {
        let dev = Device::Cpu;
        // A large mean: a variance from E[x²] − mean² would lose every digit here.
        let x = Tensor::randn(1000f32, 1., (4, 3, 33), &dev)?;
        let w = Tensor::randn(1f32, 0.2, 33, &dev)?;
        let b = Tensor::randn(0f32, 0.2, 33, &dev)?;
        let y = layer_norm(&x, &w, &b, 1e-5)?.reshape((12, 33))?.to_vec2::<f32>()?;
        let (w, b) = (w.to_vec1::<f32>()?, b.to_vec1::<f32>()?);
        for (x, y) in x.reshape((12, 33))?.to_vec2::<f32>()?.iter().zip(y) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / 33.;
            let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 33.;
            for i in 0..33 {
                let want = (f64::from(x[i]) - mean) / (var + 1e-5).sqrt() * f64::from(w[i])
                    + f64::from(b[i]);
                assert!((f64::from(y[i]) - want).abs() < 1e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn epsilon_keeps_a_constant_row_finite() -> Result<()> {
        let dev = Device::Cpu;
        let x = Tensor::full(7f32, (1, 4), &dev)?;
        let w = Tensor::full(1f32, 4, &dev)?;
        let b = Tensor::full(0.5f32, 4, &dev)?;
        assert_eq!(layer_norm(&x, &w, &b, 1e-5)?.to_vec2::<f32>()?, [[0.5; 4]]);
        Ok(())
    }
}
