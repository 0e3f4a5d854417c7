//! Sums of a block that lie in memory.

use super::BLOCK;
use super::unit::Begin;
use crate::simd::Vector;

/// A block in memory: where what is computed is not a whole block.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [f32; BLOCK * BLOCK]);

impl Sums {
    /// Writes what the sums and the beginning come to.
    ///
    /// # Safety
    /// As [`Unit::end`](super::Unit::end); [`Vector`]'s.
    #[inline(always)]
    pub(super) unsafe fn write<V: Vector>(
        &self,
        from: Begin,
        c: *mut f32,
        stride: usize,
        (rows, columns): (usize, usize),
    ) {
        for row in 0..rows {
            let whole = columns / V::LANES * V::LANES;
            for first in (0..whole).step_by(V::LANES) {
                // SAFETY: the caller's; a vector of this row.
                unsafe { self.write_part::<V>(from, c, stride, (row, first), V::LANES) };
            }
            if whole < columns {
                // SAFETY: as above, the rest of this row.
                unsafe { self.write_part::<V>(from, c, stride, (row, whole), columns - whole) };
            }
        }
    }

    /// The same for `count` values from column `first` of a row on, at most a vector.
    ///
    /// # Safety
    /// As [`Sums::write`].
    #[inline(always)]
    unsafe fn write_part<V: Vector>(
        &self,
        from: Begin,
        c: *mut f32,
        stride: usize,
        (row, first): (usize, usize),
        count: usize,
    ) {
        // SAFETY: `count` values of this row; a block's rows are whole.
        unsafe {
            let to = c.add(row * stride + first);
            let begin = match from {
                Begin::Zero => V::splat(0.0),
                Begin::Itself => V::load_part(to, count),
                Begin::Rows(values) => V::splat(values[row]),
                Begin::Columns(values) => {
                    V::load_part(values[first..first + count].as_ptr(), count)
                }
                Begin::Matrix(values, stride) => {
                    let at = row * stride + first;
                    V::load_part(values[at..at + count].as_ptr(), count)
                }
            };
            let sum = V::load(self.0.as_ptr().add(row * BLOCK + first)).add(begin);
            sum.store_part(to, count);
        }
    }
}
