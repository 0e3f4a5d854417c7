//! The gradients of attention, its scores computed anew (Dao et al., FlashAttention, arXiv 2205.14135, §3.1): the forward
//! pass keeps its inputs, its result and a number for each query, and no matrix of queries by keys. With P the softmax and
//! O = P V: dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − Σ dO ∘ O), dQ = scale · dS K, dK = scale · dSᵀ Q.

use crate::bounds::at_least;
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Storage, Tensor, bail};

use super::cpu::{Mask, Sizes};
use super::cpu_backward::{Inputs, attention_backward};
use super::{Attention, heads, sizes, whole_rows};
use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;

/// The gradients of `q` [B, H, Lq, D], `k` [B, H, Lk, D] and `v` [B, H, Lk, Dv]; `y` and `upstream` [B, Lq, H, Dv], as the
/// operator's result lies in memory. What comes out lies as [B, L, H, D], as the heads of a projection do. Of projections
/// all of these have heads and width as one axis.
pub(super) fn gradients(
    op: &Attention,
    [q, k, v]: [&Tensor; 3],
    y: &Tensor,
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    begin("attention_backward", q, &[q.elem_count() + k.elem_count() + v.elem_count()])?;
    let wanted = [q, k, v].map(Tensor::track_op);
    // [B, L, H · D] as [B, L, H, D].
    let split = |x: &Tensor| match op.heads {
        None => Ok(x.detach()),
        Some(heads) => x.detach().reshape((x.dim(0)?, x.dim(1)?, heads, x.dim(2)? / heads)),
    };
    let (y, upstream) = (split(y)?, split(upstream)?.transpose(1, 2)?);
    let input = |x: &Tensor| match op.heads {
        None => split(x),
        Some(_) => split(x)?.transpose(1, 2),
    };
    let (q, k, v) = (input(q)?, input(k)?, input(v)?);
    let found = if q.device().is_cpu() {
        let backward = Backward { op, y, upstream: whole_rows(&upstream)? };
        let all = q.apply_op3_no_bwd(&k, &v, &backward)?;
        let mut at = 0;
        [&q, &k, &v].map(|input| {
            let (batch, heads, length, width) = input.dims4()?;
            let count = input.elem_count();
            at += count;
            let gradient = all.narrow(0, at - count, count)?;
            match op.heads {
                None => gradient.reshape((batch, length, heads, width))?.transpose(1, 2),
                Some(_) => gradient.reshape((batch, length, heads * width)),
            }
        })
    } else {
        let found = by_algebra([&q, &k, &v], op.mask.as_ref(), op.scale, &upstream)?;
        found.map(|gradient| match op.heads {
            None => Ok(gradient),
            Some(_) => gradient.transpose(1, 2)?.flatten_from(2),
        })
    };
    let [dq, dk, dv] = found;
    let [of_q, of_k, of_v] = wanted;
    Ok([of_q.then_some(dq?), of_k.then_some(dk?), of_v.then_some(dv?)])
}

/// The same of the tensor library's operations, for a GPU: a head at a time has its scores whole.
fn by_algebra(
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    scale: f64,
    upstream: &Tensor,
) -> Result<[Tensor; 3]> {
    let (batch, heads, _, _) = q.dims4()?;
    let mut found = [vec![], vec![], vec![]];
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let head = |x: &Tensor| x.get(b)?.get(h)?.contiguous();
        let (q, k, v, upstream) = (head(q)?, head(k)?, head(v)?, head(upstream)?);
        let mut scores = (q.matmul(&k.t()?)? * scale)?;
        if let Some(mask) = mask {
            scores = (scores + head(mask)?.to_dtype(q.dtype())?)?;
        }
        // Where everything is hidden the largest is −∞, and 0 is as good.
        let largest = at_least(&scores.max_keepdim(D::Minus1)?, f64::from(f32::MIN))?;
        let e = scores.broadcast_sub(&largest)?.exp()?;
        let sums = at_least(&e.sum_keepdim(D::Minus1)?, f64::from(f32::MIN_POSITIVE))?;
        let p = e.broadcast_div(&sums)?;
        let dp = upstream.matmul(&v.t()?)?;
        let mean = (&p * &dp)?.sum_keepdim(D::Minus1)?;
        let ds = ((&p * dp.broadcast_sub(&mean)?)? * scale)?;
        found[0].push(ds.matmul(&k)?);
        found[1].push(ds.t()?.contiguous()?.matmul(&q)?);
        found[2].push(p.t()?.contiguous()?.matmul(&upstream)?);
    }
    let whole = |parts: &[Tensor], like: &Tensor| Tensor::stack(parts, 0)?.reshape(like.shape());
    Ok([whole(&found[0], q)?, whole(&found[1], k)?, whole(&found[2], v)?])
}

