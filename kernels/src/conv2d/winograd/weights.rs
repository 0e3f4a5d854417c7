//! The kernels' transform, of what a thread is about to multiply.

#![expect(clippy::needless_range_loop, reason = "the index is the second of two")]

use std::array::from_fn;

use super::Kernels;
use super::scheme::{MOST_INPUTS, Scheme};
use crate::conv2d::cpu::Sizes;
use crate::simd::Vector;
use crate::storage::WeightValues;

/// G g Gᵀ of the kernels of some output and input channels: point ξ of output channel number o and input channel number c to
/// `u[ξ · u.len() / S::POINTS + o · inputs.len() + c]`.
#[inline(always)]
pub(super) fn transform_weights<S: Scheme, V: Vector>(
    w: Kernels,
    s: Sizes,
    outputs: &std::ops::Range<usize>,
    inputs: &std::ops::Range<usize>,
    wide: &mut Vec<f32>,
    u: &mut [f32],
) {
    let point_size = u.len() / S::POINTS;
    assert!(point_size >= outputs.len() * inputs.len());
    let u = u.as_mut_ptr();
    // A vector's kernels are read as rows of whole vectors, which go some values beyond the last one.
    let beyond = V::LANES;
    // Of the kernels of an input channel that one output channel after the other has, or the other way round.
    let (size, count) = match w.are_turned {
        false => (9 * inputs.len(), 1),
        true => (9 * outputs.len(), V::LANES),
    };
    wide.resize(wide.len().max(size * count + beyond), 0.0);
    if !w.are_turned {
        for (row, output) in outputs.clone().enumerate() {
            let first = (output * s.channels + inputs.start) * 9;
            let weights = match w.values {
                WeightValues::F32(values) if values.len() >= first + size + beyond => {
                    &values[first..][..size + beyond]
                }
                values => {
                    values.widen::<V>(first, &mut wide[..size]);
                    &wide[..size + beyond]
                }
            };
            for first in (0..inputs.len()).step_by(V::LANES) {
                let count = V::LANES.min(inputs.len() - first);
                // SAFETY: the kernels of `count` channels and a vector more are there, and in `u` room for them at every point, by
                // the assert.
                unsafe {
                    let kernels = weights[9 * first..].as_ptr();
                    let to = u.add(row * inputs.len() + first);
                    transform_kernels::<S, V, false>(kernels, 9, count, to, point_size);
                }
            }
        }
        return;
    }
    for first in (0..inputs.len()).step_by(V::LANES) {
        let count = V::LANES.min(inputs.len() - first);
        for (i, wide) in wide.chunks_exact_mut(size).take(count).enumerate() {
            let at = ((inputs.start + first + i) * s.out_channels + outputs.start) * 9;
            w.values.widen::<V>(at, wide);
        }
        for row in 0..outputs.len() {
            // SAFETY: as above.
            unsafe {
                let kernels = wide[9 * row..].as_ptr();
                let to = u.add(row * inputs.len() + first);
                transform_kernels::<S, V, true>(kernels, size, count, to, point_size);
            }
        }
    }
}

/// G g Gᵀ of `count` kernels of nine values, `stride` apart, read from their ends where they are `TURNED`: point ξ of kernel i to
/// `to[ξ · point_size + i]`.
///
/// # Safety
/// From `kernels` on there are so many and a vector more; `to` leads to room for `count` values at every point; the processor has V.
#[inline(always)]
unsafe fn transform_kernels<S: Scheme, V: Vector, const TURNED: bool>(
    kernels: *const f32,
    stride: usize,
    count: usize,
    to: *mut f32,
    point_size: usize,
) {
    // SAFETY: a row of a kernel's values in whole vectors ends within the next one, or the vector more; for the rest the caller's.
    unsafe {
        let values = match count == V::LANES {
            true => nine::<V>(kernels, stride),
            false => nine_of_some::<V>(kernels, stride, count),
        };
        let value = |k: usize| values[if TURNED { 8 - k } else { k }];
        let mut columns = [[V::splat(0.0); MOST_INPUTS]; 3];
        for (c, column) in columns.iter_mut().enumerate() {
            *column = S::weight(from_fn(|r| value(3 * r + c)));
        }
        for r in 0..S::INPUTS {
            let row = S::weight(from_fn(|c| columns[c][r]));
            for (c, value) in row.into_iter().enumerate().take(S::INPUTS) {
                let to = to.add((S::INPUTS * r + c) * point_size);
                if count == V::LANES { value.store(to) } else { value.store_part(to, count) }
            }
        }
    }
}

/// The nine values of a vector's kernels.
///
/// # Safety
/// As [`transform_kernels`].
#[inline(always)]
unsafe fn nine<V: Vector>(kernels: *const f32, stride: usize) -> [V; 9] {
    // Nine in whole vectors; of all this only registers are left.
    let mut apart = [0f32; MAX_LANES * MAX_LANES];
    for k in (0..9).step_by(V::LANES) {
        // SAFETY: a kernel's values in whole vectors end within the next kernel, or the vector more.
        unsafe {
            V::transpose(kernels.add(k), stride, apart.as_mut_ptr().add(k * V::LANES), V::LANES)
        };
    }
    // SAFETY: there are at least nine vectors.
    from_fn(|k| unsafe { V::load(apart.as_ptr().add(k * V::LANES)) })
}

/// The same of fewer kernels.
///
/// # Safety
/// As [`transform_kernels`].
#[inline(always)]
unsafe fn nine_of_some<V: Vector>(kernels: *const f32, stride: usize, count: usize) -> [V; 9] {
    let mut apart = [[0f32; MAX_LANES]; 9];
    for (k, values) in apart.iter_mut().enumerate() {
        for (i, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's.
            *value = unsafe { *kernels.add(i * stride + k) };
        }
    }
    // SAFETY: no vector has more values.
    apart.map(|values| unsafe { V::load(values.as_ptr()) })
}

const MAX_LANES: usize = 16;
