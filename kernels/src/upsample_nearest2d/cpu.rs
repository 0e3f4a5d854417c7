use rayon::prelude::*;

use crate::memory;

/// `x` planes of h × w, returns planes of height × width.
pub(super) fn upsample_nearest2d(
    x: &[f32],
    (h, w): (usize, usize),
    (height, width): (usize, usize),
) -> Vec<f32> {
    let columns: Vec<usize> = (0..width).map(|x| x * w / width).collect();
    let planes = x.par_chunks_exact(h * w);
    let write = |y: &mut [f32]| {
        y.par_chunks_exact_mut(height * width).zip(planes).for_each(|(y, x)| {
            for (row, y) in y.chunks_exact_mut(width).enumerate() {
                let x = &x[row * h / height * w..][..w];
                for (y, &column) in y.iter_mut().zip(&columns) {
                    *y = x[column];
                }
            }
        });
    };
    // SAFETY: y has as many planes as x, each of whole rows, and each is written.
    unsafe { memory::written_by(x.len() / (h * w) * height * width, write) }
}
