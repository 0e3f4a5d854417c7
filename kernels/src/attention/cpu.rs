use std::f32::consts::LOG2_E;
use std::ops::Range;

use rayon::prelude::*;

use crate::exponential::exp2;
use crate::gemm::tile::tile;
use crate::gemm::{Columns, Shared, Start, Transposed};
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;

/// q [B, H, Lq, D], k [B, H, Lk, D], v [B, H, Lk, Dv].
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) head_dim: usize,
    pub(super) value_dim: usize,
}

/// [B, H, L, D] somewhere in memory, the values of a row one after the other.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) values: &'a [f32],
    pub(super) start: usize,
    /// Of B, H and L.
    pub(super) strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// The values from row `row` of a head on, and how far its rows are apart.
    pub(super) fn rows(self, batch: usize, head: usize, row: usize) -> (&'a [f32], usize) {
        let [b, h, l] = self.strides;
        (&self.values[self.start + batch * b + head * h + row * l..], l)
    }
}

/// An additive mask seen as [B, H, Lq, Lk]; the stride of a broadcast dimension is 0.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    pub(super) values: &'a [f32],
    pub(super) start: usize,
    pub(super) strides: [usize; 4],
}

impl Mask<'_> {
    /// Adds the values from `at` on, times log₂e, to the scores of one query.
    #[inline(always)]
    pub(super) fn add(&self, at: [usize; 4], scores: &mut [f32]) {
        let start = self.place(at);
        for (j, score) in scores.iter_mut().enumerate() {
            *score += LOG2_E * self.values[start + j * self.strides[3]];
        }
    }

    /// The same to rows of keys, of which each has the scores of `queries`, counted from `at` on.
    #[inline(always)]
    fn add_turned<'a>(
        &self,
        at: [usize; 4],
        queries: Range<usize>,
        rows: impl Iterator<Item = &'a mut [f32]>,
    ) {
        let start = self.place(at) + queries.start * self.strides[2];
        for (key, scores) in rows.enumerate() {
            let start = start + key * self.strides[3];
            for (query, score) in scores.iter_mut().take(queries.len()).enumerate() {
                *score += LOG2_E * self.values[start + query * self.strides[2]];
            }
        }
    }

    fn place(&self, at: [usize; 4]) -> usize {
        self.start + at.iter().zip(self.strides).map(|(i, stride)| i * stride).sum::<usize>()
    }
}

/// Queries of a task: whole panels on every instruction set.
const QUERIES: usize = 48;
/// Keys whose scores a task has at once: at most 54 KiB, which a second-level cache holds beside the keys and their values.
const KEYS: usize = 288;

/// Returns [B, Lq, H, Dv], and with `keeps_sums` for each query [B, H, Lq] the logarithm to base 2 of what its exponentials
/// sum to, +∞ where it attends to nothing: 2^(score · log₂e − that) is then its softmax.
pub(super) fn attention(
    isa: Isa,
    [q, k, v]: [Heads; 3],
    mask: Option<Mask>,
    scale: f32,
    s: Sizes,
    keeps_sums: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    // Who keeps the sums computes the scores anew in f32.
    if let (Some(set), false) = (isa.bf16(), keeps_sums) {
        return (super::bf16::attention(set, [q, k, v], mask, scale, s), None);
    }
    let values = s.batch * s.heads * s.queries * s.value_dim;
    let mut log_sums = keeps_sums.then(|| vec![f32::INFINITY; s.batch * s.heads * s.queries]);
    if values == 0 || s.keys == 0 || s.head_dim == 0 {
        return (vec![0f32; values], log_sums);
    }
    // Of one head: k [keys, D], and v for each block of keys as [Dv, KEYS].
    let k_size = s.keys * s.head_dim;
    let v_size = s.keys.next_multiple_of(KEYS) * s.value_dim;
    let pack = |packed: &mut [f32]| {
        packed.par_chunks_mut(k_size + v_size).enumerate().for_each(|(head, packed)| {
            let (batch, head) = (head / s.heads, head % s.heads);
            let (packed_k, packed_v) = packed.split_at_mut(k_size);
            let (k, v) = (k.rows(batch, head, 0), v.rows(batch, head, 0));
            isa.run(Pack { k, v, scale, s, packed_k, packed_v });
        });
    };
    // SAFETY: a head's part is its keys and whole blocks of values, and `Pack` writes all of them.
    let packed = unsafe { memory::written_by(s.batch * s.heads * (k_size + v_size), pack) };
    let mut y = memory::reserve(values);
    let to = Shared(y.as_mut_ptr());
    let log_sums_to = log_sums.as_mut().map(|sums| Shared(sums.as_mut_ptr()));
    let blocks = s.queries.div_ceil(QUERIES);
    (0..s.batch * s.heads * blocks).into_par_iter().for_each_init(Vec::new, |scratch, task| {
        let (head, first) = (task / blocks, task % blocks * QUERIES);
        let (packed_k, packed_v) =
            packed[head * (k_size + v_size)..][..k_size + v_size].split_at(k_size);
        let (batch, head) = (head / s.heads, head % s.heads);
        let (y, log_sums) = (to, log_sums_to);
        isa.run(Block { q, packed_k, packed_v, mask, s, batch, head, first, y, log_sums, scratch });
    });
    // SAFETY: the blocks are all queries of all heads, and each wrote its rows.
    unsafe { y.set_len(values) };
    (y, log_sums)
}

