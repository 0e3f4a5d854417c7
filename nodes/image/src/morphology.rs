//! Grey-scale morphology with a square: the largest and the smallest value around each pixel, channel by channel.
//!
//! A square is a row and a column one after the other, and along a line a queue of what may still become the largest makes the cost the same
//! for every size. Beyond the border there is nothing, and a square of even size reaches one pixel further to the left and up, as in kornia.

use std::collections::VecDeque;

use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;
use kosmograph_pixels::work::each_row;

/// What is made of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Morphology {
    Erode,
    Dilate,
    Open,
    Close,
    Gradient,
    BottomHat,
    TopHat,
}

impl Morphology {
    /// ComfyUI's names, in its order.
    pub const NAMES: [&'static str; 7] =
        ["erode", "dilate", "open", "close", "gradient", "bottom_hat", "top_hat"];

    pub fn named(name: &str) -> Option<Morphology> {
        use Morphology::*;
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        [Erode, Dilate, Open, Close, Gradient, BottomHat, TopHat].get(index).copied()
    }

    /// Of pictures [B, H, W, C] with a square of `size` pixels, at least one.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn of(self, values: &[f32], shape: Shape, size: usize) -> Result<Vec<f32>, Undone> {
        let grown = |values: &[f32]| extreme(values, shape, size, |new, old| new >= old);
        let shrunk = |values: &[f32]| extreme(values, shape, size, |new, old| new <= old);
        let less = |mut from: Vec<f32>, what: &[f32]| {
            from.iter_mut().zip(what).for_each(|(value, less)| *value -= less);
            from
        };
        Ok(match self {
            Self::Erode => shrunk(values)?,
            Self::Dilate => grown(values)?,
            Self::Open => grown(&shrunk(values)?)?,
            Self::Close => shrunk(&grown(values)?)?,
            Self::Gradient => less(grown(values)?, &shrunk(values)?),
            Self::BottomHat => less(shrunk(&grown(values)?)?, values),
            Self::TopHat => {
                let mut own = shape.room()?;
                own.extend_from_slice(values);
                less(own, &grown(&shrunk(values)?)?)
            }
        })
    }
}

/// At each pixel the value of the square around it that `better` prefers to all others.
fn extreme(
    values: &[f32],
    shape: Shape,
    size: usize,
    better: impl Fn(f32, f32) -> bool + Sync,
) -> Result<Vec<f32>, Undone> {
    let Shape { height, width, channels, .. } = shape;
    let mut across = shape.zeros()?;
    each_row(&mut across, shape.row(), |i, row| {
        let source = &values[i * shape.row()..][..shape.row()];
        for channel in 0..channels {
            let take = |x: usize| source[x * channels + channel];
            along(width, size, take, &better, |x, value| row[x * channels + channel] = value);
        }
    })?;
    // Columns as rows: [B, W · C, H], made and read back in portions of a row each.
    let columns = Shape { height: shape.row(), width: height, channels: 1, ..shape };
    let mut down = columns.zeros()?;
    each_row(&mut down, height, |i, column| {
        let (picture, at) = (i / shape.row(), i % shape.row());
        let take = |y: usize| across[picture * shape.picture() + y * shape.row() + at];
        along(height, size, take, &better, |y, value| column[y] = value);
    })?;
    each_row(&mut across, shape.row(), |i, row| {
        let (picture, y) = (i / height, i % height);
        for (at, value) in row.iter_mut().enumerate() {
            *value = down[picture * shape.picture() + at * height + y];
        }
    })?;
    Ok(across)
}

/// The best of each window of `size` along a line of `length` values.
fn along(
    length: usize,
    size: usize,
    take: impl Fn(usize) -> f32,
    better: impl Fn(f32, f32) -> bool,
    mut give: impl FnMut(usize, f32),
) {
    let (before, after) = (size / 2, size - size / 2 - 1);
    // Positions of values that nothing later beats, the best first.
    let mut queue: VecDeque<(usize, f32)> = VecDeque::new();
    let mut next = 0;
    for at in 0..length {
        while next < length && next <= at + after {
            let value = take(next);
            while queue.back().is_some_and(|(_, last)| better(value, *last)) {
                queue.pop_back();
            }
            queue.push_back((next, value));
            next += 1;
        }
        while queue.front().is_some_and(|(from, _)| from + before < at) {
            queue.pop_front();
        }
        if let Some((_, value)) = queue.front() {
            give(at, *value);
        }
    }
}
