//! With x̂ = (x − mean) / √(var + ε) and ĝ = dy · w:
//! dx = (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂)) / √(var + ε), dw = Σ dy x̂, db = Σ dy over the rows.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{LayerNorm, width};
use crate::begin::begin;
use crate::memory;
use crate::moments::{mean_and_variance, sum_of_products};
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::f32_slice;

/// The gradients of `x` [..., n], weight and bias, each where it is wanted.
pub(super) fn gradients(
    op: &LayerNorm,
    [x, weight, bias]: [&Tensor; 3],
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    begin("layer_norm_backward", x, x.dims())?;
    let upstream = upstream.contiguous()?;
    let dx = if x.track_op() {
        let backward = Backward { eps: op.eps };
        Some(x.contiguous()?.apply_op3_no_bwd(weight, &upstream, &backward)?)
    } else {
        None
    };
    let rows = |t: &Tensor| t.reshape(((), weight.elem_count()))?.sum(0);
    let dweight = if weight.track_op() {
        let normed =
            super::layer_norm(&x.detach(), &weight.ones_like()?, &weight.zeros_like()?, op.eps)?;
        Some(rows(&(normed * &upstream)?)?)
    } else {
        None
    };
    let dbias = if bias.track_op() { Some(rows(&upstream)?) } else { None };
    Ok([dx, dweight, dbias])
}

/// x, weight, dy → dx.
struct Backward {
    eps: f64,
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        width(shape, weight_layout, weight_layout)?;
        let x = f32_slice(x, x_layout, self.name())?;
        let weight = f32_slice(weight, weight_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let dx = layer_norm_backward(Isa::get()?, x, weight, upstream, self.eps);
        Ok((CpuStorage::F32(dx), shape.clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        upstream: &CudaStorage,
        upstream_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        let (name, shape) = (self.name(), x_layout.shape());
        let number_type = device::number_type(x, name)?;
        let n = width(shape, weight_layout, weight_layout)?;
        let values = shape.elem_count();
        let plan = super::cuda::plan_backward(number_type, values / n, n, self.eps)?;
        let inputs = [
            device::Input::new(x, x_layout, name)?,
            device::Input::weight(weight, weight_layout, Type::F32, name)?,
            device::Input::new(upstream, upstream_layout, name)?,
        ];
        Ok((device::run(&plan, &inputs, (number_type, values))?, shape.clone()))
    }
}

pub(super) fn layer_norm_backward(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    upstream: &[f32],
    eps: f64,
) -> Vec<f32> {
    let n = weight.len();
    assert!(x.len() == upstream.len() && x.len().is_multiple_of(n));
    let rows = (8192 / n).max(1);
    let tasks = x.par_chunks(rows * n).zip(upstream.par_chunks(rows * n));
    let write = |dx: &mut [f32]| {
        dx.par_chunks_mut(rows * n)
            .zip(tasks)
            .for_each(|(dx, (x, upstream))| isa.run(Rows { x, upstream, dx, weight, eps }));
    };
    // SAFETY: dx is whole rows, and each is written before it is read.
    unsafe { memory::written_by(x.len(), write) }
}

struct Rows<'a> {
    x: &'a [f32],
    upstream: &'a [f32],
    dx: &'a mut [f32],
    weight: &'a [f32],
    eps: f64,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows { x, upstream, dx, weight, eps } = self;
        let n = weight.len();
        let rows = x.chunks_exact(n).zip(upstream.chunks_exact(n));
        for (dx, (x, upstream)) in dx.chunks_exact_mut(n).zip(rows) {
            let (mean, variance) = mean_and_variance(x);
            let scale = 1.0 / (variance + eps).sqrt();
            // ĝ first, where dx will be.
            for ((dx, &w), &upstream) in dx.iter_mut().zip(weight).zip(upstream) {
                *dx = upstream * w;
            }
            let count = n as f64;
            let first = sum_of_products(dx, x, |_| 1.0) / count;
            let second = sum_of_products(dx, x, |x| (x - mean) * scale) / count;
            for (dx, &x) in dx.iter_mut().zip(x) {
                let normed = (f64::from(x) - mean) * scale;
                *dx = ((f64::from(*dx) - first - normed * second) * scale) as f32;
            }
        }
    }
}
