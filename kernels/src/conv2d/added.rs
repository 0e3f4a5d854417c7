//! A convolution and a number for each channel of each sample, as a residual block of a U-Net adds the time embedding to one:
//! added where the convolution writes its result, so that no pass over memory is left for it.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};

use super::{Conv2d, cpu, is_in_bf16, winograd};
use crate::begin::begin;
use crate::simd::Isa;
use crate::storage::{are_f32_on_cpu, f32_slice};

/// `x` [B, C, H, W], `weight` [O, C, kH, kW], f32 or kept in f16 or bf16, `bias` [O], `added` [B, O]; returns
/// [B, O, oH, oW]: [`add_to_channels`](crate::add_to_channels) of [`conv2d`](super::conv2d)'s result and `added`, on the CPU to
/// the bit, on a GPU with one rounding less. Where something learns, where factors are rounded to bf16 and where cuDNN
/// convolves it is these two.
///
/// # Errors
/// As theirs.
pub fn conv2d_add_to_channels(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    added: &Tensor,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let conv2d = Conv2d { stride, padding };
    let sizes = conv2d.sizes(x.layout(), weight.layout(), bias.map(Tensor::layout))?;
    let learns =
        [Some(x), Some(weight), bias, Some(added)].into_iter().flatten().any(Tensor::track_op);
    let fits = added.dims() == [sizes.batch, sizes.out_channels];
    if learns || !fits || !is_one(x, weight, bias, added, sizes)? {
        let y = super::conv2d(x, weight, bias, stride, padding)?;
        return crate::add_to_channels(&y, added);
    }
    begin("conv2d", x, &[sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width])?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let op = AddToChannels { conv2d, bias, added: added.contiguous()? };
    x.contiguous()?.apply_op2_no_bwd(&weight.contiguous()?, &op)
}

/// Whether one operator does both here.
fn is_one(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    added: &Tensor,
    sizes: cpu::Sizes,
) -> Result<bool> {
    if are_f32_on_cpu(&[x, added, bias.unwrap_or(x)]) && weight.device().is_cpu() {
        return Ok(!is_in_bf16(Isa::get()?, winograd::Side::that_pays(sizes)));
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let others = [weight, added, bias.unwrap_or(x)];
        let are_there = others.iter().all(|other| x.device().same_device(other.device()));
        return Ok(are_there
            && x.dtype() == added.dtype()
            && super::cudnn::Cudnn::get()?.is_none());
    }
    Ok(false)
}

/// Of x and the weight. The tensor library's operators have three inputs at most, so the other two are kept here.
struct AddToChannels {
    conv2d: Conv2d,
    bias: Option<Tensor>,
    added: Tensor,
}

impl CustomOp2 for AddToChannels {
    fn name(&self) -> &'static str {
        "conv2d_add_to_channels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (added, bias) = (self.added.storage_and_layout(), self.bias.as_ref());
        let bias = bias.map(Tensor::storage_and_layout);
        let of_samples = Some(values(&added.0, added.1)?);
        let bias = bias.as_ref().map(|(storage, layout)| values(storage, layout)).transpose()?;
        let added = cpu::Added { bias, of_samples };
        self.conv2d.forward((x, x_layout), (weight, weight_layout), added)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (added, bias) = (self.added.storage_and_layout(), self.bias.as_ref());
        let bias = bias.map(Tensor::storage_and_layout);
        let of_samples = Some((on_gpu(&added.0)?, added.1));
        let bias = match &bias {
            Some((storage, layout)) => Some((on_gpu(storage)?, *layout)),
            None => None,
        };
        self.conv2d.on_gpu((x, x_layout), (weight, weight_layout), bias, of_samples)
    }
}

fn values<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => f32_slice(storage, layout, "conv2d"),
        _ => bail!("conv2d: an input is not on the CPU"),
    }
}

