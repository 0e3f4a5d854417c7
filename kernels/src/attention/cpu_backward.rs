//! The gradients of attention on the CPU, a block of keys of a head over all its queries.

use std::f32::consts::LOG2_E;

use rayon::prelude::*;

use super::cpu::{Heads, LANES, Mask, Sizes};
use crate::exponential::exp2;
use crate::gemm::tile::{tile, tile_of_turned};
use crate::gemm::{Columns, Plain, Shared, Start, Transposed};
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;

#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: Heads<'a>,
    pub(super) k: Heads<'a>,
    pub(super) v: Heads<'a>,
    /// What came of them, and its gradient.
    pub(super) y: Heads<'a>,
    pub(super) upstream: Heads<'a>,
    /// Of each query, [B, H, Lq], what its scores, times log₂e, are less before they are P's logarithms to base 2.
    pub(super) log_sums: &'a [f32],
    pub(super) mask: Option<Mask<'a>>,
    pub(super) scale: f32,
}

/// Queries of a block of scores: whole register tiles on every instruction set.
const QUERIES: usize = 96;
/// Keys of a block: whole register tiles on every instruction set; P and dS of it, 54 KiB each, stay in a second-level cache
/// beside what they are multiplied with.
const KEYS: usize = 144;
/// From row to row of a block: not a power of two, whose columns would share a few sets of the first-level cache.
const STRIDE: usize = KEYS + 16;

/// dq, dk and dv one after the other, each [B, L, H, D]. A task is some keys of one head; its part of dq is added to the
/// others'.
pub(super) fn attention_backward(isa: Isa, inputs: Inputs, s: Sizes) -> Vec<f32> {
    let heads = s.batch * s.heads;
    let of_q = heads * s.queries * s.head_dim;
    let (of_k, of_v) = (heads * s.keys * s.head_dim, heads * s.keys * s.value_dim);
    if s.queries == 0 || s.keys == 0 || s.head_dim == 0 || s.value_dim == 0 {
        return memory::zeros(of_q + of_k + of_v);
    }
    let mut all = memory::reserve(of_q + of_k + of_v);
    // Where there are fewer heads than threads, a head's keys are parted.
    let parts = rayon::current_num_threads().div_ceil(heads).min(s.keys.div_ceil(KEYS));
    let blocks = s.keys.div_ceil(KEYS).div_ceil(parts);
    let keys_of_part = blocks * KEYS;
    let parts = s.keys.div_ceil(keys_of_part);
    let deltas = deltas(inputs, s);
    let mut more = memory::reserve((parts - 1) * of_q);
    let (to, more_to) = (Shared(all.as_mut_ptr()), Shared(more.as_mut_ptr()));
    (0..heads * parts).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let (head, part) = (task / parts, task % parts);
        let keys = part * keys_of_part..s.keys.min((part + 1) * keys_of_part);
        let dq = if part == 0 { to } else { Shared(more_to.at((part - 1) * of_q)) };
        let (dk, dv) = (Shared(to.at(of_q)), Shared(to.at(of_q + of_k)));
        let deltas = &deltas[head * s.queries..][..s.queries];
        let log_sums = &inputs.log_sums[head * s.queries..][..s.queries];
        let head = (head / s.heads, head % s.heads);
        isa.run(Head { inputs, s, head, keys, deltas, log_sums, dq, dk, dv, scratch });
    });
    // SAFETY: each part of a head wrote all of its dq, and dk and dv of its keys.
    unsafe {
        all.set_len(of_q + of_k + of_v);
        more.set_len((parts - 1) * of_q);
    }
    let (dq, _) = all.split_at_mut(of_q);
    for part in more.chunks_exact(of_q) {
        dq.par_chunks_mut(1 << 14).zip(part.par_chunks(1 << 14)).for_each(|(dq, part)| {
            dq.iter_mut().zip(part).for_each(|(dq, part)| *dq += part);
        });
    }
    all
}

