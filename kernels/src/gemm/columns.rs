//! Matrices as the right-hand side of a product.

use std::ops::Range;

use super::Columns;
use crate::simd::{Vector, copy};
use crate::storage::WeightValues;

/// The transpose of rows that lie one after the other: a linear layer's weight [n, k] as B [k, n].
pub(crate) struct Transposed<'a> {
    pub(crate) values: WeightValues<'a>,
    pub(crate) k: usize,
}

impl Columns for Transposed<'_> {
    #[inline(always)]
    fn rows_of_columns(&self) -> Option<(WeightValues<'_>, usize)> {
        Some((self.values, self.k))
    }

    #[inline(always)]
    fn prefetch<V: Vector>(&self, k: Range<usize>, n: Range<usize>) {
        let (start, size) = self.values.bytes();
        for row in n {
            for at in ((row * self.k + k.start) * size..(row * self.k + k.end) * size).step_by(LINE)
            {
                // SAFETY: the processor has V; nothing is read.
                unsafe { V::prefetch(start.wrapping_add(at)) };
            }
        }
    }

    #[inline(always)]
    fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, width: usize, panel: &mut [f32]) {
        let depth = k.len();
        match self.values {
            WeightValues::F32(values) => {
                let from = &values[n.start * self.k + k.start..(n.end - 1) * self.k + k.end];
                transpose::<V>(from, self.k, n.len(), depth, width, panel);
            }
            half => {
                // One block of rows at a time, so that the widened values stay where they are read from.
                let mut wide = [0f32; WIDE];
                let step = (WIDE / n.len()).min(depth).max(1);
                for start in (0..depth).step_by(step) {
                    let columns = step.min(depth - start);
                    for (row, wide) in n.clone().zip(wide.chunks_exact_mut(columns)) {
                        half.widen::<V>(row * self.k + k.start + start, wide);
                    }
                    let panel = &mut panel[start * width..][..columns * width];
                    transpose::<V>(
                        &wide[..n.len() * columns],
                        columns,
                        n.len(),
                        columns,
                        width,
                        panel,
                    );
                }
            }
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Values that are widened at once: 32 columns of 128.
const WIDE: usize = 4096;

/// `rows` rows of `depth` values, `stride` apart, as the columns of `panel` [depth, width].
#[inline(always)]
fn transpose<V: Vector>(
    from: &[f32],
    stride: usize,
    rows: usize,
    depth: usize,
    width: usize,
    panel: &mut [f32],
) {
    assert!(rows >= 1 && rows <= width && width.is_multiple_of(V::LANES));
    assert!(from.len() >= (rows - 1) * stride + depth && panel.len() >= depth * width);
    let blocks = depth / V::LANES * V::LANES;
    let whole_rows = rows / V::LANES * V::LANES;
    for row in (0..whole_rows).step_by(V::LANES) {
        for p in (0..blocks).step_by(V::LANES) {
            // SAFETY: rows row..row + LANES and the values p..p + LANES of each are there, and so are the rows
            // p..p + LANES of the panel, by the asserts.
            unsafe {
                V::transpose(
                    from.as_ptr().add(row * stride + p),
                    stride,
                    panel.as_mut_ptr().add(p * width + row),
                    width,
                );
            }
        }
    }
    for row in 0..width {
        let first = if row < whole_rows { blocks } else { 0 };
        for p in first..depth {
            panel[p * width + row] = if row < rows { from[row * stride + p] } else { 0.0 };
        }
    }
}

/// A matrix [k, n] row by row, `stride` apart.
pub(crate) struct Plain<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

impl Columns for Plain<'_> {
    #[inline(always)]
    fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, width: usize, panel: &mut [f32]) {
        for (row, panel) in k.zip(panel.chunks_exact_mut(width)) {
            let from = &self.values[row * self.stride..][n.clone()];
            let (values, rest) = panel.split_at_mut(n.len());
            copy::<V>(from, values);
            rest.fill(0.0);
        }
    }
}

/// As [`Plain`], of values that may be in half precision.
pub(crate) struct Rows<'a> {
    pub(crate) values: WeightValues<'a>,
    pub(crate) stride: usize,
}

impl Columns for Rows<'_> {
    #[inline(always)]
    fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, width: usize, panel: &mut [f32]) {
        for (row, panel) in k.zip(panel.chunks_exact_mut(width)) {
            let (values, rest) = panel.split_at_mut(n.len());
            self.values.widen::<V>(row * self.stride + n.start, values);
            rest.fill(0.0);
        }
    }
}
