//! Two-dimensional convolution (cross-correlation, as every framework has it):
//! y\[o\] = Σ_c w\[o, c\] ⋆ x\[c\] + b\[o\], zero padding, no groups, no dilation.

mod added;
mod backward;
mod bf16;
mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod cudnn;
mod doubled;
mod few_outputs;
mod of_weight;
mod runs;
mod winograd;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

pub use added::conv2d_add_to_channels;
pub use doubled::conv2d_of_doubled;

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, in_f32, weight_values};
use crate::tape::{Reads, apply2, apply3};

/// `x` [B, C, H, W], `weight` [O, C, kH, kW], f32 or kept in f16 or bf16, `bias` [O];
/// returns [B, O, (H + 2·padding − kH)/stride + 1, (W + 2·padding − kW)/stride + 1].
///
/// # Errors
/// The channels differ, the padded input is smaller than the kernel, the stride is zero, an input
/// is of another type, or its device has no twin.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let op = Conv2d { stride, padding };
    let sizes = op.sizes(x.layout(), weight.layout(), bias.map(Tensor::layout))?;
    begin("conv2d", x, &[sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width])?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    // The weight's gradient alone is computed from the input.
    let reads_x = weight.track_op();
    in_f32(&x, |x| match &bias {
        Some(bias) => {
            apply3([x, &weight, bias], op, Reads { inputs: [reads_x, true, false], result: false })
        }
        None => apply2([x, &weight], op, Reads { inputs: [reads_x, true], result: false }),
    })
}

/// Whether factors are rounded to bf16 and multiplied by other instructions, where tiles of f32 would be `side`.
fn is_in_bf16(isa: Isa, side: Option<winograd::Side>) -> bool {
    isa.bf16().is_some_and(|set| !bf16::is_slower(set, side))
}

#[derive(Clone, Copy)]
struct Conv2d {
    stride: usize,
    padding: usize,
}

impl Conv2d {
    fn sizes(&self, x: &Layout, weight: &Layout, bias: Option<&Layout>) -> Result<cpu::Sizes> {
        let (batch, channels, height, width) = x.shape().dims4()?;
        let (out_channels, weight_channels, kernel_h, kernel_w) = weight.shape().dims4()?;
        let Conv2d { stride, padding } = *self;
        if channels != weight_channels {
            bail!("conv2d: the input has {channels} channels, the weight takes {weight_channels}")
        }
        if let Some(bias) = bias
            && bias.dims() != [out_channels]
        {
            bail!(
                "conv2d: the bias {:?} is not one for each of {out_channels} channels",
                bias.shape()
            )
        }
        if stride == 0 || kernel_h == 0 || kernel_w == 0 {
            bail!("conv2d: a stride of {stride} and a kernel of {kernel_h}×{kernel_w}")
        }
        if height + 2 * padding < kernel_h || width + 2 * padding < kernel_w {
            bail!(
                "conv2d: an input of {height}×{width} with a padding of {padding} is smaller than \
                 the kernel {kernel_h}×{kernel_w}"
            )
        }
        Ok(cpu::Sizes {
            batch,
            channels,
            height,
            width,
            out_channels,
            kernel_h,
            kernel_w,
            stride,
            padding,
            out_height: (height + 2 * padding - kernel_h) / stride + 1,
            out_width: (width + 2 * padding - kernel_w) / stride + 1,
        })
    }