/// Σ dO ∘ O of each query, [B, H, Lq].
fn deltas(inputs: Inputs, s: Sizes) -> Vec<f32> {
    let mut deltas = vec![0f32; s.batch * s.heads * s.queries];
    deltas.par_chunks_mut(s.queries).enumerate().for_each(|(head, deltas)| {
        let (batch, head) = (head / s.heads, head % s.heads);
        let (y, y_stride) = inputs.y.rows(batch, head, 0);
        let (up, up_stride) = inputs.upstream.rows(batch, head, 0);
        for (row, delta) in deltas.iter_mut().enumerate() {
            let y = &y[row * y_stride..][..s.value_dim];
            let up = &up[row * up_stride..][..s.value_dim];
            *delta = dot(y, up);
        }
    });
    deltas
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[derive(Default)]
struct Scratch {
    /// P of a block [queries, STRIDE], and dS.
    p: Vec<f32>,
    ds: Vec<f32>,
    /// Panels of a block of keys: log₂e · scale · Kᵀ, Vᵀ and scale · K.
    k_turned: Vec<f32>,
    v_turned: Vec<f32>,
    k: Vec<f32>,
    /// Panels of all blocks of queries: Q and dO.
    q: Vec<f32>,
    up: Vec<f32>,
    /// What is summed, its rows whole vectors: dQ of the head, dK and dV of a block.
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Some keys of one head.
struct Head<'a> {
    inputs: Inputs<'a>,
    s: Sizes,
    /// Sample and head.
    head: (usize, usize),
    keys: std::ops::Range<usize>,
    deltas: &'a [f32],
    log_sums: &'a [f32],
    /// [B, L, H, D] of each.
    dq: Shared,
    dk: Shared,
    dv: Shared,
    scratch: &'a mut Scratch,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Head { inputs, s, head: (batch, head), keys, deltas, log_sums, dq, dk, dv, scratch } =
            self;
        let Inputs { q, k, v, upstream, mask, scale, .. } = inputs;
        let width = V::WIDTH;
        let (q, q_stride) = q.rows(batch, head, 0);
        let (up, up_stride) = upstream.rows(batch, head, 0);
        assert!(q.len() >= (s.queries - 1) * q_stride + s.head_dim);
        assert!(up.len() >= (s.queries - 1) * up_stride + s.value_dim);
        let (d, dv_wide) =
            (s.head_dim.next_multiple_of(V::LANES), s.value_dim.next_multiple_of(V::LANES));
        let panels = |columns: usize| columns.next_multiple_of(width);
        let Scratch {
            p,
            ds,
            k_turned,
            v_turned,
            k: k_panels,
            q: q_panels,
            up: up_panels,
            dq: dq_sums,
            dk: dk_sums,
            dv: dv_sums,
        } = scratch;
        let p = memory::aligned(p, QUERIES * STRIDE);
        let ds = memory::aligned(ds, QUERIES * STRIDE);
        let k_turned = memory::aligned(k_turned, s.head_dim * panels(KEYS));
        let v_turned = memory::aligned(v_turned, s.value_dim * panels(KEYS));
        let k_panels = memory::aligned(k_panels, KEYS * panels(s.head_dim));
        let of_block = [QUERIES * panels(s.head_dim), QUERIES * panels(s.value_dim)];
        let blocks = s.queries.div_ceil(QUERIES);
        let q_panels = memory::aligned(q_panels, blocks * of_block[0]);
        let up_panels = memory::aligned(up_panels, blocks * of_block[1]);
        let dk_sums = memory::aligned(dk_sums, KEYS * d);
        let dv_sums = memory::aligned(dv_sums, KEYS * dv_wide);
        let dq_sums = memory::aligned(dq_sums, s.queries * d);
        dq_sums.fill(0.0);
        for (block, first) in (0..s.queries).step_by(QUERIES).enumerate() {
            let queries = QUERIES.min(s.queries - first);
            let columns = Plain { values: &q[first * q_stride..], stride: q_stride };
            pack::<V>(&columns, queries, s.head_dim, &mut q_panels[block * of_block[0]..]);
            let columns = Plain { values: &up[first * up_stride..], stride: up_stride };
            pack::<V>(&columns, queries, s.value_dim, &mut up_panels[block * of_block[1]..]);
        }
        for first_key in keys.clone().step_by(KEYS) {
            let count = KEYS.min(keys.end - first_key);
            let (k, k_stride) = k.rows(batch, head, first_key);
            let (v, v_stride) = v.rows(batch, head, first_key);
            let columns = Transposed { values: WeightValues::F32(k), k: k_stride };
            pack::<V>(&columns, s.head_dim, count, k_turned);
            k_turned.iter_mut().for_each(|value| *value *= scale * LOG2_E);
            let columns = Transposed { values: WeightValues::F32(v), k: v_stride };
            pack::<V>(&columns, s.value_dim, count, v_turned);
            pack::<V>(&Plain { values: k, stride: k_stride }, count, s.head_dim, k_panels);
            k_panels.iter_mut().for_each(|value| *value *= scale);
            dk_sums.fill(0.0);
            dv_sums.fill(0.0);
            for (block, first) in (0..s.queries).step_by(QUERIES).enumerate() {
                let queries = QUERIES.min(s.queries - first);
                let q_panels = &q_panels[block * of_block[0]..];
                let up_panels = &up_panels[block * of_block[1]..];
                let (q, up) = (&q[first * q_stride..], &up[first * up_stride..]);
                // Whole vectors: past the keys the panels hold zeros.
                let columns = count.next_multiple_of(V::LANES);
                // SAFETY, of all products: rows and columns of each matrix are there, as they were sized and asserted
                // above; those that are summed have rows of whole vectors; the processor has V, or this would not run.
                unsafe {
                    let sizes = (queries, columns, s.head_dim);
                    product::<V, false>(sizes, (q, q_stride), k_turned, (p, STRIDE), Start::Zero);
                    let sizes = (queries, columns, s.value_dim);
                    product::<V, false>(
                        sizes,
                        (up, up_stride),
                        v_turned,
                        (ds, STRIDE),
                        Start::Zero,
                    );
                }
                for row in 0..queries {
                    let scores = &mut p[row * STRIDE..][..count];
                    if let Some(mask) = &mask {
                        mask.add([batch, head, first + row, first_key], scores);
                    }
                    p[row * STRIDE..][count..columns].fill(f32::NEG_INFINITY);
                    let (p, ds) = (&mut p[row * STRIDE..], &mut ds[row * STRIDE..]);
                    let log_sum = log_sums[first + row];
                    // Where all keys are in the block, Σ P ∘ dP of these very numbers: of one key nothing is left then, and not
                    // the difference of two sums of one value.
                    let mut products = [0f32; LANES];
                    // SAFETY: both rows have whole vectors up to `columns`, past the keys zeros of dP; a vector fits LANES.
                    unsafe {
                        let (p, ds) = (p.as_mut_ptr(), ds.as_mut_ptr());
                        let mut sums = V::splat(0.0);
                        for at in (0..columns).step_by(V::LANES) {
                            let e = exp2(V::load(p.add(at)).sub(V::splat(log_sum)));
                            e.store(p.add(at));
                            sums = e.mul_add(V::load(ds.add(at)), sums);
                        }
                        sums.store(products.as_mut_ptr());
                        let delta = match s.keys <= KEYS {
                            true => products.iter().sum(),
                            false => deltas[first + row],
                        };
                        for at in (0..columns).step_by(V::LANES) {
                            let slope = V::load(ds.add(at)).sub(V::splat(delta));
                            V::load(p.add(at)).mul(slope).store(ds.add(at));
                        }
                    }
                }
                // SAFETY: as above.
                unsafe {
                    let sums = Start::Itself;
                    let sizes = (queries, d, count);
                    let to = &mut dq_sums[first * d..];
                    product::<V, false>(sizes, (ds, STRIDE), k_panels, (to, d), sums);
                    let sizes = (count, d, queries);
                    product::<V, true>(sizes, (ds, STRIDE), q_panels, (dk_sums, d), sums);
                    let sizes = (count, dv_wide, queries);
                    product::<V, true>(sizes, (p, STRIDE), up_panels, (dv_sums, dv_wide), sums);
                }
            }
            for row in 0..count {
                let at = (batch * s.keys + first_key + row) * s.heads + head;
                // SAFETY: the gradients of this key of this head, which no other task has.
                unsafe {
                    let to = dk.at(at * s.head_dim);
                    for (i, value) in dk_sums[row * d..][..s.head_dim].iter().enumerate() {
                        *to.add(i) = value * scale;
                    }
                    let to = dv.at(at * s.value_dim);
                    let from = dv_sums[row * dv_wide..][..s.value_dim].as_ptr();
                    std::ptr::copy_nonoverlapping(from, to, s.value_dim);
                }
            }
        }
        for row in 0..s.queries {
            let to = dq.at(((batch * s.queries + row) * s.heads + head) * s.head_dim);
            let from = dq_sums[row * d..][..s.head_dim].as_ptr();
            // SAFETY: the gradient of this query of this head, which no other task has of this part.
            unsafe { std::ptr::copy_nonoverlapping(from, to, s.head_dim) };
        }
    }
}

