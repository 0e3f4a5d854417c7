//! Attention with queries, keys, values and softmax rounded to bf16 where they are multiplied; the softmax itself, and all
//! sums, are f32. Blocks as in [`super::cpu`].

use std::f32::consts::LOG2_E;

use rayon::prelude::*;

use super::cpu::{Heads, LANES, Mask, Sizes};
use crate::bf16::{BLOCK, Begin, DEPTH, Order, SIDE, Set, Steps, Tile, Unit, WithUnit, written_by};
use crate::exponential::exp2;
use crate::gemm::Shared;
use crate::memory;
use crate::simd::Vector;

/// Keys whose scores a task has at once: 32 KiB of scores, and 16 of what is made of them.
const KEYS: usize = 256;

/// Returns [B, Lq, H, Dv].
pub(super) fn attention(
    set: Set,
    [q, k, v]: [Heads; 3],
    mask: Option<Mask>,
    scale: f32,
    s: Sizes,
) -> Vec<f32> {
    let values = s.batch * s.heads * s.queries * s.value_dim;
    if values == 0 || s.keys == 0 || s.head_dim == 0 {
        return vec![0f32; values];
    }
    let of_head = Packed::new(s);
    let pack = |tiles: &mut [Tile]| {
        tiles.par_chunks_mut(of_head.tiles()).enumerate().for_each(|(head, tiles)| {
            let (batch, head) = (head / s.heads, head % s.heads);
            let (k, v) = (k.rows(batch, head, 0), v.rows(batch, head, 0));
            set.run(Pack { k, v, s, tiles });
        });
    };
    // SAFETY: a head's tiles are written by its task.
    let packed = unsafe { written_by(s.batch * s.heads * of_head.tiles(), pack) };
    let mut y = memory::reserve(values);
    let to = Shared(y.as_mut_ptr());
    let blocks = s.queries.div_ceil(BLOCK);
    (0..s.batch * s.heads * blocks).into_par_iter().for_each_init(
        || Scratch::new(s),
        |scratch, task| {
            let (head, first) = (task / blocks, task % blocks * BLOCK);
            let packed = &packed[head * of_head.tiles()..][..of_head.tiles()];
            let (batch, head) = (head / s.heads, head % s.heads);
            set.run(Block { q, packed, mask, scale, s, batch, head, first, y: to, scratch });
        },
    );
    // SAFETY: the blocks are all queries of all heads, and each wrote its rows.
    unsafe { y.set_len(values) };
    y
}

/// The tiles of one head: of kᵀ an even number of strips of 16 keys, of v an even number of strips of 16 columns.
#[derive(Clone, Copy)]
struct Packed {
    /// Tiles of a strip of keys, and of a strip of values.
    k_depth: usize,
    v_depth: usize,
    k_strips: usize,
    v_strips: usize,
}

impl Packed {
    fn new(s: Sizes) -> Self {
        Packed {
            k_depth: s.head_dim.div_ceil(DEPTH),
            v_depth: s.keys.div_ceil(DEPTH),
            k_strips: s.keys.div_ceil(BLOCK) * 2,
            v_strips: s.value_dim.div_ceil(BLOCK) * 2,
        }
    }

    fn tiles(self) -> usize {
        self.k_depth * self.k_strips + self.v_depth * self.v_strips
    }
}

struct Pack<'a> {
    /// Rows, and how far they are apart.
    k: (&'a [f32], usize),
    v: (&'a [f32], usize),
    s: Sizes,
    tiles: &'a mut [Tile],
}

impl WithUnit for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Pack { k, v, s, tiles } = self;
        let of = Packed::new(s);
        let (of_k, of_v) = tiles.split_at_mut(of.k_depth * of.k_strips);
        let mut rows = vec![Tile([0; SIDE * DEPTH]); of.k_depth];
        for (strip, tiles) in of_k.chunks_exact_mut(of.k_depth).enumerate() {
            let first = (strip * SIDE).min(s.keys);
            let count = SIDE.min(s.keys - first);
            // SAFETY, here and below: the processor has the instructions, or this would not run; the rows are there.
            unsafe {
                let from = k.0.as_ptr().wrapping_add(first * k.1);
                U::Order::rows(from, k.1, count, s.head_dim, &mut rows);
                for (rows, tile) in rows.iter().zip(tiles) {
                    U::Order::turn(rows, tile);
                }
            }
        }
        for (strip, tiles) in of_v.chunks_exact_mut(of.v_depth).enumerate() {
            let column = (strip * SIDE).min(s.value_dim);
            let columns = SIDE.min(s.value_dim - column);
            for (step, tile) in tiles.iter_mut().enumerate() {
                let rows = DEPTH.min(s.keys - step * DEPTH);
                let from = v.0.as_ptr().wrapping_add(step * DEPTH * v.1 + column);
                unsafe { U::Order::columns(from, v.1, rows, columns, tile) };
            }
        }
    }
}

