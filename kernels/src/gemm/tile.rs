//! The innermost loop of the product: a tile of C in registers.

use super::Start;
use crate::simd::{Kernel, Vector, opaque};

/// C [rows, columns] = start + A [rows, depth] · panel [depth, WIDTH].
///
/// # Safety
/// 1 ≤ rows ≤ TILE_ROWS and 1 ≤ columns ≤ WIDTH; A's rows are there, `a_stride` apart, the panel is whole, and
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
        const { assert!(V::TILE_ROWS <= 3 * GROUPS && V::TILE_VECTORS <= 3) };
        let begin = match start {
            Start::Zero => Begin::Zero,
            Start::Rows(values) => Begin::Rows(values),
            Start::Columns(values) => Begin::Values(values.as_ptr(), 0),
            Start::Itself => Begin::Values(c.cast_const(), c_stride),
            Start::Matrix { values, stride } => Begin::Values(values.as_ptr(), stride),
        };
        // SAFETY: that of the functions which make this.
        unsafe {
            macro_rules! of_rows {
                ($($rows:literal)*) => {
                    match (rows, columns.div_ceil(V::LANES)) {
                        $(($rows, 1) if $rows <= V::TILE_ROWS => {
                            let sums = sums::<V, TURNED, $rows, 1>(depth, a, a_stride, panel, c, c_stride);
                            finish(sums, columns, c, c_stride, begin);
                        })*
                        $(($rows, 2) if $rows <= V::TILE_ROWS => {
                            let sums = sums::<V, TURNED, $rows, 2>(depth, a, a_stride, panel, c, c_stride);
                            finish(sums, columns, c, c_stride, begin);
                        })*
                        $(($rows, 3) if $rows <= V::TILE_ROWS && V::TILE_VECTORS == 3 => {
                            let sums = sums::<V, TURNED, $rows, 3>(depth, a, a_stride, panel, c, c_stride);
                            finish(sums, columns, c, c_stride, begin);
                        })*
                        _ => (),
                    }
                };
            }
            of_rows!(1 2 3 4 5 6 7 8);
        }
    }
}

/// What a tile's sums are added to.
#[derive(Clone, Copy)]
enum Begin<'a> {
    Zero,
    /// One value for each row.
    Rows(&'a [f32]),
    /// Rows as wide as the tile, and how far they are apart.
    Values(*const f32, usize),
}

/// A [ROWS, depth] · panel.
///
/// # Safety
/// As [`tile`] or [`tile_of_turned`].
#[inline(always)]
unsafe fn sums<V: Vector, const TURNED: bool, const ROWS: usize, const VECTORS: usize>(
    depth: usize,
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    c: *mut f32,
    c_stride: usize,
) -> [[V; VECTORS]; ROWS] {
    // SAFETY: the caller's.
    unsafe {
        // What is written at the end is fetched meanwhile, where that takes as long.
        if depth >= DEEP {
            for row in 0..ROWS {
                for i in (0..VECTORS * V::LANES).step_by(V::LANES.max(8)) {
                    V::prefetch_to_write(c.add(row * c_stride + i));
                }
            }
        }
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        let mut panel = panel;
        let mut a = Strip::<TURNED, ROWS>::new(a, a_stride);
        for _ in 0..depth / STEPS {
            if V::BY_LANE && !TURNED {
                four_steps(&a, panel, &mut sums);
            } else {
                for p in 0..STEPS {
                    step(&a, panel, p, &mut sums);
                    a.forget();
                }
            }
            a.advance(STEPS);
            panel = panel.add(STEPS * V::WIDTH);
        }
        for _ in 0..depth % STEPS {
            step(&a, panel, 0, &mut sums);
            a.advance(1);
            panel = panel.add(V::WIDTH);
        }
        sums
    }
}

