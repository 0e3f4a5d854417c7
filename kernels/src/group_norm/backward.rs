//! As layer normalisation's, over the values of a (sample, group): with x̂ the normalised and g the gradient before
//! SiLU, ĝ = g · w: dx = (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂)) / √(var + ε), dw = Σ g x̂, db = Σ g, for each channel.
//! What is normalised is computed anew, so that the forward pass keeps its input alone.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::GroupNorm;
use crate::activation::silu_slope;
use crate::begin::begin;
use crate::memory;
use crate::moments::{mean_and_variance, sum_of_products};
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::f32_slice;

/// The gradients of `x` [B, C, ...], weight and bias, each where it is wanted.
pub(super) fn gradients(
    op: &GroupNorm,
    [x, weight, bias]: [&Tensor; 3],
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    begin("group_norm_backward", x, x.dims())?;
    let x = x.contiguous()?;
    let upstream = upstream.contiguous()?;
    let dx = if x.track_op() {
        let backward = Backward(*op);
        let parameters = Tensor::cat(&[&weight.detach(), &bias.detach()], 0)?;
        Some(x.apply_op3_no_bwd(&parameters, &upstream, &backward)?)
    } else {
        None
    };
    if !weight.track_op() && !bias.track_op() {
        return Ok([dx, None, None]);
    }
    let x = x.detach();
    let upstream = if op.silu {
        let normed = super::group_norm(&x, &weight.detach(), &bias.detach(), op.groups, op.eps)?;
        crate::activation::silu_gradient(&normed, &upstream)?
    } else {
        upstream
    };
    let by_channel = |t: &Tensor| t.flatten_from(2)?.sum(D::Minus1)?.sum(0);
    let dweight = if weight.track_op() {
        let ones = weight.ones_like()?;
        let normed = super::group_norm(&x, &ones, &weight.zeros_like()?, op.groups, op.eps)?;
        Some(by_channel(&(normed * &upstream)?)?)
    } else {
        None
    };
    let dbias = if bias.track_op() { Some(by_channel(&upstream)?) } else { None };
    Ok([dx, dweight, dbias])
}

/// x, weight and bias one after the other, dy → dx.
struct Backward(GroupNorm);

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        if self.0.silu { "group_norm_silu_backward" } else { "group_norm_backward" }
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        let pixels = shape.dims()[2..].iter().product();
        let x = f32_slice(x, x_layout, self.name())?;
        let parameters = f32_slice(parameters, parameters_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let (weight, bias) = parameters.split_at(parameters.len() / 2);
        let GroupNorm { groups, eps, silu } = self.0;
        let parameters = super::cpu::Parameters { weight, bias, groups, eps, silu };
        let dx = group_norm_backward(Isa::get()?, x, upstream, pixels, parameters);
        Ok((CpuStorage::F32(dx), shape.clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        parameters: &CudaStorage,
        parameters_layout: &Layout,
        upstream: &CudaStorage,
        upstream_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        let (name, shape) = (self.name(), x_layout.shape());
        let number_type = device::number_type(x, name)?;
        let channels = parameters_layout.shape().elem_count() / 2;
        let pixels = shape.dims()[2..].iter().product();
        let GroupNorm { groups, eps, silu } = self.0;
        let sizes = super::cuda::Sizes { batch: shape.dims()[0], channels, pixels, groups };
        let plan = super::cuda::plan_backward(number_type, sizes, eps, silu)?;
        let inputs = [
            device::Input::new(x, x_layout, name)?,
            device::Input::weight(parameters, parameters_layout, Type::F32, name)?,
            device::Input::new(upstream, upstream_layout, name)?,
        ];
        Ok((device::run(&plan, &inputs, (number_type, shape.elem_count()))?, shape.clone()))
    }
}

/// `x` and `upstream` [B, C, pixels]; a task is one (sample, group).
pub(super) fn group_norm_backward(
    isa: Isa,
    x: &[f32],
    upstream: &[f32],
    pixels: usize,
    parameters: super::cpu::Parameters,
) -> Vec<f32> {
    let n = parameters.weight.len() / parameters.groups * pixels;
    if n == 0 {
        return Vec::new();
    }
    assert!(x.len() == upstream.len() && x.len().is_multiple_of(n));
    let tasks = x.par_chunks(n).zip(upstream.par_chunks(n)).enumerate();
    let write = |dx: &mut [f32]| {
        dx.par_chunks_mut(n).zip(tasks).for_each(|(dx, (i, (x, upstream)))| {
            let group = i % parameters.groups;
            isa.run(Group { x, upstream, dx, group, pixels, parameters });
        });
    };
    // SAFETY: dx is whole groups, and each is written before it is read.
    unsafe { memory::written_by(x.len(), write) }
}

struct Group<'a> {
    x: &'a [f32],
    upstream: &'a [f32],
    dx: &'a mut [f32],
    group: usize,
    pixels: usize,
    parameters: super::cpu::Parameters<'a>,
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Group { x, upstream, dx, group, pixels, parameters } = self;
        let super::cpu::Parameters { weight, bias, groups, eps, silu } = parameters;
        let channel = group * (weight.len() / groups);
        let (mean, variance) = mean_and_variance(x);
        let scale = 1.0 / (variance + eps).sqrt();
        // ĝ first, where dx will be.
        let channels = weight[channel..].iter().zip(&bias[channel..]);
        let planes = x.chunks_exact(pixels).zip(upstream.chunks_exact(pixels)).zip(channels);
        for (dx, ((x, upstream), (&w, &b))) in dx.chunks_exact_mut(pixels).zip(planes) {
            if silu {
                for ((dx, &x), &upstream) in dx.iter_mut().zip(x).zip(upstream) {
                    let normed = ((f64::from(x) - mean) * scale) as f32 * w + b;
                    *dx = upstream * silu_slope(normed) * w;
                }
            } else {
                for (dx, &upstream) in dx.iter_mut().zip(upstream) {
                    *dx = upstream * w;
                }
            }
        }
        let count = x.len() as f64;
        let first = sum_of_products(dx, x, |_| 1.0) / count;
        let second = sum_of_products(dx, x, |x| (x - mean) * scale) / count;
        for (dx, &x) in dx.iter_mut().zip(x) {
            let normed = (f64::from(x) - mean) * scale;
            *dx = ((f64::from(*dx) - first - normed * second) * scale) as f32;
        }
    }
}
