//! Matrix products of factors that are rounded to bf16, for who asks for them (`KOSMOGRAPH_PRECISION=bf16`): AMX, whose
//! tiles are matrices, the pair products of AVX512_BF16, or the products of small matrices of 64-bit ARM. Sums are f32.
//!
//! All read tiles of one size ([`Tile`]), in which the values have the unit's [`Order`], so that products, convolutions and
//! attention are written once, over a [`Unit`].

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod fours;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod order;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon")))]
mod sums;
mod unit;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use order::Order;
use pack::pack_columns;
pub(crate) use unit::{Begin, Set, Steps, Unit, WithUnit};

use crate::gemm::{Columns, Shared, Start, blocks_of};

/// 16 rows of 32 values of A; or of B 16 columns of 32 values. Where each of them lies in it is for the [`Order`] to say.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Tile(pub(crate) [u16; SIDE * DEPTH]);

/// Rows of A, and columns of B, in a tile.
pub(crate) const SIDE: usize = 16;
/// Values of a row or column in a tile.
pub(crate) const DEPTH: usize = 32;
/// Rows and columns of C that are computed at once, by 2 × 2 tiles.
pub(crate) const BLOCK: usize = 2 * SIDE;

/// Tiles of B's columns that are packed at once: with DEEPEST, 128 KiB of a second-level cache that also holds the strip of A.
const COLUMNS: usize = 4 * SIDE;
/// Tiles of a row that are multiplied before C is written.
const DEEPEST: usize = 32;

/// Room for `tiles`, none of them written.
pub(crate) fn room(tiles: usize) -> Vec<Tile> {
    Vec::with_capacity(tiles)
}

/// Tiles that `write` writes.
///
/// # Safety
/// `write` writes each of them, and reads none before.
pub(crate) unsafe fn written_by(tiles: usize, write: impl FnOnce(&mut [Tile])) -> Vec<Tile> {
    let mut room = room(tiles);
    // SAFETY: there is room; every pattern of bits is a tile, and nobody reads what is not written.
    write(unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr(), tiles) });
    // SAFETY: `write` wrote them.
    unsafe { room.set_len(tiles) };
    room
}

/// C [m, n] = start + A [m, k] B [k, n] on all threads, all of C's rows one after the other.
///
/// # Safety
/// `to` leads to room for C, m · n values that nobody else reads or writes meanwhile; they are there where the start is
/// `Itself`.
pub(crate) unsafe fn product_to(
    set: Set,
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &impl Columns,
    start: Start,
    to: Shared,
) {
    assert!(a.len() == m * k);
    let depth = k.div_ceil(DEPTH);
    let pack = |tiles: &mut [Tile]| {
        tiles.par_chunks_mut(depth.max(1)).enumerate().for_each(|(i, tiles)| {
            let rows = i * SIDE..m.min((i + 1) * SIDE);
            set.run(pack::Strip { from: &a[rows.start * k..rows.end * k], k, tiles });
        });
    };
    // SAFETY: each strip of 16 rows is written by its task.
    let a = unsafe { written_by(m.div_ceil(SIDE) * depth, pack) };
    blocks_of((m, n), (BLOCK, BLOCK)).into_par_iter().for_each_init(
        Vec::new,
        |scratch, (rows, columns)| {
            set.run(Product { a: &a, depth, k, n, rows, columns, b, start, to, scratch });
        },
    );
}

/// Some rows and columns of C, which begin at a multiple of BLOCK.
struct Product<'a, B> {
    /// All rows, `depth` tiles for each 16.
    a: &'a [Tile],
    depth: usize,
    k: usize,
    n: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    b: &'a B,
    start: Start<'a>,
    to: Shared,
    scratch: &'a mut Vec<Tile>,
}

impl<B: Columns> WithUnit for Product<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<U: Unit>(self) {
        let Product { a, depth, k, n, rows, columns, b, start, to, scratch } = self;
        // SAFETY, of all below: the processor has the unit, or this would not run; tiles lie within the slices, by their
        // bounds; C's block is this task's alone, by `product_to`.
        let mut unit = unsafe { U::open() };
        scratch.clear();
        scratch.reserve(COLUMNS / SIDE * depth.min(DEEPEST));
        for column in columns.clone().step_by(COLUMNS) {
            let end = columns.end.min(column + COLUMNS);
            for first in (0..depth.max(1)).step_by(DEEPEST) {
                let steps = DEEPEST.min(depth - first);
                let strips = (end - column).div_ceil(SIDE);
                // SAFETY: reserved above, and written here.
                unsafe {
                    scratch.set_len(strips * steps);
                    for (i, tiles) in scratch.chunks_exact_mut(steps.max(1)).enumerate() {
                        let at = column + i * SIDE;
                        let of_k = first * DEPTH..k.min((first + steps) * DEPTH);
                        pack_columns::<U::Order>(b, of_k, at..end.min(at + SIDE), tiles);
                    }
                }
                for row in rows.clone().step_by(BLOCK) {
                    for at in (column..end).step_by(BLOCK) {
                        let size = (BLOCK.min(rows.end - row), BLOCK.min(end - at));
                        let strip = |of: usize| (row / SIDE + of) * depth + first;
                        let strips_of_a = [0, usize::from(size.0 > SIDE)].map(strip);
                        let of_b = |of: usize| ((at - column) / SIDE + of) * steps;
                        let strips_of_b = [0, usize::from(size.1 > SIDE)].map(of_b);
                        let begin = match start {
                            _ if first > 0 => Begin::Itself,
                            Start::Zero => Begin::Zero,
                            Start::Rows(values) => Begin::Rows(&values[row..row + size.0]),
                            Start::Columns(values) => Begin::Columns(&values[at..at + size.1]),
                            Start::Itself => Begin::Itself,
                            Start::Matrix { values, stride } => {
                                Begin::Matrix(&values[row * stride + at..], stride)
                            }
                        };
                        // SAFETY: as above.
                        unsafe {
                            let c = to.at(row * n + at);
                            unit.begin(begin, c, n, size);
                            if steps > 0 {
                                let a = strips_of_a.map(|at| a[at..at + steps].as_ptr());
                                let b = strips_of_b.map(|at| scratch[at..at + steps].as_ptr());
                                unit.add(a, Steps::OF_TILES, b, steps);
                            }
                            unit.end(begin, c, n, size);
                        }
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { unit.close() };
    }
}
