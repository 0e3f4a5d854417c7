//! A picture in tiles that fade into each other where they overlap, as ComfyUI has them.
//!
//! Each tile is multiplied by a weight that falls towards its ends, the sum is divided by the sum of the weights. The outer edges of
//! a picture fade as well, which the division undoes.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Is told how many of how many tiles are done; ends the work by an error.
pub type Observe<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

/// The pictures of a batch one after the other, so that memory does not grow with their number.
pub(crate) fn one_by_one(
    batch: usize,
    observe: Observe<'_>,
    mut compute: impl FnMut(usize, Observe<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    let picture =
        |i: usize| compute(i, &mut |done, count| observe(i * count + done, batch * count));
    Ok(Tensor::cat(&(0..batch).map(picture).collect::<Result<Vec<_>>>()?, 0)?)
}

/// A picture of `height` × `width` in square tiles, each computed once: `compute` is given rows and columns, what it gives is
/// `factor` times as large. One that fits into a tile is computed whole. Returns [B, C, factor · height, factor · width].
///
/// # Errors
/// The tile is not larger than the overlap, or what `compute` and `observe` say.
pub(crate) fn tiled_once(
    (height, width): (usize, usize),
    factor: usize,
    (tile, overlap): (usize, usize),
    compute: impl Fn(Range<usize>, Range<usize>) -> Result<Tensor>,
    observe: Observe<'_>,
) -> Result<Tensor> {
    if tile <= overlap {
        return Err(Error::Input(format!(
            "tiles of {tile} pixels cannot share {overlap}: the tile must be larger"
        )));
    }
    if height <= tile && width <= tile {
        observe(0, 1)?;
        let whole = compute(0..height, 0..width)?;
        observe(1, 1)?;
        return Ok(whole);
    }
    let (rows, columns) = (spans(height, tile, overlap), spans(width, tile, overlap));
    let (mut done, count) = (0, rows.len() * columns.len());
    let mut canvas: Option<Canvas> = None;
    for y in &rows {
        for x in &columns {
            observe(done, count)?;
            let part = compute(y.clone(), x.clone())?;
            let canvas = match &mut canvas {
                Some(canvas) => canvas,
                None => canvas.insert(Canvas::new(&part, (height * factor, width * factor))?),
            };
            canvas.add(&part, (y.start * factor, x.start * factor), overlap * factor)?;
            done += 1;
        }
    }
    observe(done, count)?;
    match canvas {
        Some(canvas) => canvas.normalised().mean_of(1),
        None => Err(Error::Input(format!("a picture of {width} × {height} pixels has no tiles"))),
    }
}

/// Where tiles begin and end along an axis: every `tile - overlap`, the last one as long as is left.
pub(crate) fn spans(length: usize, tile: usize, overlap: usize) -> Vec<Range<usize>> {
    // What fits into a tile is one, wherever the next would begin.
    let end = if length <= tile { 1 } else { length - overlap };
    let starts = (0..end).step_by(tile - overlap);
    starts.map(|start| start..(start + tile).min(length)).collect()
}

/// What the tiles of a pass add up to.
pub(crate) struct Canvas {
    /// [B, C, H, W].
    dims: [usize; 4],
    values: Vec<f32>,
    /// [H, W]: the sum of the weights.
    weights: Vec<f32>,
    device: Device,
}

impl Canvas {
    pub(crate) fn new(tile: &Tensor, (height, width): (usize, usize)) -> Result<Canvas> {
        let (batch, channels, _, _) = tile.dims4()?;
        let dims = [batch, channels, height, width];
        Ok(Canvas {
            dims,
            values: kosmograph_memory::filled("what the tiles add up to", &dims, 0.0)?,
            weights: kosmograph_memory::filled("their weights", &[height, width], 0.0)?,
            device: tile.device().clone(),
        })
    }

    pub(crate) fn add(
        &mut self,
        tile: &Tensor,
        (top, left): (usize, usize),
        feather: usize,
    ) -> Result<()> {
        let [_, _, height, width] = self.dims;
        let (_, _, rows, columns) = tile.dims4()?;
        let values = tile.flatten_all()?.to_vec1::<f32>()?;
        let (vertical, horizontal) = (fade(rows, feather), fade(columns, feather));
        for (i, row) in values.chunks(columns).enumerate() {
            let (plane, y) = (i / rows, i % rows);
            let start = (plane * height + top + y) * width + left;
            let own = self.values[start..][..columns].iter_mut();
            for ((value, tile), horizontal) in own.zip(row).zip(&horizontal) {
                *value += tile * (vertical[y] * horizontal);
            }
        }
        for (y, vertical) in vertical.iter().enumerate() {
            let own = self.weights[(top + y) * width + left..][..columns].iter_mut();
            own.zip(&horizontal).for_each(|(weight, horizontal)| *weight += vertical * horizontal);
        }
        Ok(())
    }

    pub(crate) fn normalised(mut self) -> Canvas {
        let plane = self.weights.len().max(1);
        for (value, weight) in self.values.iter_mut().zip((0..plane).cycle()) {
            *value /= self.weights[weight];
        }
        self
    }

    pub(crate) fn join(&mut self, pass: Canvas) {
        let pass = pass.normalised();
        self.values.iter_mut().zip(pass.values).for_each(|(sum, value)| *sum += value);
    }

    pub(crate) fn mean_of(mut self, count: usize) -> Result<Tensor> {
        self.values.iter_mut().for_each(|value| *value /= count as f32);
        Ok(Tensor::from_vec(self.values, &self.dims[..], &self.device)?)
    }
}

/// 1, falling to 1 / `feather` over the outermost pixels of both ends; no fading where it would take the whole tile.
fn fade(length: usize, feather: usize) -> Vec<f32> {
    let share = |from_end: usize| {
        if from_end < feather { (from_end + 1) as f32 / feather as f32 } else { 1.0 }
    };
    if feather >= length {
        return vec![1.0; length];
    }
    (0..length).map(|i| share(i) * share(length - 1 - i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_are_comfyuis() {
        assert_eq!((spans(64, 64, 16).len(), spans(64, 64, 16)[0].clone()), (1, 0..64));
        assert_eq!(spans(65, 64, 16), [0..64, 48..65]);
        assert_eq!(spans(112, 64, 16), [0..64, 48..112]);
        assert_eq!(spans(113, 64, 16), [0..64, 48..112, 96..113]);
        assert_eq!(fade(6, 2), [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]);
        assert_eq!(fade(3, 2), [0.5, 1.0, 0.5]);
        assert_eq!(fade(2, 2), [1.0, 1.0]);
    }

    #[test]
    fn tiles_are_counted_and_can_be_stopped() {
        let picture = Tensor::zeros((1, 1, 20, 30), candle_core::DType::F32, &Device::Cpu).unwrap();
        let compute = |y: Range<usize>, x: Range<usize>| {
            Ok(picture.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?)
        };
        let mut told = Vec::new();
        let observe = &mut |done, count| {
            told.push((done, count));
            Ok(())
        };
        tiled_once((20, 30), 1, (16, 4), compute, observe).unwrap();
        // Rows begin at 0 and 12, columns at 0, 12 and 24.
        assert_eq!(told, [0, 1, 2, 3, 4, 5, 6].map(|done| (done, 6)));
        let stop = &mut |done, _| if done == 2 { Err(Error::Cancelled) } else { Ok(()) };
        let stopped = tiled_once((20, 30), 1, (16, 4), compute, stop);
        assert!(matches!(stopped, Err(Error::Cancelled)));
        let refused = tiled_once((20, 30), 1, (4, 4), compute, &mut |_, _| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("4 pixels cannot share 4"));
    }

    proptest! {
        #[test]
        fn tiles_of_a_picture_make_the_picture(
            height in 1usize..50, width in 1usize..50, tile in 4usize..24, overlap in 0usize..23,
            factor in 1usize..3,
        ) {
            prop_assume!(overlap < tile);
            let picture = Tensor::randn(0f32, 1., (1, 2, height, width), &Device::Cpu).unwrap();
            let compute = |y: Range<usize>, x: Range<usize>| {
                let tile = picture.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?;
                Ok(tile.upsample_nearest2d(y.len() * factor, x.len() * factor)?)
            };
            let found =
                tiled_once((height, width), factor, (tile, overlap), compute, &mut |_, _| Ok(()));
            let whole = compute(0..height, 0..width).unwrap();
            let error = (found.unwrap() - whole).unwrap().abs().unwrap().flatten_all().unwrap();
            prop_assert!(error.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        }
    }
}
