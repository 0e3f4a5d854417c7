use rayon::prelude::*;

use crate::memory;

/// Values of a task: enough to be worth a thread, and few enough for all of them to have some.
pub(crate) const VALUES: usize = 1 << 14;

pub(super) fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    assert!(x.len() == y.len());
    let write = |sums: &mut [f32]| {
        in_tasks(sums, VALUES, |first, sums| {
            let (x, y) = (&x[first..][..sums.len()], &y[first..][..sums.len()]);
            for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                *sum = x + y;
            }
        });
    };
    // SAFETY: the tasks are all values, and each is written.
    unsafe { memory::written_by(x.len(), write) }
}

/// Of planes of x, one for each value of y.
pub(super) fn add_to_channels(x: &[f32], y: &[f32]) -> Vec<f32> {
    let plane = x.len().checked_div(y.len()).unwrap_or(0).max(1);
    assert!(x.len() == y.len() * plane || x.is_empty());
    let write = |sums: &mut [f32]| {
        let planes = VALUES.div_ceil(plane);
        in_tasks(sums, planes * plane, |first, sums| {
            let planes = sums.chunks_exact_mut(plane).zip(x[first..].chunks_exact(plane));
            for ((sums, x), y) in planes.zip(&y[first / plane..]) {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = x + y;
                }
            }
        });
    };
    // SAFETY: the tasks are all values in whole planes, and each is written.
    unsafe { memory::written_by(x.len(), write) }
}

/// Calls `run` with the number of a part's first value and the part, `length` values of `to` or what is left, on all threads
/// where there is more than one.
pub(crate) fn in_tasks(to: &mut [f32], length: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    if to.len() <= length {
        return run(0, to);
    }
    to.par_chunks_mut(length).enumerate().for_each(|(task, part)| run(task * length, part));
}
