//! Positions of a vision transformer for a picture of another size.

use candle_core::Tensor;
use kosmograph_models::Result;
use kosmograph_pixels::Shape;
use kosmograph_pixels::torch::{Mode, interpolate};

/// `positions` [1 + S², C], of the class token and of S × S patches, for `rows` × `columns` patches: interpolated by a cubic as
/// transformers does, from one size to the other.
///
/// # Errors
/// There is no memory.
pub(crate) fn resized(positions: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let (count, dim) = positions.dims2()?;
    let side = count.saturating_sub(1).isqrt();
    if (rows, columns) == (side, side) {
        return Ok(positions.clone());
    }
    let squares = positions.narrow(0, 1, side * side)?.flatten_all()?;
    let shape = Shape { batch: 1, height: side, width: side, channels: dim };
    let values = interpolate(&squares.to_vec1::<f32>()?, shape, (rows, columns), Mode::Bicubic)?;
    let squares = Tensor::from_vec(values, (rows * columns, dim), positions.device())?;
    Ok(Tensor::cat(&[&positions.narrow(0, 0, 1)?, &squares], 0)?)
}
