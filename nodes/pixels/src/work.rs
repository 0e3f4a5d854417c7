//! Work on pictures in portions: memory is asked for first, and between portions whether to go on.

use kosmograph_interrupt::{self as interrupt, Interrupted};
use kosmograph_memory::Shortage;
use rayon::prelude::*;

use crate::shape::Shape;

/// Why pictures were not made.
#[derive(Debug, thiserror::Error)]
pub enum Undone {
    #[error(transparent)]
    Memory(#[from] Shortage),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The slice is not width · height · channels bytes long.
    #[error("a picture of {width} x {height} pixels with {channels} channels has {} bytes, but {found} were given", width * height * channels)]
    Length { width: usize, height: usize, channels: usize, found: usize },
    /// A picture without pixels, on either side.
    #[error(
        "a picture cannot be resized from {from_width} x {from_height} to {to_width} x {to_height} pixels: every side needs at least one pixel"
    )]
    Empty { from_width: usize, from_height: usize, to_width: usize, to_height: usize },
    /// The window reaches beyond the resized picture.
    #[error(
        "the window of {width} x {height} pixels at ({left}, {top}) does not lie within the resized picture of {to_width} x {to_height} pixels"
    )]
    Window {
        left: usize,
        top: usize,
        width: usize,
        height: usize,
        to_width: usize,
        to_height: usize,
    },
}

/// The values of a portion, of which a slow processor makes some in a second whatever is done with them.
const PORTION: usize = 1 << 20;
/// The rows of a portion: short ones may be made of long ones.
const ROWS: usize = 1 << 10;

/// Calls `body` with the number of each row of `out` and the row, in parallel.
///
/// # Errors
/// The work is to stop.
pub fn each_row<T: Send>(
    out: &mut [T],
    row: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) -> Result<(), Interrupted> {
    let rows = (PORTION / row.max(1)).clamp(1, ROWS);
    for (portion, out) in out.chunks_mut(rows * row.max(1)).enumerate() {
        interrupt::check()?;
        let first = portion * rows;
        out.par_chunks_mut(row).enumerate().for_each(|(i, out)| body(first + i, out));
    }
    Ok(())
}

/// A picture of `shape` for one of as many `values`, each made of its own.
///
/// # Errors
/// [`Undone`].
pub fn map(values: &[f32], shape: Shape, of: impl Fn(f32) -> f32) -> Result<Vec<f32>, Undone> {
    let mut out = shape.room()?;
    for values in values.chunks(PORTION) {
        interrupt::check()?;
        out.extend(values.iter().map(|value| of(*value)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_row_is_made_once() {
        let mut out = vec![0; 3 * (ROWS * 2 + 5)];
        each_row(&mut out, 3, |i, out| out.fill(i)).unwrap();
        assert!(out.iter().enumerate().all(|(at, i)| *i == at / 3));
        each_row(&mut [0; 0], 0, |_, _| ()).unwrap();
    }

    #[test]
    fn work_stops_between_portions() {
        let asked = Cell::new(0);
        let made = AtomicUsize::new(0);
        let second = || {
            asked.set(asked.get() + 1);
            asked.get() > 1
        };
        interrupt::during(&second, || {
            let mut out = vec![0; ROWS * 5];
            let count = |_: usize, _: &mut [i32]| {
                made.fetch_add(1, Ordering::Relaxed);
            };
            assert_eq!(each_row(&mut out, 1, count), Err(Interrupted));
            assert_eq!(made.load(Ordering::Relaxed), ROWS);
            let shape = Shape { batch: 1, height: 2, width: 2, channels: 1 };
            let error = map(&[0.0; 4], shape, |value| value).unwrap_err();
            assert!(matches!(error, Undone::Interrupted(_)), "{error}");
        });
    }
}
