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
use crate::moments::{mean_and_variance, sum, sum_of_products};
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
    let both = if x.device().is_cpu() {
        let parameters = Tensor::cat(&[&weight.detach(), &bias.detach()], 0)?;
        x.apply_op3_no_bwd(&parameters, &upstream, &OfParameters(*op))?
    } else {
        of_parameters_by_algebra(op, [&x, weight, bias], &upstream)?
    };
    let wanted = |parameter: &Tensor, row: usize| match parameter.track_op() {
        true => both.get(row).map(Some),
        false => Ok(None),
    };
    Ok([dx, wanted(weight, 0)?, wanted(bias, 1)?])
}

/// [`OfParameters`] of the tensor library's operations, for a GPU.
fn of_parameters_by_algebra(
    op: &GroupNorm,
    [x, weight, bias]: [&Tensor; 3],
    upstream: &Tensor,
) -> Result<Tensor> {
    let (weight, bias) = (weight.detach(), bias.detach());
    let upstream = if op.silu {
        let normed = super::group_norm(x, &weight, &bias, op.groups, op.eps)?;
        crate::activation::silu_gradient(&normed, upstream)?
    } else {
        upstream.clone()
    };
    let normed =
        super::group_norm(x, &weight.ones_like()?, &weight.zeros_like()?, op.groups, op.eps)?;
    let by_channel = |t: &Tensor| t.flatten_from(2)?.sum(D::Minus1)?.sum(0);
    Tensor::stack(&[by_channel(&(normed * &upstream)?)?, by_channel(&upstream)?], 0)
}

/// x, weight and bias one after the other, dy → dw and db [2, C].
struct OfParameters(GroupNorm);

impl CustomOp3 for OfParameters {
    fn name(&self) -> &'static str {
        "group_norm_backward"
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
        let pixels = x_layout.shape().dims()[2..].iter().product();
        let x = f32_slice(x, x_layout, self.name())?;
        let parameters = f32_slice(parameters, parameters_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let _span = Span::new("group_norm, its parameters' gradient", 0);
        let (weight, bias) = parameters.split_at(parameters.len() / 2);
        let GroupNorm { groups, eps, silu } = self.0;
        let parameters = super::cpu::Parameters { weight, bias, groups, eps, silu };
        let both = of_parameters(Isa::get()?, x, upstream, pixels, parameters);
        Ok((CpuStorage::F32(both), Shape::from((2, weight.len()))))
    }
}

/// `x` and `upstream` [B, C, pixels] → dw and db; a task is one (sample, group).
fn of_parameters(
    isa: Isa,
    x: &[f32],
    upstream: &[f32],
    pixels: usize,
    parameters: super::cpu::Parameters,
) -> Vec<f32> {
    let channels = parameters.weight.len();
    let of_group = channels / parameters.groups;
    let mut both = vec![0f64; 2 * channels];
    let n = of_group * pixels;
    if n == 0 {
        return vec![0.0; both.len()];
    }
    assert!(x.len() == upstream.len() && x.len().is_multiple_of(n));
    let mut of_samples = vec![[0f64; 2]; x.len() / pixels];
    let tasks = x.par_chunks(n).zip(upstream.par_chunks(n)).enumerate();
    of_samples.par_chunks_mut(of_group).zip(tasks).for_each(|(sums, (i, (x, upstream)))| {
        let group = i % parameters.groups;
        isa.run(ParametersOfGroup { x, upstream, sums, group, pixels, parameters });
    });
    let (dw, db) = both.split_at_mut(channels);
    for sample in of_samples.chunks_exact(channels) {
        for (([of_w, of_b], dw), db) in sample.iter().zip(dw.iter_mut()).zip(db.iter_mut()) {
            *dw += of_w;
            *db += of_b;
        }
    }
    both.into_iter().map(|sum| sum as f32).collect()
}

/// Σ g x̂ and Σ g of each channel of a group.
struct ParametersOfGroup<'a> {
    x: &'a [f32],
    upstream: &'a [f32],
    sums: &'a mut [[f64; 2]],
    group: usize,
    pixels: usize,
    parameters: super::cpu::Parameters<'a>,
}

