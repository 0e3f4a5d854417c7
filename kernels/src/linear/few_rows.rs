//! A linear layer of few rows: a text's, a small picture's.
//!
//! A product packs its right-hand side, and for thirty rows packing the weight takes a quarter of the time. Here the weight stands
//! on the left, where it is read as it lies, and what is packed is the input; the product, [out, rows], is turned while
//! it lies in a cache.

use std::ops::Range;

use rayon::prelude::*;

use crate::gemm::{Product, ROW_STEP, Shared, Start, Transposed};
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;

/// Rows for which it pays: a vector's at least. With 154 the two ways take the same time.
const ROWS: Range<usize> = 16..129;
/// Features of a task: their products, for most rows, are half of a second-level cache of 512 KiB.
const FEATURES: usize = 384;
/// Features whose products are turned at once.
const TURNED: usize = 48;

pub(crate) fn pays(rows: usize) -> bool {
    ROWS.contains(&rows)
}

/// y [rows, out] = x [rows, in] · wᵀ + bias, w [out, in].
pub(super) fn linear(
    isa: Isa,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    (rows, input, output): (usize, usize, usize),
) -> Vec<f32> {
    assert!(x.len() == rows * input && w.len() == output * input);
    assert!(bias.is_none_or(|bias| bias.len() == output));
    let mut y = memory::reserve(rows * output);
    let to = Shared(y.as_mut_ptr());
    let x = Transposed { values: WeightValues::F32(x), k: input };
    // A small product is done before the threads are woken.
    let parts = match rows * input * output < 100_000 {
        true => 1,
        false => output.div_ceil(FEATURES).next_multiple_of(rayon::current_num_threads()),
    };
    let step = output.div_ceil(parts.max(1)).next_multiple_of(ROW_STEP);
    (0..output).into_par_iter().step_by(step.max(1)).for_each_init(
        Scratch::default,
        |scratch, first| {
            let features = first..output.min(first + step);
            let Scratch { wide, panels, products } = scratch;
            let weights = match w {
                WeightValues::F32(values) => &values[features.start * input..features.end * input],
                half => {
                    wide.resize(features.len() * input, 0.0);
                    half.widen_into(isa, features.start * input, wide);
                    &wide[..]
                }
            };
            // A row of products is whole vectors and a cache line: beside each other they do not share a set of the cache.
            let stride = rows.next_multiple_of(16) + 16;
            let products = memory::aligned(products, features.len() * stride);
            let product = Product {
                m: features.len(),
                k: input,
                n: 0..rows,
                a: weights.as_ptr(),
                a_stride: input,
                b: &x,
                c: products.as_mut_ptr(),
                c_stride: stride,
                start: bias.map_or(Start::Zero, |bias| Start::Rows(&bias[features.clone()])),
                scratch: panels,
            };
            // SAFETY: the weights are rows of `input` values, and there is room for a row of products for each.
            unsafe { product.compute(isa) };
            let y = to.at(features.start);
            isa.run(Turn { products, stride, features: features.len(), rows, y, y_stride: output });
        },
    );
    // SAFETY: the tasks are all features, and each was written for every row.
    unsafe { y.set_len(rows * output) };
    y
}

#[derive(Default)]
struct Scratch {
    /// The weights of some features, where they are kept in half precision.
    wide: Vec<f32>,
    /// The packed input.
    panels: Vec<f32>,
    /// [feature, row]
    products: Vec<f32>,
}

/// Products [features, rows] to rows of features.
struct Turn<'a> {
    products: &'a [f32],
    stride: usize,
    features: usize,
    rows: usize,
    /// Leads to room for these features of every row, `y_stride` apart, which nobody else writes.
    y: *mut f32,
    y_stride: usize,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Turn { products, stride, features, rows, y, y_stride } = self;
        assert!(products.len() >= features * stride && rows <= stride);
        let whole_rows = rows / V::LANES * V::LANES;
        for first in (0..features).step_by(TURNED) {
            let part = first..features.min(first + TURNED);
            let whole = first + part.len() / V::LANES * V::LANES;
            for row in (0..whole_rows).step_by(V::LANES) {
                for feature in (first..whole).step_by(V::LANES) {
                    // SAFETY: LANES features and rows from here on are there, by the assert, and in y, by what is said of it.
                    unsafe {
                        let from = products.as_ptr().add(feature * stride + row);
                        V::transpose(from, stride, y.add(row * y_stride + feature), y_stride);
                    }
                }
            }
            for row in 0..rows {
                let start = if row < whole_rows { whole } else { first };
                for feature in start..part.end {
                    // SAFETY: as above.
                    unsafe { *y.add(row * y_stride + feature) = products[feature * stride + row] };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm;

    /// Some values between −1 and 1.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn is_the_product_on_every_instruction_set() {
        for (rows, input, output) in
            [(16, 1, 1), (17, 330, 50), (33, 64, 900), (100, 70, 129), (128, 321, 48), (100, 0, 7)]
        {
            let (x, w) = (values(rows * input, 1), values(output * input, 2));
            let biases = values(output, 3);
            for bias in [None, Some(&*biases)] {
                let w = WeightValues::F32(&w);
                let start = bias.map_or(Start::Zero, Start::Columns);
                for isa in Isa::available() {
                    let sizes = (rows, input, output);
                    let found = linear(isa, &x, w, bias, sizes);
                    let right = Transposed { values: w, k: input };
                    let want = gemm::product(isa, sizes, &x, &right, start);
                    assert_eq!(found.len(), want.len());
                    for (found, want) in found.iter().zip(&want) {
                        assert!((found - want).abs() < 1e-4, "{sizes:?}, {isa:?}: {found}, {want}");
                    }
                }
            }
        }
    }
}
