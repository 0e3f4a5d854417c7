//! What multiplies tiles: AMX, or AVX-512's products of pairs.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{BLOCK, DEPTH, SIDE, Tile};
use crate::simd::{Isa, Vector};

/// A way to multiply bf16 that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    Amx,
    Avx512,
}

/// What is compiled for each unit.
pub(crate) trait WithUnit {
    type Output;

    fn run<U: Unit>(self) -> Self::Output;
}

impl Set {
    /// Those that this processor has and the system lets this program use, the fastest first.
    pub(crate) fn available() -> Vec<Set> {
        let mut sets = Vec::new();
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
        {
            if has_amx() {
                sets.push(Set::Amx);
            }
            sets.push(Set::Avx512);
        }
        sets
    }

    pub(crate) fn isa(self) -> Isa {
        match self {
            Set::Amx => Isa::Amx,
            Set::Avx512 => Isa::Avx512Bf16,
        }
    }

    /// Runs what is compiled for this unit. `run` of the kernel, and what it calls, must be `#[inline(always)]`.
    #[inline]
    pub(crate) fn run<K: WithUnit>(self, kernel: K) -> K::Output {
        match self {
            // SAFETY: a `Set` is only made where the processor has it: by `available`, or by an `Isa` that asked it.
            Set::Amx => unsafe { with::<Amx, K>(kernel) },
            // SAFETY: as above.
            Set::Avx512 => unsafe { with::<Avx512, K>(kernel) },
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma,f16c")]
unsafe fn with<U: Unit, K: WithUnit>(kernel: K) -> K::Output {
    kernel.run::<U>()
}

/// Whether the processor has AMX's tiles and their products of bf16, and the system saves them between threads.
fn has_amx() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        #[allow(unused_unsafe, reason = "safe in newer compilers")]
        // SAFETY: every processor of this family has the instruction; leaf 7 is there where AVX-512 is.
        let leaf = unsafe { __cpuid_count(7, 0) };
        leaf.edx & (BF16 | TILES) == BF16 | TILES && is_permitted()
    })
}

/// Linux keeps 8 KiB more for each thread of a program that uses tiles, and wants to be asked first.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    // SAFETY: asks for a permission, and touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// Other systems let every program use them, if they know them; that was not tried.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
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

/// Sums of a block of 32 × 32.
///
/// # Safety
/// All functions: called from within [`Set::run`], between `open` and `close` on one thread, and nothing else of that thread
/// uses AMX meanwhile. `c` leads to `size` values, its rows `stride` apart, which can be written; they are there where it
/// begins with itself.
pub(crate) trait Unit: Sized {
    unsafe fn open() -> Self;
    /// The sums are what `from` says, where that can be read as whole blocks; if not, `end` adds it.
    unsafe fn begin(&mut self, from: Begin, c: *const f32, stride: usize, size: (usize, usize));
    /// Adds the products of `count` tiles of two strips of rows, `a_step` bytes apart (a tile's rows are 64 bytes
    /// apart, whatever that is), and of two strips of columns.
    unsafe fn add(&mut self, a: [*const Tile; 2], a_step: usize, b: [*const Tile; 2], count: usize);
    /// Writes C.
    unsafe fn end(&mut self, from: Begin, c: *mut f32, stride: usize, size: (usize, usize));
    unsafe fn close(self);
}

/// A block in memory: where what is computed is not a whole block.
#[repr(C, align(64))]
struct Sums([f32; BLOCK * BLOCK]);

impl Sums {
    /// Writes what the sums and the beginning come to.
    ///
    /// # Safety
    /// As [`Unit::end`].
    #[inline(always)]
    unsafe fn write(
        &self,
        from: Begin,
        c: *mut f32,
        stride: usize,
        (rows, columns): (usize, usize),
    ) {
        for row in 0..rows {
            for first in (0..columns).step_by(16) {
                let count = (columns - first).min(16);
                // SAFETY: `count` values of this row; a block's rows are whole.
                unsafe {
                    let to = c.add(row * stride + first);
                    let begin = match from {
                        Begin::Zero => __m512::splat(0.0),
                        Begin::Itself => __m512::load_part(to, count),
                        Begin::Rows(values) => __m512::splat(values[row]),
                        Begin::Columns(values) => {
                            __m512::load_part(values[first..first + count].as_ptr(), count)
                        }
                        Begin::Matrix(values, stride) => {
                            let at = row * stride + first;
                            __m512::load_part(values[at..at + count].as_ptr(), count)
                        }
                    };
                    let sum = __m512::load(self.0.as_ptr().add(row * BLOCK + first)).add(begin);
                    sum.store_part(to, count);
                }
            }
        }
    }
}

/// AMX: the sums are the tiles 0 to 3, of the rows 0 – 15 and 16 – 31.
pub(crate) struct Amx {
    sums: Sums,
    /// Whether the tiles began with zeros, although C does not.
    is_to_add: bool,
}

/// Eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

static SHAPES: Shapes = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = SIDE as u8;
        tile += 1;
    }
    Shapes(bytes)
};