#[cfg(feature = "cuda")]
fn on_gpu(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("conv2d: an input is not on the GPU"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    fn values(y: &Tensor) -> Result<Vec<u32>> {
        let bits = y.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(bits.into_iter().map(f32::to_bits).collect())
    }

    /// Winograd's tiles of both sizes, rows that end within one, patches of many pixels and of few, where a block has those of
    /// several samples; weights and activations of other types; a number for all samples.
    #[test]
    fn is_the_convolution_and_the_sum_to_the_bit() -> Result<()> {
        let dev = Device::Cpu;
        for (batch, channels, out_channels, (height, width), kernel, stride) in [
            (2, 40, 36, (16, 16), 3, 1),
            (3, 33, 50, (9, 15), 3, 1),
            (2, 40, 48, (8, 8), 3, 1),
            (3, 64, 40, (6, 5), 3, 1),
            (5, 40, 40, (4, 3), 3, 1),
            (1, 5, 7, (7, 6), 3, 1),
            (3, 6, 5, (31, 17), 3, 2),
            (2, 20, 10, (20, 20), 1, 1),
        ] {
            let x = Tensor::randn(0f32, 1., (batch, channels, height, width), &dev)?;
            let weight = Tensor::randn(0f32, 1., (out_channels, channels, kernel, kernel), &dev)?;
            let bias = Tensor::randn(0f32, 1., out_channels, &dev)?;
            let added = Tensor::randn(0f32, 1., (batch, out_channels), &dev)?;
            let half = |tensor: &Tensor| tensor.to_dtype(DType::F16);
            let for_all = added.narrow(0, 0, 1)?;
            for (x, weight, bias, added) in [
                (&x, &weight, Some(&bias), &added),
                (&x, &weight, None, &added),
                (&x, &half(&weight)?, Some(&bias), &added),
                (&x, &weight, Some(&bias), &for_all),
                (&half(&x)?, &half(&weight)?, Some(&bias), &half(&added)?),
            ] {
                let found = conv2d_add_to_channels(x, weight, bias, added, stride, kernel / 2)?;
                let y = crate::conv2d(x, weight, bias, stride, kernel / 2)?;
                let want = crate::add_to_channels(&y, added)?;
                assert_eq!(found.dims(), want.dims());
                assert!(
                    values(&found)? == values(&want)?,
                    "{channels} → {out_channels}, {height} × {width}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn learns_as_the_two() -> Result<()> {
        let x = Var::randn(0f32, 1., (2, 32, 8, 8), &Device::Cpu)?;
        let weight = Tensor::randn(0f32, 1., (32, 32, 3, 3), &Device::Cpu)?;
        let added = Var::randn(0f32, 1., (2, 32), &Device::Cpu)?;
        let scale = Tensor::randn(0f32, 1., (2, 32, 8, 8), &Device::Cpu)?;
        let of = |y: Tensor| -> Result<Vec<Vec<f32>>> {
            let gradients = (y * &scale)?.sum_all()?.backward()?;
            let of = |input| gradients.get(input).expect("a gradient").flatten_all()?.to_vec1();
            [x.as_tensor(), added.as_tensor()].into_iter().map(of).collect()
        };
        let y = crate::conv2d(&x, &weight, None, 1, 1)?;
        let want = of(crate::add_to_channels(&y, &added)?)?;
        assert_eq!(of(conv2d_add_to_channels(&x, &weight, None, &added, 1, 1)?)?, want);
        // Of x alone, with what is added a constant, and the other way round.
        let constant = added.as_detached_tensor();
        assert!(conv2d_add_to_channels(&x, &weight, None, &constant, 1, 1)?.track_op());
        let still = x.as_detached_tensor();
        assert!(conv2d_add_to_channels(&still, &weight, None, &added, 1, 1)?.track_op());
        assert!(!conv2d_add_to_channels(&still, &weight, None, &constant, 1, 1)?.track_op());
        Ok(())
    }

    #[test]
    fn refuses_what_the_two_do() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let (x, weight) = (zeros(&[2, 32, 8, 8])?, zeros(&[40, 32, 3, 3])?);
        let refuses = |bias: &[usize], added: &[usize]| -> Result<bool> {
            let (bias, added) = (zeros(bias)?, zeros(added)?);
            Ok(conv2d_add_to_channels(&x, &weight, Some(&bias), &added, 1, 1).is_err())
        };
        assert!(
            refuses(&[39], &[2, 40])? && refuses(&[40], &[2, 39])? && refuses(&[40], &[3, 40])?
        );
        assert!(!refuses(&[40], &[2, 40])?);
        Ok(())
    }
}
