use rayon::prelude::*;

use crate::gemm::Shared;
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};

/// Columns of x that a task turns: some cache lines of each row.
const COLUMNS: usize = 64;

/// Matrices x [m, n] one after the other → [n, m].
pub(super) fn transpose(isa: Isa, x: &[f32], (m, n): (usize, usize)) -> Vec<f32> {
    let mut y = memory::reserve(x.len());
    let to = Shared(y.as_mut_ptr());
    let blocks = n.div_ceil(COLUMNS);
    let matrices = x.len().checked_div(m * n).unwrap_or(0);
    (0..matrices * blocks).into_par_iter().for_each(|task| {
        let (matrix, first) = (task / blocks.max(1) * m * n, task % blocks.max(1) * COLUMNS);
        let columns = first..n.min(first + COLUMNS);
        isa.run(Block { x: &x[matrix..][..m * n], m, n, columns, y: Shared(to.at(matrix)) });
    });
    // SAFETY: the blocks are all columns of all matrices, and each was written whole.
    unsafe { y.set_len(x.len()) };
    y
}

/// Some columns of x, rows of y.
struct Block<'a> {
    x: &'a [f32],
    m: usize,
    n: usize,
    columns: std::ops::Range<usize>,
    y: Shared,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Block { x, m, n, columns, y } = self;
        assert!(x.len() == m * n && columns.end <= n);
        let whole_rows = m / V::LANES * V::LANES;
        let whole_columns = columns.start + columns.len() / V::LANES * V::LANES;
        for row in (0..whole_rows).step_by(V::LANES) {
            for column in (columns.start..whole_columns).step_by(V::LANES) {
                // SAFETY: LANES rows and columns from here on are there, in x by the assert, in y since it has room for
                // as many; no other task has these columns.
                unsafe {
                    V::transpose(x.as_ptr().add(row * n + column), n, y.at(column * m + row), m);
                }
            }
        }
        for column in columns {
            let first = if column < whole_columns { whole_rows } else { 0 };
            for row in first..m {
                // SAFETY: as above.
                unsafe { *y.at(column * m + row) = x[row * n + column] };
            }
        }
    }
}