/// Pixels whose g is computed before it is added.
const AT_ONCE: usize = 512;

impl Kernel for ParametersOfGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let ParametersOfGroup { x, upstream, sums, group, pixels, parameters } = self;
        let super::cpu::Parameters { weight, bias, groups, eps, silu } = parameters;
        let channel = group * (weight.len() / groups);
        let (mean, variance) = mean_and_variance(x);
        let scale = 1.0 / (variance + eps).sqrt();
        let channels = weight[channel..].iter().zip(&bias[channel..]);
        let planes = x.chunks_exact(pixels).zip(upstream.chunks_exact(pixels)).zip(channels);
        let mut slopes = [0f32; AT_ONCE];
        for (sums, ((x, upstream), (&w, &b))) in sums.iter_mut().zip(planes) {
            for (x, upstream) in x.chunks(AT_ONCE).zip(upstream.chunks(AT_ONCE)) {
                let g: &[f32] = if silu {
                    let g = &mut slopes[..x.len()];
                    for ((g, &x), &upstream) in g.iter_mut().zip(x).zip(upstream) {
                        let normed = ((f64::from(x) - mean) * scale) as f32 * w + b;
                        *g = upstream * silu_slope(normed);
                    }
                    g
                } else {
                    upstream
                };
                sums[0] += sum_of_products(g, x, |x| (x - mean) * scale);
                sums[1] += sum(g, |g| g);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    /// Beside the tensor library's operations in f64, and what a GPU computes with, here on the CPU.
    #[test]
    fn the_parameters_gradients_are_those_of_f64() -> Result<()> {
        let dev = Device::Cpu;
        for (shape, groups) in [([1, 4, 3, 5], 4), ([3, 12, 9, 7], 3), ([2, 6, 40, 33], 2)] {
            let channels = shape[1];
            let x = Tensor::randn(3f32, 2., &shape, &dev)?;
            let upstream = Tensor::randn(0f32, 1., &shape, &dev)?;
            let weight = Var::randn(1f32, 0.2, channels, &dev)?;
            let bias = Var::randn(0f32, 0.5, channels, &dev)?;
            for silu in [false, true] {
                let op = GroupNorm { groups, eps: 1e-5, silu };
                let of = [&x, weight.as_tensor(), bias.as_tensor()];
                let [dx, dw, db] = gradients(&op, of, &upstream)?;
                assert!(dx.is_none());
                let wide = |t: &Tensor| t.to_dtype(DType::F64);
                let cut = wide(&x)?.reshape((shape[0], groups, ()))?;
                let apart = cut.broadcast_sub(&cut.mean_keepdim(2)?)?;
                let scale = (apart.sqr()?.mean_keepdim(2)? + op.eps)?.sqrt()?;
                let normed = apart.broadcast_div(&scale)?.reshape(&shape)?;
                let each = |t: &Tensor| wide(t)?.reshape((1, channels, 1, 1));
                let y = normed.broadcast_mul(&each(&weight)?)?.broadcast_add(&each(&bias)?)?;
                let mut g = wide(&upstream)?;
                if silu {
                    // SiLU′ = σ (1 + y (1 − σ))
                    let sigma = (y.neg()?.exp()? + 1.0)?.recip()?;
                    let slope = ((&y * (1.0 - &sigma)?)? + 1.0)? * sigma;
                    g = (g * slope?)?;
                }
                let by_channel = |t: &Tensor| t.sum((0, 2, 3))?.to_vec1::<f64>();
                let want = [by_channel(&(normed * &g)?)?, by_channel(&g)?];
                let by_algebra = of_parameters_by_algebra(&op, of, &upstream)?;
                let [w, b] = [by_algebra.get(0)?, by_algebra.get(1)?];
                let found = [(dw.as_ref(), 0), (db.as_ref(), 1), (Some(&w), 0), (Some(&b), 1)];
                for (found, i) in found {
                    let found = found.expect("it learns").to_vec1::<f32>()?;
                    let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 2e-4;
                    assert!(found.iter().zip(&want[i]).all(close), "{shape:?}, silu {silu}");
                }
            }
        }
        Ok(())
    }
}
