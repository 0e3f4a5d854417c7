use rayon::prelude::*;

use crate::activation::gelu;
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};

/// `x` rows of 2n, returns rows of n.
pub(super) fn geglu(isa: Isa, x: &[f32], n: usize) -> Vec<f32> {
    assert!(x.len().is_multiple_of(2 * n));
    // Several rows a task where rows are short.
    let rows = (8192 / n).max(1);
    let write = |y: &mut [f32]| {
        let tasks = y.par_chunks_mut(rows * n).zip(x.par_chunks(rows * 2 * n));
        tasks.for_each(|(y, x)| isa.run(Rows { x, y, n }));
    };
    // SAFETY: y is whole rows, and each is written.
    unsafe { memory::written_by(x.len() / 2, write) }
}

struct Rows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    n: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows { x, y, n } = self;
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(2 * n)) {
            let (h, g) = x.split_at(n);
            for ((y, &h), &g) in y.iter_mut().zip(h).zip(g) {
                *y = h * gelu(g);
            }
        }
    }
}
