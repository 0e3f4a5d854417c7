//! The gradients of attention, its scores computed anew (Dao et al., FlashAttention, arXiv 2205.14135, §3.1): the forward
//! pass keeps its three inputs and no matrix of queries by keys. With P the softmax and O = P V:
//! dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − Σⱼ P ∘ dP), dQ = scale · dS K, dK = scale · dSᵀ Q.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{Heads, LANES, Mask, Sizes, exponentials, max};
use super::{Attention, heads, whole_rows};
use crate::begin::begin;
use crate::gemm::{Columns, Plain, Product, Start, Transposed};
use crate::memory;
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;

/// The gradients of `q` [B, H, Lq, D], `k` [B, H, Lk, D] and `v` [B, H, Lk, Dv]; `upstream` [B, Lq, H, Dv], as the
/// operator's result lies in memory.
pub(super) fn gradients(
    op: &Attention,
    [q, k, v]: [&Tensor; 3],
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    begin("attention_backward", q, &[q.elem_count() + k.elem_count() + v.elem_count()])?;
    let wanted = [q, k, v].map(Tensor::track_op);
    let upstream = upstream.transpose(1, 2)?;
    let [q, k, v] = [q.detach(), k.detach(), v.detach()];
    let found = if q.device().is_cpu() {
        let mask = op.mask.clone();
        let backward = Backward { mask, scale: op.scale, upstream: whole_rows(&upstream)? };
        let all = q.apply_op3_no_bwd(&k, &v, &backward)?;
        let mut at = 0;
        [&q, &k, &v].map(|input| {
            let count = input.elem_count();
            at += count;
            all.narrow(0, at - count, count)?.reshape(input.shape())
        })
    } else {
        by_algebra([&q, &k, &v], op.mask.as_ref(), op.scale, &upstream)?.map(Ok)
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
        let largest = scores.max_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN))?;
        let e = scores.broadcast_sub(&largest)?.exp()?;
        let sums = e.sum_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
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

struct Backward {
    /// [B, H, Lq, Lk], broadcast and so with strides of 0.
    mask: Option<Tensor>,
    scale: f64,
    /// [B, H, Lq, Dv]
    upstream: Tensor,
}

impl CustomOp3 for Backward {
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
        let (batch, heads_count, queries, head_dim) = q_layout.shape().dims4()?;
        let (_, _, keys, value_dim) = v_layout.shape().dims4()?;
        let sizes = Sizes { batch, heads: heads_count, queries, keys, head_dim, value_dim };
        let (q, k, v) = (heads(q, q_layout)?, heads(k, k_layout)?, heads(v, v_layout)?);
        let (upstream, upstream_layout) = self.upstream.storage_and_layout();
        let upstream = match &*upstream {
            Storage::Cpu(upstream) => heads(upstream, upstream_layout)?,
            _ => bail!("attention: the gradient is not where the queries are"),
        };
        let guard = self.mask.as_ref().map(Tensor::storage_and_layout);
        let mask = match &guard {
            None => None,
            Some((storage, layout)) => match (&**storage, layout.stride()) {
                (Storage::Cpu(CpuStorage::F32(values)), &[b, h, q, k]) => {
                    Some(Mask { values, start: layout.start_offset(), strides: [b, h, q, k] })
                }
                _ => bail!("attention: the mask must be f32 and on the device of the queries"),
            },
        };
        let operations = batch * heads_count * queries * keys * (6 * head_dim + 4 * value_dim);
        let _span = Span::new(self.name(), operations);
        let inputs = Inputs { q, k, v, upstream, mask, scale: self.scale as f32 };
        let all = attention_backward(Isa::get()?, inputs, sizes);
        let count = all.len();
        Ok((CpuStorage::F32(all), Shape::from(count)))
    }
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    upstream: Heads<'a>,
    mask: Option<Mask<'a>>,
    scale: f32,
}

/// Queries that a head has the scores of at once.
const QUERIES: usize = 96;

/// dq, dk and dv one after the other, each as its input with whole rows. A task is one head.
fn attention_backward(isa: Isa, inputs: Inputs, s: Sizes) -> Vec<f32> {
    let heads = s.batch * s.heads;
    let (of_q, of_k, of_v) = (s.queries * s.head_dim, s.keys * s.head_dim, s.keys * s.value_dim);
    let mut all = memory::zeros(heads * (of_q + of_k + of_v));
    if s.queries == 0 || s.keys == 0 || s.head_dim == 0 || s.value_dim == 0 {
        return all;
    }
    let (dq, rest) = all.split_at_mut(heads * of_q);
    let (dk, dv) = rest.split_at_mut(heads * of_k);
    let results = dq
        .par_chunks_exact_mut(of_q)
        .zip(dk.par_chunks_exact_mut(of_k))
        .zip(dv.par_chunks_exact_mut(of_v));
    results.enumerate().for_each_init(Scratch::default, |scratch, (head, ((dq, dk), dv))| {
        let at = [head / s.heads, head % s.heads];
        head_backward(isa, inputs, s, at, [dq, dk, dv], scratch);
    });
    all
}

#[derive(Default)]
struct Scratch {
    /// P of a block of queries, and dS after it.
    p: Vec<f32>,
    ds: Vec<f32>,
    /// One of them by key.
    turned: Vec<f32>,
    panels: Vec<f32>,
}

