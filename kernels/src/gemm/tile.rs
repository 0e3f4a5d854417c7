//! The innermost loop of the product: a tile of C in registers.

use std::mem::MaybeUninit;

use super::Start;
use crate::simd::{Kernel, Vector};

/// The most rows and columns a tile has.
const MAX_ROWS: usize = 12;
const MAX_WIDTH: usize = 32;

static ZEROS: [f32; MAX_WIDTH] = [0.0; MAX_WIDTH];

/// C [rows, columns] = start + A [rows, depth] · panel [depth, 2 · LANES].
///
/// # Safety
/// 1 ≤ rows ≤ TILE_ROWS and 1 ≤ columns ≤ 2 · LANES; A's rows are there, `a_stride` apart, the panel is whole, and
/// C's rows, `c_stride` apart, can be written; what the start leads to can be read.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector>(
    sizes: (usize, usize, usize),
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    c: *mut f32,
    c_stride: usize,
    start: Start,
) {
    // SAFETY: the caller's.
    unsafe { V::apart(Tile::<false> { sizes, a, a_stride, panel, c, c_stride, start }) }
}

/// [`tile`] with A by columns: value (i, p) lies at `a[p · a_stride + i]`.
///
/// # Safety
/// As [`tile`], of A's columns.
#[inline(always)]
pub(crate) unsafe fn tile_of_turned<V: Vector>(
    sizes: (usize, usize, usize),
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    c: *mut f32,
    c_stride: usize,
    start: Start,
) {
    // SAFETY: the caller's.
    unsafe { V::apart(Tile::<true> { sizes, a, a_stride, panel, c, c_stride, start }) }
}

/// What [`tile`] is given, or with `TURNED` [`tile_of_turned`]: a loop for each number of rows, and so no part of those who
/// call it.
struct Tile<'a, const TURNED: bool> {
    /// Rows, columns and depth.
    sizes: (usize, usize, usize),
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    c: *mut f32,
    c_stride: usize,
    start: Start<'a>,
}

impl<const TURNED: bool> Kernel for Tile<'_, TURNED> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Tile { sizes: (rows, columns, depth), a, a_stride, panel, c, c_stride, start } = self;
        const { assert!(V::TILE_ROWS <= MAX_ROWS && 2 * V::LANES <= MAX_WIDTH) };
        let width = 2 * V::LANES;
        let by_row = match start {
            Start::Rows(values) => Some(values),
            _ => None,
        };
        let (from, from_stride) = match start {
            Start::Zero | Start::Rows(_) => (ZEROS.as_ptr(), 0),
            Start::Columns(values) => (values.as_ptr(), 0),
            Start::Itself => (c.cast_const(), c_stride),
            Start::Matrix { values, stride } => (values.as_ptr(), stride),
        };
        // A tile that is not one vector or two wide is computed beside C, from what it starts with, widened.
        let whole = columns == width || columns == V::LANES;
        let mut aside = MaybeUninit::<[f32; MAX_ROWS * MAX_WIDTH]>::uninit();
        let (begin, to, to_stride) = if whole {
            (Begin { by_row, from, from_stride }, c, c_stride)
        } else {
            let aside = aside.write([0.0; MAX_ROWS * MAX_WIDTH]).as_mut_ptr();
            for row in 0..rows {
                // SAFETY: the start has this row's columns, and `aside` a row as wide as the tile.
                unsafe {
                    let from = from.add(row * from_stride);
                    std::ptr::copy_nonoverlapping(from, aside.add(row * width), columns);
                }
            }
            (Begin { by_row, from: aside.cast_const(), from_stride: width }, aside, width)
        };
        // SAFETY: that of the functions which make this, and `aside` holds a tile.
        unsafe {
            macro_rules! of_rows {
                ($($rows:literal)*) => {
                    match rows {
                        $($rows if $rows <= V::TILE_ROWS => {
                            if columns <= V::LANES {
                                rows_of_tile::<V, TURNED, $rows, 1>(depth, a, a_stride, panel, to, to_stride, begin);
                            } else {
                                rows_of_tile::<V, TURNED, $rows, 2>(depth, a, a_stride, panel, to, to_stride, begin);
                            }
                        })*
                        _ => (),
                    }
                };
            }
            of_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
            if !whole {
                for row in 0..rows {
                    std::ptr::copy_nonoverlapping(
                        to.add(row * width),
                        c.add(row * c_stride),
                        columns,
                    );
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Begin<'a> {
    by_row: Option<&'a [f32]>,
    /// Rows as wide as the tile, where the values are not by row.
    from: *const f32,
    from_stride: usize,
}

/// # Safety
/// As [`tile`] or [`tile_of_turned`], all columns of one vector or two.
#[inline(always)]
unsafe fn rows_of_tile<V: Vector, const TURNED: bool, const ROWS: usize, const VECTORS: usize>(
    depth: usize,
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    c: *mut f32,
    c_stride: usize,
    begin: Begin,
) {
    // SAFETY: the caller's.
    unsafe {
        // What is written at the end is fetched meanwhile.
        for row in 0..ROWS {
            V::prefetch_to_write(c.add(row * c_stride));
            if VECTORS == 2 && V::LANES > 4 {
                V::prefetch_to_write(c.add(row * c_stride + V::LANES));
            }
        }
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        let a = Strip::<TURNED, ROWS> {
            rows: std::array::from_fn(|row| a.add(if TURNED { row } else { row * a_stride })),
            stride: a_stride,
        };
        let mut p = 0;
        while V::BY_LANE && !TURNED && p + 4 <= depth {
            four_steps(&a, panel, p, &mut sums);
            p += 4;
        }
        while V::UNROLLED && p + 4 <= depth {
            step(&a, panel, p, &mut sums);
            step(&a, panel, p + 1, &mut sums);
            step(&a, panel, p + 2, &mut sums);
            step(&a, panel, p + 3, &mut sums);
            p += 4;
        }
        while p < depth {
            step(&a, panel, p, &mut sums);
            p += 1;
        }
        // The loop below may be left a loop, and an array that a loop goes through is kept in memory: so that it is
        // not these, which would then be written to the stack at every step, but a copy.
        let sums = std::hint::black_box(sums);
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                let c = c.add(row * c_stride + half * V::LANES);
                let start = match begin.by_row {
                    Some(values) => V::splat(*values.get_unchecked(row)),
                    None => V::load(begin.from.add(row * begin.from_stride + half * V::LANES)),
                };
                start.add(*sum).store(c);
            }
        }
    }
}