/// One head's keys beside each other, and its values turned. The scale goes to the keys, and so does log₂e: powers of 2 are cheaper
/// than those of e. A gradient computes the same scores, to the bit, from keys that are scaled so.
struct Pack<'a> {
    k: (&'a [f32], usize),
    v: (&'a [f32], usize),
    scale: f32,
    s: Sizes,
    packed_k: &'a mut [f32],
    packed_v: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Pack { k, v, scale, s, packed_k, packed_v } = self;
        for (row, packed) in packed_k.chunks_exact_mut(s.head_dim).enumerate() {
            let k = &k.0[row * k.1..][..s.head_dim];
            packed.iter_mut().zip(k).for_each(|(to, value)| *to = value * (scale * LOG2_E));
        }
        let columns = Transposed { values: WeightValues::F32(v.0), k: v.1 };
        for (i, block) in packed_v.chunks_exact_mut(KEYS * s.value_dim).enumerate() {
            let keys = i * KEYS..s.keys.min((i + 1) * KEYS);
            columns.pack::<V>(0..s.value_dim, keys, KEYS, block);
        }
    }
}

/// Some queries of one head, over all keys (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1): a
/// block of keys at a time, with the largest score of each query so far. Where a block has a larger one, what is
/// summed already is scaled down to it. The division by Σ e^… comes last.
///
/// All is turned: a column is a query, Sᵀ = K Qᵀ and Yᵀ = Vᵀ Pᵀ. So scores lie as the second product's panel wants them, a head's
/// width is rows of a tile, of which none are too many (40 is five times 8, and two and a half vectors), and a softmax goes down
/// the vectors and never across one.
struct Block<'a> {
    q: Heads<'a>,
    packed_k: &'a [f32],
    packed_v: &'a [f32],
    mask: Option<Mask<'a>>,
    s: Sizes,
    batch: usize,
    head: usize,
    /// The first query.
    first: usize,
    y: Shared,
    /// [B, H, Lq]
    log_sums: Option<Shared>,
    scratch: &'a mut Vec<f32>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Block { q, packed_k, packed_v, mask, s, batch, head, first, .. } = self;
        const { assert!(QUERIES.is_multiple_of(V::WIDTH)) };
        let width = V::WIDTH;
        let queries = QUERIES.min(s.queries - first);
        let y_width = s.value_dim.next_multiple_of(V::LANES);
        let scratch = memory::aligned(
            self.scratch,
            QUERIES * s.head_dim + KEYS * width + 2 * QUERIES * y_width,
        );
        // [panels, D, WIDTH], [keys, WIDTH], [panels, Dv, WIDTH] and [WIDTH, Dv], where Dv is whole vectors.
        let (q_panels, scratch) = scratch.split_at_mut(QUERIES * s.head_dim);
        let (scores, scratch) = scratch.split_at_mut(KEYS * width);
        let (y_panels, turned) = scratch.split_at_mut(QUERIES * y_width);
        let (q, q_stride) = q.rows(batch, head, first);
        let rows_of_q = Transposed { values: WeightValues::F32(q), k: q_stride };
        for (i, panel) in q_panels.chunks_exact_mut(width * s.head_dim).enumerate() {
            let (from, to) = (i * width, queries.min((i + 1) * width));
            if from < to {
                rows_of_q.pack::<V>(0..s.head_dim, from..to, width, panel);
            }
        }
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        let mut sums = [0f32; QUERIES];
        for key in (0..s.keys).step_by(KEYS) {
            let keys = KEYS.min(s.keys - key);
            let k = &packed_k[key * s.head_dim..][..keys * s.head_dim];
            let v = &packed_v[key * s.value_dim..][..KEYS * s.value_dim];
            for query in (0..queries).step_by(width) {
                let columns = width.min(queries - query).next_multiple_of(V::LANES);
                let q = &q_panels[query * s.head_dim..][..width * s.head_dim];
                for row in (0..keys).step_by(V::TILE_ROWS) {
                    let rows = V::TILE_ROWS.min(keys - row);
                    // SAFETY: the rows of k are there and the panel of q is whole; there are KEYS rows of scores; the processor
                    // has V, or this would not run.
                    unsafe {
                        tile::<V>(
                            (rows, columns, s.head_dim),
                            k.as_ptr().add(row * s.head_dim),
                            s.head_dim,
                            q.as_ptr(),
                            scores.as_mut_ptr().add(row * width),
                            width,
                            Start::Zero,
                        );
                    }
                }
                if let Some(mask) = &mask {
                    let columns = query..queries.min(query + width);
                    let rows = scores.chunks_exact_mut(width).take(keys);
                    mask.add_turned([batch, head, first, key], columns, rows);
                }
                let y = &mut y_panels[query * y_width..][..width * y_width];
                for column in (0..columns).step_by(V::LANES) {
                    let at = query + column;
                    // SAFETY: so many rows of scores, WIDTH apart, and vectors of the arrays; the processor has V.
                    let down = unsafe {
                        soften::<V>(
                            scores.as_mut_ptr().add(column),
                            (keys, width),
                            &mut largest[at..][..V::LANES],
                            &mut sums[at..][..V::LANES],
                        )
                    };
                    if key > 0 {
                        // SAFETY: as above, of y's rows.
                        unsafe {
                            scale_down(y.as_mut_ptr().add(column), (s.value_dim, width), down)
                        };
                    }
                }
                let start = if key == 0 { Start::Zero } else { Start::Itself };
                for row in (0..s.value_dim).step_by(V::TILE_ROWS) {
                    let rows = V::TILE_ROWS.min(s.value_dim - row);
                    // SAFETY: the rows of v are there, KEYS apart, and scores are a whole panel of as many rows as there are
                    // keys; y has Dv rows; the processor has V.
                    unsafe {
                        tile::<V>(
                            (rows, columns, keys),
                            v.as_ptr().add(row * KEYS),
                            KEYS,
                            scores.as_ptr(),
                            y.as_mut_ptr().add(row * width),
                            width,
                            start,
                        );
                    }
                }
            }
        }
        // A query to which all is masked attends to nothing.
        let scales = sums.map(|sum| if sum == 0.0 { 0.0 } else { 1.0 / sum });
        // Rows of the output are those of all heads side by side.
        let stride = s.heads * s.value_dim;
        let to = self.y.at((batch * s.queries + first) * stride + head * s.value_dim);
        for query in (0..queries).step_by(width) {
            let y = &mut y_panels[query * y_width..][..width * y_width];
            let count = width.min(queries - query);
            for column in (0..count).step_by(V::LANES) {
                // SAFETY: as above; rows from Dv on are there, too, with anything in them. `turned` has a row for each query.
                unsafe {
                    let scale = V::load(scales[query + column..][..V::LANES].as_ptr());
                    scale_down(y.as_mut_ptr().add(column), (s.value_dim, width), scale);
                    for row in (0..y_width).step_by(V::LANES) {
                        let from = y.as_ptr().add(row * width + column);
                        V::transpose(
                            from,
                            width,
                            turned.as_mut_ptr().add(column * y_width + row),
                            y_width,
                        );
                    }
                }
            }
            for (row, turned) in turned.chunks_exact(y_width).take(count).enumerate() {
                let to = to.wrapping_add((query + row) * stride);
                // SAFETY: a row of this head and block, which no other task has.
                unsafe { std::ptr::copy_nonoverlapping(turned.as_ptr(), to, s.value_dim) };
            }
        }
        if let Some(log_sums) = self.log_sums {
            let to = log_sums.at((batch * s.heads + head) * s.queries + first);
            for (row, (sum, largest)) in sums.iter().zip(largest).enumerate().take(queries) {
                let log_sum = if *sum == 0.0 { f32::INFINITY } else { largest + sum.log2() };
                // SAFETY: there is one for each query, and no other task has this one.
                unsafe { *to.wrapping_add(row) = log_sum };
            }
        }
    }
}

