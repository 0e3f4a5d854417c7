//! Nearest-neighbour resize to a given size, as torch's `interpolate(mode="nearest")`: the pixel
//! (y, x) of the result is the source pixel (⌊y · h/H⌋, ⌊x · w/W⌋).

mod backward;
mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::begin::begin;
use crate::profile::Span;
use crate::storage::{f32_slice, in_f32};
use crate::tape::{Reads, apply1};

/// `x` [B, C, h, w] → [B, C, height, width]. Any size is allowed, smaller too.
///
/// # Errors
/// `x` has not four dimensions, a size is zero, `x` is not f32, f16 or bf16, or its device has no twin.
pub fn upsample_nearest2d(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let op = UpsampleNearest2d { height, width };
    let (b, c, _, _) = op.sizes(x.layout())?;
    begin("upsample_nearest2d", x, &[b, c, height, width])?;
    in_f32(&x.contiguous()?, |x| apply1(x, op, Reads::NOTHING))
}

struct UpsampleNearest2d {
    height: usize,
    width: usize,
}

impl CustomOp1 for UpsampleNearest2d {
    fn name(&self) -> &'static str {
        "upsample_nearest2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = self.sizes(layout)?;
        let x = f32_slice(storage, layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let y = cpu::upsample_nearest2d(x, (h, w), (self.height, self.width));
        Ok((CpuStorage::F32(y), Shape::from((b, c, self.height, self.width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let number_type = device::number_type(x, self.name())?;
        let (b, c, h, w) = self.sizes(layout)?;
        let shape = Shape::from((b, c, self.height, self.width));
        let plan = cuda::plan(number_type, b * c, (h, w), (self.height, self.width))?;
        let x = device::Input::new(x, layout, self.name())?;
        Ok((device::run(&plan, &[x], (number_type, shape.elem_count()))?, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        backward::gradient(x, upstream).map(Some)
    }
}

impl UpsampleNearest2d {
    fn sizes(&self, layout: &Layout) -> Result<(usize, usize, usize, usize)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        if h == 0 || w == 0 || self.height == 0 || self.width == 0 {
            bail!("upsample_nearest2d: a size is zero: {h}×{w} to {}×{}", self.height, self.width)
        }
        Ok((b, c, h, w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn doubles_and_takes_odd_sizes() -> Result<()> {
        let x = Tensor::new(&[[[[1f32, 2.], [3., 4.]]]], &Device::Cpu)?;
        let y = upsample_nearest2d(&x, 4, 4)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(y, [1., 1., 2., 2., 1., 1., 2., 2., 3., 3., 4., 4., 3., 3., 4., 4.]);
        let y = upsample_nearest2d(&x, 1, 3)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(y, [1., 1., 2.]);
        Ok(())
    }
}
