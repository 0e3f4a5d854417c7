//! What the change multiplies is little, and what it reads and writes are whole activations: where there are many rows, all
//! products of some of them follow each other while x, y and their gradients lie in a second-level cache.

use std::ops::Range;

use rayon::prelude::*;

use super::Sizes;
use crate::gemm::{self, Columns, Plain, Product, Rows, Shared, Start, Transposed};
use crate::memory;
use crate::simd::Isa;
use crate::storage::WeightValues;

/// Rows of a block: those of x and y, 320 to 640 wide, are 0.6 to 1.3 MB together.
const ROWS: usize = 240;
/// Rows from which on there are blocks of them: fewer are parted by columns, so that all threads have some.
const MANY_ROWS: usize = 1000;

/// y [rows, out], and t = scale · x Dᵀ [rows, rank].
pub(super) fn forward(
    isa: Isa,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    [down, up]: [&[f32]; 2],
    scale: f32,
    s: Sizes,
) -> (Vec<f32>, Vec<f32>) {
    let Sizes { rows, input, output, rank } = s;
    assert!(w.len() == output * input && down.len() == rank * input && up.len() == output * rank);
    assert!(x.len() == rows * input);
    let start = bias.map_or(Start::Zero, Start::Columns);
    let w = Transposed { values: w, k: input };
    let down = Transposed { values: WeightValues::F32(down), k: input };
    let up = Transposed { values: WeightValues::F32(up), k: rank };
    if rows < MANY_ROWS {
        let mut y = gemm::product(isa, (rows, input, output), x, &w, start);
        let mut middle = gemm::product(isa, (rows, input, rank), x, &down, Start::Zero);
        middle.iter_mut().for_each(|value| *value *= scale);
        gemm::add_product(isa, (rows, rank, output), &middle, &up, &mut y);
        return (y, middle);
    }
    let (mut y, mut middle) = (memory::reserve(rows * output), memory::reserve(rows * rank));
    let (to, to_middle) = (Shared(y.as_mut_ptr()), Shared(middle.as_mut_ptr()));
    in_blocks(rows, |rows, scratch| {
        let x = &x[rows.start * input..rows.end * input];
        let (y, middle) = (to.at(rows.start * output), to_middle.at(rows.start * rank));
        // SAFETY: the blocks part the rows among them, of which there is room for all.
        unsafe {
            multiply(
                isa,
                (rows.len(), input, rank),
                x.as_ptr(),
                &down,
                middle,
                Start::Zero,
                scratch,
            );
            scale_all(middle, rows.len() * rank, scale);
            multiply(isa, (rows.len(), input, output), x.as_ptr(), &w, y, start, scratch);
            multiply(isa, (rows.len(), rank, output), middle, &up, y, Start::Itself, scratch);
        }
    });
    // SAFETY: the blocks are all rows, and each was written whole.
    unsafe {
        y.set_len(rows * output);
        middle.set_len(rows * rank);
    }
    (y, middle)
}

/// What the gradients are computed from: dy [rows, out], and the layer's inputs; t is `middle`.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) dy: &'a [f32],
    pub(super) x: &'a [f32],
    pub(super) w: WeightValues<'a>,
    pub(super) down: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) middle: &'a [f32],
    pub(super) scale: f32,
}

