//! The autoencoder in feathered tiles, as ComfyUI's tiled nodes compute it: three passes with tiles that are square, tall and wide, and
//! the mean of the three, so that the seams of one lie inside the tiles of the others.
//!
//! Unlike [`Vae::decode_tiled`], which works once over each place, this takes three times as long; it is there for the people who
//! ask for it by name and expect that node's picture.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::stable_diffusion::vae::{Posterior, Vae};

/// The square's side and what tiles share, in latent pixels.
#[derive(Clone, Copy, Debug)]
pub struct Feathering {
    pub tile: usize,
    pub overlap: usize,
}

/// Is told how many of how many tiles are done; ends the work by an error.
pub type Observe<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

impl Feathering {
    /// The height and width of a tile in each pass, those of the square last.
    fn passes(self) -> Result<[(usize, usize); 3]> {
        let Feathering { tile, overlap } = self;
        // The narrow passes have half a tile, and a tile must go on beyond what it shares.
        if tile / 2 <= overlap {
            return Err(Error::Input(format!(
                "tiles of {tile} latent pixels cannot share {overlap}: less than half of a tile would be right"
            )));
        }
        Ok([(tile * 2, tile / 2), (tile / 2, tile * 2), (tile, tile)])
    }
}

impl Vae {
    /// `latents` [B, latent_channels, h, w] → the picture [B, out_channels, 8·h, 8·w], as [`Vae::decode`]. A picture that fits into a
    /// tile of every pass is decoded whole, and once.
    ///
    /// # Errors
    /// As [`Vae::decode`]; tiles share half of themselves or more; or what `observe` says.
    pub fn decode_feathered(
        &self,
        latents: &Tensor,
        feathering: Feathering,
        observe: Observe<'_>,
    ) -> Result<Tensor> {
        let (batch, _, height, width) = latents.dims4()?;
        let factor = self.config().factor();
        one_by_one(batch, observe, |i, observe| {
            let latents = latents.narrow(0, i, 1)?;
            let compute = |y: Range<usize>, x: Range<usize>| {
                self.decode(&latents.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?)
            };
            feathered((height, width), factor, feathering, compute, observe)
        })
    }

    /// `image` [B, in_channels, H, W] → the mode of its posterior [B, latent_channels, H/8, W/8], as [`Vae::encode`].
    ///
    /// # Errors
    /// As [`Vae::encode`] and [`Vae::decode_feathered`].
    pub fn encode_feathered(
        &self,
        image: &Tensor,
        feathering: Feathering,
        observe: Observe<'_>,
    ) -> Result<Tensor> {
        let (batch, _, height, width) = image.dims4()?;
        let factor = self.config().factor();
        one_by_one(batch, observe, |i, observe| {
            let image = image.narrow(0, i, 1)?;
            let compute = |y: Range<usize>, x: Range<usize>| {
                let tile = image.narrow(2, y.start * factor, y.len() * factor)?;
                let tile = tile.narrow(3, x.start * factor, x.len() * factor)?;
                self.encode(&tile).map(|posterior: Posterior| posterior.mode().clone())
            };
            feathered((height / factor, width / factor), 1, feathering, compute, observe)
        })
    }
}

