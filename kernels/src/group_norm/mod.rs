//! Group normalisation (Wu and He, arXiv 1803.08494), alone or followed by SiLU: the channels are
//! cut into groups, and within each (sample, group)
//! y = (x − mean) / √(var + ε) · w\[c\] + b\[c\], var the biased variance.
//!
//! A U-Net's ResNet blocks apply SiLU to every result, so both are one pass over the memory.

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

/// `x` [B, C, ...], `weight` [C], `bias` [C]; returns the shape of `x`.
///
/// # Errors
/// C is not a multiple of `groups` or not the weight's length, an input is of another type, or its device
/// has no twin.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    apply(x, weight, bias, GroupNorm { groups, eps, silu: false })
}

/// SiLU(group_norm(x)); shapes and errors as for [`group_norm`].
///
/// # Errors
/// As [`group_norm`].
pub fn group_norm_silu(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    apply(x, weight, bias, GroupNorm { groups, eps, silu: true })
}

fn apply(x: &Tensor, weight: &Tensor, bias: &Tensor, op: GroupNorm) -> Result<Tensor> {
    begin("group_norm", x, x.dims())?;
    let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
    in_f32(&x.contiguous()?, |x| apply3([x, &weight, &bias], op, Reads::INPUTS))
}

#[derive(Clone, Copy)]
struct GroupNorm {
    groups: usize,
    eps: f64,
    silu: bool,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        if self.silu { "group_norm_silu" } else { "group_norm" }
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
        let (_, pixels) = self.sizes(shape, weight_layout, bias_layout)?;
        let x = f32_slice(x, x_layout, self.name())?;
        let weight = f32_slice(weight, weight_layout, self.name())?;
        let bias = f32_slice(bias, bias_layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let GroupNorm { groups, eps, silu } = *self;
        let parameters = cpu::Parameters { weight, bias, groups, eps, silu };
        let y = cpu::group_norm(Isa::get()?, x, pixels, parameters);
        Ok((CpuStorage::F32(y), shape.clone()))
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
        let (channels, pixels) = self.sizes(shape, weight_layout, bias_layout)?;
        let sizes = cuda::Sizes { batch: shape.dims()[0], channels, pixels, groups: self.groups };
        let plan = cuda::plan(number_type, sizes, self.eps, self.silu)?;
        let inputs = [
            device::Input::new(x, x_layout, name)?,
            device::Input::weight(weight, weight_layout, Type::F32, name)?,
            device::Input::weight(bias, bias_layout, Type::F32, name)?,
        ];
        Ok((device::run(&plan, &inputs, (number_type, shape.elem_count()))?, shape.clone()))
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

impl GroupNorm {
    /// Channels, and values of one of them.
    fn sizes(&self, shape: &Shape, weight: &Layout, bias: &Layout) -> Result<(usize, usize)> {
        let channels = weight.shape().elem_count();
        if shape.rank() < 2 || shape.dims()[1] != channels || bias.shape().elem_count() != channels
        {
            bail!(
                "group_norm: the input {shape:?} and the bias {:?} do not have the weight's \
                 {channels} channels",
                bias.shape()
            )
        }
        if self.groups == 0 || !channels.is_multiple_of(self.groups) || channels == 0 {
            bail!("group_norm: {channels} channels cannot be cut into {} groups", self.groups)
        }
        Ok((channels, shape.dims()[2..].iter().product()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn agrees_with_the_formula_in_f64() -> Result<()> {
        let dev = Device::Cpu;
        let (groups, per_group, pixels) = (3, 2, 20);
        let x = Tensor::randn(100f32, 2., (2, 6, 4, 5), &dev)?;
        let w = Tensor::randn(1f32, 0.2, 6, &dev)?;
        let b = Tensor::randn(0f32, 0.2, 6, &dev)?;
        let y = group_norm(&x, &w, &b, groups, 1e-5)?.flatten_all()?.to_vec1::<f32>()?;
        let y_silu = group_norm_silu(&x, &w, &b, groups, 1e-5)?.flatten_all()?.to_vec1::<f32>()?;
        let (w, b) = (w.to_vec1::<f32>()?, b.to_vec1::<f32>()?);
        let x = x.flatten_all()?.to_vec1::<f32>()?;
        let n = per_group * pixels;
        for (group, x) in x.chunks(n).enumerate() {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            for (i, &x) in x.iter().enumerate() {
                let c = (group % groups) * per_group + i / pixels;
                let want =
                    (f64::from(x) - mean) / (var + 1e-5).sqrt() * f64::from(w[c]) + f64::from(b[c]);
                assert!((f64::from(y[group * n + i]) - want).abs() < 2e-6);
                let want = want / (1. + (-want).exp());
                assert!((f64::from(y_silu[group * n + i]) - want).abs() < 2e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn refuses_groups_that_do_not_divide() -> Result<()> {
        let x = Tensor::zeros((1, 6, 2), candle_core::DType::F32, &Device::Cpu)?;
        let w = Tensor::zeros(6, candle_core::DType::F32, &Device::Cpu)?;
        for groups in [0, 4] {
            assert!(group_norm(&x, &w, &w, groups, 1e-5).is_err());
        }
        Ok(())
    }
}