    fn forward(
        &self,
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        added: cpu::Added,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(x.1, weight.1, None)?;
        let x = f32_slice(x.0, x.1, "conv2d")?;
        let weight = weight_values(weight.0, weight.1, "conv2d")?;
        let shape = (sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width);
        let isa = Isa::get()?;
        let side = winograd::Side::that_pays(sizes);
        if let Some(set) = isa.bf16().filter(|set| !bf16::is_slower(*set, side)) {
            let _span = Span::new(sizes.name(), sizes.operations());
            let y = bf16::conv2d(set, x, weight, added.bias, sizes);
            return Ok((CpuStorage::F32(y), Shape::from(shape)));
        }
        let name = side.map_or_else(|| sizes.name(), winograd::Side::name);
        let _span = Span::new(name, sizes.operations());
        let y = match side {
            Some(side) => {
                let kernels = winograd::Kernels { values: weight, are_turned: false };
                winograd::conv2d(isa, x.into(), kernels, added, sizes, side)
            }
            None if few_outputs::pays(sizes) => few_outputs::conv2d(isa, x, weight, added, sizes),
            None => cpu::conv2d(isa, x, weight, added, sizes),
        };
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(
        &self,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<(&CudaStorage, &Layout)>,
        of_samples: Option<(&CudaStorage, &Layout)>,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        let number_type = device::number_type(x.0, "conv2d")?;
        let sizes = self.sizes(x.1, weight.1, bias.map(|(_, layout)| layout))?;
        let shape = (sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width);
        let shape = Shape::from(shape);
        let _span = Span::new(sizes.name(), sizes.operations());
        let weight = device::Input::weight(weight.0, weight.1, number_type, "conv2d")?;
        // cuDNN adds a bias alone: who has more to add asks it first.
        if of_samples.is_none()
            && let Some(cudnn) = cudnn::Cudnn::get()?
        {
            let mut inputs = vec![device::Input::new(x.0, x.1, "conv2d")?, weight];
            if let Some((bias, layout)) = bias {
                inputs.push(device::Input::weight(bias, layout, number_type, "conv2d")?);
            }
            return Ok((cudnn::on_gpu(cudnn, number_type, sizes, &inputs)?, shape));
        }
        let given = cuda::Given {
            bias: bias.is_some(),
            of_samples: of_samples.is_some(),
            aligned: weight.is_aligned(),
        };
        let plan = cuda::plan(number_type, sizes, given)?;
        let mut inputs = vec![device::Input::new(x.0, x.1, "conv2d")?, weight];
        if let Some((bias, layout)) = bias {
            inputs.push(device::Input::weight(bias, layout, Type::F32, "conv2d")?);
        }
        if let Some((values, layout)) = of_samples {
            inputs.push(device::Input::weight(values, layout, number_type, "conv2d")?);
        }
        Ok((device::run(&plan, &inputs, (number_type, shape.elem_count()))?, shape))
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), cpu::Added::default())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_gpu((x, x_layout), (weight, weight_layout), None, None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, _] = backward::gradients(self, x, weight, None, upstream)?;
        Ok((dx, dweight))
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
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
        self.sizes(x_layout, weight_layout, Some(bias_layout))?;
        let bias = f32_slice(bias, bias_layout, "conv2d")?;
        self.forward((x, x_layout), (weight, weight_layout), Some(bias).into())
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
        self.on_gpu((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        backward::gradients(self, x, weight, Some(bias), upstream).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::WeightValues;
    use candle_core::{DType, Device};

    /// The definition, in f64.
    fn direct(x: &Tensor, w: &Tensor, stride: usize, padding: usize) -> Result<Vec<f64>> {
        let (b, c, h, wd) = x.dims4()?;
        let (o, _, kh, kw) = w.dims4()?;
        let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (wd + 2 * padding - kw) / stride + 1);
        let xs = x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let ws = w.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let mut y = vec![];
        for bi in 0..b {
            for oi in 0..o {
                for yi in 0..oh {
                    for xi in 0..ow {
                        let mut sum = 0.;
                        for ci in 0..c {
                            for ky in 0..kh {
                                for kx in 0..kw {
                                    let (sy, sx) = (yi * stride + ky, xi * stride + kx);
                                    if sy < padding || sx < padding {
                                        continue;
                                    }
                                    let (sy, sx) = (sy - padding, sx - padding);
                                    if sy < h && sx < wd {
                                        sum += xs[((bi * c + ci) * h + sy) * wd + sx]
                                            * ws[((oi * c + ci) * kh + ky) * kw + kx];
                                    }
                                }
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
        Ok(y)
    }

    /// The largest error of the Winograd path, as a share of the largest value: the direct path's is the unit.
    /// On 3 × 3 convolutions of 32 to 330 channels, odd sizes, every instruction set.
    #[test]
    fn winograd_agrees_with_the_definition() -> Result<()> {
        let dev = Device::Cpu;
        use winograd::Side::{Four, Two};
        for (batch, channels, out_channels, h, w, side) in [
            (2, 32, 35, 16, 16, Four),
            (1, 47, 50, 33, 29, Four),
            (3, 320, 64, 9, 14, Four),
            (1, 330, 32, 20, 20, Four),
            (2, 40, 36, 8, 8, Two),
            (1, 330, 50, 7, 9, Two),
            (3, 33, 47, 6, 5, Two),
        ] {
            let x = Tensor::randn(0f32, 1., (batch, channels, h, w), &dev)?;
            let size = (channels as f64 * 9.0).powf(-0.5);
            let weight = Tensor::randn(0f32, 1., (out_channels, channels, 3, 3), &dev)?;
            let weight = weight.affine(size, 0.)?;
            let bias = Tensor::randn(0f32, 1., out_channels, &dev)?.to_vec1::<f32>()?;
            let want = direct(&x, &weight, 1, 1)?;
            let op = Conv2d { stride: 1, padding: 1 };
            let sizes = op.sizes(x.layout(), weight.layout(), None)?;
            assert_eq!(winograd::Side::that_pays(sizes), Some(side));
            let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            let (x, weight) = (values(&x)?, values(&weight)?);
            let weight = WeightValues::F32(&weight);
            for isa in Isa::available() {
                let kernels = winograd::Kernels { values: weight, are_turned: false };
                let added = Some(&bias[..]).into();
                let found = winograd::conv2d(isa, x[..].into(), kernels, added, sizes, side);
                let plain = cpu::conv2d(isa, &x, weight, added, sizes);
                let worst = |found: &[f32]| {
                    let errors = found.iter().zip(&want).enumerate().map(|(i, (found, want))| {
                        let bias = f64::from(bias[i / (h * w) % out_channels]);
                        (f64::from(*found) - want - bias).abs()
                    });
                    errors.fold(0., f64::max)
                };
                let (winograd, plain) = (worst(&found), worst(&plain));
                println!(
                    "{channels} channels, {isa:?}: Winograd {winograd:.1e}, direct {plain:.1e}"
                );
                assert_eq!(found.len(), want.len());
                assert!(plain < 4e-6 && winograd < 3e-5, "{winograd:.1e}, {plain:.1e}");
            }
        }
        Ok(())
    }

    #[test]
    fn agrees_with_the_definition() -> Result<()> {
        let dev = Device::Cpu;
        let cases = [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0), (1, 2, 0), (4, 4, 0), (2, 3, 5)];
        for ((k, stride, padding), (h, w)) in
            cases.into_iter().flat_map(|case| [(case, (9, 7)), (case, (40, 33))])
        {
            let x = Tensor::randn(0f32, 1., (2, 5, h, w), &dev)?;
            let w = Tensor::randn(0f32, 1., (6, 5, k, k), &dev)?;
            let b = Tensor::randn(0f32, 1., 6, &dev)?;
            let y = conv2d(&x, &w, Some(&b), stride, padding)?;
            let pixels = y.dim(2)? * y.dim(3)?;
            let b = b.to_vec1::<f32>()?;
            let want = direct(&x, &w, stride, padding)?;
            let got = y.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let want = want + f64::from(b[i / pixels % 6]);
                assert!((f64::from(*got) - want).abs() < 2e-5, "{got} is not {want}");
            }
        }
        Ok(())
    }

    /// What convolutions with bf16 factors come to is the definition of the rounded ones.
    #[test]
    fn bf16_factors_agree_with_the_definition() -> Result<()> {
        let dev = Device::Cpu;
        let rounded = |shape: &[usize], size: f64| {
            let values = Tensor::randn(0f32, 1., shape, &dev)?.affine(size, 0.)?;
            values.to_dtype(DType::BF16)?.to_dtype(DType::F32)
        };
        let shapes = [(40, 33, 9, 16), (5, 6, 40, 33), (64, 70, 8, 8), (33, 4, 2, 3)];
        let kernels = [(3, 1, 1), (3, 2, 1), (3, 1, 0), (1, 1, 0), (4, 4, 0), (2, 1, 1), (5, 1, 2)];
        for ((c, o, h, w), (k, stride, padding)) in
            shapes.into_iter().flat_map(|shape| kernels.map(|kernel| (shape, kernel)))
        {
            if h + 2 * padding < k || w + 2 * padding < k {
                continue;
            }
            let x = rounded(&[2, c, h, w], 1.)?;
            let weight = rounded(&[o, c, k, k], ((c * k * k) as f64).powf(-0.5))?;
            let bias = Tensor::randn(0f32, 1., o, &dev)?.to_vec1::<f32>()?;
            let want = direct(&x, &weight, stride, padding)?;
            let sizes = Conv2d { stride, padding }.sizes(x.layout(), weight.layout(), None)?;
            let half = weight.flatten_all()?.to_dtype(DType::F16)?.to_vec1::<half::f16>()?;
            let widened: Vec<f32> = half.iter().map(|value| value.to_f32()).collect();
            let exact = weight.flatten_all()?.to_vec1::<f32>()?;
            let x = x.flatten_all()?.to_vec1::<f32>()?;
            for isa in Isa::with_bf16() {
                let set = isa.bf16().expect("one of those that have it");
                let found = bf16::conv2d(set, &x, WeightValues::F32(&exact), Some(&bias), sizes);
                assert_eq!(found.len(), want.len());
                let pixels = sizes.out_height * sizes.out_width;
                // BFMMLA rounds after every two products, and not to the nearest: of 1600 products, 800 times by up to 1.2e-7.
                let bound = if isa == Isa::NeonBf16 { 1.6e-5 } else { 4e-6 };
                for (i, (found, want)) in found.iter().zip(&want).enumerate() {
                    let want = want + f64::from(bias[i / pixels % o]);
                    let error = (f64::from(*found) - want).abs();
                    assert!(
                        error < bound,
                        "{found} is not {want}: {c} to {o}, {h} × {w}, {k}, {isa:?}"
                    );
                }
                let of_half = bf16::conv2d(set, &x, WeightValues::F16(&half), None, sizes);
                let of_wide = bf16::conv2d(set, &x, WeightValues::F32(&widened), None, sizes);
                assert_eq!(of_half, of_wide);
            }
        }
        Ok(())
    }

    #[test]
    fn refuses_an_input_smaller_than_the_kernel() -> Result<()> {
        let x = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
        let w = Tensor::zeros((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
        assert!(conv2d(&x, &w, None, 1, 0).is_err());
        Ok(())
    }

    #[test]
    fn a_half_weight_gives_what_its_widened_values_give() -> Result<()> {
        let dev = Device::Cpu;
        for (channels, out_channels, kernel, size) in [(3, 5, 3, 9), (70, 64, 3, 16), (8, 3, 1, 4)]
        {
            let x = Tensor::randn(0f32, 1., (2, channels, size, size), &dev)?;
            let w = Tensor::randn(0f32, 1., (out_channels, channels, kernel, kernel), &dev)?;
            for dtype in [DType::F16, DType::BF16] {
                let w = w.to_dtype(dtype)?;
                let widened = conv2d(&x, &w.to_dtype(DType::F32)?, None, 1, kernel / 2)?;
                let found = conv2d(&x, &w, None, 1, kernel / 2)?.flatten_all()?.to_vec1::<f32>()?;
                assert_eq!(found, widened.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(())
    }
}
