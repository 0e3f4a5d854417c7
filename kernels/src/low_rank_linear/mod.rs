//! A linear layer with a change of low rank that is trained beside its weight:
//! y = x Wᵀ + b + scale · (x Dᵀ) Uᵀ (Hu et al., "LoRA", arXiv 2106.09685).
//!
//! One operator and not four: what the change adds goes into y where it lies, as does its part of the gradient of x, and
//! the gradients of D and U are products of few rows.

mod cpu;

use std::sync::OnceLock;

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};

use crate::begin::begin;
use crate::linear::linear;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{WeightValues, f32_slice, weight_values};
use crate::tape::{Reads, apply3};

/// y = x Wᵀ + b + scale · (x Dᵀ) Uᵀ over the last dimension.
///
/// `x` [..., in], `weight` [out, in], f32 or kept in f16 or bf16, `bias` [out], `down` [rank, in] and `up` [out, rank];
/// returns [..., out]. Where `weight` or `bias` learn too, and on a GPU, it is the operators that it is made of.
///
/// # Errors
/// The shapes do not fit each other, an input is of another type, or its device has no twin.
pub fn low_rank_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    [down, up]: [&Tensor; 2],
    scale: f64,
) -> Result<Tensor> {
    let is_frozen = !weight.track_op() && !bias.is_some_and(Tensor::track_op);
    let is_f32 = [x, down, up].iter().all(|x| x.dtype() == DType::F32);
    if !(x.device().is_cpu() && is_f32 && is_frozen) {
        let y = linear(x, weight, bias)?;
        // Scaled where there are few numbers, rank for each token.
        return y + linear(&(linear(x, down, None)? * scale)?, up, None)?;
    }
    let op = LowRankLinear {
        weight: weight.contiguous()?,
        bias: bias.map(Tensor::contiguous).transpose()?,
        scale: scale as f32,
        middle: OnceLock::new(),
    };
    let (shape, _) = op.sizes(x.layout(), down.layout(), up.layout())?;
    begin("low_rank_linear", x, shape.dims())?;
    apply3([&x.contiguous()?, &down.contiguous()?, &up.contiguous()?], op, Reads::INPUTS)
}

struct LowRankLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    scale: f32,
    /// scale · x Dᵀ of the forward pass.
    middle: OnceLock<Vec<f32>>,
}

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    input: usize,
    output: usize,
    rank: usize,
}

impl Sizes {
    fn operations(self) -> usize {
        2 * self.rows * (self.input * self.output + self.rank * (self.input + self.output))
    }
}

impl LowRankLinear {
    /// The output's shape, and what is multiplied.
    fn sizes(&self, x: &Layout, down: &Layout, up: &Layout) -> Result<(Shape, Sizes)> {
        let (output, input) = self.weight.dims2()?;
        let (down, up) = (down.shape().dims2()?, up.shape().dims2()?);
        let rank = down.0;
        if down.1 != input || up != (output, rank) {
            bail!(
                "low_rank_linear: {up:?} times {down:?} is no change of a weight of {output} × {input}"
            )
        }
        let mut shape = x.dims().to_vec();
        let rows = shape.iter().rev().skip(1).product();
        match shape.last_mut() {
            Some(last) if *last == input => *last = output,
            _ => bail!("low_rank_linear: the input {shape:?} does not end in {input} features"),
        }
        if let Some(bias) = &self.bias
            && bias.dims() != [output]
        {
            bail!(
                "low_rank_linear: the bias {:?} is not one for each of {output} features",
                bias.shape()
            )
        }
        Ok((Shape::from(shape), Sizes { rows, input, output, rank }))
    }

    fn with_weight<T>(&self, run: impl FnOnce(WeightValues) -> Result<T>) -> Result<T> {
        let (storage, layout) = self.weight.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => run(weight_values(storage, layout, "low_rank_linear")?),
            _ => bail!("low_rank_linear: the weight is not where the input is"),
        }
    }
}

