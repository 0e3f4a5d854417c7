//! Scaled dot-product attention (Vaswani et al., arXiv 1706.03762):
//! softmax(scale · Q Kᵀ + mask) V, every head by itself.
//!
//! The queries are taken in blocks, so the score matrix of a large picture (4096 × 4096 for each
//! head of a 64 × 64 latent) is never whole in memory.

mod backward;
mod bf16;
mod cpu;
mod cpu_backward;
#[cfg(any(feature = "cuda", test))]
mod cuda;

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::tape::{Reads, apply3};

/// `q` [B, H, Lq, D], `k` [B, H, Lk, D], `v` [B, H, Lk, Dv]; returns [B, H, Lq, Dv].
///
/// `mask` is added to the scaled scores and broadcasts to [B, H, Lq, Lk]: 0 keeps, −∞ removes. A
/// row in which everything is removed attends to nothing and gives zeros. `scale` is usually
/// 1/√D.
///
/// # Errors
/// Shapes or types that do not fit together, an input of another type than f32, f16 and bf16, or a
/// device without a twin.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let (b, h, lq, d) = q.dims4()?;
    let (bk, hk, lk, dk) = k.dims4()?;
    let (bv, hv, lv, dv) = v.dims4()?;
    begin("attention", q, &[b, h, lq, dv])?;
    if (bk, hk, dk) != (b, h, d) || (bv, hv, lv) != (b, h, lk) {
        bail!(
            "attention: q {:?}, k {:?} and v {:?} do not fit together",
            q.shape(),
            k.shape(),
            v.shape()
        )
    }
    let dtype = q.dtype();
    if k.dtype() != dtype || v.dtype() != dtype {
        bail!("attention: q is {dtype:?}, k {:?} and v {:?}", k.dtype(), v.dtype())
    }
    if q.device().is_cpu() && matches!(dtype, DType::F16 | DType::BF16) {
        // As `in_f32` does for one input.
        let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F32));
        return attention(&q?, &k?, &v?, mask, scale)?.to_dtype(dtype);
    }
    let mask = mask.map(|mask| mask.broadcast_as((b, h, lq, lk))).transpose()?;
    // The heads of a position lie side by side in what comes out, as the projection after it takes them.
    Attention::of([q, k, v], None, mask, scale)?.transpose(1, 2)
}

/// [`attention`] of projections as they are: `q` [B, Lq, H · D], `k` [B, Lk, H · D], `v` [B, Lk, H · Dv] with `heads` heads side
/// by side; returns [B, Lq, H · Dv]. Nothing is split off and joined again, which costs a training two passes over a
/// gradient each time.
///
/// # Errors
/// As [`attention`]; or the heads do not part the projections evenly.
pub fn attention_of_projections(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let ((b, lq, width), (_, lk, value_width)) = (q.dims3()?, v.dims3()?);
    let is_parted = |width: usize| heads > 0 && width.is_multiple_of(heads);
    if k.dims() != [b, lk, width] || v.dim(0)? != b || !is_parted(width) || !is_parted(value_width)
    {
        bail!(
            "attention: q {:?}, k {:?} and v {:?} do not fit together in {heads} heads",
            q.shape(),
            k.shape(),
            v.shape()
        )
    }
    begin("attention", q, &[b, lq, value_width])?;
    let dtype = q.dtype();
    if k.dtype() != dtype || v.dtype() != dtype {
        bail!("attention: q is {dtype:?}, k {:?} and v {:?}", k.dtype(), v.dtype())
    }
    if q.device().is_cpu() && matches!(dtype, DType::F16 | DType::BF16) {
        let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F32));
        let y = attention_of_projections(&q?, &k?, &v?, heads, mask, scale)?;
        return y.to_dtype(dtype);
    }
    let mask = mask.map(|mask| mask.broadcast_as((b, heads, lq, lk))).transpose()?;
    Attention::of([q, k, v], Some(heads), mask, scale)
}

/// `x` as it is where the values of its rows are side by side, as they are in heads split off a projection.
fn whole_rows(x: &Tensor) -> Result<Tensor> {
    match x.stride().last() {
        Some(1) => Ok(x.clone()),
        _ => x.contiguous(),
    }
}

/// Batch, heads, length and width of an input, and how far the first three are apart: [B, H, L, D], or with `heads` a projection
/// [B, L, H · D]. The values of a row lie side by side.
fn parted(layout: &Layout, heads: Option<usize>) -> Result<([usize; 4], [usize; 3])> {
    match (layout.dims(), layout.stride(), heads) {
        (&[b, h, l, d], &[of_b, of_h, of_l, 1], None) => Ok(([b, h, l, d], [of_b, of_h, of_l])),
        (&[b, l, wide], &[of_b, of_l, 1], Some(h)) => {
            Ok(([b, h, l, wide / h], [of_b, wide / h, of_l]))
        }
        _ => bail!("attention computes in rows, and the layout of an input is {layout:?}"),
    }
}