fn head_backward(
    isa: Isa,
    inputs: Inputs,
    s: Sizes,
    [batch, head]: [usize; 2],
    [dq, dk, dv]: [&mut [f32]; 3],
    scratch: &mut Scratch,
) {
    let Inputs { q, k, v, upstream, mask, scale } = inputs;
    let Scratch { p, ds, turned, panels } = scratch;
    let (k, k_stride) = k.rows(batch, head, 0);
    let (v, v_stride) = v.rows(batch, head, 0);
    let by_key = Transposed { values: WeightValues::F32(k), k: k_stride };
    let by_value = Transposed { values: WeightValues::F32(v), k: v_stride };
    let keys = Plain { values: k, stride: k_stride };
    for scores in [&mut *p, &mut *ds, &mut *turned] {
        scores.resize(QUERIES * s.keys, 0.0);
    }
    for first in (0..s.queries).step_by(QUERIES) {
        let queries = QUERIES.min(s.queries - first);
        let (q, q_stride) = q.rows(batch, head, first);
        let (up, up_stride) = upstream.rows(batch, head, first);
        let (p, ds) = (&mut p[..queries * s.keys], &mut ds[..queries * s.keys]);
        let turned = &mut turned[..queries * s.keys];
        let sizes = (queries, s.head_dim, s.keys);
        multiply(isa, sizes, (q, q_stride), &by_key, p, Start::Zero, panels);
        let sizes = (queries, s.value_dim, s.keys);
        multiply(isa, sizes, (up, up_stride), &by_value, ds, Start::Zero, panels);
        let at = [batch, head, first, 0];
        isa.run(Rows { p, ds, keys: s.keys, mask, at, scale });
        let dq = &mut dq[first * s.head_dim..][..queries * s.head_dim];
        let sizes = (queries, s.keys, s.head_dim);
        multiply(isa, sizes, (ds, s.keys), &keys, dq, Start::Zero, panels);
        isa.run(Turn { from: ds, columns: s.keys, to: turned, rows: queries });
        let queries_of = Plain { values: q, stride: q_stride };
        let sizes = (s.keys, queries, s.head_dim);
        multiply(isa, sizes, (turned, queries), &queries_of, dk, Start::Itself, panels);
        isa.run(Turn { from: p, columns: s.keys, to: turned, rows: queries });
        let upstream_of = Plain { values: up, stride: up_stride };
        let sizes = (s.keys, queries, s.value_dim);
        multiply(isa, sizes, (turned, queries), &upstream_of, dv, Start::Itself, panels);
    }
}

/// C [m, n] = start + A [m, k] B [k, n], A's rows so many values apart and C's side by side.
fn multiply(
    isa: Isa,
    (m, k, n): (usize, usize, usize),
    (a, a_stride): (&[f32], usize),
    b: &impl Columns,
    c: &mut [f32],
    start: Start,
    scratch: &mut Vec<f32>,
) {
    assert!(c.len() == m * n && a.len() >= (m - 1) * a_stride + k);
    let (a, c) = (a.as_ptr(), c.as_mut_ptr());
    let product = Product { m, k, n: 0..n, a, a_stride, b, c, c_stride: n, start, scratch };
    // SAFETY: A's and C's rows are there, by the assert, and C is borrowed alone.
    unsafe { product.compute(isa) }
}

/// Scores become P, and dP becomes dS, row by row.
struct Rows<'a> {
    p: &'a mut [f32],
    ds: &'a mut [f32],
    keys: usize,
    mask: Option<Mask<'a>>,
    /// Where the first row begins in the mask.
    at: [usize; 4],
    scale: f32,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows { p, ds, keys, mask, at: [batch, head, first, key], scale } = self;
        let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
        for (row, (p, ds)) in rows.enumerate() {
            p.iter_mut().for_each(|score| *score *= scale);
            if let Some(mask) = &mask {
                mask.add([batch, head, first + row, key], p);
            }
            softmax(p);
            let mean = dot(p, ds);
            for (ds, p) in ds.iter_mut().zip(p.iter()) {
                *ds = p * (*ds - mean) * scale;
            }
        }
    }
}

/// The rows of `from`, `columns` wide, as the columns of `to`, whose rows are `rows` wide.
struct Turn<'a> {
    from: &'a [f32],
    columns: usize,
    to: &'a mut [f32],
    rows: usize,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Turn { from, columns, to, rows } = self;
        assert!(from.len() == rows * columns && to.len() == rows * columns);
        let whole_rows = rows / V::LANES * V::LANES;
        let whole_columns = columns / V::LANES * V::LANES;
        for row in (0..whole_rows).step_by(V::LANES) {
            for column in (0..whole_columns).step_by(V::LANES) {
                // SAFETY: LANES rows and columns of both from here on, by the assert.
                unsafe {
                    let from = from.as_ptr().add(row * columns + column);
                    V::transpose(from, columns, to.as_mut_ptr().add(column * rows + row), rows);
                }
            }
        }
        for row in 0..rows {
            let first = if row < whole_rows { whole_columns } else { 0 };
            for column in first..columns {
                to[column * rows + row] = from[row * columns + column];
            }
        }
    }
}

/// A row in which everything is hidden becomes zeros, as in the forward.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = max(scores);
    let sum = exponentials(scores, if largest == f32::NEG_INFINITY { 0.0 } else { largest });
    let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    scores.iter_mut().for_each(|p| *p *= scale);
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
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
