use std::f32::consts::LOG2_E;

use rayon::prelude::*;

use crate::exponential::exp2;
use crate::gemm::tile::tile;
use crate::gemm::{Columns, Plain, Shared, Start, Transposed};
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
        let start: usize = at.iter().zip(self.strides).map(|(i, stride)| i * stride).sum();
        for (j, score) in scores.iter_mut().enumerate() {
            *score += LOG2_E * self.values[self.start + start + j * self.strides[3]];
        }
    }
}

/// Queries of a task: whole register tiles on every instruction set.
const QUERIES: usize = 48;
/// Keys whose scores a task has at once, whole panels on every instruction set: 54 KiB, which a second-level cache holds beside
/// the keys.
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
    #[cfg(target_arch = "x86_64")]
    if let (Some(set), false) = (isa.bf16(), keeps_sums) {
        return (super::bf16::attention(set, [q, k, v], mask, scale, s), None);
    }
    let values = s.batch * s.heads * s.queries * s.value_dim;
    let mut log_sums = keeps_sums.then(|| vec![f32::INFINITY; s.batch * s.heads * s.queries]);
    if values == 0 || s.keys == 0 || s.head_dim == 0 {
        return (vec![0f32; values], log_sums);
    }
    let width = isa.tile_width();
    // Panels of one head: of kᵀ [D, keys], as many columns as there are keys, and of v [keys, Dv].
    let k_size = s.keys.next_multiple_of(width) * s.head_dim;
    let v_size = s.value_dim.next_multiple_of(width) * s.keys;
    let pack = |packed: &mut [f32]| {
        packed.par_chunks_mut(k_size + v_size).enumerate().for_each(|(head, packed)| {
            let (batch, head) = (head / s.heads, head % s.heads);
            let (packed_k, packed_v) = packed.split_at_mut(k_size);
            let (k, v) = (k.rows(batch, head, 0), v.rows(batch, head, 0));
            isa.run(Pack { k, v, scale, s, packed_k, packed_v });
        });
    };
    // SAFETY: a head's part is whole panels, and `Columns::pack` writes all of a panel.
    let packed = unsafe { memory::written_by(s.batch * s.heads * (k_size + v_size), pack) };
    let mut y = memory::reserve(values);
    let to = Shared(y.as_mut_ptr());
    let log_sums_to = log_sums.as_mut().map(|sums| Shared(sums.as_mut_ptr()));
    let blocks = s.queries.div_ceil(QUERIES);
    (0..s.batch * s.heads * blocks).into_par_iter().for_each_init(Vec::new, |scores, task| {
        let (head, first) = (task / blocks, task % blocks * QUERIES);
        let (packed_k, packed_v) =
            packed[head * (k_size + v_size)..][..k_size + v_size].split_at(k_size);
        let (batch, head) = (head / s.heads, head % s.heads);
        let (y, log_sums) = (to, log_sums_to);
        isa.run(Block { q, packed_k, packed_v, mask, s, batch, head, first, y, log_sums, scores });
    });
    // SAFETY: the blocks are all queries of all heads, and each wrote its rows.
    unsafe { y.set_len(values) };
    (y, log_sums)
}

/// The panels of one head. The scale goes to the keys, and so does log₂e: powers of 2 are cheaper than those of e.
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
        let width = V::WIDTH;
        let columns = Transposed { values: WeightValues::F32(k.0), k: k.1 };
        for (i, panel) in packed_k.chunks_exact_mut(width * s.head_dim).enumerate() {
            let keys = i * width..s.keys.min((i + 1) * width);
            columns.pack::<V>(0..s.head_dim, keys, width, panel);
            panel.iter_mut().for_each(|value| *value *= scale * LOG2_E);
        }
        let columns = Plain { values: v.0, stride: v.1 };
        for (i, panel) in packed_v.chunks_exact_mut(width * s.keys).enumerate() {
            let values = i * width..s.value_dim.min((i + 1) * width);
            columns.pack::<V>(0..s.keys, values, width, panel);
        }
    }
}

