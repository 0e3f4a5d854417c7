//! Element-wise activations.
//!
//! - SiLU: x σ(x) = x / (1 + e⁻ˣ)
//! - GELU, the exact one: x Φ(x) = x/2 (1 + erf(x/√2)); the tanh approximation is not the same
//!   function to 1e-4 and is not offered
//! - QuickGELU of CLIP: x σ(1.702 x)

mod backward;
mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, in_f32};
use crate::tape::{Reads, apply1};

pub(crate) use backward::{gelu_slope, silu_slope};
pub(crate) use cpu::gelu;

/// x / (1 + e⁻ˣ), any shape.
///
/// # Errors
/// `x` is not f32, f16 or bf16, or its device has no twin.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply(x, Activation::Silu)
}

/// x/2 (1 + erf(x/√2)), any shape.
///
/// # Errors
/// `x` is not f32, f16 or bf16, or its device has no twin.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    apply(x, Activation::GeluErf)
}

/// x σ(1.702 x), any shape.
///
/// # Errors
/// `x` is not f32, f16 or bf16, or its device has no twin.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    apply(x, Activation::QuickGelu)
}

fn apply(x: &Tensor, activation: Activation) -> Result<Tensor> {
    begin(activation.function(), x, x.dims())?;
    in_f32(&x.contiguous()?, |x| apply1(x, activation, Reads::INPUTS))
}

/// dy · SiLU′(x), for operators that end in SiLU.
pub(crate) fn silu_gradient(x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    backward::gradient(Activation::Silu, x, upstream)
}

#[derive(Clone, Copy)]
enum Activation {
    Silu,
    GeluErf,
    QuickGelu,
}

impl Activation {
    fn function(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::GeluErf => "gelu_erf",
            Activation::QuickGelu => "quick_gelu",
        }
    }

    /// The entry point of its backward.
    fn gradient_function(self) -> &'static str {
        match self {
            Activation::Silu => "silu_backward",
            Activation::GeluErf => "gelu_erf_backward",
            Activation::QuickGelu => "quick_gelu_backward",
        }
    }

    fn on_cpu(self, isa: Isa, x: &[f32]) -> Vec<f32> {
        match self {
            Activation::Silu => cpu::map(isa, x, cpu::silu),
            Activation::GeluErf => cpu::map(isa, x, cpu::gelu),
            Activation::QuickGelu => cpu::map(isa, x, cpu::quick_gelu),
        }
    }
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        self.function()
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let isa = Isa::get()?;
        let _span = Span::new(self.name(), 0);
        Ok((CpuStorage::F32(self.on_cpu(isa, x)), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let (number_type, values) =
            (device::number_type(x, self.name())?, layout.shape().elem_count());
        let plan = cuda::plan(*self, number_type, values);
        let x = device::Input::new(x, layout, self.name())?;
        Ok((device::run(&plan, &[x], (number_type, values))?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        backward::gradient(*self, x, upstream).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn known_values() -> Result<()> {
        let x = Tensor::new(&[-3f32, -1., 0., 1., 3.], &Device::Cpu)?;
        let close = |y: Tensor, want: [f32; 5]| -> Result<()> {
            for (got, want) in y.to_vec1::<f32>()?.into_iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{got} is not {want}");
            }
            Ok(())
        };
        close(silu(&x)?, [-0.142_277_6, -0.268_941_4, 0.0, 0.731_058_6, 2.857_722_4])?;
        close(gelu_erf(&x)?, [-0.004_049_694, -0.158_655_25, 0.0, 0.841_344_8, 2.995_950_3])?;
        close(quick_gelu(&x)?, [-0.018_071_31, -0.1542042, 0.0, 0.8457958, 2.981929])
    }

    #[test]
    fn large_arguments_do_not_overflow() -> Result<()> {
        let x = Tensor::new(&[-1e30f32, -200., 200., 1e30], &Device::Cpu)?;
        for f in [silu, gelu_erf, quick_gelu] {
            let y = f(&x)?.to_vec1::<f32>()?;
            assert_eq!(y, [0., 0., 200., 1e30]);
        }
        Ok(())
    }

    #[test]
    fn takes_a_transposed_tensor() -> Result<()> {
        let x = Tensor::new(&[[0f32, 1.], [2., 3.]], &Device::Cpu)?;
        let of_transposed = silu(&x.t()?)?;
        assert_eq!(of_transposed.to_vec2::<f32>()?, silu(&x)?.t()?.to_vec2::<f32>()?);
        Ok(())
    }
}