/// Makes a vector's columns of scores, (rows, and how far they are apart), to powers of 2 below the largest of each so far, and adds those to
/// the columns' sums. Where the block has a larger one, the sum is scaled down first, by what is returned.
///
/// # Safety
/// [`Vector`]'s, for each row and for the two slices.
#[inline(always)]
unsafe fn soften<V: Vector>(
    scores: *mut f32,
    (rows, stride): (usize, usize),
    largest: &mut [f32],
    sums: &mut [f32],
) -> V {
    // SAFETY: the caller's.
    unsafe {
        let before = V::load(largest.as_ptr());
        // Some at a time: one after the other, each would wait for the last.
        let mut max = [before; ROWS_AT_ONCE];
        let whole = rows / ROWS_AT_ONCE * ROWS_AT_ONCE;
        for row in (0..whole).step_by(ROWS_AT_ONCE) {
            for (i, max) in max.iter_mut().enumerate() {
                // What is no number is left out.
                *max = V::load(scores.add((row + i) * stride)).max(*max);
            }
        }
        for row in whole..rows {
            max[0] = V::load(scores.add(row * stride)).max(max[0]);
        }
        let max = max[0].max(max[1]).max(max[2].max(max[3]));
        max.store(largest.as_mut_ptr());
        // Where all was masked so far, any number is as good a maximum.
        let finite = max.max(V::splat(f32::MIN));
        let mut sum = [V::splat(0.0); ROWS_AT_ONCE];
        for row in (0..whole).step_by(ROWS_AT_ONCE) {
            for (i, sum) in sum.iter_mut().enumerate() {
                let at = scores.add((row + i) * stride);
                let e = exp2(V::load(at).sub(finite));
                e.store(at);
                *sum = sum.add(e);
            }
        }
        for row in whole..rows {
            let at = scores.add(row * stride);
            let e = exp2(V::load(at).sub(finite));
            e.store(at);
            sum[0] = sum[0].add(e);
        }
        let sum = sum[0].add(sum[1]).add(sum[2].add(sum[3]));
        let down = exp2(before.sub(finite));
        V::load(sums.as_ptr()).mul_add(down, sum).store(sums.as_mut_ptr());
        down
    }
}

/// Rows of scores that are looked at together.
const ROWS_AT_ONCE: usize = 4;

/// Multiplies a vector's columns, (rows, and how far they are apart), by `scale`.
///
/// # Safety
/// [`Vector`]'s, for each row.
#[inline(always)]
unsafe fn scale_down<V: Vector>(values: *mut f32, (rows, stride): (usize, usize), scale: V) {
    for row in 0..rows {
        // SAFETY: the caller's.
        unsafe {
            let at = values.add(row * stride);
            V::load(at).mul(scale).store(at);
        }
    }
}

/// Independent lanes of a reduction, so that it is vector code.
pub(super) const LANES: usize = 16;
