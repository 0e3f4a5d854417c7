//! Vectors of f32 and the instruction sets that have them, chosen when the program runs.
//!
//! A kernel is written once, for any [`Vector`], and compiled for each instruction set; [`Isa::run`]
//! picks the widest that the processor has. `KOSMOGRAPH_ISA` (avx512, avx2, neon or portable)
//! forces one, so that every path can be tested on one machine. Where `KOSMOGRAPH_PRECISION` is bf16, products of matrices take
//! their factors rounded to bf16, with the instructions that some processors have for that (amx, avx512bf16, neonbf16); where it is int8,
//! linear layers take them rounded to whole numbers of 8 bits (avx512vnni, avxvnni, avx2int8, neondotprod).

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use candle_core::{Error, Result};
use half::{bf16, f16};

use crate::int8;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F: 32 registers of 16 values.
    Avx512,
    /// AVX2, FMA and F16C: 16 registers of 8 values.
    Avx2,
    /// NEON: 32 registers of 4 values. All of 64-bit ARM has it.
    Neon,
    /// What the compiler makes of arrays of 4 values for the processor family's common denominator.
    Portable,
    /// Arrays of 16 values, in the tiles that AVX-512 has: slow, and there to test their sizes on a
    /// processor without it. Never chosen unless it is asked for, and compiled only for this crate's tests and with the feature of
    /// its name: it would be a quarter of what there is to compile.
    #[cfg(any(test, feature = "portable16"))]
    Portable16,
    /// AVX-512 with AVX512_BF16: products of matrices take factors that are rounded to bf16, and sum in f32. Only where that is
    /// asked for.
    Avx512Bf16,
    /// The same with AMX, whose registers are 16 × 32 values of bf16.
    Amx,
    /// NEON with FEAT_BF16, whose BFMMLA multiplies matrices of 2 × 4 values. Only where that is asked for.
    NeonBf16,
    /// AVX-512 with AVX512_VNNI: linear layers take factors that are rounded to whole numbers of 8 bits. Only where that is asked
    /// for.
    Avx512Vnni,
    /// The same on AVX2 with AVX-VNNI.
    AvxVnni,
    /// The same on AVX2 alone, whose products of 16 bits they are.
    Avx2Int8,
    /// The same on NEON with the dot product.
    NeonDotProd,
}

impl Isa {
    /// The widest that the processor has, with products of bf16 where `KOSMOGRAPH_PRECISION` asks for them; or the one that
    /// `KOSMOGRAPH_ISA` names.
    ///
    /// # Errors
    /// One of the two names none, or one that the processor lacks.
    pub fn get() -> Result<Isa> {
        static CHOSEN: OnceLock<std::result::Result<Isa, String>> = OnceLock::new();
        let variable = |name| std::env::var(name).unwrap_or_default();
        let chosen = CHOSEN.get_or_init(|| {
            Isa::chosen(&variable("KOSMOGRAPH_ISA"), &variable("KOSMOGRAPH_PRECISION"))
        });
        chosen.clone().map_err(Error::Msg)
    }

    fn chosen(isa: &str, precision: &str) -> std::result::Result<Isa, String> {
        let named = match isa {
            "" => None,
            name => Some(Isa::named(name)?),
        };
        let precision = if precision.is_empty() { "f32" } else { precision };
        let Some((sets, instructions)) = Isa::of_precision(precision) else {
            return Err(format!(
                "KOSMOGRAPH_PRECISION is {precision:?}; f32, bf16 or int8 would be right"
            ));
        };
        match named {
            Some(isa) if isa.precision() == precision => Ok(isa),
            Some(other) => Err(format!(
                "KOSMOGRAPH_ISA is {isa}, whose products are of {}, where {precision} is asked for (KOSMOGRAPH_PRECISION, \
                 --precision); without KOSMOGRAPH_ISA an instruction set is chosen that has them",
                other.precision()
            )),
            None => sets.first().copied().ok_or_else(|| {
                format!(
                    "KOSMOGRAPH_PRECISION is {precision}, for which this processor has no products of matrices \
                     ({instructions}); without it all is computed in f32"
                )
            }),
        }
    }

    /// The sets for what `KOSMOGRAPH_PRECISION` asks for, the fastest first, and what a processor needs for them.
    fn of_precision(precision: &str) -> Option<(Vec<Isa>, &'static str)> {
        Some(match precision {
            "f32" => (Isa::available(), ""),
            "bf16" => (Isa::with_bf16(), "AMX, AVX512_BF16 or, of 64-bit ARM, FEAT_BF16"),
            "int8" => (Isa::with_int8(), "AVX2 or ARM's dot product"),
            _ => return None,
        })
    }