impl Amx {
    /// # Safety
    /// As [`Unit`]; `from` leads to four tiles of f32, rows `stride` bytes apart.
    #[inline(always)]
    unsafe fn load(from: *const f32, stride: usize) {
        let below = from.wrapping_byte_add(SIDE * stride);
        // SAFETY: the caller's; only tiles change.
        unsafe {
            asm!(
                "tileloadd tmm0, [{a} + {s}]",
                "tileloadd tmm1, [{a} + {s} + 64]",
                "tileloadd tmm2, [{b} + {s}]",
                "tileloadd tmm3, [{b} + {s} + 64]",
                a = in(reg) from, b = in(reg) below, s = in(reg) stride,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    /// # Safety
    /// As [`Amx::load`]; they can be written.
    #[inline(always)]
    unsafe fn store(to: *mut f32, stride: usize) {
        let below = to.wrapping_byte_add(SIDE * stride);
        // SAFETY: the caller's.
        unsafe {
            asm!(
                "tilestored [{a} + {s}], tmm0",
                "tilestored [{a} + {s} + 64], tmm1",
                "tilestored [{b} + {s}], tmm2",
                "tilestored [{b} + {s} + 64], tmm3",
                a = in(reg) to, b = in(reg) below, s = in(reg) stride,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Unit for Amx {
    #[inline(always)]
    unsafe fn open() -> Self {
        // SAFETY: the caller's; the shapes are those of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, preserves_flags, readonly))
        };
        Amx { sums: Sums([0.0; BLOCK * BLOCK]), is_to_add: false }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, from: Begin, c: *const f32, stride: usize, size: (usize, usize)) {
        let is_whole = size == (BLOCK, BLOCK);
        let direct = match from {
            Begin::Itself if is_whole => Some((c, stride)),
            // The same row sixteen times.
            Begin::Columns(values) if is_whole => Some((values.as_ptr(), 0)),
            Begin::Matrix(values, stride) if is_whole => Some((values.as_ptr(), stride)),
            _ => None,
        };
        self.is_to_add = direct.is_none() && !matches!(from, Begin::Zero);
        // SAFETY: the caller's: whole blocks are read.
        unsafe {
            match direct {
                Some((from, stride)) => Self::load(from, stride * size_of::<f32>()),
                None => asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, preserves_flags, nomem)
                ),
            }
        }
    }

    #[inline(always)]
    unsafe fn add(
        &mut self,
        a: [*const Tile; 2],
        a_step: usize,
        b: [*const Tile; 2],
        count: usize,
    ) {
        // SAFETY: the caller's tiles; `count` is at least 1. Only tiles and the registers named change.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, {a_step}",
                "add {a1}, {a_step}",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {count}",
                "jnz 2b",
                a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _,
                b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
                count = inout(reg) count => _,
                row = in(reg) 2 * DEPTH, a_step = in(reg) a_step,
                options(nostack, readonly)
            );
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, from: Begin, c: *mut f32, stride: usize, size: (usize, usize)) {
        // SAFETY: the caller's: a whole block can be written, or goes to the sums first.
        unsafe {
            if size == (BLOCK, BLOCK) && !self.is_to_add {
                return Self::store(c, stride * size_of::<f32>());
            }
            Self::store(self.sums.0.as_mut_ptr(), BLOCK * size_of::<f32>());
            let from = if self.is_to_add { from } else { Begin::Zero };
            self.sums.write(from, c, stride, size);
        }
    }

    #[inline(always)]
    unsafe fn close(self) {
        // SAFETY: the tiles are as they were before `open`: of no use.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

/// AVX-512's products of pairs: the sums lie in memory between two calls.
pub(crate) struct Avx512 {
    sums: Sums,
}

/// A tile's row of pairs.
///
/// # Safety
/// The tile is there; the processor has AVX-512.
#[inline(always)]
unsafe fn pairs(tile: *const i32, row: usize) -> __m512bh {
    // SAFETY: the caller's; both are 512 bits.
    unsafe { std::mem::transmute(_mm512_load_si512(tile.add(row * SIDE).cast())) }
}

/// Rows whose sums are registers, with two vectors of columns: 16 of 32.
const ROWS: usize = 8;

impl Unit for Avx512 {
    #[inline(always)]
    unsafe fn open() -> Self {
        Avx512 { sums: Sums([0.0; BLOCK * BLOCK]) }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, _: Begin, _: *const f32, _: usize, _: (usize, usize)) {
        self.sums.0.fill(0.0);
    }

    #[inline(always)]
    unsafe fn add(
        &mut self,
        a: [*const Tile; 2],
        a_step: usize,
        b: [*const Tile; 2],
        count: usize,
    ) {
        for first in (0..BLOCK).step_by(ROWS) {
            // SAFETY: the caller's tiles, each 16 rows of 16 pairs.
            unsafe {
                let to = self.sums.0.as_mut_ptr().add(first * BLOCK);
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_load_ps(to.add(row * BLOCK + 16 * i));
                    }
                }
                let mut a = a[first / SIDE].cast::<i32>().add(first % SIDE * SIDE);
                let [mut b0, mut b1] = b.map(|tile| tile.cast::<i32>());
                for _ in 0..count {
                    for pair in 0..SIDE {
                        let of_b = [pairs(b0, pair), pairs(b1, pair)];
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let a = _mm512_set1_epi32(*a.add(row * SIDE + pair));
                            for (sum, b) in sums.iter_mut().zip(of_b) {
                                *sum = _mm512_dpbf16_ps(
                                    *sum,
                                    std::mem::transmute::<__m512i, __m512bh>(a),
                                    b,
                                );
                            }
                        }
                    }
                    a = a.byte_add(a_step);
                    b0 = b0.byte_add(size_of::<Tile>());
                    b1 = b1.byte_add(size_of::<Tile>());
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (i, sum) in sums.iter().enumerate() {
                        _mm512_store_ps(to.add(row * BLOCK + 16 * i), *sum);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, from: Begin, c: *mut f32, stride: usize, size: (usize, usize)) {
        // SAFETY: the caller's.
        unsafe { self.sums.write(from, c, stride, size) }
    }

    #[inline(always)]
    unsafe fn close(self) {}
}