/// Some queries of one head, over all keys (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1): a
/// block of keys at a time, with the largest score of each row so far. Where a block has a larger one, what is
/// summed already is scaled down to it. The division by Σ e^… comes last.
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
    scores: &'a mut Vec<f32>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Block { q, packed_k, packed_v, mask, s, batch, head, first, y, log_sums, scores } =
            self;
        let width = V::WIDTH;
        let queries = QUERIES.min(s.queries - first);
        let (q, q_stride) = q.rows(batch, head, first);
        assert!(q.len() >= (queries - 1) * q_stride + s.head_dim);
        // Rows of the output are those of all heads side by side.
        let y_stride = s.heads * s.value_dim;
        let y = y.at((batch * s.queries + first) * y_stride + head * s.value_dim);
        let y_row = |row: usize| {
            // SAFETY: the block's rows of this head, which no other task has; the first block of keys has
            // written them.
            unsafe { std::slice::from_raw_parts_mut(y.wrapping_add(row * y_stride), s.value_dim) }
        };
        let scores = memory::aligned(scores, QUERIES * KEYS);
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        // Of each query, a vector of sums, which are added together at the end.
        let mut sums = [[0f32; LANES]; QUERIES];
        for key in (0..s.keys).step_by(KEYS) {
            let keys = KEYS.min(s.keys - key);
            // Whole vectors: past the keys the panels hold zeros.
            let whole = keys.next_multiple_of(V::LANES);
            for row in (0..queries).step_by(V::TILE_ROWS) {
                let rows = V::TILE_ROWS.min(queries - row);
                for column in (0..keys).step_by(width) {
                    let panel = &packed_k[(key + column) * s.head_dim..][..width * s.head_dim];
                    let columns = width.min(whole - column);
                    // SAFETY: the rows of q by the assert; the scores have QUERIES · KEYS values; the processor
                    // has V, or this would not run.
                    unsafe {
                        tile::<V>(
                            (rows, columns, s.head_dim),
                            q.as_ptr().add(row * q_stride),
                            q_stride,
                            panel.as_ptr(),
                            scores.as_mut_ptr().add(row * KEYS + column),
                            KEYS,
                            Start::Zero,
                        );
                    }
                }
            }
            for (row, scores) in scores.chunks_exact_mut(KEYS).take(queries).enumerate() {
                let scores = &mut scores[..whole];
                if let Some(mask) = &mask {
                    mask.add([batch, head, first + row, key], &mut scores[..keys]);
                }
                scores[keys..].fill(f32::NEG_INFINITY);
                // SAFETY: whole vectors of scores; the processor has V, or this would not run.
                let down =
                    unsafe { soften::<V>(scores, &mut largest[row], &mut sums[row], key == 0) };
                if let Some(down) = down {
                    y_row(row).iter_mut().for_each(|y| *y *= down);
                }
            }
            let start = if key == 0 { Start::Zero } else { Start::Itself };
            for (i, panel) in packed_v.chunks_exact(width * s.keys).enumerate() {
                let columns = width.min(s.value_dim - i * width);
                let panel = &panel[key * width..][..keys * width];
                for row in (0..queries).step_by(V::TILE_ROWS) {
                    let rows = V::TILE_ROWS.min(queries - row);
                    // SAFETY: as above; y's rows have value_dim values, of which these are columns.
                    unsafe {
                        tile::<V>(
                            (rows, columns, keys),
                            scores.as_ptr().add(row * KEYS),
                            KEYS,
                            panel.as_ptr(),
                            y.wrapping_add(row * y_stride + i * width),
                            y_stride,
                            start,
                        );
                    }
                }
            }
        }
        let sums = sums.map(|sums| sums[..V::LANES].iter().sum::<f32>());
        for (row, sum) in sums.iter().enumerate().take(queries) {
            // A row in which everything is masked attends to nothing.
            let scale = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
            y_row(row).iter_mut().for_each(|y| *y *= scale);
        }
        if let Some(log_sums) = log_sums {
            let to = log_sums.at((batch * s.heads + head) * s.queries + first);
            for (row, (sum, largest)) in sums.iter().zip(largest).enumerate().take(queries) {
                let log_sum = if *sum == 0.0 { f32::INFINITY } else { largest + sum.log2() };
                // SAFETY: there is one for each query, and no other task has this one.
                unsafe { *to.wrapping_add(row) = log_sum };
            }
        }
    }
}

