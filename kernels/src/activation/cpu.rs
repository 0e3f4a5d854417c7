use rayon::prelude::*;

use crate::exponential::{erf, exp};
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};

/// Values for one task: enough that handing it out costs nothing beside the work.
const CHUNK: usize = 8192;

pub(super) fn map(isa: Isa, x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let write = |y: &mut [f32]| {
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(y, x)| isa.run(Map { x, y, f: &f }));
    };
    // SAFETY: as many chunks of y as of x, and each is written whole.
    unsafe { memory::written_by(x.len(), write) }
}

/// y = f(x); a loop of which the compiler makes vector code.
struct Map<'a, F> {
    x: &'a [f32],
    y: &'a mut [f32],
    f: &'a F,
}

impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y = (self.f)(x);
        }
    }
}

#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
pub(super) fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}
