//! Linear layer: y = x Wᵀ + b.

mod backward;
mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod few_rows;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

pub(crate) use backward::product;
pub(crate) use few_rows::pays as are_few;

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, in_f32, weight_values};
use crate::tape::{Reads, apply2, apply3};

/// y = x Wᵀ + b over the last dimension.
///
/// `x` [..., in], `weight` [out, in], f32 or kept in f16 or bf16, `bias` [out]; returns [..., out].
///
/// # Errors
/// The last dimension of `x` is not `in`, the bias is not [out], an input is of another type, or its device
/// has no twin.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (shape, _) = sizes(x.layout(), weight.layout(), bias.map(Tensor::layout))?;
    begin("linear", x, shape.dims())?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    // The weight's gradient alone is computed from the input.
    let reads_x = weight.track_op();
    in_f32(&x, |x| match &bias {
        Some(bias) => apply3(
            [x, &weight, bias],
            Linear,
            Reads { inputs: [reads_x, true, false], result: false },
        ),
        None => apply2([x, &weight], Linear, Reads { inputs: [reads_x, true], result: false }),
    })
}

struct Linear;

impl Linear {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (shape, sizes) = sizes(x_layout, weight_layout, bias.map(|(_, layout)| layout))?;
        let bias = bias.map(|(bias, layout)| f32_slice(bias, layout, "linear")).transpose()?;
        let x = f32_slice(x, x_layout, "linear")?;
        let weight = weight_values(weight, weight_layout, "linear")?;
        let (rows, input, output) = sizes;
        let _span = Span::new("linear", 2 * rows * input * output);
        Ok((CpuStorage::F32(cpu::linear(Isa::get()?, x, weight, bias, sizes)), shape))
    }

    /// The product is cuBLAS's, with f32 sums; the bias is a kernel of ours.
    #[cfg(feature = "cuda")]
    fn on_gpu(
        &self,
        (x, x_layout): (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<(&CudaStorage, &Layout)>,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        use candle_core::backend::BackendStorage;
        let number_type = device::number_type(x, "linear")?;
        let (shape, (rows, input, output)) =
            sizes(x_layout, weight.1, bias.map(|(_, layout)| layout))?;
        let _span = Span::new("linear", 2 * rows * input * output);
        let weight = device::Input::weight(weight.0, weight.1, number_type, "linear")?;
        let rows_layout = Layout::contiguous_with_offset((1, rows, input), x_layout.start_offset());
        let transposed = Shape::from((1, input, output));
        let transposed = Layout::new(transposed, vec![input * output, 1, input], weight.start());
        let y = x.matmul(weight.storage(), (1, rows, output, input), &rows_layout, &transposed)?;
        let Some((bias, bias_layout)) = bias else { return Ok((y, shape)) };
        let plan = cuda::plan(number_type, rows, output)?;
        let layout = Layout::contiguous((rows, output));
        let inputs = [
            device::Input::new(&y, &layout, "linear")?,
            device::Input::weight(bias, bias_layout, Type::F32, "linear")?,
        ];
        Ok((device::run(&plan, &inputs, (number_type, rows * output))?, shape))
    }
}

/// The output's shape, and (rows, input, output).
pub(crate) fn sizes(
    x: &Layout,
    weight: &Layout,
    bias: Option<&Layout>,
) -> Result<(Shape, (usize, usize, usize))> {
    let (output, input) = weight.shape().dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = shape.iter().rev().skip(1).product();
    match shape.last_mut() {
        Some(last) if *last == input => *last = output,
        _ => bail!("linear: the input {shape:?} does not end in the weight's {input} features"),
    }
    if let Some(bias) = bias
        && bias.dims() != [output]
    {
        bail!("linear: the bias {:?} is not one for each of {output} features", bias.shape())
    }
    Ok((Shape::from(shape), (rows, input, output)))
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_gpu((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, _] = backward::gradients(x, weight, None, upstream)?;
        Ok((dx, dweight))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        self.forward((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
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
        self.on_gpu((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        backward::gradients(x, weight, Some(bias), upstream).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn is_the_matrix_product_with_the_transpose() -> Result<()> {
        let dev = Device::Cpu;
        let x = Tensor::new(&[[[1f32, 2.], [3., 4.]]], &dev)?;
        let w = Tensor::new(&[[1f32, 10.], [0., 1.], [-1., 0.]], &dev)?;
        let b = Tensor::new(&[0f32, 100., 0.], &dev)?;
        let y = linear(&x, &w, Some(&b))?;
        assert_eq!(y.to_vec3::<f32>()?, [[[21., 102., -1.], [43., 104., -3.]]]);
        Ok(())
    }

    #[test]
    fn large_products_agree_with_candle_s() -> Result<()> {
        let dev = Device::Cpu;
        let x = Tensor::randn(0f32, 1., (2, 130, 70), &dev)?;
        let w = Tensor::randn(0f32, 1., (90, 70), &dev)?;
        let want = x.reshape((260, 70))?.matmul(&w.t()?)?.reshape((2, 130, 90))?;
        let error = (linear(&x, &w, None)? - want)?.abs()?.flatten_all()?.max(0)?;
        assert!(error.to_scalar::<f32>()? < 1e-4);
        Ok(())
    }

    #[test]
    fn refuses_another_width() -> Result<()> {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        let w = Tensor::zeros((5, 4), DType::F32, &Device::Cpu)?;
        assert!(linear(&x, &w, None).is_err());
        let w = Tensor::zeros((5, 3), DType::F32, &Device::Cpu)?;
        let b = Tensor::zeros(4, DType::F32, &Device::Cpu)?;
        assert!(linear(&x, &w, Some(&b)).is_err());
        Ok(())
    }

    #[test]
    fn a_half_weight_gives_what_its_widened_values_give() -> Result<()> {
        let dev = Device::Cpu;
        for (rows, input, output) in [(1, 40, 70_000), (3, 1, 1), (77, 64, 129), (300, 96, 130)] {
            let x = Tensor::randn(0f32, 1., (rows, input), &dev)?;
            let w = Tensor::randn(0f32, 1., (output, input), &dev)?;
            for dtype in [DType::F16, DType::BF16] {
                let w = w.to_dtype(dtype)?;
                let want = linear(&x, &w.to_dtype(DType::F32)?, None)?.to_vec2::<f32>()?;
                assert_eq!(linear(&x, &w, None)?.to_vec2::<f32>()?, want);
            }
        }
        Ok(())
    }
}
