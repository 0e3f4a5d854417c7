use std::ops::Range;

use rayon::prelude::*;

use crate::memory;

/// Values of a task.
const VALUES: usize = 1 << 15;

/// The values of each of `samples` of x, and behind them those of y.
pub(super) fn join(x: &[f32], y: &[f32], samples: usize) -> Vec<f32> {
    let [of_x, of_y] = [x, y].map(|all| all.len().checked_div(samples).unwrap_or(0));
    let write = |joined: &mut [f32]| {
        for (sample, joined) in joined.chunks_exact_mut((of_x + of_y).max(1)).enumerate() {
            let (first, second) = joined.split_at_mut(of_x);
            copy(&x[sample * of_x..][..of_x], first);
            copy(&y[sample * of_y..][..of_y], second);
        }
    };
    // SAFETY: the samples are all of it, and both parts of each are written.
    unsafe { memory::written_by(x.len() + y.len(), write) }
}

/// Of each sample of `of_sample` values those in `values`.
pub(super) fn part(x: &[f32], of_sample: usize, values: Range<usize>) -> Vec<f32> {
    let samples = x.len().checked_div(of_sample).unwrap_or(0);
    let write = |parts: &mut [f32]| {
        let parts = parts.chunks_exact_mut(values.len().max(1));
        for (part, x) in parts.zip(x.chunks_exact(of_sample.max(1))) {
            copy(&x[values.clone()], part);
        }
    };
    // SAFETY: the samples' parts are all of it, and each is written.
    unsafe { memory::written_by(samples * values.len(), write) }
}

fn copy(from: &[f32], to: &mut [f32]) {
    if to.len() <= VALUES {
        return to.copy_from_slice(from);
    }
    let tasks = to.par_chunks_mut(VALUES).zip(from.par_chunks(VALUES));
    tasks.for_each(|(to, from)| to.copy_from_slice(from));
}
