//! Places that are counted row by row through all samples, pixels or tiles, by the rows that they lie in.

use std::ops::Range;

/// Places beside each other in one row of a sample.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    pub(super) sample: usize,
    pub(super) row: usize,
    /// The first one's column.
    pub(super) column: usize,
    /// Its number among those that were asked for.
    pub(super) at: usize,
    pub(super) length: usize,
}

pub(super) struct Runs {
    rest: Range<usize>,
    start: usize,
    rows: usize,
    columns: usize,
}

impl Runs {
    /// Those of the places `of`, where a sample has `rows` of `columns`.
    #[inline(always)]
    pub(super) fn new(of: Range<usize>, rows: usize, columns: usize) -> Runs {
        Runs { start: of.start, rest: of, rows, columns }
    }
}

impl Iterator for Runs {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        if self.rest.is_empty() {
            return None;
        }
        let first = self.rest.start;
        let (row, column) = (first / self.columns, first % self.columns);
        let length = (self.columns - column).min(self.rest.len());
        self.rest.start += length;
        let (sample, row) = (row / self.rows, row % self.rows);
        Some(Run { sample, row, column, at: first - self.start, length })
    }
}