fn heads<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    heads: Option<usize>,
) -> Result<cpu::Heads<'a>> {
    let CpuStorage::F32(values) = storage else {
        bail!("attention computes in f32; an input is another")
    };
    let (_, strides) = parted(layout, heads)?;
    Ok(cpu::Heads { values, start: layout.start_offset(), strides })
}

fn sizes(q: &Layout, v: &Layout, heads: Option<usize>) -> Result<cpu::Sizes> {
    let ([batch, heads, queries, head_dim], [_, _, keys, value_dim]) =
        (parted(q, heads)?.0, parted(v, heads)?.0);
    Ok(cpu::Sizes { batch, heads, queries, keys, head_dim, value_dim })
}

fn span(s: cpu::Sizes) -> Span {
    let name = if s.keys > 128 { "attention, over 128 keys" } else { "attention, to 128 keys" };
    let operations = 2 * s.batch * s.heads * s.queries * s.keys * (s.head_dim + s.value_dim);
    Span::new(name, operations)
}

struct Attention {
    /// Of inputs that are projections.
    heads: Option<usize>,
    /// [B, H, Lq, Lk], broadcast and so with strides of 0.
    mask: Option<Tensor>,
    scale: f64,
    /// Where a gradient may be asked for: of each query [B, H, Lq] the logarithm of what its exponentials sum to, as the
    /// forward pass on the CPU leaves it.
    log_sums: Option<OnceLock<Vec<f32>>>,
}

impl Attention {
    /// [B, Lq, H, Dv]; of projections [B, Lq, H · Dv].
    fn of(
        [q, k, v]: [&Tensor; 3],
        heads: Option<usize>,
        mask: Option<Tensor>,
        scale: f64,
    ) -> Result<Tensor> {
        let learns = q.track_op() || k.track_op() || v.track_op();
        let op = Attention { heads, mask, scale, log_sums: learns.then(OnceLock::new) };
        let inputs = [&whole_rows(q)?, &whole_rows(k)?, &whole_rows(v)?];
        apply3(inputs, op, Reads { inputs: [true; 3], result: true })
    }

