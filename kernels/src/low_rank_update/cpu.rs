use rayon::prelude::*;

use crate::gemm::{Plain, Product, Start};
use crate::memory;
use crate::simd::Isa;
use crate::storage::WeightValues;

/// Values of y that one task makes: what a second-level cache holds, and enough rows that packing `down` for
/// them pays.
const TASK_VALUES: usize = 1 << 17;

/// y [rows, columns] = w + up [rows, rank] · down [rank, columns]. A task is some rows of w, which
/// the product begins with, so that w is read and y written once.
pub(super) fn low_rank_update(
    isa: Isa,
    w: WeightValues,
    up: &[f32],
    down: &[f32],
    (rows, columns, rank): (usize, usize, usize),
) -> Vec<f32> {
    assert!(w.len() == rows * columns && up.len() == rows * rank && down.len() == rank * columns);
    if rows * columns == 0 {
        return Vec::new();
    }
    let down = Plain { values: down, stride: columns };
    let block = (TASK_VALUES / columns).clamp(1, rows);
    let write = |y: &mut [f32]| {
        let tasks = y.par_chunks_mut(block * columns).enumerate();
        tasks.for_each_init(Vec::new, |scratch, (task, y)| {
            let rows = y.len() / columns;
            let start = match w {
                WeightValues::F32(w) => Start::Matrix {
                    values: &w[task * block * columns..][..y.len()],
                    stride: columns,
                },
                half => {
                    half.widen_into(isa, task * block * columns, y);
                    Start::Itself
                }
            };
            let product = Product {
                m: rows,
                k: rank,
                n: 0..columns,
                a: up[task * block * rank..][..rows * rank].as_ptr(),
                a_stride: rank,
                b: &down,
                c: y.as_mut_ptr(),
                c_stride: columns,
                start,
                scratch,
            };
            // SAFETY: y, `up` and w are whole rows, of the sizes asserted above; y is borrowed alone.
            unsafe { product.compute(isa) };
        });
    };
    // SAFETY: the tasks are all rows, and each begins with w's or with what it has widened.
    unsafe { memory::written_by(rows * columns, write) }
}
