use rayon::prelude::*;

use crate::memory;
use crate::moments::mean_and_variance;
use crate::simd::{Isa, Kernel, Vector};

pub(super) fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f32> {
    let n = weight.len();
    assert!(x.len().is_multiple_of(n));
    // Several rows a task where rows are short.
    let rows = (8192 / n).max(1);
    let write = |y: &mut [f32]| {
        let tasks = y.par_chunks_mut(rows * n).zip(x.par_chunks(rows * n));
        tasks.for_each(|(y, x)| isa.run(Rows { x, y, weight, bias, eps }));
    };
    // SAFETY: y is whole rows, and each is written.
    unsafe { memory::written_by(x.len(), write) }
}

struct Rows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f64,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows { x, y, weight, bias, eps } = self;
        let n = weight.len();
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            let (mean, variance) = mean_and_variance(x);
            let scale = 1.0 / (variance + eps).sqrt();
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = ((f64::from(x) - mean) * scale) as f32 * w + b;
            }
        }
    }
}
