//! Sums of products of whole numbers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack::{Features, Rows};
use super::{GROUP, WIDTH};
use crate::gemm::Shared;

/// Rows whose sums, with two vectors of a panel and a number of a row, fill the registers.
pub(super) const ROWS: usize = 12;
/// Rows that every panel meets before the next ones: at the widths of Stable Diffusion they lie in a second-level cache.
const NEAR: usize = 16 * ROWS;

/// Some rows and features of y, which begin at a multiple of [`ROWS`] and of [`WIDTH`].
pub(super) struct Block<'a> {
    pub x: &'a Rows,
    pub w: &'a Features,
    pub bias: Option<&'a [f32]>,
    pub rows: Range<usize>,
    pub features: Range<usize>,
    pub to: Shared,
    /// Features in all: the distance of two rows of y.
    pub output: usize,
}

impl Block<'_> {
    /// # Safety
    /// The processor has AVX-512 with BW and VNNI; `to` leads to y, of which nobody else reads or writes this block.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn run(&self) {
        for near in self.rows.clone().step_by(NEAR) {
            let end = self.rows.end.min(near + NEAR);
            for feature in self.features.clone().step_by(WIDTH) {
                for row in (near..end).step_by(ROWS) {
                    // SAFETY: the caller's.
                    unsafe { self.tile(row..end.min(row + ROWS), feature) };
                }
            }
        }
    }

    /// At most [`ROWS`] rows of a panel.
    ///
    /// # Safety
    /// As [`Block::run`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
    unsafe fn tile(&self, rows: Range<usize>, feature: usize) {
        let Block { x, w, bias, to, output, .. } = self;
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        let numbers = &x.numbers[rows.start * x.stride..(rows.start + ROWS) * x.stride];
        let panel = &w.panels[feature / WIDTH * w.panel..][..w.panel];
        let groups = w.panel / WIDTH / GROUP;
        assert!(groups * GROUP <= x.stride);
        for group in 0..groups {
            // SAFETY: a group of each feature of the panel, and of each row: there are as many rows as whole strips have.
            unsafe {
                let at = panel.as_ptr().add(group * WIDTH * GROUP);
                let of_w = [0, 64].map(|half| _mm512_loadu_si512(at.add(half).cast()));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let at = numbers.as_ptr().add(row * x.stride + group * GROUP);
                    let of_x = _mm512_set1_epi32(at.cast::<i32>().read_unaligned());
                    for (sum, of_w) in sums.iter_mut().zip(of_w) {
                        *sum = _mm512_dpbusd_epi32(*sum, of_x, of_w);
                    }
                }
            }
        }
        for (half, first) in [feature, feature + 16].into_iter().enumerate() {
            let count = output.saturating_sub(first).min(16);
            let mask = ((1u32 << count) - 1) as u16;
            // SAFETY: scales and offsets are as many as whole panels have; the bias and y have `count` values there.
            unsafe {
                let offset = _mm512_loadu_si512(w.offsets[first..first + 16].as_ptr().cast());
                let by = _mm512_loadu_ps(w.scales[first..first + 16].as_ptr());
                let begin = match bias {
                    Some(bias) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().wrapping_add(first)),
                    None => _mm512_setzero_ps(),
                };
                for (row, sums) in rows.clone().zip(&sums) {
                    let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[half], offset));
                    let scale = _mm512_mul_ps(by, _mm512_set1_ps(x.scales[row]));
                    let y = _mm512_fmadd_ps(sum, scale, begin);
                    _mm512_mask_storeu_ps(to.at(row * output + first), mask, y);
                }
            }
        }
    }
}
