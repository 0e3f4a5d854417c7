//! GEGLU (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202): with (h, g) the halves of
//! the last dimension, y = h · GELU(g). GELU is the exact, erf one.

mod backward;
mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod of_linear;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

pub use of_linear::linear_geglu;

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, in_f32};
use crate::tape::{Reads, apply1};

/// `x` [..., 2n] → [..., n].
///
/// # Errors
/// The last dimension is odd, `x` is not f32, f16 or bf16, or its device has no twin.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let (shape, _) = halved(x.layout())?;
    begin("geglu", x, shape.dims())?;
    in_f32(&x.contiguous()?, |x| apply1(x, Geglu, Reads::INPUTS))
}

struct Geglu;

/// The output's shape, and its last dimension.
fn halved(layout: &Layout) -> Result<(Shape, usize)> {
    let mut shape = layout.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last > 0 && *last % 2 == 0 => {
            *last /= 2;
            let n = *last;
            Ok((Shape::from(shape), n))
        }
        _ => bail!("geglu splits the last dimension into halves, the input is {shape:?}"),
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let (shape, n) = halved(layout)?;
        let _span = Span::new(self.name(), 0);
        Ok((CpuStorage::F32(cpu::geglu(Isa::get()?, x, n)), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let number_type = device::number_type(x, self.name())?;
        let (shape, n) = halved(layout)?;
        let values = shape.elem_count();
        let plan = cuda::plan(number_type, values / n, n);
        let x = device::Input::new(x, layout, self.name())?;
        Ok((device::run(&plan, &[x], (number_type, values))?, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        backward::gradient(x, upstream).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    #[test]
    fn is_the_first_half_times_gelu_of_the_second() -> Result<()> {
        let x = Tensor::randn(0f32, 2., (3, 5, 14), &Device::Cpu)?;
        let h = x.narrow(D::Minus1, 0, 7)?;
        let g = x.narrow(D::Minus1, 7, 7)?;
        let want = (h * crate::gelu_erf(&g)?)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(geglu(&x)?.flatten_all()?.to_vec1::<f32>()?, want);
        Ok(())
    }

    #[test]
    fn refuses_an_odd_width() -> Result<()> {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        assert!(geglu(&x).is_err());
        Ok(())
    }
}
