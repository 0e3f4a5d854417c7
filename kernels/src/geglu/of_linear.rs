//! A linear layer that ends in GEGLU: what lies between them never goes to memory.
//!
//! A task has some rows of the input and as many columns of both halves of the result; their products stay in a second-level
//! cache until they are multiplied.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::activation::gelu;
use crate::begin::begin;
use crate::gemm::{Product, Shared, Start, Transposed};
use crate::linear::are_few;
use crate::memory;
use crate::profile::Span;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::{f32_slice, weight_values};

/// Rows of a task: the halves' panels are packed anew for each.
const ROWS: usize = 384;
/// Columns of each half, whole panels on every instruction set.
const COLUMNS: usize = 192;

/// [`geglu`](super::geglu) of [`linear`](crate::linear): `x` [..., in], `weight` [2n, in], f32 or kept in f16 or bf16, `bias`
/// [2n]; returns [..., n].
///
/// # Errors
/// As theirs.
pub fn linear_geglu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let is_f32_on_cpu = x.dtype() == DType::F32 && x.device().is_cpu();
    let (shape, (rows, ..)) = sizes(x.layout(), weight.layout(), bias.map(Tensor::layout))?;
    let learns = [Some(x), Some(weight), bias].into_iter().flatten().any(Tensor::track_op);
    match bias {
        // A gradient is computed from what lies between, and of few rows it stays in a cache by itself.
        Some(bias)
            if is_f32_on_cpu && !learns && !are_few(rows) && Isa::get()?.multiplies_f32() =>
        {
            begin("linear_geglu", x, shape.dims())?;
            let (x, weight) = (x.contiguous()?, weight.contiguous()?);
            x.apply_op3_no_bwd(&weight, &bias.contiguous()?, &LinearGeglu)
        }
        bias => super::geglu(&crate::linear(x, weight, bias)?),
    }
}

/// The output's shape, and (rows, in, n).
fn sizes(
    x: &Layout,
    weight: &Layout,
    bias: Option<&Layout>,
) -> Result<(Shape, (usize, usize, usize))> {
    let (shape, (rows, input, _)) = crate::linear::sizes(x, weight, bias)?;
    let (shape, n) = super::halved(&Layout::contiguous(shape))?;
    Ok((shape, (rows, input, n)))
}

struct LinearGeglu;

impl CustomOp3 for LinearGeglu {
    fn name(&self) -> &'static str {
        "linear_geglu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (shape, (rows, input, n)) = sizes(x_layout, weight_layout, Some(bias_layout))?;
        let x = f32_slice(x, x_layout, self.name())?;
        let values = weight_values(weight, weight_layout, self.name())?;
        let bias = f32_slice(bias, bias_layout, self.name())?;
        let _span = Span::new("linear, geglu", 4 * rows * input * n);
        let weight = Transposed { values, k: input };
        Ok((CpuStorage::F32(on_cpu(Isa::get()?, x, &weight, bias, (rows, n))), shape))
    }
}

