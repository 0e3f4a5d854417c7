//! The layers that the transformers share: linear, layer norm, multi-head attention.
//!
//! Field names are the checkpoints' names.

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use kosmograph_kernels::bounds::at_least;

use crate::error::{Error, Result};
use crate::files::weights::{LowRank, Weight, Weights};

/// y = x Wᵀ + b, and where something is trained beside the weight, that too.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Linear {
    /// `weight` [output, input] and `bias` [output].
    pub fn load(weights: &Weights, input: usize, output: usize) -> Result<Linear> {
        Ok(Linear {
            weight: weights.get_weight("weight", (output, input))?,
            bias: Some(weights.get("bias", output)?),
            low_rank: weights.low_rank("weight"),
        })
    }

    /// As [`Linear::load`], of what torch's MultiheadAttention keeps as one: `in_proj_weight` and `in_proj_bias`, query, key and
    /// value below each other.
    pub fn load_in_proj(weights: &Weights, dim: usize) -> Result<Linear> {
        Ok(Linear {
            weight: weights.get_weight("in_proj_weight", (3 * dim, dim))?,
            bias: Some(weights.get("in_proj_bias", 3 * dim)?),
            low_rank: None,
        })
    }

    /// `weight` [output, input] alone.
    pub fn load_without_bias(weights: &Weights, input: usize, output: usize) -> Result<Linear> {
        Ok(Linear {
            weight: weights.get_weight("weight", (output, input))?,
            bias: None,
            low_rank: weights.low_rank("weight"),
        })
    }

    /// [..., input] → [..., output].
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (weight, bias) = (self.weight.tensor()?, self.bias.as_ref());
        match &self.low_rank {
            None => kosmograph_kernels::linear(x, &weight, bias),
            Some(low_rank) => low_rank.linear(x, &weight, bias),
        }
    }

    /// The layer and GEGLU behind it: [..., input] → [..., output / 2].
    pub fn forward_geglu(&self, x: &Tensor) -> CandleResult<Tensor> {
        match &self.low_rank {
            None => kosmograph_kernels::linear_geglu(x, &self.weight.tensor()?, self.bias.as_ref()),
            Some(_) => kosmograph_kernels::geglu(&self.forward(x)?),
        }
    }
}

