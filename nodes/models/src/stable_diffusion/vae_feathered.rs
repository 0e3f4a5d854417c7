//! The autoencoder in feathered tiles, as ComfyUI's tiled nodes compute it: three passes with tiles that are square, tall and wide, and
//! the mean of the three, so that the seams of one lie inside the tiles of the others.
//!
//! Unlike [`Vae::decode_tiled`], which works once over each place, this takes three times as long; it is there for the people who
//! ask for it by name and expect that node's picture.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::feathered::{Canvas, Observe, one_by_one, spans};
use crate::stable_diffusion::taesd::{self, Taesd};
use crate::stable_diffusion::vae::{Posterior, Vae};

/// The square's side and what tiles share, in latent pixels.
#[derive(Clone, Copy, Debug)]
pub struct Feathering {
    pub tile: usize,
    pub overlap: usize,
}

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
        let factor = self.config().factor();
        decoded(latents, factor, feathering, observe, |latents| self.decode(latents))
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
        let factor = self.config().factor();
        encoded(image, factor, feathering, observe, |image| {
            self.encode(image).map(|posterior: Posterior| posterior.mode().clone())
        })
    }
}

impl Taesd {
    /// As [`Vae::decode_feathered`].
    ///
    /// # Errors
    /// As [`Taesd::decode`]; tiles share half of themselves or more; or what `observe` says.
    pub fn decode_feathered(
        &self,
        latents: &Tensor,
        feathering: Feathering,
        observe: Observe<'_>,
    ) -> Result<Tensor> {
        decoded(latents, taesd::FACTOR, feathering, observe, |latents| self.decode(latents))
    }

    /// As [`Vae::encode_feathered`].
    ///
    /// # Errors
    /// As [`Taesd::encode`] and [`Taesd::decode_feathered`].
    pub fn encode_feathered(
        &self,
        image: &Tensor,
        feathering: Feathering,
        observe: Observe<'_>,
    ) -> Result<Tensor> {
        encoded(image, taesd::FACTOR, feathering, observe, |image| self.encode(image))
    }
}

/// Latents one after the other, each in tiles, by `decode`, which makes pictures `factor` times as large.
fn decoded(
    latents: &Tensor,
    factor: usize,
    feathering: Feathering,
    observe: Observe<'_>,
    decode: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (batch, _, height, width) = latents.dims4()?;
    one_by_one(batch, observe, |i, observe| {
        let latents = latents.narrow(0, i, 1)?;
        let compute = |y: Range<usize>, x: Range<usize>| {
            decode(&latents.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?)
        };
        feathered((height, width), factor, feathering, compute, observe)
    })
}

/// Pictures one after the other, each in tiles of whole latent pixels, by `encode`.
fn encoded(
    image: &Tensor,
    factor: usize,
    feathering: Feathering,
    observe: Observe<'_>,
    encode: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (batch, _, height, width) = image.dims4()?;
    one_by_one(batch, observe, |i, observe| {
        let image = image.narrow(0, i, 1)?;
        let compute = |y: Range<usize>, x: Range<usize>| {
            let tile = image.narrow(2, y.start * factor, y.len() * factor)?;
            encode(&tile.narrow(3, x.start * factor, x.len() * factor)?)
        };
        feathered((height / factor, width / factor), 1, feathering, compute, observe)
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
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