/// Writes what the sums and the beginning come to. Loops of few simple turns, which are unrolled: an array that a loop goes
/// through is kept in memory, and the sums would be written to the stack at every step.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn finish<V: Vector, const ROWS: usize, const VECTORS: usize>(
    sums: [[V; VECTORS]; ROWS],
    columns: usize,
    c: *mut f32,
    c_stride: usize,
    begin: Begin,
) {
    // SAFETY: the caller's; of the last vector, whose columns may be fewer, only these are read and written.
    unsafe {
        let last = VECTORS - 1;
        let rest = columns - last * V::LANES;
        macro_rules! rows {
            ($load:expr, $store:expr) => {
                match begin {
                    Begin::Zero => {
                        for (row, sums) in sums.into_iter().enumerate() {
                            for (i, sum) in sums.into_iter().enumerate() {
                                $store(sum, c.add(row * c_stride + i * V::LANES), i);
                            }
                        }
                    }
                    Begin::Rows(values) => {
                        for (row, sums) in sums.into_iter().enumerate() {
                            let value = V::splat(*values.get_unchecked(row));
                            for (i, sum) in sums.into_iter().enumerate() {
                                $store(sum.add(value), c.add(row * c_stride + i * V::LANES), i);
                            }
                        }
                    }
                    Begin::Values(from, stride) => {
                        for (row, sums) in sums.into_iter().enumerate() {
                            for (i, sum) in sums.into_iter().enumerate() {
                                let value = $load(from.add(row * stride + i * V::LANES), i);
                                $store(sum.add(value), c.add(row * c_stride + i * V::LANES), i);
                            }
                        }
                    }
                }
            };
        }
        if rest == V::LANES {
            rows!(|from, _| V::load(from), |sum: V, to, _| sum.store(to));
        } else {
            rows!(
                |from, i| if i == last { V::load_part(from, rest) } else { V::load(from) },
                |sum: V, to, i| if i == last { sum.store_part(to, rest) } else { sum.store(to) }
            );
        }
    }
}

/// Steps after which the memory has answered.
const DEEP: usize = 64;
/// Steps of the product that one turn of its loop takes.
const STEPS: usize = 4;
/// Groups of three rows of A.
const GROUPS: usize = 3;

/// Rows of A, three to a pointer: an address is a pointer, and once or twice the rows' distance. With a pointer for each
/// row, which it has no registers for, the compiler computes each address anew at each step: AVX-512's step then has
/// 57 instructions instead of 38.
struct Strip<const TURNED: bool, const ROWS: usize> {
    groups: [*const f32; GROUPS],
    stride: usize,
}

impl<const TURNED: bool, const ROWS: usize> Strip<TURNED, ROWS> {
    #[inline(always)]
    fn new(a: *const f32, stride: usize) -> Self {
        let group = |group| match TURNED {
            true => a,
            false => a.wrapping_add(3 * group * stride),
        };
        let mut strip = Strip {
            groups: std::array::from_fn(group),
            stride: opaque(std::ptr::without_provenance(stride)).addr(),
        };
        strip.forget();
        strip
    }

    /// Has the compiler forget how the pointers were made and that what they lead to lies side by side: it would put the steps' addresses
    /// together, and read several steps' values at once, for which it has no registers.
    #[inline(always)]
    fn forget(&mut self) {
        self.groups = self.groups.map(opaque);
    }

    #[inline(always)]
    fn advance(&mut self, steps: usize) {
        let by = if TURNED { steps * self.stride } else { steps };
        self.groups = self.groups.map(|group| opaque(group.wrapping_add(by)));
    }

    /// Where row `row` has the value `p` from here. Turned rows lie beside each other.
    #[inline(always)]
    fn at(&self, row: usize, p: usize) -> *const f32 {
        if TURNED {
            self.groups[0].wrapping_add(p * self.stride + row)
        } else {
            self.groups[row / 3].wrapping_add(row % 3 * self.stride + p)
        }
    }
}

/// Adds the products of a column of A and a row of the panel, number `p` from where both are. A function and not a closure, which could not be
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
            *b = V::load(panel.add(p * V::WIDTH + i * V::LANES));
        }
        if V::BY_LANE && TURNED && ROWS.is_multiple_of(V::LANES) {
            for (i, sums) in sums.chunks_exact_mut(V::LANES).enumerate() {
                let a = V::load(a.at(i * V::LANES, p));
                for (lane, sums) in sums.iter_mut().enumerate() {
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = a.mul_add_lane(lane, b, *sum);
                    }
                }
            }
            return;
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = V::splat(*a.at(row, p));
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
}

/// [`step`] four times, where A is not turned: four of its values are read at once, and each is multiplied where
/// it lies in the vector.
///
/// # Safety
/// The rows of A and the panel are longer than 3; a vector has 4 values.
#[inline(always)]
unsafe fn four_steps<V: Vector, const TURNED: bool, const ROWS: usize, const VECTORS: usize>(
    a: &Strip<TURNED, ROWS>,
    panel: *const f32,
    sums: &mut [[V; VECTORS]; ROWS],
) {
    const { assert!(!V::BY_LANE || V::LANES == STEPS) };
    // SAFETY: the caller's.
    unsafe {
        let mut b = [[V::splat(0.0); VECTORS]; STEPS];
        for (step, b) in b.iter_mut().enumerate() {
            for (i, b) in b.iter_mut().enumerate() {
                *b = V::load(panel.add(step * V::WIDTH + i * V::LANES));
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = V::load(a.at(row, 0));
            for (step, b) in b.iter().enumerate() {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add_lane(step, *b, *sum);
                }
            }
        }
    }
}
