use rayon::prelude::*;

use crate::moments::sum;
use crate::simd::{Isa, Kernel, Vector};

/// Values of a task: enough to be worth a thread. What a task is hangs on sizes alone, so that sums are the same on any number of
/// threads.
const VALUES: usize = 1 << 14;

/// Of `x` [B, C, pixels].
pub(super) fn channel_sums(isa: Isa, x: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    if x.is_empty() {
        return vec![0.0; channels];
    }
    assert!(x.len().is_multiple_of(channels * pixels));
    if pixels == 1 {
        return sums_of_rows([x], channels, |[rows], sums| isa.run(AddRows { rows, sums }));
    }
    let samples = x.len() / (channels * pixels);
    let mut sums = vec![0.0; channels];
    let at_once = VALUES.div_ceil(samples * pixels);
    sums.par_chunks_mut(at_once).enumerate().for_each(|(task, sums)| {
        isa.run(AddPlanes { x, pixels, channels, first: task * at_once, sums });
    });
    sums
}

/// What `add` adds of blocks of rows, each of `width` values and of all of `inputs` the same ones, to as many sums; from block
/// to block in f64.
pub(crate) fn sums_of_rows<const N: usize>(
    inputs: [&[f32]; N],
    width: usize,
    add: impl Fn([&[f32]; N], &mut [f32]) + Sync,
) -> Vec<f32> {
    let values = inputs.iter().map(|x| x.len()).min().unwrap_or(0);
    assert!(width > 0 && inputs.iter().all(|x| x.len() == values));
    let at_once = (VALUES / width).max(1) * width;
    let mut parts = vec![0.0; values.div_ceil(at_once) * width];
    parts.par_chunks_mut(width).enumerate().for_each(|(block, sums)| {
        let block = block * at_once..((block + 1) * at_once).min(values);
        add(inputs.map(|x| &x[block.clone()]), sums);
    });
    let mut sums = vec![0f64; width];
    for part in parts.chunks_exact(width) {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(*part));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

struct AddRows<'a> {
    rows: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for row in self.rows.chunks_exact(self.sums.len()) {
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

struct AddPlanes<'a> {
    x: &'a [f32],
    pixels: usize,
    channels: usize,
    first: usize,
    sums: &'a mut [f32],
}

impl Kernel for AddPlanes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let AddPlanes { x, pixels, channels, first, sums } = self;
        for (channel, to) in (first..).zip(sums) {
            let planes = x.chunks_exact(pixels).skip(channel).step_by(channels);
            let mut all = 0f64;
            for plane in planes {
                all += sum(plane, |x| x);
            }
            *to = all as f32;
        }
    }
}
