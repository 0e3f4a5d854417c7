//! Masks [B, H, W]: grown, feathered, put together, cut.
//!
//! A batch of masks has the [`Shape`] of pictures with one channel.

use node::memory::ask;

use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;
use kosmograph_pixels::work::each_row;

/// Grows the white of masks by `expand` pixels, or shrinks it by -`expand`: as many times the largest (smallest) of each pixel and its
/// neighbours, four of them with `tapered` corners, else eight.
///
/// # Errors
/// [`Undone`].
pub fn grow(values: &[f32], shape: Shape, expand: i64, tapered: bool) -> Result<Vec<f32>, Undone> {
    let pick = if expand < 0 { f32::min } else { f32::max };
    ask("growing the masks", &[2, shape.batch, shape.height, shape.width], size_of::<f32>())?;
    let mut mask = values.to_vec();
    // After so many steps nothing can change any more.
    let steps = expand.unsigned_abs().min((shape.height + shape.width) as u64);
    for _ in 0..steps {
        let mut next = mask.clone();
        each_row(&mut next, shape.width, |i, out| {
            let y = i % shape.height;
            let row = |i: usize| &mask[i * shape.width..][..shape.width];
            let here = row(i);
            let above = row(if y == 0 { i } else { i - 1 });
            let below = row(if y + 1 == shape.height { i } else { i + 1 });
            for (x, value) in out.iter_mut().enumerate() {
                let (left, right) = (x.saturating_sub(1), (x + 1).min(shape.width - 1));
                let cross = [here[left], here[right], above[x], below[x]];
                *value = cross.into_iter().fold(*value, pick);
                if !tapered {
                    let corners = [above[left], above[right], below[left], below[right]];
                    *value = corners.into_iter().fold(*value, pick);
                }
            }
        })?;
        if next == mask {
            break;
        }
        mask = next;
    }
    Ok(mask)
}

/// How many pixels fade on each side.
#[derive(Clone, Copy, Debug)]
pub struct Edges {
    pub left: usize,
    pub top: usize,
    pub right: usize,
    pub bottom: usize,
}

/// Masks whose outermost `edges` fade: of n pixels the outermost is multiplied by 1 / n, the innermost by 1.
///
/// On the right and at the bottom ComfyUI fades one pixel beside: there the first column (row) is faded by the outermost factor, and the
/// last column by the second. Here all four sides are alike.
///
/// # Errors
/// [`Undone`].
pub fn feather(values: &[f32], shape: Shape, edges: Edges) -> Result<Vec<f32>, Undone> {
    let rate = |at: usize, length: usize, edge: usize| {
        let edge = edge.min(length);
        if at < edge { (at + 1) as f32 / edge as f32 } else { 1.0 }
    };
    let Shape { height, width, .. } = shape;
    let columns: Vec<f32> = (0..width)
        .map(|x| rate(x, width, edges.left) * rate(width - 1 - x, width, edges.right))
        .collect();
    let mut out = shape.room()?;
    out.extend_from_slice(values);
    each_row(&mut out, width, |i, row| {
        let y = i % height;
        let own = rate(y, height, edges.top) * rate(height - 1 - y, height, edges.bottom);
        row.iter_mut().zip(&columns).for_each(|(value, column)| *value *= column * own);
    })?;
    Ok(out)
}

/// How [`composite`] joins two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Multiply,
    Add,
    Subtract,
    /// The last three take what is above a half as true.
    And,
    Or,
    Xor,
}

