use rayon::prelude::*;

pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f32> {
    let n = weight.len();
    let mut y = vec![0f32; x.len()];
    // Several rows a task where rows are short.
    let rows = (8192 / n).max(1);
    y.par_chunks_mut(rows * n).zip(x.par_chunks(rows * n)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            // f64 sums and two passes: the result is then as exact as f32 can hold.
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            let scale = 1.0 / (var + eps).sqrt();
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = ((f64::from(x) - mean) * scale) as f32 * w + b;
            }
        }
    });
    y
}
