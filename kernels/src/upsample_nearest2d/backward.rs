//! Every pixel of the source gets the sum over the pixels that were made of it.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::begin::begin;
use crate::memory;
use crate::profile::Span;
use crate::storage::f32_slice;

/// `x` [B, C, h, w], `upstream` (dy) [B, C, H, W] → dx.
pub(super) fn gradient(x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    begin("upsample_nearest2d_backward", x, x.dims())?;
    upstream.contiguous()?.apply_op1_no_bwd(&Backward { h, w })
}

struct Backward {
    h: usize,
    w: usize,
}

impl CustomOp1 for Backward {
    fn name(&self) -> &'static str {
        "upsample_nearest2d_backward"
    }

    fn cpu_fwd(&self, upstream: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, height, width) = layout.shape().dims4()?;
        let upstream = f32_slice(upstream, layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let dx = upsample_backward(upstream, (self.h, self.w), (height, width));
        Ok((CpuStorage::F32(dx), Shape::from((b, c, self.h, self.w))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, upstream: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let number_type = device::number_type(upstream, self.name())?;
        let (b, c, height, width) = layout.shape().dims4()?;
        let shape = Shape::from((b, c, self.h, self.w));
        let plan =
            super::cuda::plan_backward(number_type, b * c, (self.h, self.w), (height, width))?;
        let upstream = device::Input::new(upstream, layout, self.name())?;
        Ok((device::run(&plan, &[upstream], (number_type, shape.elem_count()))?, shape))
    }
}

/// `upstream` planes of height × width, returns planes of h × w.
pub(super) fn upsample_backward(
    upstream: &[f32],
    (h, w): (usize, usize),
    (height, width): (usize, usize),
) -> Vec<f32> {
    let columns: Vec<usize> = (0..width).map(|x| x * w / width).collect();
    let mut dx = memory::zeros(upstream.len() / (height * width) * h * w);
    dx.par_chunks_mut(h * w).zip(upstream.par_chunks(height * width)).for_each(|(dx, upstream)| {
        for (row, upstream) in upstream.chunks_exact(width).enumerate() {
            let dx = &mut dx[row * h / height * w..][..w];
            for (upstream, &column) in upstream.iter().zip(&columns) {
                dx[column] += upstream;
            }
        }
    });
    dx
}