/// What a task works in.
struct Scratch {
    /// [32, D], times the scale; then [32, KEYS].
    scores: Vec<f32>,
    /// [32, Dv], Dv rounded up to 32.
    y: Vec<f32>,
    queries: Vec<Tile>,
    /// Of what comes of the scores.
    weights: Vec<Tile>,
}

impl Scratch {
    fn new(s: Sizes) -> Self {
        let none = Tile([0; SIDE * DEPTH]);
        Scratch {
            scores: vec![0.0; BLOCK * KEYS.max(s.head_dim)],
            y: vec![0.0; BLOCK * s.value_dim.next_multiple_of(BLOCK)],
            queries: vec![none; 2 * s.head_dim.div_ceil(DEPTH)],
            weights: vec![none; 2 * KEYS / DEPTH],
        }
    }
}

/// Some queries of one head, over all keys.
struct Block<'a> {
    q: Heads<'a>,
    packed: &'a [Tile],
    mask: Option<Mask<'a>>,
    scale: f32,
    s: Sizes,
    batch: usize,
    head: usize,
    /// The first query.
    first: usize,
    y: Shared,
    scratch: &'a mut Scratch,
}

impl WithUnit for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Block { q, packed, mask, scale, s, batch, head, first, y, scratch } = self;
        let of = Packed::new(s);
        let (of_k, of_v) = packed.split_at(of.k_depth * of.k_strips);
        let Scratch { scores, y: sums_of_y, queries: of_q, weights } = scratch;
        let queries = BLOCK.min(s.queries - first);
        let (q, q_stride) = q.rows(batch, head, first);
        // log₂e with the scale: powers of 2 are cheaper than those of e.
        for (row, to) in scores.chunks_exact_mut(s.head_dim).take(queries).enumerate() {
            let from = &q[row * q_stride..][..s.head_dim];
            to.iter_mut().zip(from).for_each(|(to, value)| *to = value * scale * LOG2_E);
        }
        // SAFETY, of all below: the processor has the unit, or this would not run; tiles lie within the slices, which are whole
        // strips; scores and sums are whole blocks.
        unsafe {
            for (strip, tiles) in of_q.chunks_exact_mut(of.k_depth).enumerate() {
                let row = (strip * SIDE).min(queries);
                let from = scores.as_ptr().add(row * s.head_dim);
                U::Order::rows(from, s.head_dim, SIDE.min(queries - row), s.head_dim, tiles);
            }
        }
        let a = [of_q.as_ptr(), of_q[of.k_depth..].as_ptr()];
        let y_width = s.value_dim.next_multiple_of(BLOCK);
        let mut largest = [f32::NEG_INFINITY; BLOCK];
        let mut sums = [[0f32; LANES]; BLOCK];
        let whole_block = (BLOCK, BLOCK);
        let mut unit = unsafe { U::open() };
        for key in (0..s.keys).step_by(KEYS) {
            let keys = KEYS.min(s.keys - key);
            let whole = keys.next_multiple_of(BLOCK);
            for column in (0..whole).step_by(BLOCK) {
                let strip = (key + column) / SIDE;
                let b = [strip, strip + 1].map(|strip| of_k[strip * of.k_depth..].as_ptr());
                unsafe {
                    let c = scores.as_mut_ptr().add(column);
                    unit.begin(Begin::Zero, c, KEYS, whole_block);
                    unit.add(a, Steps::OF_TILES, b, of.k_depth);
                    unit.end(Begin::Zero, c, KEYS, whole_block);
                }
            }
            for (row, scores) in scores.chunks_exact_mut(KEYS).take(queries).enumerate() {
                let scores = &mut scores[..whole];
                if let Some(mask) = &mask {
                    mask.add([batch, head, first + row, key], &mut scores[..keys]);
                }
                scores[keys..].fill(f32::NEG_INFINITY);
                let (largest, sums) = (&mut largest[row], &mut sums[row]);
                let down =
                    unsafe { soften::<<U::Order as Order>::V>(scores, largest, sums, key == 0) };
                if let Some(down) = down {
                    let y = &mut sums_of_y[row * y_width..][..y_width];
                    y.iter_mut().for_each(|y| *y *= down);
                }
            }
            let depth = whole / DEPTH;
            unsafe {
                for (strip, tiles) in weights.chunks_exact_mut(KEYS / DEPTH).enumerate() {
                    let from = scores.as_ptr().add(strip * SIDE * KEYS);
                    U::Order::rows(from, KEYS, SIDE, whole, tiles);
                }
            }
            let a = [weights.as_ptr(), weights[KEYS / DEPTH..].as_ptr()];
            let begin = if key == 0 { Begin::Zero } else { Begin::Itself };
            for column in (0..s.value_dim).step_by(BLOCK) {
                let strip = column / SIDE;
                let at = |strip: usize| of_v[strip * of.v_depth + key / DEPTH..].as_ptr();
                let b = [strip, strip + 1].map(at);
                unsafe {
                    let c = sums_of_y.as_mut_ptr().add(column);
                    unit.begin(begin, c, y_width, whole_block);
                    unit.add(a, Steps::OF_TILES, b, depth);
                    unit.end(begin, c, y_width, whole_block);
                }
            }
        }
        unsafe { unit.close() };
        for (row, from) in sums_of_y.chunks_exact(y_width).take(queries).enumerate() {
            let sum: f32 = sums[row].iter().sum();
            // A row in which everything is masked attends to nothing.
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            // Rows of the output are those of all heads side by side.
            let at = ((batch * s.queries + first + row) * s.heads + head) * s.value_dim;
            for (i, value) in from[..s.value_dim].iter().enumerate() {
                // SAFETY: this head's row of this query, which no other task has.
                unsafe { *y.at(at + i) = value * scale };
            }
        }
    }
}

