//! With (h, g) the halves of x: dh = dy · GELU(g), dg = dy · h · GELU′(g).

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::halved;
use crate::activation::{gelu, gelu_slope};
use crate::begin::begin;
use crate::memory;
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::f32_slice;

/// `x` [..., 2n], `upstream` (dy) [..., n] → dx.
pub(super) fn gradient(x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    begin("geglu_backward", x, x.dims())?;
    x.contiguous()?.apply_op2_no_bwd(&upstream.contiguous()?, &Backward)
}

struct Backward;

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        "geglu_backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, n) = halved(x_layout)?;
        let x = f32_slice(x, x_layout, self.name())?;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let dx = geglu_backward(Isa::get()?, x, upstream, n);
        Ok((CpuStorage::F32(dx), x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        upstream: &CudaStorage,
        upstream_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let number_type = device::number_type(x, self.name())?;
        let (halved, n) = halved(x_layout)?;
        let plan = super::cuda::plan_backward(number_type, halved.elem_count() / n, n);
        let inputs = [
            device::Input::new(x, x_layout, self.name())?,
            device::Input::new(upstream, upstream_layout, self.name())?,
        ];
        let shape = x_layout.shape().clone();
        Ok((device::run(&plan, &inputs, (number_type, shape.elem_count()))?, shape))
    }
}

/// `x` rows of 2n, `upstream` rows of n, returns rows of 2n.
pub(super) fn geglu_backward(isa: Isa, x: &[f32], upstream: &[f32], n: usize) -> Vec<f32> {
    assert!(x.len() == 2 * upstream.len() && upstream.len().is_multiple_of(n));
    let rows = (8192 / n).max(1);
    let tasks = x.par_chunks(rows * 2 * n).zip(upstream.par_chunks(rows * n));
    let write = |dx: &mut [f32]| {
        dx.par_chunks_mut(rows * 2 * n)
            .zip(tasks)
            .for_each(|(dx, (x, upstream))| isa.run(Rows { x, upstream, dx, n }));
    };
    // SAFETY: dx is whole rows, and each is written.
    unsafe { memory::written_by(x.len(), write) }
}

struct Rows<'a> {
    x: &'a [f32],
    upstream: &'a [f32],
    dx: &'a mut [f32],
    n: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows { x, upstream, dx, n } = self;
        let rows = x.chunks_exact(2 * n).zip(upstream.chunks_exact(n));
        for (dx, (x, upstream)) in dx.chunks_exact_mut(2 * n).zip(rows) {
            let ((h, g), (dh, dg)) = (x.split_at(n), dx.split_at_mut(n));
            for ((dh, &g), &upstream) in dh.iter_mut().zip(g).zip(upstream) {
                *dh = upstream * gelu(g);
            }
            for (((dg, &h), &g), &upstream) in dg.iter_mut().zip(h).zip(g).zip(upstream) {
                *dg = upstream * h * gelu_slope(g);
            }
        }
    }
}
