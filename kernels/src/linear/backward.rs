//! dx = dy W, dW = dyᵀ x, db = Σ dy over the rows.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::begin::begin;
use crate::channel_sums::channel_sums;
use crate::gemm::{self, Rows, Start};
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, weight_values};

/// The gradients of `x` [..., in], `weight` [out, in] and bias [out], each where it is wanted.
pub(super) fn gradients(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let (output, input) = weight.dims2()?;
    let upstream = upstream.reshape(((), output))?.contiguous()?;
    let dx = if x.track_op() {
        Some(product(&upstream, &weight.detach())?.reshape(x.shape())?)
    } else {
        None
    };
    let dweight = if weight.track_op() {
        let x = x.detach().reshape(((), input))?.contiguous()?;
        Some(product(&crate::transpose(&upstream.unsqueeze(0)?)?.squeeze(0)?, &x)?)
    } else {
        None
    };
    let dbias = match bias {
        Some(bias) if bias.track_op() => Some(channel_sums(&upstream)?),
        _ => None,
    };
    Ok([dx, dweight, dbias])
}

/// a [m, k] b [k, n], `b` in half precision too; on a GPU the product is cuBLAS's.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let n = b.dim(1)?;
    begin("linear_backward", a, &[a.dim(0)?, n])?;
    if a.device().is_cpu() {
        a.apply_op2_no_bwd(b, &Product)
    } else {
        a.matmul(&b.to_dtype(a.dtype())?)
    }
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear_backward"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (of_b, n)) = (a_layout.shape().dims2()?, b_layout.shape().dims2()?);
        if k != of_b {
            bail!("linear_backward: {m} × {k} times {of_b} × {n}")
        }
        let a = f32_slice(a, a_layout, self.name())?;
        let b = Rows { values: weight_values(b, b_layout, self.name())?, stride: n };
        let _span = Span::new(self.name(), 2 * m * k * n);
        let c = gemm::product(Isa::get()?, (m, k, n), a, &b, Start::Zero);
        Ok((CpuStorage::F32(c), Shape::from((m, n))))
    }
}