struct Backward<'a> {
    op: &'a Attention,
    /// [B, Lq, H, Dv]
    y: Tensor,
    /// [B, H, Lq, Dv]
    upstream: Tensor,
}

impl CustomOp3 for Backward<'_> {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let s = sizes(q_layout, v_layout, None)?;
        let Sizes { batch, heads: count, queries, keys, head_dim, value_dim } = s;
        let input = |storage, layout| heads(storage, layout, None);
        let (q, k, v) = (input(q, q_layout)?, input(k, k_layout)?, input(v, v_layout)?);
        let upstream = self.upstream.storage_and_layout();
        let y = self.y.transpose(1, 2)?;
        let y = y.storage_and_layout();
        let (upstream, y) = match (&*upstream.0, &*y.0) {
            (Storage::Cpu(of_upstream), Storage::Cpu(of_y)) => {
                (input(of_upstream, upstream.1)?, input(of_y, y.1)?)
            }
            _ => bail!("attention: the gradient is not where the queries are"),
        };
        let Some(log_sums) = self.op.log_sums.as_ref().and_then(|sums| sums.get()) else {
            bail!("attention: the forward pass kept nothing for a gradient")
        };
        let guard = self.op.mask.as_ref().map(Tensor::storage_and_layout);
        let mask = match &guard {
            None => None,
            Some((storage, layout)) => match (&**storage, layout.stride()) {
                (Storage::Cpu(CpuStorage::F32(values)), &[b, h, q, k]) => {
                    Some(Mask { values, start: layout.start_offset(), strides: [b, h, q, k] })
                }
                _ => bail!("attention: the mask must be f32 and on the device of the queries"),
            },
        };
        let operations = batch * count * queries * keys * (6 * head_dim + 4 * value_dim);
        let _span = Span::new(self.name(), operations);
        let scale = self.op.scale as f32;
        let all = attention_backward(
            Isa::get()?,
            Inputs { q, k, v, y, upstream, log_sums, mask, scale },
            s,
        );
        let count = all.len();
        Ok((CpuStorage::F32(all), Shape::from(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::attention;
    use candle_core::{DType, Device, Var};

    fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
        let b = b.to_dtype(DType::F64)?;
        let size = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?.max(1e-30);
        let difference = (a.to_dtype(DType::F64)? - b)?.abs()?.flatten_all()?.max(0)?;
        Ok(difference.to_scalar::<f64>()? / size)
    }

    /// Every case against the tensor library's operations in f64, and those against central differences.
    #[test]
    fn gradients_agree_with_the_formula_in_f64() -> Result<()> {
        let dev = Device::Cpu;
        for (heads, width, values, queries, keys, masked) in [
            (2, 40, 40, 130, 77, false),
            (1, 8, 5, 300, 300, true),
            (3, 16, 16, 7, 1, false),
            (2, 20, 33, 97, 65, true),
        ] {
            let of = |length: usize, width: usize| {
                let x = Var::randn(0f32, 1., (2, length, heads, width), &dev)?;
                let split = x.transpose(1, 2)?;
                Ok::<_, candle_core::Error>((x, split))
            };
            let ((q, q_heads), (k, k_heads)) = (of(queries, width)?, of(keys, width)?);
            let (v, v_heads) = of(keys, values)?;
            // Causal where it is square; one sample's last keys are hidden, and one query sees nothing.
            let mask: Vec<f32> = (0..2 * queries * keys)
                .map(|i| {
                    let (b, q, k) = (i / keys / queries, i / keys % queries, i % keys);
                    let hidden = (queries == keys && k > q) || (b == 1 && k + 3 > keys) || q == 5;
                    if hidden { f32::NEG_INFINITY } else { 0.0 }
                })
                .collect();
            let mask = Tensor::from_vec(mask, (2, 1, queries, keys), &dev)?;
            let mask = masked.then_some(mask);
            let y = attention(&q_heads, &k_heads, &v_heads, mask.as_ref(), 0.3)?;
            let g = Tensor::randn(0f32, 1., y.shape(), &dev)?;
            let grads = (y * &g)?.sum_all()?.backward()?;
            let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
            let [q64, k64, v64] = [wide(&q_heads)?, wide(&k_heads)?, wide(&v_heads)?];
            let mask = match &mask {
                None => None,
                Some(mask) => Some(wide(&mask.broadcast_as((2, heads, queries, keys))?)?),
            };
            let want = by_algebra([&q64, &k64, &v64], mask.as_ref(), 0.3, &wide(&g)?)?;
            for (input, want) in [&q, &k, &v].into_iter().zip(want) {
                let found = grads.get(input).expect("a gradient").transpose(1, 2)?;
                let error = largest_difference(&found, &want)?;
                assert!(error < 5e-6, "{width} wide, {queries} × {keys}: {error:.1e}");
            }
        }
        Ok(())
    }

    /// Scores far below 0 and far above it, a few keys: what stands past the keys in a vector has no part in it.
    #[test]
    fn large_scores_have_finite_gradients() -> Result<()> {
        let dev = Device::Cpu;
        for sign in [-1.0, 1.0] {
            let q = Var::from_tensor(&Tensor::full(30f32 * sign as f32, (1, 1, 5, 4), &dev)?)?;
            let k = Var::from_tensor(&Tensor::full(30f32, (1, 1, 3, 4), &dev)?)?;
            let v = Var::randn(0f32, 1., (1, 1, 3, 4), &dev)?;
            let grads = attention(&q, &k, &v, None, 0.5)?.sum_all()?.backward()?;
            for input in [&q, &k, &v] {
                let found =
                    grads.get(input).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
                assert!(found.iter().all(|value| value.is_finite()), "{found:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_formula_agrees_with_differences_in_f64() -> Result<()> {
        let dev = Device::Cpu;
        let random = |length, width| Tensor::randn(0f64, 1., (1, 1, length, width), &dev);
        let inputs = [random(3, 4)?, random(5, 4)?, random(5, 2)?];
        let g = random(3, 2)?;
        let sum = |inputs: &[Tensor; 3]| -> Result<f64> {
            let [q, k, v] = inputs;
            let e = (q.matmul(&k.t()?)? * 0.7)?.exp()?;
            let y = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.matmul(v)?;
            (y * &g)?.sum_all()?.to_scalar::<f64>()
        };
        let found = by_algebra([&inputs[0], &inputs[1], &inputs[2]], None, 0.7, &g)?;
        for (which, found) in found.iter().enumerate() {
            let found = found.flatten_all()?.to_vec1::<f64>()?;
            for (i, found) in found.into_iter().enumerate() {
                let at = |step: f64| -> Result<f64> {
                    let mut values = inputs[which].flatten_all()?.to_vec1::<f64>()?;
                    values[i] += step;
                    let mut moved = inputs.clone();
                    moved[which] = Tensor::from_vec(values, inputs[which].shape(), &dev)?;
                    sum(&moved)
                };
                let want = (at(1e-5)? - at(-1e-5)?) / 2e-5;
                assert!((found - want).abs() < 1e-8, "{found} is not {want}");
            }
        }
        Ok(())
    }
}