impl Operation {
    /// ComfyUI's names, in its order.
    pub const NAMES: [&'static str; 6] = ["multiply", "add", "subtract", "and", "or", "xor"];

    pub fn named(name: &str) -> Option<Operation> {
        use Operation::*;
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        [Multiply, Add, Subtract, And, Or, Xor].get(index).copied()
    }

    fn of(self, destination: f32, source: f32) -> f32 {
        // A half itself rounds to even, which is 0.
        let both = (destination > 0.5, source > 0.5);
        let truth = |value| if value { 1.0 } else { 0.0 };
        match self {
            Operation::Multiply => destination * source,
            Operation::Add => destination + source,
            Operation::Subtract => destination - source,
            Operation::And => truth(both.0 && both.1),
            Operation::Or => truth(both.0 || both.1),
            Operation::Xor => truth(both.0 != both.1),
        }
    }
}

/// `destination` with `source` joined to it from (`x`, `y`) on, cut to 0..1. A source of one mask serves a whole batch.
///
/// # Errors
/// [`Undone`].
pub fn composite(
    (destination, shape): (&[f32], Shape),
    (source, source_shape): (&[f32], Shape),
    (x, y): (usize, usize),
    operation: Operation,
) -> Result<Vec<f32>, Undone> {
    let mut out = shape.room()?;
    out.extend_from_slice(destination);
    let rows = source_shape.height.min(shape.height.saturating_sub(y));
    let columns = source_shape.width.min(shape.width.saturating_sub(x));
    for (i, picture) in out.chunks_mut(shape.picture()).enumerate() {
        let source = &source[i % source_shape.batch * source_shape.picture()..];
        for row in 0..rows {
            let source = &source[row * source_shape.width..][..columns];
            let own = &mut picture[(y + row) * shape.width..][..shape.width];
            for (value, source) in own[x.min(shape.width)..].iter_mut().zip(source) {
                *value = operation.of(*value, *source);
            }
        }
    }
    out.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(height: usize, width: usize) -> Shape {
        Shape { batch: 1, height, width, channels: 1 }
    }

    fn point() -> Vec<f32> {
        (0..25).map(|i| if i == 12 { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn white_grows_to_a_diamond_or_a_square() {
        let ones = |mask: &[f32]| mask.iter().filter(|value| **value == 1.0).count();
        assert_eq!(ones(&grow(&point(), shape(5, 5), 1, true).unwrap()), 5);
        assert_eq!(ones(&grow(&point(), shape(5, 5), 2, true).unwrap()), 13);
        let square = grow(&point(), shape(5, 5), 1, false).unwrap();
        assert_eq!(ones(&square), 9);
        assert_eq!(grow(&square, shape(5, 5), -1, false).unwrap(), point());
        assert_eq!(ones(&grow(&point(), shape(5, 5), i64::MAX, true).unwrap()), 25);
        assert_eq!(ones(&grow(&point(), shape(5, 5), i64::MIN, true).unwrap()), 0);
        // The batch's next mask is no neighbour.
        let two = Shape { batch: 5, height: 1, ..shape(5, 5) };
        assert_eq!(ones(&grow(&point(), two, 1, true).unwrap()), 3);
    }

    #[test]
    fn edges_fade() {
        let edges = Edges { left: 2, top: 0, right: 4, bottom: 1 };
        let out = feather(&[1.0; 12], shape(2, 6), edges).unwrap();
        assert_eq!(out[..6], [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(out[..6], out[6..]);
        let wide = Edges { left: 9, top: 9, right: 0, bottom: 0 };
        assert_eq!(feather(&[1.0; 2], shape(1, 2), wide).unwrap(), [0.5, 1.0]);
    }

    #[test]
    fn masks_are_joined_where_they_meet() {
        let join = |operation, at| {
            let destination = [0.2, 0.8, 0.8, 0.2];
            let source = [1.0, 0.4, 0.0, 1.0];
            composite((&destination, shape(2, 2)), (&source, shape(2, 2)), at, operation).unwrap()
        };
        assert_eq!(join(Operation::Multiply, (0, 0)), [0.2, 0.8 * 0.4, 0.0, 0.2]);
        assert_eq!(join(Operation::Add, (0, 0)), [1.0, 1.0, 0.8, 1.0]);
        assert_eq!(join(Operation::Subtract, (1, 1)), [0.2, 0.8, 0.8, 0.0]);
        assert_eq!(join(Operation::And, (0, 0)), [0.0, 0.0, 0.0, 0.0]);
        assert_eq!(join(Operation::Or, (0, 0)), [1.0; 4]);
        assert_eq!(join(Operation::Xor, (0, 0)), [1.0; 4]);
        assert_eq!(join(Operation::Add, (9, 9)), [0.2, 0.8, 0.8, 0.2]);
        for name in Operation::NAMES {
            assert!(Operation::named(name).is_some());
        }
        let batch = Shape { batch: 2, ..shape(1, 1) };
        let out =
            composite((&[0.1, 0.2], batch), (&[0.5], shape(1, 1)), (0, 0), Operation::Add).unwrap();
        assert_eq!(out, [0.6, 0.7]);
    }
}