/// The whole of B [depth, columns] in panels one after the other.
#[inline(always)]
fn pack<V: Vector>(b: &impl Columns, depth: usize, columns: usize, panels: &mut [f32]) {
    let width = V::WIDTH;
    let firsts = (0..columns).step_by(width);
    for (first, panel) in firsts.zip(panels.chunks_exact_mut(depth * width)) {
        b.pack::<V>(0..depth, first..columns.min(first + width), width, panel);
    }
}

/// C [rows, columns] = start + A [rows, depth] · B, whose panels were packed with this depth. With `TURNED`, A is by
/// columns.
///
/// # Safety
/// A's rows, or its columns, are there, so many values apart; B's panels hold the columns, those past its own as zeros;
/// C's rows hold `columns`.
#[inline(always)]
unsafe fn product<V: Vector, const TURNED: bool>(
    (rows, columns, depth): (usize, usize, usize),
    (a, a_stride): (&[f32], usize),
    panels: &[f32],
    (c, c_stride): (&mut [f32], usize),
    start: Start,
) {
    let width = V::WIDTH;
    for row in (0..rows).step_by(V::TILE_ROWS) {
        for (column, panel) in (0..columns).step_by(width).zip(panels.chunks_exact(depth * width)) {
            let sizes = (V::TILE_ROWS.min(rows - row), width.min(columns - column), depth);
            // SAFETY: the caller's.
            unsafe {
                let c = c.as_mut_ptr().add(row * c_stride + column);
                if TURNED {
                    let a = a.as_ptr().add(row);
                    tile_of_turned::<V>(sizes, a, a_stride, panel.as_ptr(), c, c_stride, start);
                } else {
                    let a = a.as_ptr().add(row * a_stride);
                    tile::<V>(sizes, a, a_stride, panel.as_ptr(), c, c_stride, start);
                }
            }
        }
    }
}
