//! The transpose of matrices: channels of pixels to pixels of channels and back, between convolutions and linear
//! layers.

mod cpu;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::f32_slice;

/// `x` [B, M, N] → [B, N, M], its values one after the other. What is not f32, or not on the CPU, the tensor library
/// copies.
///
/// # Errors
/// `x` has not three dimensions.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let (b, m, n) = x.dims3()?;
    if !x.device().is_cpu() || x.dtype() != DType::F32 {
        return x.transpose(1, 2)?.contiguous();
    }
    begin("transpose", x, &[b, n, m])?;
    x.contiguous()?.apply_op1(Transpose)
}

struct Transpose;

impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, m, n) = layout.shape().dims3()?;
        let x = f32_slice(storage, layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let y = cpu::transpose(Isa::get()?, x, (m, n));
        Ok((CpuStorage::F32(y), Shape::from((b, n, m))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        transpose(upstream).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn agrees_with_the_tensor_library_on_every_instruction_set() -> Result<()> {
        for shape in [(1, 1, 1), (2, 3, 5), (1, 16, 64), (3, 40, 33), (2, 100, 16), (1, 0, 4)] {
            let x = Tensor::randn(0f32, 1., shape, &Device::Cpu)?;
            let values = x.flatten_all()?.to_vec1::<f32>()?;
            let want = x.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?;
            for isa in Isa::available() {
                assert_eq!(cpu::transpose(isa, &values, (shape.1, shape.2)), want, "{shape:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn takes_parts_and_halves_and_has_its_gradient() -> Result<()> {
        let x = Var::randn(0f32, 1., (2, 6, 9), &Device::Cpu)?;
        let part = x.narrow(2, 1, 7)?;
        let want = part.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(transpose(&part)?.flatten_all()?.to_vec1::<f32>()?, want);
        let half = transpose(&part.to_dtype(DType::F16)?)?;
        assert_eq!((half.dims(), half.dtype()), (&[2, 7, 6][..], DType::F16));
        let weights = Tensor::randn(0f32, 1., (2, 7, 6), &Device::Cpu)?;
        let [ours, theirs] = [transpose(&part)?, part.transpose(1, 2)?.contiguous()?].map(|y| {
            let gradients = (y * &weights)?.sum_all()?.backward()?;
            gradients.get(&x).expect("x is a variable").flatten_all()?.to_vec1::<f32>()
        });
        assert_eq!(ours?, theirs?);
        Ok(())
    }
}
