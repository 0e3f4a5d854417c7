//! Matrix products C = A B (+ what C begins with), the part that linear layers, convolutions and
//! attention share.
//!
//! The loops are those of Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008):
//! a panel of B, as many columns as two or three vectors have lanes, stays in the first-level cache while the rows
//! of A, from the second level, go over it; a tile of C stays in registers. B is packed by who owns it
//! ([`Columns`]): a transposed weight, the patches of a picture, values in half precision.

mod columns;
pub(crate) mod tile;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use columns::{Plain, Rows, Transposed};

use crate::bf16;
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;
use tile::tile;

/// Rows of B that are packed at once: a panel of them and a strip of A fit a first-level cache of 32 KiB.
pub(crate) const K_BLOCK: usize = 320;
/// Columns of B that are packed at once: with K_BLOCK rows, half a second-level cache of 512 KiB.
const N_BLOCK: usize = 192;

/// The matrix B [k, n], which can write its columns in the order the tiles read them.
pub(crate) trait Columns: Sync {
    /// Writes the rows `k` of the columns `n` to `panel`: row after row, each `width` values, of which those
    /// past `n` are zero. `n` is at most `width` long and begins at a multiple of it.
    ///
    /// To be `#[inline(always)]`.
    fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, width: usize, panel: &mut [f32]);

    /// Has the rows `k` of the columns `n` fetched to a second-level cache, where they come from memory: they are packed soon.
    ///
    /// To be `#[inline(always)]`.
    #[inline(always)]
    fn prefetch<V: Vector>(&self, _k: Range<usize>, _n: Range<usize>) {}

    /// Where the columns lie in memory one after the other: all of them from the first value on, and how far two are apart.
    #[inline(always)]
    fn rows_of_columns(&self) -> Option<(WeightValues<'_>, usize)> {
        None
    }
}

/// What C holds before the product is added.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// One value for each row.
    Rows(&'a [f32]),
    /// One value for each column.
    Columns(&'a [f32]),
    /// What is in it.
    Itself,
    /// Another matrix's rows, `stride` apart.
    Matrix {
        values: &'a [f32],
        stride: usize,
    },
}

/// A block of C = A B for one thread.
///
/// A [m, k] is row by row, `a_stride` apart, C [m, n] likewise, `c_stride` apart.
pub(crate) struct Product<'a, B> {
    pub(crate) m: usize,
    pub(crate) k: usize,
    /// The columns of B, which go to the columns 0.. of `c`.
    pub(crate) n: Range<usize>,
    pub(crate) a: *const f32,
    pub(crate) a_stride: usize,
    pub(crate) b: &'a B,
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
    /// For [`Start::Columns`], the values of all of B's columns.
    pub(crate) start: Start<'a>,
    /// For the packed block of B; it keeps its size between calls.
    pub(crate) scratch: &'a mut Vec<f32>,
}

impl<B: Columns> Product<'_, B> {
    /// # Safety
    /// `a` leads to m rows of k values, `c` to m rows of n.len() values which nobody else reads or writes
    /// meanwhile; a [`Start::Matrix`] to as many.
    pub(crate) unsafe fn compute(self, isa: Isa) {
        isa.run(self);
    }
}