/// Rows of A: where each begins, and where A is turned how far the values of one are apart.
struct Strip<const TURNED: bool, const ROWS: usize> {
    rows: [*const f32; ROWS],
    stride: usize,
}

/// Adds the products of a column of A and a row of the panel. A function and not a closure, which could not be
/// told to be inlined: by itself it is compiled without the vectors' instructions.
///
/// # Safety
/// The rows of A and the panel are longer than `p`.
#[inline(always)]
unsafe fn step<V: Vector, const TURNED: bool, const ROWS: usize, const VECTORS: usize>(
    a: &Strip<TURNED, ROWS>,
    panel: *const f32,
    p: usize,
    sums: &mut [[V; VECTORS]; ROWS],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut b = [V::splat(0.0); VECTORS];
        for (i, b) in b.iter_mut().enumerate() {
            *b = V::load(panel.add((2 * p + i) * V::LANES));
        }
        // Turned rows lie beside each other, and one pointer leads to all.
        let turned = a.rows[0].add(if TURNED { p * a.stride } else { 0 });
        if V::BY_LANE && TURNED && ROWS.is_multiple_of(V::LANES) {
            for (i, sums) in sums.chunks_exact_mut(V::LANES).enumerate() {
                let a = V::load(turned.add(i * V::LANES));
                for (lane, sums) in sums.iter_mut().enumerate() {
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = a.mul_add_lane(lane, b, *sum);
                    }
                }
            }
            return;
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = if TURNED { *turned.add(row) } else { *a.rows[row].add(p) };
            let a = V::splat(a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
}

/// [`step`] four times, from `p` on, where A is not turned: four of its values are read at once, and each is multiplied where
/// it lies in the vector.
///
/// # Safety
/// The rows of A and the panel are longer than `p + 3`; a vector has 4 values.
#[inline(always)]
unsafe fn four_steps<V: Vector, const TURNED: bool, const ROWS: usize, const VECTORS: usize>(
    a: &Strip<TURNED, ROWS>,
    panel: *const f32,
    p: usize,
    sums: &mut [[V; VECTORS]; ROWS],
) {
    const { assert!(!V::BY_LANE || V::LANES == 4) };
    // SAFETY: the caller's.
    unsafe {
        let mut b = [[V::splat(0.0); VECTORS]; 4];
        for (step, b) in b.iter_mut().enumerate() {
            for (i, b) in b.iter_mut().enumerate() {
                *b = V::load(panel.add((2 * (p + step) + i) * V::LANES));
            }
        }
        for (a, sums) in a.rows.iter().zip(sums.iter_mut()) {
            let a = V::load(a.add(p));
            for (step, b) in b.iter().enumerate() {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add_lane(step, *b, *sum);
                }
            }
        }
    }
}