impl LowRank {
    /// The linear layer that it changes: [..., input] → [..., output], `weight` [output, input], `bias` [output].
    pub(crate) fn linear(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> CandleResult<Tensor> {
        let LowRank::Product { down, up, scale } = self else {
            let y = kosmograph_kernels::linear(x, weight, bias)?;
            let change = kosmograph_kernels::linear(x, &self.whole()?.flatten_from(1)?, None)?;
            return kosmograph_kernels::add(&y, &change);
        };
        // A matrix that stays as it is has its gradient with no step between.
        let flat = |factor: &Tensor| match factor.rank() {
            2 => Ok(factor.clone()),
            _ => factor.flatten_from(1),
        };
        let (down, up) = (flat(down)?, flat(up)?);
        kosmograph_kernels::low_rank_linear(x, weight, bias, [&down, &up], *scale)
    }

    /// What it adds to a convolution's: [B, input, H, W] → [B, output, H', W'].
    pub(crate) fn conv2d(&self, x: &Tensor, stride: usize, padding: usize) -> CandleResult<Tensor> {
        let LowRank::Product { down, up, scale } = self else {
            return kosmograph_kernels::conv2d(x, &self.whole()?, None, stride, padding);
        };
        let middle = kosmograph_kernels::conv2d(x, down, None, stride, padding)?;
        kosmograph_kernels::conv2d(&(middle * *scale)?, up, None, 1, 0)
    }

    /// The change of the weight itself, in its shape.
    fn whole(&self) -> CandleResult<Tensor> {
        match self {
            LowRank::Product { down, up, scale } => {
                let shape = [&up.dims()[..1], &down.dims()[1..]].concat();
                (up.flatten_from(1)?.matmul(&down.flatten_from(1)?)? * *scale)?.reshape(shape)
            }
            LowRank::Hadamard { sides: [[a1, b1], [a2, b2]], shape, scale } => {
                let product = (a1.matmul(b1)? * a2.matmul(b2)?)?;
                (product * *scale)?.reshape(shape.as_slice())
            }
            LowRank::Kronecker { w1, w2: [a, b], shape, scale } => {
                let ((rows, columns), w2) = (w1.dims2()?, a.matmul(b)?);
                let (inner_rows, inner_columns) = w2.dims2()?;
                let w1 = w1.reshape((rows, 1, columns, 1))?;
                let product =
                    w1.broadcast_mul(&w2.reshape((1, inner_rows, 1, inner_columns))?)?;
                (product * *scale)?.reshape(shape.as_slice())
            }
        }
    }
}

/// Layer normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias`, both [size].
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: weights.get("weight", size)?,
            bias: weights.get("bias", size)?,
            eps,
        })
    }

    /// [..., size] → [..., size].
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        kosmograph_kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Attention with several heads (Vaswani et al., arXiv 1706.03762, §3.2.2), every projection with a
/// bias.
#[derive(Clone, Debug)]
pub struct MultiheadAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl MultiheadAttention {
    /// `dim` is the width of queries, keys, values and output; every head has `dim / heads` of it.
    pub fn load(weights: &Weights, dim: usize, heads: usize) -> Result<MultiheadAttention> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            return Err(Error::Input(format!(
                "attention of width {dim} cannot be split into {heads} heads"
            )));
        }
        let projection = |name: &str| Linear::load(&weights.sub(name), dim, dim);
        Ok(MultiheadAttention {
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            heads,
        })
    }

    /// `query` [B, Tq, C] attends to `context` [B, Tk, C]; `mask` is added to the scores, as in
    /// [`kosmograph_kernels::attention`]. Returns [B, Tq, C].
    pub fn forward(
        &self,
        query: &Tensor,
        context: &Tensor,
        mask: Option<&Tensor>,
    ) -> CandleResult<Tensor> {
        self.out_proj.forward(&self.attend(query, context, mask)?)
    }

    /// [`Self::forward`] without the output projection: the heads side by side, [B, Tq, C].
    pub fn attend(
        &self,
        query: &Tensor,
        context: &Tensor,
        mask: Option<&Tensor>,
    ) -> CandleResult<Tensor> {
        let (q, k) = (self.q_proj.forward(query)?, self.k_proj.forward(context)?);
        let (v, scale) = (self.v_proj.forward(context)?, self.scale(query)?);
        kosmograph_kernels::attention_of_projections(&q, &k, &v, self.heads, mask, scale)
    }

    /// [`Self::attend`] of `x` to itself where `drop` takes values out of the softmax, [B, heads, T, T], which is whole in
    /// memory.
    pub fn attend_dropping(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        drop: &dyn Fn(&Tensor) -> CandleResult<Tensor>,
    ) -> CandleResult<Tensor> {
        let (batch, _, dim) = x.dims3()?;
        let split =
            |x: Tensor| x.reshape((batch, (), self.heads, dim / self.heads))?.transpose(1, 2);
        let q = split(self.q_proj.forward(x)?)?;
        let k = split(self.k_proj.forward(x)?)?;
        let v = split(self.v_proj.forward(x)?)?;
        let scale = self.scale(x)?;
        let mut scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        // A softmax is the same whatever its scores are less; the gradient goes through what is left.
        let largest = scores.max_keepdim(D::Minus1)?.detach();
        let exponentials = scores.broadcast_sub(&largest)?.exp()?;
        let softmax = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
        let heads = drop(&softmax)?.matmul(&v.contiguous()?)?;
        heads.transpose(1, 2)?.reshape(x.shape())
    }

    /// What products of queries and keys are multiplied with.
    fn scale(&self, query: &Tensor) -> CandleResult<f64> {
        Ok(((query.dim(2)? / self.heads) as f64).powf(-0.5))
    }

    /// The projection that follows [`Self::attend`].
    pub fn project(&self, heads: &Tensor) -> CandleResult<Tensor> {
        self.out_proj.forward(heads)
    }
}

/// Hides from each position those after it: [length, length], 0 on and below the diagonal, −∞
/// above.
///
/// # Errors
/// There is not the memory for it.
pub fn causal_mask(length: usize, device: &Device) -> CandleResult<Tensor> {
    let what = format_args!("the attention of {length} tokens to each other");
    let mut mask =
        kosmograph_memory::room(what, &[length, length]).map_err(candle_core::Error::wrap)?;
    let hidden = (0..length * length).map(|i| i % length > i / length);
    mask.extend(hidden.map(|hidden| if hidden { f32::NEG_INFINITY } else { 0.0 }));
    Tensor::from_vec(mask, (length, length), device)
}

/// Hides the keys that are padding: `padding` [B, T], nonzero where a position is padding, → [B, 1,
/// 1, T], 0 or −∞.
pub fn padding_mask(padding: &Tensor) -> CandleResult<Tensor> {
    let (batch, length) = padding.dims2()?;
    let shape = (batch, 1, 1, length);
    let zero = Tensor::zeros(shape, DType::F32, padding.device())?;
    let hidden = Tensor::full(f32::NEG_INFINITY, shape, padding.device())?;
    padding.reshape(shape)?.where_cond(&hidden, &zero)
}

/// x / max(‖x‖₂, 1e-12) over the last dimension.
pub fn l2_normalize(x: &Tensor) -> CandleResult<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    x.broadcast_div(&at_least(&norm, 1e-12)?)
}

/// Rows of an embedding table [V, C] for `ids` [B, T], in f32 whatever the table is kept in: [B, T, C].
///
/// # Errors
/// An id has no row.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, dim) = table.dims2()?;
    let (batch, length) = ids.dims2()?;
    let ids = ids.flatten_all()?.to_dtype(DType::U32)?;
    if let Some(id) = ids.to_vec1::<u32>()?.into_iter().find(|id| *id as usize >= rows) {
        return Err(Error::Input(format!(
            "token {id} has no embedding: the table has {rows} rows"
        )));
    }
    let rows = table.index_select(&ids, 0)?.to_dtype(DType::F32)?;
    Ok(rows.reshape((batch, length, dim))?)
}