impl<B: Columns> Kernel for Product<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let width = V::WIDTH;
        let Product { m, k, n, a, a_stride, b, c, c_stride, start, scratch } = self;
        let first = n.start;
        let k_block = k.div_ceil(k.div_ceil(K_BLOCK).max(1)).max(1);
        let scratch = memory::aligned(scratch, k_block * N_BLOCK);
        for j in n.clone().step_by(N_BLOCK) {
            let j_end = n.end.min(j + N_BLOCK);
            for p in (0..k.max(1)).step_by(k_block) {
                let p_end = k.min(p + k_block);
                let depth = p_end - p;
                for (i, panel) in
                    (j..j_end).step_by(width).zip(scratch.chunks_mut(depth.max(1) * width))
                {
                    b.pack::<V>(p..p_end, i..j_end.min(i + width), width, panel);
                }
                // What is packed next comes from memory while this is multiplied, some of it with each strip of rows.
                let next = if p_end < k {
                    (p_end..k.min(p_end + k_block), j..j_end)
                } else {
                    (0..k_block, j_end..n.end.min(j_end + N_BLOCK))
                };
                let strips = m.div_ceil(V::TILE_ROWS);
                for row in (0..m).step_by(V::TILE_ROWS) {
                    let (strip, (next_k, next_n)) = (row / V::TILE_ROWS, next.clone());
                    let part = |strip: usize| next_n.start + next_n.len() * strip / strips;
                    b.prefetch::<V>(next_k, part(strip)..part(strip + 1));
                    let rows = V::TILE_ROWS.min(m - row);
                    for (column, panel) in
                        (j..j_end).step_by(width).zip(scratch.chunks(depth.max(1) * width))
                    {
                        let columns = width.min(j_end - column);
                        let start = match start {
                            _ if p > 0 => Start::Itself,
                            Start::Rows(values) => Start::Rows(&values[row..row + rows]),
                            Start::Columns(values) => {
                                Start::Columns(&values[column..column + columns])
                            }
                            Start::Matrix { values, stride } => Start::Matrix {
                                values: &values[row * stride + column - first..],
                                stride,
                            },
                            other => other,
                        };
                        // SAFETY: row + rows ≤ m and p + depth ≤ k, so the rows of A are there; the
                        // columns are within `n`, so the tile lies within C; the panel was packed
                        // above; the processor has V, or it would not run.
                        unsafe {
                            tile::<V>(
                                (rows, columns, depth),
                                a.add(row * a_stride + p),
                                a_stride,
                                panel.as_ptr(),
                                c.add(row * c_stride + column - first),
                                c_stride,
                                start,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// C [m, n] = start + A [m, k] B [k, n] on all threads, all of C's rows one after the other. The start is not `Itself`.
pub(crate) fn product(
    isa: Isa,
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &impl Columns,
    start: Start,
) -> Vec<f32> {
    let mut c = memory::reserve(m * n);
    // SAFETY: C was reserved whole, and is not read before it is written, since the start is not `Itself`.
    unsafe { product_to(isa, (m, k, n), a, b, start, Shared(c.as_mut_ptr())) };
    // SAFETY: all of C was written.
    unsafe { c.set_len(m * n) };
    c
}

/// C [m, n] += A [m, k] B [k, n] on all threads, all of C's rows one after the other.
pub(crate) fn add_product(
    isa: Isa,
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &impl Columns,
    c: &mut [f32],
) {
    assert!(c.len() == m * n);
    // SAFETY: C is borrowed alone, and is whole.
    unsafe { product_to(isa, (m, k, n), a, b, Start::Itself, Shared(c.as_mut_ptr())) }
}

/// # Safety
/// `to` leads to room for C, m · n values that nobody else reads or writes meanwhile; they are there where the start is
/// `Itself`.
unsafe fn product_to(
    isa: Isa,
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &impl Columns,
    start: Start,
    to: Shared,
) {
    assert!(a.len() == m * k);
    if let Some(set) = isa.bf16() {
        // SAFETY: the caller's.
        return unsafe { bf16::product_to(set, (m, k, n), a, b, start, to) };
    }
    let blocks = blocks(m, n);
    // A small product is done before the threads are woken.
    let tasks = if m * n * k < 100_000 { blocks.len() } else { 1 };
    blocks.into_par_iter().with_min_len(tasks).for_each_init(
        Vec::new,
        |scratch, (rows, columns)| {
            let start = match start {
                Start::Rows(values) => Start::Rows(&values[rows.clone()]),
                other => other,
            };
            let block = Product {
                m: rows.len(),
                k,
                a: a[rows.start * k..].as_ptr(),
                a_stride: k,
                b,
                c: to.at(rows.start * n + columns.start),
                c_stride: n,
                n: columns,
                start,
                scratch,
            };
            // SAFETY: the rows of A are there, by the assert; the blocks part C among them.
            unsafe { block.compute(isa) }
        },
    );
}

/// Parts an m × n matrix into blocks for the threads, two or more for each: by columns first, since each block packs its columns
/// of B, as far as these can be parted evenly; the rest by rows. All but the last have whole tiles on every instruction set.
pub(crate) fn blocks(m: usize, n: usize) -> Vec<(Range<usize>, Range<usize>)> {
    blocks_of((m, n), (ROW_STEP, COLUMN_STEP))
}

/// As [`blocks`], with rows and columns that are multiples of the steps, but for the last.
pub(crate) fn blocks_of(
    (m, n): (usize, usize),
    (row_step, column_step): (usize, usize),
) -> Vec<(Range<usize>, Range<usize>)> {
    let wanted = match rayon::current_num_threads() {
        1 => 1,
        threads => 2 * threads,
    };
    let step = |parts: usize| n.div_ceil(parts).next_multiple_of(column_step).max(1);
    // A block that is much wider than its share would be waited for.
    let is_even = |parts: &usize| step(*parts) * parts <= n + n / UNEVEN;
    let by_columns =
        (1..=wanted).rev().find(|parts| wanted.is_multiple_of(*parts) && is_even(parts));
    let columns = step(by_columns.filter(|_| m >= wanted * row_step).unwrap_or(wanted));
    let by_columns = n.div_ceil(columns).max(1);
    let rows = m.div_ceil(wanted.div_ceil(by_columns)).next_multiple_of(row_step);
    let parts =
        |of: usize, step: usize| (0..of).step_by(step.max(1)).map(move |i| i..of.min(i + step));
    parts(m, rows)
        .flat_map(|rows| parts(n, columns).map(move |columns| (rows.clone(), columns)))
        .collect()
}

/// The part of the columns that blocks of equal width may lie beyond the matrix.
const UNEVEN: usize = 12;

/// Whole tiles on every instruction set.
const COLUMN_STEP: usize = 48;
pub(crate) const ROW_STEP: usize = 24;

/// The start of a matrix that several threads write to, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);
// SAFETY: who writes through it says why no other thread does so there.
unsafe impl Send for Shared {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;
    use crate::storage::WeightValues;

    /// Values of ±1 that are exact in half precision too.
    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as f32 / 128.0 - 1.0
        };
        (0..count).map(next).collect()
    }

    /// start + A Bᵀ in f64, and Σ |a b|, which the error is measured by.
    fn direct(
        a: &[f32],
        w: &[f32],
        k: usize,
        start: impl Fn(usize, usize) -> f32,
    ) -> Vec<(f64, f64)> {
        let mut c = Vec::new();
        for (i, a) in a.chunks_exact(k).enumerate() {
            for (j, w) in w.chunks_exact(k).enumerate() {
                let products = a.iter().zip(w).map(|(a, w)| f64::from(*a) * f64::from(*w));
                let sum: f64 = products.clone().sum();
                let size: f64 = products.map(f64::abs).sum();
                let start = f64::from(start(i, j));
                c.push((sum + start, size + start.abs()));
            }
        }
        c
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn agrees_with_the_definition_on_every_instruction_set(
            m in 1usize..40, k in 1usize..700, n in 1usize..250, seed in any::<u32>(), kind in 0usize..3,
        ) {
            let (a, w) = (values(m * k, seed), values(n * k, !seed));
            let (by_row, by_column) = (values(m, seed ^ 7), values(n, seed ^ 9));
            let half: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let brain: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let start = [Start::Zero, Start::Rows(&by_row), Start::Columns(&by_column)][kind];
            let want = direct(&a, &w, k, |i, j| [0.0, by_row[i], by_column[j]][kind]);
            let mut plain = vec![0f32; k * n];
            for (i, value) in w.iter().enumerate() {
                plain[i % k * n + i / k] = *value;
            }
            // The values are exact in bf16, too.
            for isa in Isa::available().into_iter().chain(Isa::with_bf16()) {
                let weights = [WeightValues::F32(&w), WeightValues::F16(&half), WeightValues::BF16(&brain)];
                let mut found: Vec<Vec<f32>> = weights
                    .iter()
                    .map(|values| product(isa, (m, k, n), &a, &Transposed { values: *values, k }, start))
                    .collect();
                found.push(product(isa, (m, k, n), &a, &Plain { values: &plain, stride: n }, start));
                let half: Vec<f16> = plain.iter().map(|value| f16::from_f32(*value)).collect();
                for values in [WeightValues::F32(&plain), WeightValues::F16(&half)] {
                    found.push(product(isa, (m, k, n), &a, &Rows { values, stride: n }, start));
                }
                for found in found {
                    prop_assert_eq!(found.len(), want.len());
                    for (found, (want, size)) in found.iter().zip(&want) {
                        let error = (f64::from(*found) - want).abs();
                        prop_assert!(error <= 1e-6 * size, "{found} is not {want} on {isa:?}");
                    }
                }
            }
        }
    }

    /// Products with bf16 are those of the rounded factors; what is added is not rounded.
    #[test]
    fn factors_are_rounded_to_bf16() {
        let (m, k, n) = (70, 100, 75);
        let wave = |count: usize, step: f32| -> Vec<f32> {
            (0..count).map(|i| (i as f32 * step).sin()).collect()
        };
        let (a, w, start) = (wave(m * k, 0.37), wave(n * k, 0.73), wave(m * n, 0.11));
        let rounded = |values: &[f32]| -> Vec<f32> {
            values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect()
        };
        let want = direct(&rounded(&a), &rounded(&w), k, |i, j| start[i * n + j]);
        for isa in Isa::with_bf16() {
            let b = Transposed { values: WeightValues::F32(&w), k };
            let begin = Start::Matrix { values: &start, stride: n };
            let mut found = product(isa, (m, k, n), &a, &b, begin);
            let mut sums = start.clone();
            add_product(isa, (m, k, n), &a, &b, &mut sums);
            found.extend(sums);
            for (found, (want, size)) in found.iter().zip(want.iter().chain(&want)) {
                let error = (f64::from(*found) - want).abs();
                assert!(error <= 1e-6 * size, "{found} is not {want} on {isa:?}");
            }
        }
    }

    #[test]
    fn nothing_times_something() {
        for isa in Isa::available().into_iter().chain(Isa::with_bf16()) {
            let b = Plain { values: &[], stride: 3 };
            assert_eq!(
                product(isa, (2, 0, 3), &[], &b, Start::Columns(&[1., 2., 3.])),
                [1., 2., 3., 1., 2., 3.]
            );
            assert!(
                product(isa, (0, 4, 3), &[], &Plain { values: &[0.; 12], stride: 3 }, Start::Zero)
                    .is_empty()
            );
            let none = Transposed { values: WeightValues::F32(&[]), k: 4 };
            assert!(product(isa, (2, 4, 0), &[0.; 8], &none, Start::Zero).is_empty());
        }
    }
}