/// dD = dtᵀ x [rank, in] and dU = dyᵀ t [out, rank] with dt = scale · dy U; and where it is wanted dx = dy W + dt D [rows, in].
pub(super) fn backward(
    isa: Isa,
    inputs: Inputs,
    wants_dx: bool,
    s: Sizes,
) -> (Option<Vec<f32>>, Vec<f32>, Vec<f32>) {
    let Inputs { dy, x, w, down, up, middle, scale } = inputs;
    let Sizes { rows, input, output, rank } = s;
    assert!(w.len() == output * input && down.len() == rank * input && up.len() == output * rank);
    assert!(x.len() == rows * input && dy.len() == rows * output && middle.len() == rows * rank);
    let up = Plain { values: up, stride: rank };
    let w = Rows { values: w, stride: input };
    let down = Plain { values: down, stride: input };
    if rows < MANY_ROWS {
        let mut of_middle = gemm::product(isa, (rows, output, rank), dy, &up, Start::Zero);
        of_middle.iter_mut().for_each(|value| *value *= scale);
        let dx = wants_dx.then(|| {
            let mut dx = gemm::product(isa, (rows, output, input), dy, &w, Start::Zero);
            gemm::add_product(isa, (rows, rank, input), &of_middle, &down, &mut dx);
            dx
        });
        let (of_middle, middle) = (turned(&of_middle, rank), turned(middle, rank));
        let [x, dy] = [(x, input), (dy, output)].map(|(values, stride)| Plain { values, stride });
        let of_down = gemm::product(isa, (rank, rows, input), &of_middle, &x, Start::Zero);
        let of_up = gemm::product(isa, (rank, rows, output), &middle, &dy, Start::Zero);
        return (dx, of_down, turned(&of_up, output));
    }
    let mut dx = memory::reserve(if wants_dx { rows * input } else { 0 });
    let to = Shared(dx.as_mut_ptr());
    // Of each block dD and dUᵀ, to be added in the blocks' order: the same numbers on any number of threads.
    let of_factors = rank * (input + output);
    let mut parts = memory::zeros(rows.div_ceil(ROWS) * of_factors);
    let to_parts = Shared(parts.as_mut_ptr());
    in_blocks(rows, |rows, scratch| {
        let x = &x[rows.start * input..rows.end * input];
        let dy = &dy[rows.start * output..rows.end * output];
        let count = rows.len();
        let mut of_middle = vec![0f32; count * rank];
        // SAFETY: the blocks part the rows, and the parts of the factors' gradients, among them; there is room for all.
        unsafe {
            let middle_to = of_middle.as_mut_ptr();
            multiply(isa, (count, output, rank), dy.as_ptr(), &up, middle_to, Start::Zero, scratch);
            scale_all(middle_to, count * rank, scale);
            if wants_dx {
                let dx = to.at(rows.start * input);
                multiply(isa, (count, output, input), dy.as_ptr(), &w, dx, Start::Zero, scratch);
                multiply(isa, (count, rank, input), middle_to, &down, dx, Start::Itself, scratch);
            }
            let part = rows.start / ROWS * of_factors;
            let (of_down, of_up) = (to_parts.at(part), to_parts.at(part + rank * input));
            let of_middle = turned(&of_middle, rank);
            let columns = Plain { values: x, stride: input };
            let sizes = (rank, count, input);
            multiply(isa, sizes, of_middle.as_ptr(), &columns, of_down, Start::Zero, scratch);
            let middle = turned(&middle[rows.start * rank..rows.end * rank], rank);
            let columns = Plain { values: dy, stride: output };
            let sizes = (rank, count, output);
            multiply(isa, sizes, middle.as_ptr(), &columns, of_up, Start::Zero, scratch);
        }
    });
    // SAFETY: the blocks are all rows, and each was written whole, where it is wanted.
    unsafe { dx.set_len(if wants_dx { rows * input } else { 0 }) };
    let (sums, others) = parts.split_at_mut(of_factors);
    for part in others.chunks_exact(of_factors) {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    let (of_down, of_up) = sums.split_at(rank * input);
    (wants_dx.then_some(dx), of_down.to_vec(), turned(of_up, output))
}

/// Calls `run` with the rows of each block, on all threads.
fn in_blocks(rows: usize, run: impl Fn(Range<usize>, &mut Vec<f32>) + Sync) {
    (0..rows.div_ceil(ROWS)).into_par_iter().for_each_init(Vec::new, |scratch, block| {
        run(block * ROWS..rows.min((block + 1) * ROWS), scratch);
    });
}

/// C [m, n] = start + A [m, k] B [k, n] on this thread, rows one after the other.
///
/// # Safety
/// A and C are there, C for nobody else.
unsafe fn multiply(
    isa: Isa,
    (m, k, n): (usize, usize, usize),
    a: *const f32,
    b: &impl Columns,
    c: *mut f32,
    start: Start,
    scratch: &mut Vec<f32>,
) {
    let product = Product { m, k, n: 0..n, a, a_stride: k, b, c, c_stride: n, start, scratch };
    // SAFETY: the caller's.
    unsafe { product.compute(isa) }
}

/// # Safety
/// `count` values are there, for nobody else.
unsafe fn scale_all(values: *mut f32, count: usize, scale: f32) {
    // SAFETY: the caller's.
    let values = unsafe { std::slice::from_raw_parts_mut(values, count) };
    values.iter_mut().for_each(|value| *value *= scale);
}

/// The transpose of rows of `width` values; of few numbers.
fn turned(from: &[f32], width: usize) -> Vec<f32> {
    let rows = from.len().checked_div(width).unwrap_or(0);
    let mut to = vec![0f32; from.len()];
    for (row, from) in from.chunks_exact(width.max(1)).enumerate() {
        for (to, from) in to[row..].iter_mut().step_by(rows).zip(from) {
            *to = *from;
        }
    }
    to
}
