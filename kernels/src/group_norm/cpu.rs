use rayon::prelude::*;

use crate::exponential::exp;

/// `x` [B, C, pixels]; a task is one (sample, group), whose channels are contiguous.
pub(super) fn group_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    groups: usize,
    pixels: usize,
    eps: f64,
    silu: bool,
) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    let per_group = weight.len() / groups;
    let n = per_group * pixels;
    if n == 0 {
        return y;
    }
    y.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(i, (y, x))| {
        let first_channel = (i % groups) * per_group;
        // f64 sums and two passes: the result is then as exact as f32 can hold.
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        let scale = 1.0 / (var + eps).sqrt();
        for (k, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
            let (w, b) = (weight[first_channel + k], bias[first_channel + k]);
            for (y, &x) in y.iter_mut().zip(x) {
                let normed = ((f64::from(x) - mean) * scale) as f32 * w + b;
                *y = if silu { normed / (1.0 + exp(-normed)) } else { normed };
            }
        }
    });
    y
}