/// y [rows, n] of x [rows, k] and w [2n, k].
fn on_cpu(
    isa: Isa,
    x: &[f32],
    w: &Transposed,
    bias: &[f32],
    (rows, n): (usize, usize),
) -> Vec<f32> {
    let k = w.k;
    assert!(x.len() == rows * k && w.values.len() == 2 * n * k);
    assert!(bias.len() == 2 * n);
    let mut y = memory::reserve(rows * n);
    let to = Shared(y.as_mut_ptr());
    let parts = |of: usize, step: usize| {
        let parts = of.div_ceil(step);
        let step = of.div_ceil(parts.max(1));
        (0..parts).map(move |i| i * step..of.min((i + 1) * step))
    };
    // Blocks of the same rows follow each other: they stay in a cache.
    let blocks: Vec<(Range<usize>, Range<usize>)> = parts(rows, ROWS)
        .flat_map(|rows| {
            let columns = (0..n).step_by(COLUMNS).map(|first| first..n.min(first + COLUMNS));
            columns.map(move |columns| (rows.clone(), columns))
        })
        .collect();
    blocks.into_par_iter().for_each_init(Scratch::default, |scratch, (rows, columns)| {
        let Scratch { panels, halves } = scratch;
        let size = rows.len() * columns.len();
        halves.resize(halves.len().max(2 * size), 0.0);
        let (values, gates) = halves.split_at_mut(size);
        for (half, to) in [(0, &mut *values), (n, &mut gates[..size])] {
            let product = Product {
                m: rows.len(),
                k,
                n: half + columns.start..half + columns.end,
                a: x[rows.start * k..].as_ptr(),
                a_stride: k,
                b: w,
                c: to.as_mut_ptr(),
                c_stride: columns.len(),
                start: Start::Columns(bias),
                scratch: panels,
            };
            // SAFETY: the rows of A are there, by the assert, and the half is this thread's.
            unsafe { product.compute(isa) };
        }
        let gates = &gates[..size];
        let to = to.at(rows.start * n + columns.start);
        isa.run(Gated { values, gates, columns: columns.len(), to, stride: n });
    });
    // SAFETY: the blocks are all rows and columns, and each was written.
    unsafe { y.set_len(rows * n) };
    y
}

#[derive(Default)]
struct Scratch {
    /// The packed weights.
    panels: Vec<f32>,
    /// The products of both halves.
    halves: Vec<f32>,
}

/// value · GELU(gate) of some rows.
struct Gated<'a> {
    values: &'a [f32],
    gates: &'a [f32],
    columns: usize,
    /// Where the first row goes, and how far the next is. These columns of as many rows are reserved, and nobody else's.
    to: *mut f32,
    stride: usize,
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Gated { values, gates, columns, to, stride } = self;
        let rows = values.chunks_exact(columns).zip(gates.chunks_exact(columns));
        for (row, (values, gates)) in rows.enumerate() {
            // SAFETY: as said of `to`; every pattern of bits is a value of f32, and none is read before it is written.
            let y = unsafe { std::slice::from_raw_parts_mut(to.add(row * stride), columns) };
            for ((y, value), gate) in y.iter_mut().zip(values).zip(gates) {
                *y = value * gelu(*gate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::storage::WeightValues;

    #[test]
    fn is_geglu_of_the_linear_layer_on_every_instruction_set() -> Result<()> {
        for (rows, k, n) in [(1, 7, 1), (5, 40, 33), (400, 33, 100), (3, 330, 97)] {
            let x = Tensor::randn(0f32, 1., (rows, k), &Device::Cpu)?;
            let w = Tensor::randn(0f32, 0.3, (2 * n, k), &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 1., 2 * n, &Device::Cpu)?;
            let values = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
            let (xs, ws, biases) = (values(&x)?, values(&w)?, values(&bias)?);
            let want = values(&crate::geglu(&crate::linear(&x, &w, Some(&bias))?)?)?;
            let most = want.iter().fold(1f32, |most, value| most.max(value.abs()));
            let mut found = vec![values(&linear_geglu(&x, &w, Some(&bias))?)?];
            for isa in Isa::available() {
                let w = Transposed { values: WeightValues::F32(&ws), k };
                found.push(on_cpu(isa, &xs, &w, &biases, (rows, n)));
            }
            for found in found {
                assert_eq!(found.len(), want.len());
                for (found, want) in found.iter().zip(&want) {
                    assert!((found - want).abs() < 2e-6 * most, "{found}, {want}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_learns_has_its_gradient_and_what_does_not_fit_is_refused() -> Result<()> {
        let w = Var::randn(0f32, 1., (6, 4), &Device::Cpu)?;
        let x = Tensor::randn(0f32, 1., (2, 4), &Device::Cpu)?;
        let gradients = linear_geglu(&x, &w, None)?.sum_all()?.backward()?;
        assert!(gradients.get(&w).is_some());
        let (odd, narrow) = (w.narrow(0, 0, 5)?.detach(), w.narrow(1, 0, 3)?.detach());
        for (weight, told) in [(odd, "into halves"), (narrow, "does not end in")] {
            let error = linear_geglu(&x, &weight, None).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        Ok(())
    }
}
