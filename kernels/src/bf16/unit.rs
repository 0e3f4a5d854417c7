//! What multiplies tiles, and which of them this processor has.

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
use super::neon;
use super::order::Order;
use super::{SIDE, Tile};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512};
use crate::simd::Isa;

/// A way to multiply bf16 that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Neon,
}

/// What is compiled for each unit.
pub(crate) trait WithUnit {
    type Output;

    fn run<U: Unit>(self) -> Self::Output;
}

impl Set {
    /// Those that this processor has and the system lets this program use, the fastest first.
    pub(crate) fn available() -> Vec<Set> {
        #[allow(unused_mut, reason = "other processors have none")]
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if avx512::is_there() {
            if amx::is_there() {
                sets.push(Set::Amx);
            }
            sets.push(Set::Avx512);
        }
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        if neon::is_there() {
            sets.push(Set::Neon);
        }
        sets
    }

    pub(crate) fn isa(self) -> Isa {
        match self {
            #[cfg(target_arch = "x86_64")]
            Set::Amx => Isa::Amx,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => Isa::Avx512Bf16,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Set::Neon => Isa::NeonBf16,
        }
    }

    /// The one that an instruction set has, which was asked for what the processor has.
    pub(crate) fn of(isa: Isa) -> Option<Set> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some(Set::Amx),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Some(Set::Avx512),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::NeonBf16 => Some(Set::Neon),
            _ => None,
        }
    }

    /// Whether it multiplies so much faster than f32's instructions that Winograd's tiles in f32, which need a quarter or four ninths
    /// of the products, save no time: BFMMLA has sixteen where f32's has four, AVX512_BF16 up to twice as many.
    pub(crate) fn outruns_winograd(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Set::Amx => true,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => false,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Set::Neon => true,
        }
    }

    /// Runs what is compiled for this unit. `run` of the kernel, and what it calls, must be `#[inline(always)]`.
    #[inline]
    #[allow(unused_variables, reason = "other processors have none")]
    pub(crate) fn run<K: WithUnit>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Set` is only made where the processor has it: by `available`, or by an `Isa` that asked it.
            Set::Amx => unsafe { avx512::with::<amx::Amx, K>(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx512 => unsafe { avx512::with::<avx512::Avx512, K>(kernel) },
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            // SAFETY: as above.
            Set::Neon => unsafe { neon::with(kernel) },
        }
    }
}

/// What a block of C holds before the product is added.
#[derive(Clone, Copy)]
pub(crate) enum Begin<'a> {
    Zero,
    Itself,
    /// One value for each row.
    Rows(&'a [f32]),
    /// One value for each column.
    Columns(&'a [f32]),
    /// Rows of another matrix, so far apart.
    Matrix(&'a [f32], usize),
}

/// How far the values of A are apart in memory, in bytes; a tile's rows are [`Order::ROW`].
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    /// From one tile to the next.
    pub(crate) tile: usize,
    /// From four values of a row to the next four, where these are not one after the other.
    #[cfg_attr(
        not(all(target_arch = "aarch64", target_feature = "neon")),
        expect(dead_code, reason = "values of a row lie one after the other")
    )]
    pub(crate) fours: usize,
}

impl Steps {
    /// Of whole tiles that follow each other.
    pub(crate) const OF_TILES: Steps = Steps { tile: size_of::<Tile>(), fours: FOURS };

    /// Of a plane of so many tiles, in which the next tile begins with the next row.
    pub(crate) fn of_plane<O: Order>(tiles: usize) -> Steps {
        Steps { tile: O::ROW, fours: tiles * FOURS }
    }
}

/// Bytes of four values of each of a tile's rows.
pub(super) const FOURS: usize = SIDE * 4 * size_of::<u16>();

/// Sums of a block of 32 × 32.
///
/// # Safety
/// All functions: called from within [`Set::run`], between `open` and `close` on one thread, and nothing else of that thread
/// uses AMX meanwhile. `c` leads to `size` values, its rows `stride` apart, which can be written; they are there where it
/// begins with itself.
pub(crate) trait Unit: Sized {
    /// In which the tiles are.
    type Order: Order;

    unsafe fn open() -> Self;
    /// The sums are what `from` says, where that can be read as whole blocks; if not, `end` adds it.
    unsafe fn begin(&mut self, from: Begin, c: *const f32, stride: usize, size: (usize, usize));
    /// Adds the products of `count` tiles of two strips of rows, which are as far apart as `steps` says, and of two strips of
    /// columns.
    unsafe fn add(&mut self, a: [*const Tile; 2], steps: Steps, b: [*const Tile; 2], count: usize);
    /// Writes C.
    unsafe fn end(&mut self, from: Begin, c: *mut f32, stride: usize, size: (usize, usize));
    unsafe fn close(self);
}