/// The pictures of a batch one after the other, so that memory does not grow with their number.
fn one_by_one(
    batch: usize,
    observe: Observe<'_>,
    mut compute: impl FnMut(usize, Observe<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    let picture =
        |i: usize| compute(i, &mut |done, count| observe(i * count + done, batch * count));
    Ok(Tensor::cat(&(0..batch).map(picture).collect::<Result<Vec<_>>>()?, 0)?)
}

/// The mean of the passes; sizes are in latent pixels, `factor` enlarges them to those of the result.
fn feathered(
    (height, width): (usize, usize),
    factor: usize,
    feathering: Feathering,
    compute: impl Fn(Range<usize>, Range<usize>) -> Result<Tensor>,
    observe: Observe<'_>,
) -> Result<Tensor> {
    let passes = feathering.passes()?;
    if passes.iter().all(|(tall, wide)| height <= *tall && width <= *wide) {
        return compute(0..height, 0..width);
    }
    let grids = passes.map(|(tall, wide)| {
        (spans(height, tall, feathering.overlap), spans(width, wide, feathering.overlap))
    });
    let count = grids.iter().map(|(rows, columns)| rows.len() * columns.len()).sum();
    let mut done = 0;
    let mut sum: Option<Canvas> = None;
    for ((tall, wide), (rows, columns)) in passes.into_iter().zip(grids) {
        // A pass whose tile holds everything computes it whole, unfaded.
        let overlap = if height <= tall && width <= wide { 0 } else { feathering.overlap };
        let mut pass: Option<Canvas> = None;
        for y in &rows {
            for x in &columns {
                observe(done, count)?;
                let tile = compute(y.clone(), x.clone())?;
                let canvas = match &mut pass {
                    Some(canvas) => canvas,
                    None => pass.insert(Canvas::new(&tile, (height * factor, width * factor))?),
                };
                canvas.add(&tile, (y.start * factor, x.start * factor), overlap * factor)?;
                done += 1;
            }
        }
        if let Some(pass) = pass {
            match &mut sum {
                Some(sum) => sum.join(pass),
                None => sum = Some(pass.normalised()),
            }
        }
    }
    observe(done, count)?;
    match sum {
        Some(sum) => sum.mean_of(passes.len()),
        None => {
            Err(Error::Input(format!("a picture of {width} × {height} latent pixels has no tiles")))
        }
    }
}

/// Where tiles begin and end along an axis: every `tile - overlap`, the last one as long as is left.
fn spans(length: usize, tile: usize, overlap: usize) -> Vec<Range<usize>> {
    // What fits into a tile is one, wherever the next would begin.
    let end = if length <= tile { 1 } else { length - overlap };
    let starts = (0..end).step_by(tile - overlap);
    starts.map(|start| start..(start + tile).min(length)).collect()
}

/// What the tiles of a pass add up to.
struct Canvas {
    /// [B, C, H, W].
    dims: [usize; 4],
    values: Vec<f32>,
    /// [H, W]: the sum of the weights.
    weights: Vec<f32>,
    device: Device,
}

impl Canvas {
    fn new(tile: &Tensor, (height, width): (usize, usize)) -> Result<Canvas> {
        let (batch, channels, _, _) = tile.dims4()?;
        let dims = [batch, channels, height, width];
        Ok(Canvas {
            dims,
            values: kosmograph_memory::filled("what the tiles add up to", &dims, 0.0)?,
            weights: kosmograph_memory::filled("their weights", &[height, width], 0.0)?,
            device: tile.device().clone(),
        })
    }

    fn add(&mut self, tile: &Tensor, (top, left): (usize, usize), feather: usize) -> Result<()> {
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

    fn normalised(mut self) -> Canvas {
        let plane = self.weights.len().max(1);
        for (value, weight) in self.values.iter_mut().zip((0..plane).cycle()) {
            *value /= self.weights[weight];
        }
        self
    }

    fn join(&mut self, pass: Canvas) {
        let pass = pass.normalised();
        self.values.iter_mut().zip(pass.values).for_each(|(sum, value)| *sum += value);
    }

    fn mean_of(mut self, count: usize) -> Result<Tensor> {
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

    const OBSERVE: fn(usize, usize) -> Result<()> = |_, _| Ok(());

    /// An "autoencoder" that repeats each latent pixel.
    fn repeat(
        latents: &Tensor,
        factor: usize,
    ) -> impl Fn(Range<usize>, Range<usize>) -> Result<Tensor> {
        move |y, x| {
            let tile = latents.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?;
            Ok(tile.upsample_nearest2d(y.len() * factor, x.len() * factor)?)
        }
    }

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
    fn what_cannot_be_tiled_is_refused() {
        let latents = Tensor::zeros((1, 1, 40, 40), candle_core::DType::F32, &Device::Cpu).unwrap();
        let feathering = Feathering { tile: 16, overlap: 8 };
        let error = feathered((40, 40), 1, feathering, repeat(&latents, 1), &mut { OBSERVE });
        assert!(error.unwrap_err().to_string().contains("16 latent pixels cannot share 8"));
        let feathering = Feathering { tile: 16, overlap: 4 };
        let stop = &mut |_: usize, _: usize| Err(Error::Cancelled);
        let stopped = feathered((40, 40), 1, feathering, repeat(&latents, 1), stop);
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }

    proptest! {
        #[test]
        fn tiles_of_a_picture_make_the_picture(
            height in 1usize..50, width in 1usize..50, tile in 4usize..24, overlap in 0usize..11,
            factor in 1usize..3,
        ) {
            prop_assume!(overlap < tile / 2);
            let latents = Tensor::randn(0f32, 1., (2, 2, height, width), &Device::Cpu).unwrap();
            let feathering = Feathering { tile, overlap };
            let compute = repeat(&latents, factor);
            let found = feathered((height, width), factor, feathering, &compute, &mut { OBSERVE });
            let whole = compute(0..height, 0..width).unwrap();
            let error = (found.unwrap() - whole).unwrap().abs().unwrap().flatten_all().unwrap();
            prop_assert!(error.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        }
    }
}
