use rayon::prelude::*;

use crate::exponential::exp;
use crate::memory;
use crate::moments::mean_and_variance;
use crate::simd::{Isa, Kernel, Vector};

/// What is the same for every group.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) groups: usize,
    pub(super) eps: f64,
    pub(super) silu: bool,
}

/// `x` [B, C, pixels]; a task is one (sample, group), whose channels are contiguous.
pub(super) fn group_norm(isa: Isa, x: &[f32], pixels: usize, parameters: Parameters) -> Vec<f32> {
    let n = parameters.weight.len() / parameters.groups * pixels;
    if n == 0 {
        return Vec::new();
    }
    assert!(x.len().is_multiple_of(n));
    let write = |y: &mut [f32]| {
        y.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(i, (y, x))| {
            isa.run(Group { x, y, group: i % parameters.groups, pixels, parameters });
        });
    };
    // SAFETY: y is whole groups, and each is written.
    unsafe { memory::written_by(x.len(), write) }
}

struct Group<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    group: usize,
    pixels: usize,
    parameters: Parameters<'a>,
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Group { x, y, group, pixels, parameters } = self;
        let Parameters { weight, bias, groups, eps, silu } = parameters;
        let channel = group * (weight.len() / groups);
        let (mean, variance) = mean_and_variance(x);
        let scale = 1.0 / (variance + eps).sqrt();
        let channels = weight[channel..].iter().zip(&bias[channel..]);
        for ((y, x), (&w, &b)) in
            y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).zip(channels)
        {
            let normed = |x: f32| ((f64::from(x) - mean) * scale) as f32 * w + b;
            if silu {
                for (y, &x) in y.iter_mut().zip(x) {
                    let normed = normed(x);
                    *y = normed / (1.0 + exp(-normed));
                }
            } else {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = normed(x);
                }
            }
        }
    }
}