/// Independent lanes of a reduction, so that it is vector code.
pub(super) const LANES: usize = 16;

/// Makes a block of a row's scores to powers of 2 below the largest so far, and adds those to the row's vector of sums. Where the
/// block has a larger one, what was summed before it is scaled down; returned is the factor, for the values' sums.
///
/// # Safety
/// [`Vector`]'s; the scores are whole vectors.
#[inline(always)]
pub(super) unsafe fn soften<V: Vector>(
    scores: &mut [f32],
    largest: &mut f32,
    sums: &mut [f32; LANES],
    is_first: bool,
) -> Option<f32> {
    // SAFETY: there are sums for the widest vector; for the rest the caller's.
    unsafe {
        let max = max::<V>(scores, *largest);
        // Where everything was masked so far there is nothing to scale, and 0 is as good a maximum.
        let finite = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sum = exponentials::<V>(scores, finite);
        let mut factor = None;
        if !is_first {
            let mut so_far = V::load(sums.as_ptr());
            if max != *largest {
                let down = (*largest - finite).exp2();
                so_far = so_far.mul(V::splat(down));
                factor = Some(down);
            }
            sum = sum.add(so_far);
        }
        sum.store(sums.as_mut_ptr());
        *largest = max;
        factor
    }
}

/// The largest of x, whole vectors, and of `so_far`; what is no number is left out.
///
/// # Safety
/// [`Vector`]'s.
#[inline(always)]
unsafe fn max<V: Vector>(x: &[f32], so_far: f32) -> f32 {
    // SAFETY: each chunk is a vector; for the rest the caller's.
    unsafe {
        // Three at a time: one after the other, each would wait for the last.
        let mut largest = [V::splat(so_far); 3];
        let mut threes = x.chunks_exact(3 * V::LANES);
        for x in &mut threes {
            for (i, largest) in largest.iter_mut().enumerate() {
                *largest = V::load(x.as_ptr().add(i * V::LANES)).max(*largest);
            }
        }
        let [a, b, mut c] = largest;
        for x in threes.remainder().chunks_exact(V::LANES) {
            c = V::load(x.as_ptr()).max(c);
        }
        a.max(b).max(c).largest()
    }
}

/// Makes x, whole vectors, to 2^(x − max) and returns a vector of sums of it.
///
/// # Safety
/// [`Vector`]'s.
#[inline(always)]
unsafe fn exponentials<V: Vector>(x: &mut [f32], max: f32) -> V {
    // SAFETY: each chunk is a vector; for the rest the caller's.
    unsafe {
        let max = V::splat(max);
        let mut sums = [V::splat(0.0); 2];
        let mut pairs = x.chunks_exact_mut(2 * V::LANES);
        for x in &mut pairs {
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = x.as_mut_ptr().add(i * V::LANES);
                let e = exp2(V::load(x).sub(max));
                e.store(x);
                *sum = sum.add(e);
            }
        }
        let [a, mut b] = sums;
        for x in pairs.into_remainder().chunks_exact_mut(V::LANES) {
            let e = exp2(V::load(x.as_ptr()).sub(max));
            e.store(x.as_mut_ptr());
            b = b.add(e);
        }
        a.add(b)
    }
}