    /// What factors of products are rounded to, where they are.
    pub(crate) fn precision(self) -> &'static str {
        match self {
            Isa::Amx | Isa::Avx512Bf16 | Isa::NeonBf16 => "bf16",
            Isa::Avx512Vnni | Isa::AvxVnni | Isa::Avx2Int8 | Isa::NeonDotProd => "int8",
            _ => "f32",
        }
    }

    /// Those whose linear layers take whole numbers of 8 bits, of what this processor has, the fastest first.
    pub fn with_int8() -> Vec<Isa> {
        int8::Set::available().into_iter().map(int8::Set::isa).collect()
    }

    /// What multiplies whole numbers of 8 bits, where this set does.
    pub(crate) fn int8(self) -> Option<int8::Set> {
        int8::Set::available().into_iter().find(|set| set.isa() == self)
    }

    /// Those with products of bf16 that this processor has and the system lets a program use, the fastest first.
    pub fn with_bf16() -> Vec<Isa> {
        crate::bf16::Set::available().into_iter().map(crate::bf16::Set::isa).collect()
    }

    /// What multiplies bf16, where this set does.
    pub(crate) fn bf16(self) -> Option<crate::bf16::Set> {
        crate::bf16::Set::of(self)
    }

    /// Whether the factors of a linear layer stay f32.
    pub(crate) fn multiplies_f32(self) -> bool {
        self.precision() == "f32"
    }

    /// Those that this processor has and that compute all in f32, the widest first.
    pub fn available() -> Vec<Isa> {
        let mut available = vec![Isa::Portable];
        #[cfg(any(test, feature = "portable16"))]
        available.push(Isa::Portable16);
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        available.insert(0, Isa::Neon);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            available.insert(0, Isa::Avx2);
            if is_x86_feature_detected!("avx512f") {
                available.insert(0, Isa::Avx512);
            }
        }
        available
    }

    /// Rows and columns of a register tile; a packed panel has as many columns.
    pub(crate) fn tile(self) -> (usize, usize) {
        struct Tile;
        impl Kernel for Tile {
            type Output = (usize, usize);

            #[inline(always)]
            fn run<V: Vector>(self) -> (usize, usize) {
                (V::TILE_ROWS, V::WIDTH)
            }
        }
        self.run(Tile)
    }

    fn named(name: &str) -> std::result::Result<Isa, String> {
        let isa = match name {
            "avx512" => Isa::Avx512,
            "avx2" => Isa::Avx2,
            "neon" => Isa::Neon,
            "portable" => Isa::Portable,
            #[cfg(any(test, feature = "portable16"))]
            "portable16" => Isa::Portable16,
            "avx512bf16" => Isa::Avx512Bf16,
            "amx" => Isa::Amx,
            "neonbf16" => Isa::NeonBf16,
            "avx512vnni" => Isa::Avx512Vnni,
            "avxvnni" => Isa::AvxVnni,
            "avx2int8" => Isa::Avx2Int8,
            "neondotprod" => Isa::NeonDotProd,
            _ => {
                return Err(format!(
                    "KOSMOGRAPH_ISA is {name:?}; avx512, avx2, neon, portable, avx512bf16, amx, neonbf16, avx512vnni, avxvnni, avx2int8 or \
                     neondotprod would be right"
                ));
            }
        };
        let all = [Isa::available(), Isa::with_bf16(), Isa::with_int8()].concat();
        match all.contains(&isa) {
            true => Ok(isa),
            false => Err(format!("KOSMOGRAPH_ISA is {name}, which this processor does not have")),
        }
    }

    /// Runs what is compiled for this instruction set. `run` of the kernel, and what it calls, must be
    /// `#[inline(always)]`, or they are compiled without it.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these values are only made where the processor has AVX-512.
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx | Isa::Avx512Vnni => unsafe {
                x86::avx512(kernel)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx2Int8 => unsafe { x86::avx2(kernel) },
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            // SAFETY: as above.
            Isa::Neon | Isa::NeonBf16 | Isa::NeonDotProd => unsafe { neon::neon(kernel) },
            #[cfg(any(test, feature = "portable16"))]
            Isa::Portable16 => kernel.run::<Lanes<16, 8, 3>>(),
            _ => kernel.run::<Lanes<4, 4, 2>>(),
        }
    }
}

/// What is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Output;

    fn run<V: Vector>(self) -> Self::Output;
}

/// Some values of f32 in one register.
///
/// # Safety
/// All functions: the processor has the instruction set (they are called from within [`Isa::run`]);
/// pointers lead to [`Vector::LANES`] values.
pub(crate) trait Vector: Copy {
    const LANES: usize;
    /// Vectors in a row of a tile: what a panel is wide.
    const TILE_VECTORS: usize;
    /// Rows of a tile, whose sums, with a row of the panel and a value, fill the registers.
    const TILE_ROWS: usize;
    /// Columns of a tile.
    const WIDTH: usize = Self::TILE_VECTORS * Self::LANES;
    /// Whether a tile reads A a vector at a time and multiplies by the values in it, with [`mul_add_lane`](Vector::mul_add_lane).
    const BY_LANE: bool = false;

