//! The convolution of a picture twice as large, as a U-Net and an autoencoder have it: its pixels are read where the small
//! picture has them, and the large one is never made.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::{Conv2d, cpu, is_in_bf16, winograd};
use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{are_f32_on_cpu, f32_slice, weight_values};
use crate::upsample_nearest2d;

const CONV2D: Conv2d = Conv2d { stride: 1, padding: 1 };

/// `x` [B, C, h, w], `weight` [O, C, 3, 3], f32 or kept in f16 or bf16, `bias` [O]; returns [B, O, 2h, 2w]: [`conv2d`](super::conv2d)
/// with a stride and a padding of 1 of [`upsample_nearest2d`] to twice the size, to the bit. Where Winograd's tiles do not pay, where something learns, and on
/// a GPU it is these two.
///
/// # Errors
/// As theirs.
pub fn conv2d_of_doubled(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (height, width) = (2 * height, 2 * width);
    let given = [Some(x), Some(weight), bias];
    let learns = given.iter().flatten().any(|tensor| tensor.track_op());
    if !learns && are_f32_on_cpu(&[x, bias.unwrap_or(x)]) && weight.device().is_cpu() {
        let large = Layout::contiguous((batch, channels, height, width));
        let isa = Isa::get()?;
        let sizes = CONV2D.sizes(&large, weight.layout(), bias.map(Tensor::layout))?;
        let side = winograd::Side::that_pays(sizes);
        if let Some(side) = side.filter(|_| !is_in_bf16(isa, side)) {
            begin("conv2d", x, &[batch, sizes.out_channels, height, width])?;
            let bias = match bias {
                Some(bias) => bias.contiguous()?,
                None => Tensor::zeros(sizes.out_channels, DType::F32, x.device())?,
            };
            let weight = weight.contiguous()?;
            return x.contiguous()?.apply_op3_no_bwd(&weight, &bias, &OfDoubled(sizes, side));
        }
    }
    super::conv2d(&upsample_nearest2d(x, height, width)?, weight, bias, 1, 1)
}

/// Of the large picture.
struct OfDoubled(cpu::Sizes, winograd::Side);

impl CustomOp3 for OfDoubled {
    fn name(&self) -> &'static str {
        "conv2d_of_doubled"
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
        let OfDoubled(sizes, side) = *self;
        let _span = Span::new(side.name(), sizes.operations());
        let x = f32_slice(x, x_layout, self.name())?;
        let bias = f32_slice(bias, bias_layout, self.name())?;
        let values = weight_values(weight, weight_layout, self.name())?;
        let picture = winograd::Picture { values: x, is_doubled: true };
        let kernels = winograd::Kernels { values, are_turned: false };
        let y = winograd::conv2d(Isa::get()?, picture, kernels, Some(bias).into(), sizes, side);
        let shape = (sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width);
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn both(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<[Vec<f32>; 2]> {
        let (_, _, height, width) = x.dims4()?;
        let large = upsample_nearest2d(x, 2 * height, 2 * width)?;
        let values = |y: Tensor| y.flatten_all()?.to_vec1::<f32>();
        Ok([
            values(conv2d_of_doubled(x, weight, bias)?)?,
            values(crate::conv2d(&large, weight, bias, 1, 1)?)?,
        ])
    }

    /// Tiles of both sizes, rows that end within one, channels that are too few; weights of both kinds.
    #[test]
    fn is_the_convolution_of_the_large_picture_to_the_bit() -> Result<()> {
        let dev = Device::Cpu;
        for (batch, channels, out_channels, height, width) in [
            (2, 40, 36, 16, 16),
            (1, 33, 50, 9, 15),
            (2, 64, 32, 3, 41),
            (1, 40, 40, 4, 5),
            (1, 3, 5, 7, 6),
        ] {
            let x = Tensor::randn(0f32, 1., (batch, channels, height, width), &dev)?;
            let weight = Tensor::randn(0f32, 1., (out_channels, channels, 3, 3), &dev)?;
            let bias = Tensor::randn(0f32, 1., out_channels, &dev)?;
            for (dtype, bias) in
                [(DType::F32, Some(&bias)), (DType::F16, Some(&bias)), (DType::F32, None)]
            {
                let [found, want] = both(&x, &weight.to_dtype(dtype)?, bias)?;
                assert!(found == want, "{batch} × {channels} → {out_channels}, {height} × {width}");
            }
        }
        Ok(())
    }

    /// The last two have panels between the edges of a row, which are read where they lie; a doubled picture is always copied.
    #[test]
    fn every_instruction_set_reads_the_same_pixels() -> Result<()> {
        use winograd::Side::{Four, Two};
        for (height, width, side) in [(8, 23, Four), (3, 5, Two), (5, 206, Four), (9, 71, Two)] {
            let x = Tensor::randn(0f32, 1., (2, 32, height, width), &Device::Cpu)?;
            let large = upsample_nearest2d(&x, 2 * height, 2 * width)?;
            let weight = Tensor::randn(0f32, 1., (33, 32, 3, 3), &Device::Cpu)?;
            let sizes = CONV2D.sizes(large.layout(), weight.layout(), None)?;
            let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            let (x, large, weight) = (values(&x)?, values(&large)?, values(&weight)?);
            for isa in Isa::available() {
                let by = |picture| {
                    let values = crate::storage::WeightValues::F32(&weight);
                    let kernels = winograd::Kernels { values, are_turned: false };
                    winograd::conv2d(isa, picture, kernels, cpu::Added::default(), sizes, side)
                };
                let found = by(winograd::Picture { values: &x, is_doubled: true });
                assert!(found == by(large[..].into()), "{isa:?}, {height} × {width}");
            }
        }
        Ok(())
    }

    #[test]
    fn learns_as_the_two() -> Result<()> {
        let x = Var::randn(0f32, 1., (1, 32, 8, 8), &Device::Cpu)?;
        let weight = Tensor::randn(0f32, 1., (32, 32, 3, 3), &Device::Cpu)?;
        let bias = Tensor::zeros(32, DType::F32, &Device::Cpu)?;
        let of_one = conv2d_of_doubled(&x, &weight, Some(&bias))?.sum_all()?.backward()?;
        let large = upsample_nearest2d(&x, 16, 16)?;
        let of_two = crate::conv2d(&large, &weight, Some(&bias), 1, 1)?.sum_all()?.backward()?;
        let of = |grads: &candle_core::backprop::GradStore| {
            grads.get(&x).expect("a gradient").flatten_all()?.to_vec1::<f32>()
        };
        assert_eq!(of(&of_one)?, of(&of_two)?);
        Ok(())
    }

    #[test]
    fn refuses_what_a_convolution_does() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let x = zeros(&[1, 32, 8, 8])?;
        assert!(conv2d_of_doubled(&x, &zeros(&[32, 31, 3, 3])?, None).is_err());
        assert!(conv2d_of_doubled(&x, &zeros(&[32, 32, 3, 3])?, Some(&zeros(&[31])?)).is_err());
        Ok(())
    }
}
