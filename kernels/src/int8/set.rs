//! The instruction sets that multiply whole numbers of 8 bits, and what packing and products are written over.

use crate::simd::{Isa, Vector};

/// One of them that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// AVX512_VNNI on vectors of 16 sums.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX-VNNI: the same instruction on 8 sums, as processors have it without AVX-512.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX2's products of pairs of 16 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-VNNI's instruction as AVX-512's processors write it, so that all else of [`Set::AvxVnni`] is tried on them.
    #[cfg(all(test, target_arch = "x86_64"))]
    Avx512VnniOf8,
    /// 64-bit ARM's dot product.
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    NeonDotProd,
}

/// What is compiled for each set.
pub(super) trait WithSums {
    type Output;

    fn run<S: Sums>(self) -> Self::Output;
}

/// What depends on the set in how numbers lie.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Rows of a tile.
    pub rows: usize,
    /// Features of a panel.
    pub width: usize,
    /// Bytes that a number takes.
    pub bytes: usize,
}

impl Set {
    /// Those that this processor has, the fastest first.
    pub(crate) fn available() -> Vec<Set> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if Isa::available().contains(&Isa::Avx2) {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                sets.push(Set::Avx512Vnni);
            }
            if is_x86_feature_detected!("avxvnni") {
                sets.push(Set::AvxVnni);
            }
            sets.push(Set::Avx2);
        }
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            sets.push(Set::NeonDotProd);
        }
        sets
    }

    /// Those and the one that is there for tests.
    #[cfg(test)]
    pub(super) fn tried() -> Vec<Set> {
        let sets = Set::available().into_iter();
        #[cfg(target_arch = "x86_64")]
        let sets = {
            let has =
                Set::available().contains(&Set::Avx512Vnni) && is_x86_feature_detected!("avx512vl");
            sets.chain(has.then_some(Set::Avx512VnniOf8))
        };
        sets.collect()
    }

    pub(crate) fn isa(self) -> Isa {
        match self {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => Isa::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => Isa::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => Isa::Avx2Int8,
            #[cfg(all(test, target_arch = "x86_64"))]
            Set::Avx512VnniOf8 => Isa::AvxVnni,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Set::NeonDotProd => Isa::NeonDotProd,
        }
    }

    /// Runs what is compiled for this set. `run` of the kernel, and what it calls, must be `#[inline(always)]`.
    #[inline]
    pub(super) fn run<K: WithSums>(self, kernel: K) -> K::Output {
        // SAFETY, of every call in here: a `Set` is only made where the processor has it: by `available`, by `tried`, or by an
        // `Isa` that asked the former.
        match self {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => unsafe { super::avx512::with_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => unsafe { super::avx2::with_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { super::avx2::with_pairs(kernel) },
            #[cfg(all(test, target_arch = "x86_64"))]
            Set::Avx512VnniOf8 => unsafe { super::avx2::with_vnni_of_avx512(kernel) },
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Set::NeonDotProd => unsafe { super::neon::with_dot_product(kernel) },
        }
    }

    pub(super) fn sizes(self) -> Sizes {
        struct Ask;
        impl WithSums for Ask {
            type Output = Sizes;

            #[inline(always)]
            fn run<S: Sums>(self) -> Sizes {
                const {
                    assert!(
                        S::ROWS <= MOST_ROWS
                            && S::STEP <= 4
                            && super::GROUP_BYTES.is_multiple_of(S::BYTES)
                    )
                };
                Sizes { rows: S::ROWS, width: width::<S>(), bytes: S::BYTES }
            }
        }
        self.run(Ask)
    }
}

/// Features of a panel: two vectors of sums.
pub(super) const fn width<S: Sums>() -> usize {
    2 * S::Floats::LANES
}

/// The most rows that a tile has.
pub(super) const MOST_ROWS: usize = 12;

/// A vector of sums of 32 bits, one for each of some features.
///
/// # Safety
/// All functions: called from within [`Set::run`]; pointers lead to what is read or written.
pub(super) trait Sums: Copy {
    /// As many f32.
    type Floats: Vector;
    /// What a row's numbers are while they are multiplied.
    type OfRow: Copy;

    /// Rows of a tile, whose sums, with two vectors of a panel and a row's numbers, fill the registers.
    const ROWS: usize;
    /// Bytes that a number takes: a group of them is four.
    const BYTES: usize;
    /// Added to each number of a row, where the instruction wants it without a sign.
    const OFFSET: i32;
    /// Groups of a row that are read at once: 1, 2 or 4.
    const STEP: usize = 1;

    unsafe fn zero() -> Self;
    /// Of as many values as this has sums: also a group of four bytes for each.
    unsafe fn load(from: *const u8) -> Self;
    /// The numbers of [`STEP`](Sums::STEP) groups of a row.
    unsafe fn of_row(from: *const u8) -> Self::OfRow;
    /// Adds to each sum the products of the numbers of `group` of those of a row and of its own group of `w`.
    unsafe fn add_products(self, row: Self::OfRow, group: usize, w: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn to_f32(self) -> Self::Floats;
    /// Writes the lower bits of `bits` of f32, as many as a number has.
    unsafe fn write_numbers(bits: Self::Floats, to: *mut u8);
}
