//! Scaled dot-product attention (Vaswani et al., arXiv 1706.03762):
//! softmax(scale · Q Kᵀ + mask) V, every head by itself.
//!
//! The queries are taken in blocks, so the score matrix of a large picture (4096 × 4096 for each
//! head of a 64 × 64 latent) is never whole in memory.

mod cpu;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::storage::f32_slice;

/// Scores held at once, over batch and heads: 64 MiB of f32.
const SCORES_AT_ONCE: usize = 1 << 24;

/// `q` [B, H, Lq, D], `k` [B, H, Lk, D], `v` [B, H, Lk, Dv]; returns [B, H, Lq, Dv].
///
/// `mask` is added to the scaled scores and broadcasts to [B, H, Lq, Lk]: 0 keeps, −∞ removes. A
/// row in which everything is removed attends to nothing and gives zeros. `scale` is usually
/// 1/√D.
///
/// # Errors
/// Shapes that do not fit together, an input that is not f32, or a device without a twin.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let (b, h, lq, d) = q.dims4()?;
    let (bk, hk, lk, dk) = k.dims4()?;
    let (bv, hv, lv, _) = v.dims4()?;
    if (bk, hk, dk) != (b, h, d) || (bv, hv, lv) != (b, h, lk) {
        bail!(
            "attention: q {:?}, k {:?} and v {:?} do not fit together",
            q.shape(),
            k.shape(),
            v.shape()
        )
    }
    let mask = match mask {
        Some(mask) => {
            let mut shape = mask.dims().to_vec();
            if shape.len() > 4 {
                bail!("attention: the mask {shape:?} has more than four dimensions")
            }
            while shape.len() < 4 {
                shape.insert(0, 1);
            }
            Some(mask.reshape(shape)?)
        }
        None => None,
    };
    let q = (q.contiguous()? * scale)?;
    let kt = k.t()?.contiguous()?;
    let v = v.contiguous()?;
    let block = (SCORES_AT_ONCE / (b * h * lk).max(1)).clamp(1, lq.max(1));
    if block >= lq {
        return attention_block(&q, &kt, &v, mask.as_ref());
    }
    let mut blocks = Vec::with_capacity(lq.div_ceil(block));
    for start in (0..lq).step_by(block) {
        let rows = block.min(lq - start);
        let q = q.narrow(2, start, rows)?.contiguous()?;
        let mask = match &mask {
            Some(mask) if mask.dim(2)? == lq => Some(mask.narrow(2, start, rows)?),
            other => other.clone(),
        };
        blocks.push(attention_block(&q, &kt, &v, mask.as_ref())?);
    }
    Tensor::cat(&blocks, 2)
}

fn attention_block(q: &Tensor, kt: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let scores = q.matmul(kt)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    softmax_last_dim(&scores)?.matmul(v)
}

/// e^(x − max x) / Σ e^(x − max x) over the last dimension, any shape. A row of only −∞ gives
/// zeros.
///
/// # Errors
/// `x` is a scalar or not f32, or its device has no twin.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Softmax)
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let Some(&n) = layout.dims().last() else {
            bail!("softmax needs a dimension to sum over, the input is a scalar")
        };
        Ok((CpuStorage::F32(cpu::softmax(x, n)), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor, scale: f64) -> Result<Tensor> {
        let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(mask)?;
        let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.matmul(v)
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
        (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
    }

    #[test]
    fn blocks_of_queries_agree_with_the_whole() -> Result<()> {
        let dev = Device::Cpu;
        // 2 · 2 · 2100 keys make blocks of 1997 queries, so 2100 queries are two blocks.
        let (b, h, l) = (2, 2, 2100);
        let q = Tensor::randn(0f32, 1., (b, h, l, 8), &dev)?;
        let k = Tensor::randn(0f32, 1., (b, h, l, 8), &dev)?;
        let v = Tensor::randn(0f32, 1., (b, h, l, 5), &dev)?;
        assert!(SCORES_AT_ONCE / (b * h * l) < l);
        let causal: Vec<f32> =
            (0..l * l).map(|i| if i % l > i / l { f32::NEG_INFINITY } else { 0. }).collect();
        let causal = Tensor::from_vec(causal, (l, l), &dev)?;
        let got = attention(&q, &k, &v, Some(&causal), 0.35)?;
        assert!(max_difference(&got, &plain(&q, &k, &v, &causal, 0.35)?)? < 2e-5);
        let none = Tensor::zeros((1, 1), candle_core::DType::F32, &dev)?;
        let got = attention(&q, &k, &v, None, 0.35)?;
        assert!(max_difference(&got, &plain(&q, &k, &v, &none, 0.35)?)? < 2e-5);
        Ok(())
    }

    #[test]
    fn a_padding_mask_hides_keys_and_a_full_row_gives_zeros() -> Result<()> {
        let dev = Device::Cpu;
        let q = Tensor::randn(0f32, 1., (2, 1, 3, 4), &dev)?;
        let k = Tensor::randn(0f32, 1., (2, 1, 2, 4), &dev)?;
        let v = Tensor::new(&[[[[1f32], [2.]]], [[[3f32], [4.]]]], &dev)?;
        let inf = f32::NEG_INFINITY;
        let mask = Tensor::new(&[[[[0f32, inf]]], [[[inf, inf]]]], &dev)?;
        let y = attention(&q, &k, &v, Some(&mask), 0.5)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(y, [1., 1., 1., 0., 0., 0.]);
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() -> Result<()> {
        let t =
            |l: usize, d: usize| Tensor::zeros((1, 1, l, d), candle_core::DType::F32, &Device::Cpu);
        assert!(attention(&t(3, 4)?, &t(2, 5)?, &t(2, 4)?, None, 1.).is_err());
        assert!(attention(&t(3, 4)?, &t(2, 4)?, &t(3, 4)?, None, 1.).is_err());
        Ok(())
    }
}
