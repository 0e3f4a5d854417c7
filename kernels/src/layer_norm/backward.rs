//! With x̂ = (x − mean) / √(var + ε) and ĝ = dy · w:
//! dx = (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂)) / √(var + ε), dw = Σ dy x̂, db = Σ dy over the rows.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{LayerNorm, width};
use crate::begin::begin;
use crate::channel_sums::{channel_sums, sums_of_rows};
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
    let rows = |t: &Tensor| t.reshape(((), weight.elem_count()));
    let dbias = if bias.track_op() { Some(channel_sums(&rows(&upstream)?)?) } else { None };
    if !weight.track_op() {
        return Ok([dx, None, dbias]);
    }
    let x = x.detach().contiguous()?;
    let dweight = if x.device().is_cpu() {
        rows(&x)?.apply_op2_no_bwd(&rows(&upstream)?, &OfWeight { eps: op.eps })?
    } else {
        of_weight_by_algebra(op, &x, weight, &upstream)?
    };
    Ok([dx, Some(dweight), dbias])
}

/// [`OfWeight`] of the tensor library's operations, for a GPU.
fn of_weight_by_algebra(
    op: &LayerNorm,
    x: &Tensor,
    weight: &Tensor,
    upstream: &Tensor,
) -> Result<Tensor> {
    let (ones, zeros) = (weight.detach().ones_like()?, weight.detach().zeros_like()?);
    let normed = super::layer_norm(x, &ones, &zeros, op.eps)?;
    (normed * upstream)?.reshape(((), weight.elem_count()))?.sum(0)
}

/// x, dy [rows, n] → dw [n].
struct OfWeight {
    eps: f64,
}

impl CustomOp2 for OfWeight {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, n) = x_layout.shape().dims2()?;
        let x = f32_slice(x, x_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let _span = Span::new("layer_norm, its weight's gradient", 0);
        let dw = of_weight(Isa::get()?, x, upstream, n, self.eps);
        Ok((CpuStorage::F32(dw), Shape::from(n)))
    }
}

fn of_weight(isa: Isa, x: &[f32], upstream: &[f32], n: usize, eps: f64) -> Vec<f32> {
    sums_of_rows([x, upstream], n, |[x, upstream], dw| {
        isa.run(WeightOfRows { x, upstream, dw, eps });
    })
}

/// Adds Σ dy x̂ over some rows to dw.
struct WeightOfRows<'a> {
    x: &'a [f32],
    upstream: &'a [f32],
    dw: &'a mut [f32],
    eps: f64,
}

impl Kernel for WeightOfRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let WeightOfRows { x, upstream, dw, eps } = self;
        let n = dw.len();
        for (x, upstream) in x.chunks_exact(n).zip(upstream.chunks_exact(n)) {
            let (mean, variance) = mean_and_variance(x);
            let scale = 1.0 / (variance + eps).sqrt();
            for ((dw, &x), &upstream) in dw.iter_mut().zip(x).zip(upstream) {
                *dw += upstream * ((f64::from(x) - mean) * scale) as f32;
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    /// Rows that are one task's and several tasks', beside x̂ of f64; and what a GPU computes with, here on the CPU.
    #[test]
    fn a_weight_s_gradient_is_that_of_f64() -> Result<()> {
        let (dev, op) = (Device::Cpu, LayerNorm { eps: 1e-5 });
        for (rows, n) in [(1, 1), (7, 5), (900, 40), (3, 20_000)] {
            let x = Tensor::randn(3f32, 2., (rows, n), &dev)?;
            let weight = Var::randn(1f32, 0.2, n, &dev)?;
            let upstream = Tensor::randn(0f32, 1., (rows, n), &dev)?;
            let bias = Var::zeros(n, DType::F32, &dev)?;
            let of = [&x, weight.as_tensor(), bias.as_tensor()];
            let [dx, dw, db] = gradients(&op, of, &upstream)?;
            assert!(dx.is_none());
            let (x64, dy64) = (x.to_dtype(DType::F64)?, upstream.to_dtype(DType::F64)?);
            let apart = x64.broadcast_sub(&x64.mean_keepdim(1)?)?;
            let scale = (apart.sqr()?.mean_keepdim(1)? + op.eps)?.sqrt()?;
            let normed = apart.broadcast_div(&scale)?;
            let want = [(normed * &dy64)?.sum(0)?.to_vec1::<f64>()?, dy64.sum(0)?.to_vec1()?];
            let by_algebra = of_weight_by_algebra(&op, &x, &weight, &upstream)?;
            let found = [(dw.as_ref(), 0), (db.as_ref(), 1), (Some(&by_algebra), 0)];
            for (found, i) in found {
                let found = found.expect("it learns").to_vec1::<f32>()?;
                let close =
                    |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 1e-5 * (rows as f64).sqrt();
                assert!(found.iter().zip(&want[i]).all(close), "{rows} × {n}");
            }
        }
        Ok(())
    }
}