    unsafe fn load(from: *const f32) -> Self;
    /// Halves as the f32 that they are.
    unsafe fn load_f16(from: *const f16) -> Self;
    /// As [`load_f16`](Vector::load_f16).
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The first `count` values, and zeros.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut values = [0f32; MOST_LANES];
        // SAFETY: the caller's `count` values, at most a vector's.
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
            Self::load(values.as_ptr())
        }
    }
    /// Writes the first `count` values.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        let mut values = [0f32; MOST_LANES];
        // SAFETY: as for `load_part`.
        unsafe {
            self.store(values.as_mut_ptr());
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
        }
    }
    unsafe fn splat(value: f32) -> Self;
    /// self · b + c, rounded once where the instruction set can.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The value number `lane` of self, times b, + c. A product in one instruction where the vector says [`BY_LANE`](Vector::BY_LANE).
    #[inline(always)]
    unsafe fn mul_add_lane(self, lane: usize, b: Self, c: Self) -> Self {
        let mut values = [0f32; 16];
        // SAFETY: the trait's; no vector has more values.
        unsafe {
            self.store(values.as_mut_ptr());
            Self::splat(values[lane]).mul_add(b, c)
        }
    }

    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// The larger of the two, value by value; where one is no number, `other`.
    unsafe fn max(self, other: Self) -> Self;
    /// The largest of its values; none may be no number.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut values = [f32::NEG_INFINITY; MOST_LANES];
        // SAFETY: no vector has more values.
        unsafe { self.store(values.as_mut_ptr()) };
        // By halves: one after the other, each would wait for the last.
        let mut half = MOST_LANES / 2;
        while half > 0 {
            for i in 0..half {
                values[i] = values[i].max(values[i + half]);
            }
            half /= 2;
        }
        values[0]
    }
    /// self · 2ⁿ for the whole numbers −200 ≤ n ≤ 127. Where that is no normal number, at most the smallest of them; 0 where n is below −150.
    unsafe fn times_power_of_2(self, n: Self) -> Self;

    /// Has the cache line of `at`, which will be written, fetched.
    #[inline(always)]
    unsafe fn prefetch_to_write(_at: *mut f32) {}

    /// Has the cache line of `at` fetched to the second-level cache, to be read soon. What lies there need not be readable.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    /// Runs a kernel as a function of its own: what is large and called from many places is compiled once.
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output;

    /// Of 4 · LANES values the first of every four, the second, the third and the fourth.
    #[inline(always)]
    unsafe fn by_fours(from: *const f32) -> [Self; 4] {
        let mut parts = [[0f32; MOST_LANES]; 4];
        for i in 0..4 * Self::LANES {
            // SAFETY: the caller's values.
            parts[i % 4][i / 4] = unsafe { *from.add(i) };
        }
        // SAFETY: no vector has more values than a part.
        parts.map(|part| unsafe { Self::load(part.as_ptr()) })
    }

    /// Turns LANES rows of LANES values, `from_stride` apart, to LANES columns: the value j of row i goes
    /// to `to[j · to_stride + i]`.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: the caller's rows and columns.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }
}

/// The values of the widest vector.
pub(crate) const MOST_LANES: usize = 16;

/// Copies as many values, a vector at a time: a call for each few would cost more than they do.
#[inline(always)]
pub(crate) fn copy<V: Vector>(from: &[f32], to: &mut [f32]) {
    assert!(from.len() == to.len());
    let length = from.len();
    if length < V::LANES {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        return;
    }
    // The last vector may hold some of the one before.
    for i in (0..length).step_by(V::LANES).map(|i| i.min(length - V::LANES)) {
        // SAFETY: LANES values from i on are there, in both.
        unsafe { V::load(from.as_ptr().add(i)).store(to.as_mut_ptr().add(i)) };
    }
}

/// The same pointer, of which the compiler knows nothing.
#[inline(always)]
pub(crate) fn opaque(pointer: *const f32) -> *const f32 {
    let mut pointer = pointer;
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    pointer
}

/// Some values, for any processor, and the rows and vectors of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<const COUNT: usize, const ROWS: usize, const VECTORS: usize>([f32; COUNT]);

impl<const COUNT: usize, const ROWS: usize, const VECTORS: usize> Lanes<COUNT, ROWS, VECTORS> {
    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        self
    }
}

impl<const COUNT: usize, const ROWS: usize, const VECTORS: usize> Vector
    for Lanes<COUNT, ROWS, VECTORS>
{
    const LANES: usize = COUNT;
    const TILE_VECTORS: usize = VECTORS;
    const TILE_ROWS: usize = ROWS;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's.
        Lanes(unsafe { from.cast::<[f32; COUNT]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the trait's.
        Lanes(unsafe { from.cast::<[f16; COUNT]>().read_unaligned() }.map(f16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the trait's.
        Lanes(unsafe { from.cast::<[bf16; COUNT]>().read_unaligned() }.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's.
        unsafe { to.cast::<[f32; COUNT]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Lanes([value; COUNT])
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        self.zip(b, |a, b| a * b).zip(c, |ab, c| ab + c)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn times_power_of_2(self, n: Self) -> Self {
        let power = |n: f32| f32::from_bits(((n.max(-127.0) as i32 + 127) << 23) as u32);
        self.zip(n, |a, n| a * power(n))
    }

    #[inline(never)]
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
}
