//! A weight with a low-rank change added: Y = W + U D. This is what a LoRA does to a layer.

mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::begin::begin;
use crate::linear::product;
use crate::simd::Isa;
use crate::storage::{f32_slice, weight_values};
use crate::tape::{Reads, apply3};

/// Y = W + U D, computed in f32.
///
/// `weight` [out, in], f32 or kept in f16 or bf16, `up` [out, rank], `down` [rank, in]; returns
/// [out, in], in f32 on the CPU, where activations are f32, and in the weight's type on a GPU, where
/// they have that type.
///
/// # Errors
/// The shapes do not fit each other, an input is of another type, or its device has no twin.
pub fn low_rank_update(weight: &Tensor, up: &Tensor, down: &Tensor) -> Result<Tensor> {
    begin("low_rank_update", weight, weight.dims())?;
    let inputs = [&weight.contiguous()?, &up.contiguous()?, &down.contiguous()?];
    apply3(inputs, LowRankUpdate, Reads::INPUTS)
}

struct LowRankUpdate;

impl CustomOp3 for LowRankUpdate {
    fn name(&self) -> &'static str {
        "low_rank_update"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        weight_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        down: &CpuStorage,
        down_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (output, input, rank) = sizes(weight_layout, up_layout, down_layout)?;
        let weight = weight_values(weight, weight_layout, "low_rank_update")?;
        let up = f32_slice(up, up_layout, "low_rank_update")?;
        let down = f32_slice(down, down_layout, "low_rank_update")?;
        let y = cpu::low_rank_update(Isa::get()?, weight, up, down, (output, input, rank));
        Ok((CpuStorage::F32(y), Shape::from((output, input))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        weight: &CudaStorage,
        weight_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
        down: &CudaStorage,
        down_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        let name = self.name();
        let number_type = device::number_type(weight, name)?;
        let sizes @ (output, input, _) = sizes(weight_layout, up_layout, down_layout)?;
        let plan = cuda::plan(number_type, sizes)?;
        let inputs = [
            device::Input::new(weight, weight_layout, name)?,
            device::Input::weight(up, up_layout, Type::F32, name)?,
            device::Input::weight(down, down_layout, Type::F32, name)?,
        ];
        let y = device::run(&plan, &inputs, (number_type, output * input))?;
        Ok((y, Shape::from((output, input))))
    }

    /// dW = dY, dU = dY Dᵀ, dD = Uᵀ dY.
    fn bwd(
        &self,
        weight: &Tensor,
        up: &Tensor,
        down: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.contiguous()?;
        let dweight =
            if weight.track_op() { Some(upstream.to_dtype(weight.dtype())?) } else { None };
        let turned = |t: &Tensor| t.detach().t()?.contiguous();
        let dup = if up.track_op() { Some(product(&upstream, &turned(down)?)?) } else { None };
        let ddown = if down.track_op() { Some(product(&turned(up)?, &upstream)?) } else { None };
        Ok((dweight, dup, ddown))
    }
}

/// (output, input, rank)
fn sizes(weight: &Layout, up: &Layout, down: &Layout) -> Result<(usize, usize, usize)> {
    let (output, input) = weight.shape().dims2()?;
    let (up, down) = (up.shape().dims2()?, down.shape().dims2()?);
    let rank = up.1;
    if up.0 != output || down != (rank, input) {
        bail!(
            "low_rank_update: {up:?} times {down:?} is no change of a weight of {output} × {input}"
        )
    }
    Ok((output, input, rank))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn is_the_sum_with_the_product() -> Result<()> {
        let dev = Device::Cpu;
        let sizes = [(1, 1, 1), (2, 3, 2), (70, 1300, 16), (3, 70_000, 4), (129, 520, 0)];
        for (output, input, rank) in sizes {
            let up = Tensor::randn(0f32, 1., (output, rank), &dev)?;
            let down = Tensor::randn(0f32, 1., (rank, input), &dev)?;
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let w = Tensor::randn(0f32, 1., (output, input), &dev)?.to_dtype(dtype)?;
                let mut want = w.to_dtype(DType::F64)?;
                if rank > 0 {
                    let product = up.to_dtype(DType::F64)?.matmul(&down.to_dtype(DType::F64)?)?;
                    want = (want + product)?;
                }
                let found = low_rank_update(&w, &up, &down)?.to_dtype(DType::F64)?;
                let error = (found - want)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                assert!(error < 1e-5, "{error}");
            }
        }
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() -> Result<()> {
        let zeros = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let w = zeros((3, 4))?;
        assert!(low_rank_update(&w, &zeros((3, 2))?, &zeros((2, 5))?).is_err());
        assert!(low_rank_update(&w, &zeros((2, 2))?, &zeros((2, 4))?).is_err());
        assert!(low_rank_update(&w, &zeros((3, 2))?, &zeros((3, 4))?).is_err());
        Ok(())
    }
}
