//! AMX, whose registers are tiles of 16 rows of 64 bytes.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, __m512};
use std::sync::OnceLock;

use super::order::Order;
use super::pairs::Pairs;
use super::sums::Sums;
use super::unit::{Begin, Steps, Unit};
use super::{BLOCK, SIDE, Tile};

/// Whether the processor has AMX's tiles and their products of bf16, and the system saves them between threads.
pub(super) fn is_there() -> bool {
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
    type Order = Pairs;

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
    unsafe fn add(&mut self, a: [*const Tile; 2], steps: Steps, b: [*const Tile; 2], count: usize) {
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
                row = in(reg) Pairs::ROW, a_step = in(reg) steps.tile,
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
            self.sums.write::<__m512>(from, c, stride, size);
        }
    }

    #[inline(always)]
    unsafe fn close(self) {
        // SAFETY: the tiles are as they were before `open`: of no use.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}