impl CustomOp3 for LowRankLinear {
    fn name(&self) -> &'static str {
        "low_rank_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        down: &CpuStorage,
        down_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (shape, s) = self.sizes(x_layout, down_layout, up_layout)?;
        let x = f32_slice(x, x_layout, self.name())?;
        let down = f32_slice(down, down_layout, self.name())?;
        let up = f32_slice(up, up_layout, self.name())?;
        let guard = self.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = match &guard {
            None => None,
            Some((storage, layout)) => match &**storage {
                Storage::Cpu(storage) => Some(f32_slice(storage, layout, self.name())?),
                _ => bail!("low_rank_linear: the bias is not where the input is"),
            },
        };
        let _span = Span::new(self.name(), s.operations());
        let isa = Isa::get()?;
        let (y, middle) = self.with_weight(|weight| {
            Ok(cpu::forward(isa, x, weight, bias, [down, up], self.scale, s))
        })?;
        // The operator is of this call alone.
        let _ = self.middle.set(middle);
        Ok((CpuStorage::F32(y), shape))
    }

    /// With t = scale · x Dᵀ and dt = scale · dy U: dx = dy W + dt D, dD = dtᵀ x, dU = dyᵀ t.
    fn bwd(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, s) = self.sizes(x.layout(), down.layout(), up.layout())?;
        begin("low_rank_linear_backward", x, x.dims())?;
        let Some(middle) = self.middle.get() else {
            bail!("low_rank_linear: the forward pass kept nothing for a gradient")
        };
        let upstream = upstream.contiguous()?;
        let [x_values, down_values, up_values, dy] =
            [x, down, up, &upstream].map(|tensor| tensor.contiguous());
        let (x_values, down_values, up_values, dy) = (x_values?, down_values?, up_values?, dy?);
        let guards = [&x_values, &down_values, &up_values, &dy].map(Tensor::storage_and_layout);
        let mut slices = [&[][..]; 4];
        for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
            let Storage::Cpu(storage) = &**storage else {
                bail!("low_rank_linear: an input is not on the CPU")
            };
            *slice = f32_slice(storage, layout, self.name())?;
        }
        let [x_values, down_values, up_values, dy] = slices;
        let wants_dx = x.track_op();
        let weight = if wants_dx { s.input * s.output } else { 0 };
        let operations = 2 * s.rows * (weight + 2 * s.rank * (s.input + s.output));
        let _span = Span::new("low_rank_linear_backward", operations);
        let isa = Isa::get()?;
        let (dx, ddown, dup) = self.with_weight(|w| {
            let (x, down, up, scale) = (x_values, down_values, up_values, self.scale);
            let inputs = cpu::Inputs { dy, x, w, down, up, middle, scale };
            Ok(cpu::backward(isa, inputs, wants_dx, s))
        })?;
        let tensor =
            |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        let dx = dx.map(|dx| tensor(dx, x)).transpose()?;
        let (ddown, dup) = (Some(tensor(ddown, down)?), Some(tensor(dup, up)?));
        Ok((dx, ddown, dup))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// The largest difference, as a share of the largest value.
    fn apart(found: &Tensor, want: &Tensor) -> Result<f64> {
        let largest = |t: Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
        let want = want.to_dtype(DType::F64)?;
        let difference = largest((found.to_dtype(DType::F64)? - &want)?)?;
        Ok(difference / largest(want)?.max(1e-30))
    }

    /// y and its gradients against the formula in f64, weights in every type.
    #[test]
    fn is_the_layer_with_its_change_and_so_are_its_gradients() -> Result<()> {
        let dev = Device::Cpu;
        let sizes =
            [(1, 1, 1, 1), (7, 33, 20, 3), (300, 96, 130, 16), (70, 40, 700, 4), (1105, 33, 50, 5)];
        for (rows, input, output, rank) in sizes {
            let x = Var::randn(0f32, 1., (1, rows, input), &dev)?;
            let down = Var::randn(0f32, 1., (rank, input), &dev)?;
            let up = Var::randn(0f32, 1., (output, rank), &dev)?;
            let g = Tensor::randn(0f32, 1., (1, rows, output), &dev)?;
            let bias = Tensor::randn(0f32, 1., output, &dev)?;
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let w = Tensor::randn(0f32, 1., (output, input), &dev)?.to_dtype(dtype)?;
                let y = low_rank_linear(&x, &w, Some(&bias), [&down, &up], 0.7)?;
                let found = (&y * &g)?.sum_all()?.backward()?;
                let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
                let inputs = [
                    &x.as_detached_tensor(),
                    &w,
                    &bias,
                    &down.as_detached_tensor(),
                    &up.as_detached_tensor(),
                    &g,
                ]
                .map(|t| wide(t).expect("f64"));
                let formula = |[x, w, bias, down, up, g]: &[Tensor; 6]| -> Result<[Tensor; 4]> {
                    let whole = (w + (up.matmul(down)? * 0.7)?)?;
                    let (x, g) = (x.squeeze(0)?, g.squeeze(0)?);
                    let of_whole = g.t()?.matmul(&x)?;
                    Ok([
                        x.matmul(&whole.t()?)?.broadcast_add(bias)?.unsqueeze(0)?,
                        g.matmul(&whole)?.unsqueeze(0)?,
                        (up.t()?.matmul(&of_whole)? * 0.7)?,
                        (of_whole.matmul(&down.t()?)? * 0.7)?,
                    ])
                };
                let want = formula(&inputs)?;
                // Of a single number the parts may cancel: the error is a share of what they are without their signs.
                let sizes = formula(&inputs.map(|t| t.abs().expect("f64")))?;
                let gradient = |var: &Var| found.get(var).expect("a gradient");
                let found = [&y.detach(), gradient(&x), gradient(&down), gradient(&up)];
                for ((found, want), size) in found.into_iter().zip(want).zip(sizes) {
                    let largest = |t: Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
                    let difference = largest((found.to_dtype(DType::F64)? - want)?)?;
                    let apart = difference / largest(size)?;
                    assert!(apart < 2e-7, "{rows} × {input} × {output}: {apart:.1e}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_weight_that_learns_has_its_gradient() -> Result<()> {
        let dev = Device::Cpu;
        let random = |shape: (usize, usize)| Var::randn(0f32, 1., shape, &dev);
        let (x, w, down, up) = (random((5, 4))?, random((3, 4))?, random((2, 4))?, random((3, 2))?);
        let y = low_rank_linear(&x, &w, None, [&down, &up], 0.5)?;
        let found = y.sum_all()?.backward()?;
        let frozen = low_rank_linear(&x, &w.as_detached_tensor(), None, [&down, &up], 0.5)?;
        assert!(apart(&y.detach(), &frozen.detach())? < 1e-6);
        let of_frozen = frozen.sum_all()?.backward()?;
        assert!(found.get(&w).is_some() && of_frozen.get(&w).is_none());
        for var in [&x, &down, &up] {
            let (a, b) = (found.get(var).expect("a"), of_frozen.get(var).expect("b"));
            assert!(apart(a, b)? < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() -> Result<()> {
        let zeros = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let (x, w) = (zeros((5, 4))?, zeros((3, 4))?);
        let run = |down, up| low_rank_linear(&x, &w, None, [&zeros(down)?, &zeros(up)?], 1.0);
        assert!(run((2, 4), (3, 2)).is_ok());
        assert!(run((2, 5), (3, 2)).is_err());
        assert!(run((2, 4), (4, 2)).is_err());
        assert!(run((2, 4), (3, 1)).is_err());
        Ok(())
    }
}
