use rayon::prelude::*;

use crate::activation::gelu;

/// `x` rows of 2n, returns rows of n.
pub(super) fn geglu(x: &[f32], n: usize) -> Vec<f32> {
    let mut y = vec![0f32; x.len() / 2];
    // Several rows a task where rows are short.
    let rows = (4096 / n).max(1);
    y.par_chunks_mut(rows * n).zip(x.par_chunks(rows * 2 * n)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(2 * n)) {
            let (h, g) = x.split_at(n);
            for ((y, &h), &g) in y.iter_mut().zip(h).zip(g) {
                *y = h * gelu(g);
            }
        }
    });
    y
}