    /// What comes out, of so many numbers.
    fn shape(&self, s: cpu::Sizes) -> Shape {
        match self.heads {
            None => Shape::from((s.batch, s.queries, s.heads, s.value_dim)),
            Some(_) => Shape::from((s.batch, s.queries, s.heads * s.value_dim)),
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
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
        let sizes = sizes(q_layout, v_layout, self.heads)?;
        let input = |storage, layout| heads(storage, layout, self.heads);
        let (q, k, v) = (input(q, q_layout)?, input(k, k_layout)?, input(v, v_layout)?);
        let guard = self.mask.as_ref().map(Tensor::storage_and_layout);
        let mask = match &guard {
            None => None,
            Some((storage, layout)) => match (&**storage, layout.stride()) {
                (Storage::Cpu(CpuStorage::F32(values)), &[b, h, q, k]) => {
                    Some(cpu::Mask { values, start: layout.start_offset(), strides: [b, h, q, k] })
                }
                _ => bail!("attention: the mask must be f32 and on the device of the queries"),
            },
        };
        let _span = span(sizes);
        let (isa, scale) = (Isa::get()?, self.scale as f32);
        let keeps_sums = self.log_sums.is_some();
        let (y, log_sums) = cpu::attention(isa, [q, k, v], mask, scale, sizes, keeps_sums);
        if let (Some(place), Some(log_sums)) = (&self.log_sums, log_sums) {
            // The operator is of this call alone.
            let _ = place.set(log_sums);
        }
        Ok((CpuStorage::F32(y), self.shape(sizes)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::{Type, device};
        let sizes = sizes(q_layout, v_layout, self.heads)?;
        let _span = span(sizes);
        let number_type = device::number_type(q, self.name())?;
        let mut strides = [[0; 3]; 3];
        for (strides, layout) in strides.iter_mut().zip([q_layout, k_layout, v_layout]) {
            *strides = parted(layout, self.heads)?.1;
        }
        let mut inputs = vec![
            device::Input::strided(q, q_layout),
            device::Input::strided(k, k_layout),
            device::Input::strided(v, v_layout),
        ];
        let guard = self.mask.as_ref().map(Tensor::storage_and_layout);
        let mask = match &guard {
            None => None,
            Some((storage, layout)) => match (&**storage, layout.stride()) {
                (Storage::Cuda(mask), &[b, h, q, k])
                    if device::number_type(mask, self.name())? == Type::F32 =>
                {
                    inputs.push(device::Input::strided(mask, layout));
                    Some([b, h, q, k])
                }
                _ => bail!("attention: the mask must be f32 and on the device of the queries"),
            },
        };
        let aligned = inputs[1].is_aligned() && inputs[2].is_aligned();
        let strides = cuda::Strides { heads: strides, mask, aligned };
        let plan = cuda::plan(number_type, sizes, strides, self.scale as f32)?;
        let shape = self.shape(sizes);
        Ok((device::run(&plan, &inputs, (number_type, shape.elem_count()))?, shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        backward::gradients(self, [q, k, v], y, upstream).map(Into::into)
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
        let (b, h, l) = (2, 2, 2100);
        let q = Tensor::randn(0f32, 1., (b, h, l, 8), &dev)?;
        let k = Tensor::randn(0f32, 1., (b, h, l, 8), &dev)?;
        let v = Tensor::randn(0f32, 1., (b, h, l, 5), &dev)?;
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
    fn heads_split_off_a_projection_are_taken_where_they_lie() -> Result<()> {
        let dev = Device::Cpu;
        let none = Tensor::zeros((1, 1), candle_core::DType::F32, &dev)?;
        // The head widths of Stable Diffusion and Kosmos-G, and keys that do not fill a block.
        for (heads, width, queries, keys) in
            [(8, 40, 70, 300), (4, 64, 49, 257), (2, 80, 5, 77), (3, 160, 100, 64)]
        {
            let split = |length: usize| -> Result<Tensor> {
                let x = Tensor::randn(0f32, 1., (2, length, heads * width), &dev)?;
                x.reshape((2, length, heads, width))?.transpose(1, 2)
            };
            let (q, k, v) = (split(queries)?, split(keys)?, split(keys)?);
            let got = attention(&q, &k, &v, None, 0.1)?;
            assert_eq!(got.dims(), [2, heads, queries, width]);
            assert!(got.transpose(1, 2)?.is_contiguous());
            let [q, k, v] = [q.contiguous()?, k.contiguous()?, v.contiguous()?];
            assert!(max_difference(&got, &plain(&q, &k, &v, &none, 0.1)?)? < 1e-5);
        }
        Ok(())
    }

    /// Numbers and gradients, of projections that are parts of a wider one too.
    #[test]
    fn projections_are_as_their_heads() -> Result<()> {
        use candle_core::Var;
        let (heads, width, queries, keys) = (3, 20, 50, 300);
        let random = |length: usize, width: usize| {
            Var::randn(0f32, 1., (2, length, heads * width), &Device::Cpu)
        };
        let (q, kv) = (random(queries, width)?, random(keys, 2 * width)?);
        let k = kv.narrow(2, 0, heads * width)?;
        let v = kv.narrow(2, heads * width, heads * width)?;
        let mask = Tensor::randn(0f32, 1., (2, 1, queries, keys), &Device::Cpu)?;
        let split = |x: &Tensor| x.reshape((2, (), heads, width))?.transpose(1, 2);
        let by_heads = attention(&split(&q)?, &split(&k)?, &split(&v)?, Some(&mask), 0.3)?;
        let by_heads = by_heads.transpose(1, 2)?.flatten_from(2)?;
        let whole = attention_of_projections(&q, &k, &v, heads, Some(&mask), 0.3)?;
        assert_eq!(whole.dims(), [2, queries, heads * width]);
        assert_eq!(max_difference(&whole, &by_heads)?, 0.0);
        let g = Tensor::randn(0f32, 1., whole.shape(), &Device::Cpu)?;
        let gradients = |y: &Tensor| (y * &g)?.sum_all()?.backward();
        let (of_whole, of_heads) = (gradients(&whole)?, gradients(&by_heads)?);
        for input in [&q, &kv] {
            let found = of_whole.get(input).expect("a gradient");
            assert!(max_difference(found, of_heads.get(input).expect("a gradient"))? < 1e-6);
        }
        // Heads that do not part it, keys of another number than values, none at all.
        for (k, v, heads) in [(&k, &v, 7), (&k, &v.narrow(1, 0, 9)?, heads), (&k, &v, 0)] {
            assert!(attention_of_projections(&q, k, v, heads, None, 0.3).is_err());
        }
        Ok(())
    }

    #[test]
    fn keys_may_be_hidden_until_a_later_block() -> Result<()> {
        let dev = Device::Cpu;
        let q = Tensor::randn(0f32, 1., (1, 2, 7, 16), &dev)?;
        let k = Tensor::randn(0f32, 1., (1, 2, 600, 16), &dev)?;
        let mask: Vec<f32> =
            (0..600).map(|i| if i < 520 { f32::NEG_INFINITY } else { 0. }).collect();
        let mask = Tensor::from_vec(mask, (1, 600), &dev)?;
        let got = attention(&q, &k, &k, Some(&mask), 0.25)?;
        assert!(max_difference(&got, &plain(&q, &k, &k, &mask, 0.25)?)? < 1e-5);
        Ok(())
    }

    #[test]
    fn a_nan_is_not_hidden() -> Result<()> {
        let t = |value: f32| Tensor::full(value, (1, 1, 3, 4), &Device::Cpu);
        let y = attention(&t(f32::NAN)?, &t(1.)?, &t(1.)?, None, 0.5)?;
        assert!(y.flatten_all()?.to_vec1::<f32>()?.iter().all(|y| y.is_nan()));
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
