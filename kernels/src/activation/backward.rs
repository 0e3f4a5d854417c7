//! dx = dy · f′(x), f′ from x itself: nothing of the forward pass is kept beside it.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::Activation;
use crate::begin::begin;
use crate::exponential::{erf, exp};
use crate::memory;
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::f32_slice;

/// `x` and `upstream` (dy) of one shape → dx.
pub(super) fn gradient(activation: Activation, x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    begin(activation.function(), x, x.dims())?;
    x.contiguous()?.apply_op2_no_bwd(&upstream.contiguous()?, &Backward(activation))
}

struct Backward(Activation);

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        self.0.gradient_function()
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, x_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let isa = Isa::get()?;
        let _span = Span::new(self.name(), 0);
        Ok((CpuStorage::F32(on_cpu(self.0, isa, x, upstream)), x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        upstream: &CudaStorage,
        upstream_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let number_type = device::number_type(x, self.name())?;
        let values = x_layout.shape().elem_count();
        let plan = super::cuda::plan_backward(self.0, number_type, values);
        let inputs = [
            device::Input::new(x, x_layout, self.name())?,
            device::Input::new(upstream, upstream_layout, self.name())?,
        ];
        Ok((device::run(&plan, &inputs, (number_type, values))?, x_layout.shape().clone()))
    }
}

pub(super) fn on_cpu(activation: Activation, isa: Isa, x: &[f32], upstream: &[f32]) -> Vec<f32> {
    match activation {
        Activation::Silu => map(isa, x, upstream, silu_slope),
        Activation::GeluErf => map(isa, x, upstream, gelu_slope),
        Activation::QuickGelu => map(isa, x, upstream, quick_gelu_slope),
    }
}

/// Values for one task.
const CHUNK: usize = 8192;

fn map(isa: Isa, x: &[f32], upstream: &[f32], slope: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    assert!(x.len() == upstream.len());
    let chunks = x.par_chunks(CHUNK).zip(upstream.par_chunks(CHUNK));
    let write = |dx: &mut [f32]| {
        dx.par_chunks_mut(CHUNK)
            .zip(chunks)
            .for_each(|(dx, (x, upstream))| isa.run(Map { x, upstream, dx, slope: &slope }));
    };
    // SAFETY: as many chunks of dx as of x, and each is written whole.
    unsafe { memory::written_by(x.len(), write) }
}

/// dx = dy · slope(x)
struct Map<'a, F> {
    x: &'a [f32],
    upstream: &'a [f32],
    dx: &'a mut [f32],
    slope: &'a F,
}

impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for ((dx, &x), &upstream) in self.dx.iter_mut().zip(self.x).zip(self.upstream) {
            *dx = upstream * (self.slope)(x);
        }
    }
}

/// σ(x) (1 + x (1 − σ(x)))
#[inline(always)]
pub(crate) fn silu_slope(x: f32) -> f32 {
    sigmoid_slope(x, 1.0)
}

/// The same for x σ(a x), with a = 1.702.
#[inline(always)]
fn quick_gelu_slope(x: f32) -> f32 {
    sigmoid_slope(x, 1.702)
}

#[inline(always)]
fn sigmoid_slope(x: f32, a: f32) -> f32 {
    // 1 − σ from its own exponential, so that it loses no digits.
    let e = exp(-(a * x).abs());
    let (near, far) = (1.0 / (1.0 + e), e / (1.0 + e));
    let (sigmoid, rest) = if x >= 0.0 { (near, far) } else { (far, near) };
    sigmoid + a * x * (sigmoid * rest)
}

/// Φ(x) + x φ(x)
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    const INVERSE_ROOT_OF_2_PI: f32 = 0.398_942_3;
    let density = exp(-0.5 * x * x) * INVERSE_ROOT_OF_2_PI;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Central differences of the function itself, in f64.
    #[test]
    fn slopes_are_those_of_the_functions_in_f64() -> Result<()> {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        type Pair = (fn(&Tensor) -> Result<Tensor>, Box<dyn Fn(f64) -> f64>);
        let functions: [Pair; 3] = [
            (crate::silu, Box::new(move |x| x * sigmoid(x))),
            (
                crate::gelu_erf,
                Box::new(|x| {
                    0.5 * x
                        * (1.0
                            + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
                }),
            ),
            (crate::quick_gelu, Box::new(move |x| x * sigmoid(1.702 * x))),
        ];
        let values: Vec<f32> = (-600..=600).map(|i| i as f32 / 50.0).collect();
        for (function, exact) in functions {
            let x = Var::from_vec(values.clone(), values.len(), &Device::Cpu)?;
            let found = function(&x)?.backward()?.get(&x).expect("a gradient").to_vec1::<f32>()?;
            for (&x, found) in values.iter().zip(found) {
                let (x, h) = (f64::from(x), 1e-5);
                let want = (exact(x + h) - exact(x - h)) / (2.0 * h);
                assert!((f64::from(found) - want).abs() < 1e-6, "at {x}: {found} is not {want}");
            }
        }
        Ok(())
    }

    #[test]
    fn far_out_the_slope_is_0_or_1() -> Result<()> {
        let x = Var::new(&[-1e30f32, -200., 200., 1e30], &Device::Cpu)?;
        for f in [crate::silu, crate::gelu_erf, crate::quick_gelu] {
            let slope = f(&x)?.backward()?.get(&x).expect("a gradient").to_vec1::<f32>()?;
            assert_eq!(slope, [0., 0., 1., 1.]);
        }
        Ok(())
    }
}