/// Makes a block of a row's scores to powers of 2 below the largest so far, and adds those to the row's vector of sums. Where the
/// block has a larger one, what was summed before it is scaled down; returned is the factor, for the values' sums.
///
/// # Safety
/// [`Vector`]'s; the scores are whole vectors.
#[inline(always)]
unsafe fn soften<V: Vector>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    /// Values whose softmax is computed in f32 differ by what rounding its weights, at most 2⁻⁹ of each, and the scaled
    /// queries comes to.
    #[test]
    fn agrees_with_attention_in_f32() {
        let wave = |count: usize, step: f32| -> Vec<f32> {
            (0..count)
                .map(|i| (i as f32 * step).sin())
                .map(|v| half::bf16::from_f32(v).to_f32())
                .collect()
        };
        // Widths of Stable Diffusion and Kosmos-G, their VAE's, and some that fill no tile.
        for (batch, heads, queries, keys, head_dim, value_dim) in [
            (2, 8, 70, 300, 40, 40),
            (1, 2, 33, 77, 80, 80),
            (1, 3, 49, 257, 64, 64),
            (1, 1, 65, 600, 512, 512),
            (1, 2, 5, 3, 7, 50),
            (1, 1, 1, 1, 1, 1),
        ] {
            let s = Sizes { batch, heads, queries, keys, head_dim, value_dim };
            let q = wave(batch * heads * queries * head_dim, 0.37);
            let k = wave(batch * heads * keys * head_dim, 0.73);
            let v = wave(batch * heads * keys * value_dim, 0.11);
            let heads_of = |values, length: usize, width: usize| Heads {
                values,
                start: 0,
                strides: [heads * length * width, length * width, width],
            };
            let of = || {
                [
                    heads_of(&q[..], queries, head_dim),
                    heads_of(&k[..], keys, head_dim),
                    heads_of(&v[..], keys, value_dim),
                ]
            };
            // Hides every third key, and all of the last query's.
            let hides = |at: usize| at % keys % 3 == 2 || at / keys == queries - 1;
            let hidden: Vec<f32> = (0..queries * keys)
                .map(|at| if hides(at) { f32::NEG_INFINITY } else { 0.0 })
                .collect();
            let mask = Mask { values: &hidden, start: 0, strides: [0, 0, keys, 1] };
            let scale = 3.0 / (head_dim as f32).sqrt();
            for mask in [None, Some(mask)] {
                let (want, _) =
                    super::super::cpu::attention(Isa::Portable, of(), mask, scale, s, false);
                for isa in Isa::with_bf16() {
                    let set = isa.bf16().expect("one of those that have it");
                    let found = attention(set, of(), mask, scale, s);
                    assert_eq!(found.len(), want.len());
                    let worst =
                        found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    println!("{s:?}, masked {}, {isa:?}: {worst:.1e}", mask.is_some());
                    assert!(worst < 4e-3, "{s:?}, {isa:?}: {worst}");
                }
            }
        }
    }
}
