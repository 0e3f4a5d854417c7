use rayon::prelude::*;

/// Softmax of rows of `n`.
pub(super) fn softmax(x: &[f32], n: usize) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    if n == 0 {
        return y;
    }
    // Several rows a task where rows are short.
    let rows = (8192 / n).max(1);
    y.par_chunks_mut(rows * n).zip(x.par_chunks(rows * n)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
            if max == f32::NEG_INFINITY {
                // Nothing to attend to; the row is zeros already.
                continue;
            }
            let mut sum = 0f64;
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - max).exp();
                sum += f64::from(*y);
            }
            let scale = (1.0 / sum) as f32;
            for y in y.iter_mut() {
                *y *= scale;
            }
        }
    });
    y
}
