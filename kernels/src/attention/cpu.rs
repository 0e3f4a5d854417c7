use rayon::prelude::*;

use crate::exponential::exp;

/// q [B·H, Lq, D], k [B·H, Lk, D], v [B·H, Lk, Dv].
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) head_dim: usize,
    pub(super) value_dim: usize,
}

/// An additive mask seen as [B, H, Lq, Lk]; the stride of a broadcast dimension is 0.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    pub(super) values: &'a [f32],
    pub(super) start: usize,
    pub(super) strides: [usize; 4],
}

/// Scores of one task: 1 MiB, what a second-level cache holds.
const SCORES: usize = 1 << 18;
/// Queries that a task has at most.
const MAX_QUERIES: usize = 128;

/// A task is one head and a block of its queries: scores, softmax and the sum of values, all of it
/// while the scores are in the cache. The division by Σ e^… comes last, on the smaller matrix.
pub(super) fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<Mask>,
    scale: f32,
    s: Sizes,
) -> Vec<f32> {
    let mut y = vec![0f32; s.batch * s.heads * s.queries * s.value_dim];
    if y.is_empty() || s.keys == 0 || s.head_dim == 0 {
        return y;
    }
    let block = (SCORES / s.keys).clamp(1, MAX_QUERIES).min(s.queries);
    // Blocks of y by head, so that no block has queries of two heads.
    let mut blocks: Vec<(usize, usize, &mut [f32])> = Vec::new();
    for (head, y) in y.chunks_exact_mut(s.queries * s.value_dim).enumerate() {
        for (i, y) in y.chunks_mut(block * s.value_dim).enumerate() {
            blocks.push((head, i * block, y));
        }
    }
    blocks.into_par_iter().for_each_init(Vec::new, |scores, (head, first, y)| {
        let rows = y.len() / s.value_dim;
        let q = &q[(head * s.queries + first) * s.head_dim..][..rows * s.head_dim];
        let k = &k[head * s.keys * s.head_dim..][..s.keys * s.head_dim];
        let v = &v[head * s.keys * s.value_dim..][..s.keys * s.value_dim];
        scores.clear();
        scores.resize(rows * s.keys, 0f32);
        product(scores, q, k, (rows, s.keys, s.head_dim), (1, s.head_dim), scale);
        let mut sums = [0f32; MAX_QUERIES];
        for (row, scores) in scores.chunks_exact_mut(s.keys).enumerate() {
            if let Some(mask) = &mask {
                let at = [head / s.heads, head % s.heads, first + row];
                let start: usize = at.iter().zip(mask.strides).map(|(i, stride)| i * stride).sum();
                for (j, score) in scores.iter_mut().enumerate() {
                    *score += mask.values[mask.start + start + j * mask.strides[3]];
                }
            }
            sums[row] = exponentials(scores);
        }
        product(y, scores, v, (rows, s.value_dim, s.keys), (s.value_dim, 1), 1.0);
        for (y, sum) in y.chunks_exact_mut(s.value_dim).zip(sums) {
            // A row in which everything is masked attends to nothing.
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            y.iter_mut().for_each(|y| *y *= scale);
        }
    });
    y
}

/// c = scale · a b, with c [m, n] and a [m, k] row by row, and the element (i, j) of b [k, n] at
/// i · b_strides.0 + j · b_strides.1.
fn product(
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    (m, n, k): (usize, usize, usize),
    b_strides: (usize, usize),
    scale: f32,
) {
    assert!(c.len() == m * n && a.len() == m * k && b.len() == k * n);
    // SAFETY: the slices have the sizes asserted above, and b's strides are those of one order of
    // its k · n values or the other; c is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            0.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Makes x to e^(x − max x) and returns the sum; a row of only −∞ to zeros.
fn exponentials(x: &mut [f32]) -> f32 {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    if max == f32::NEG_INFINITY && !x.iter().any(|x| x.is_nan()) {
        x.fill(0.0);
        return 0.0;
    }
    for x in x.iter_mut() {
        *x = exp(*x - max);
    }
    // Eight sums at once, so that adding is vector code too.
    let mut sums = [0f32; 8];
    let (eights, rest) = x.as_chunks::<8>();
    for eight in eights {
        for (sum, x) in sums.iter_mut().zip(eight) {
            *sum += x;
        }
    }
    sums.iter().chain(rest).sum()
}
