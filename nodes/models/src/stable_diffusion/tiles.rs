//! A picture in overlapping tiles: each is computed by itself, and where tiles overlap their
//! results are blended, one fading in while the other fades out.

use std::ops::Range;

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::error::{Error, Result};

/// Where the tiles of a plane are; sizes are in latent pixels.
#[derive(Debug)]
pub(crate) struct Tiling {
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
    height: usize,
    width: usize,
}

impl Tiling {
    /// # Errors
    /// The tile is empty, or not larger than the overlap.
    pub(crate) fn new(height: usize, width: usize, tile: usize, overlap: usize) -> Result<Tiling> {
        if tile <= overlap {
            return Err(Error::Input(format!(
                "tiles of {tile} latent pixels cannot overlap by {overlap}: the tile must be larger"
            )));
        }
        Ok(Tiling {
            rows: spans(height, tile, overlap),
            columns: spans(width, tile, overlap),
            height,
            width,
        })
    }

    pub(crate) fn is_single(&self) -> bool {
        self.rows.len() == 1 && self.columns.len() == 1
    }
}

/// Spans of `tile` that cover 0..length, each overlapping the one before by `overlap` or, the last,
/// by more.
fn spans(length: usize, tile: usize, overlap: usize) -> Vec<Range<usize>> {
    let tile = tile.min(length);
    let mut spans: Vec<Range<usize>> =
        (0..length - tile).step_by(tile - overlap.min(tile - 1)).map(|i| i..i + tile).collect();
    spans.push(length - tile..length);
    spans
}

/// For every span its weight at each of its positions, enlarged by `factor`. Weights rise from a
/// span's inner edges over what it shares with its neighbour, and sum to 1 at each position.
fn weights(spans: &[Range<usize>], length: usize, factor: usize) -> Vec<Vec<f32>> {
    let mut total = vec![0f32; length * factor];
    let mut all = Vec::with_capacity(spans.len());
    for (i, span) in spans.iter().enumerate() {
        let size = span.len() * factor;
        let shared_before = if i == 0 { 0 } else { spans[i - 1].end - span.start };
        let shared_after = spans.get(i + 1).map_or(0, |next| span.end - next.start);
        let ramp = |distance: usize, shared: usize| {
            ((distance as f32 + 0.5) / (shared * factor).max(1) as f32).min(1.0)
        };
        let weight = |k: usize| {
            let rising = if shared_before == 0 { 1.0 } else { ramp(k, shared_before) };
            let falling = if shared_after == 0 { 1.0 } else { ramp(size - 1 - k, shared_after) };
            rising * falling
        };
        let own: Vec<f32> = (0..size).map(weight).collect();
        for (total, own) in total[span.start * factor..].iter_mut().zip(&own) {
            *total += own;
        }
        all.push(own);
    }
    for (span, own) in spans.iter().zip(&mut all) {
        for (own, total) in own.iter_mut().zip(&total[span.start * factor..]) {
            *own /= total;
        }
    }
    all
}

/// Computes every tile by `compute(rows, columns)`, which gives [B, C, rows · factor,
/// columns · factor], and blends them to [B, C, height · factor, width · factor].
pub(crate) fn tiled(
    tiling: &Tiling,
    factor: usize,
    mut compute: impl FnMut(Range<usize>, Range<usize>) -> CandleResult<Tensor>,
) -> CandleResult<Tensor> {
    let row_weights = weights(&tiling.rows, tiling.height, factor);
    let column_weights = weights(&tiling.columns, tiling.width, factor);
    let blend = |tile: &Tensor, rows: &[f32], columns: &[f32]| {
        let rows = Tensor::new(rows, &Device::Cpu)?.reshape((1, 1, (), 1))?;
        let columns = Tensor::new(columns, &Device::Cpu)?.reshape((1, 1, 1, ()))?;
        tile.broadcast_mul(&rows.to_device(tile.device())?)?
            .broadcast_mul(&columns.to_device(tile.device())?)
    };
    let mut whole: Option<Tensor> = None;
    for (rows, row_weights) in tiling.rows.iter().zip(&row_weights) {
        let mut band: Option<Tensor> = None;
        for (columns, column_weights) in tiling.columns.iter().zip(&column_weights) {
            let tile = compute(rows.clone(), columns.clone())?;
            let tile = blend(&tile, row_weights, column_weights)?;
            let after = (tiling.width - columns.end) * factor;
            let tile = tile.pad_with_zeros(3, columns.start * factor, after)?;
            band = Some(match band {
                Some(band) => (band + tile)?,
                None => tile,
            });
        }
        if let Some(band) = band {
            let after = (tiling.height - rows.end) * factor;
            let band = band.pad_with_zeros(2, rows.start * factor, after)?;
            whole = Some(match whole {
                Some(whole) => (whole + band)?,
                None => band,
            });
        }
    }
    match whole {
        Some(whole) => Ok(whole),
        None => candle_core::bail!("a picture of {}×{} has no tiles", tiling.height, tiling.width),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiles_cover_and_weights_sum_to_one(
            length in 1usize..100, tile in 2usize..40, overlap in 0usize..39, factor in 1usize..4,
        ) {
            prop_assume!(overlap < tile);
            let spans = spans(length, tile, overlap);
            let mut sum = vec![0f32; length * factor];
            for (span, own) in spans.iter().zip(weights(&spans, length, factor)) {
                prop_assert!(span.end <= length && span.len() == tile.min(length));
                for (sum, own) in sum[span.start * factor..].iter_mut().zip(own) {
                    prop_assert!(own > 0.0);
                    *sum += own;
                }
            }
            prop_assert!(sum.iter().all(|sum| (sum - 1.0).abs() < 1e-5));
        }

        #[test]
        fn tiles_of_a_picture_make_the_picture(
            height in 1usize..40, width in 1usize..40, tile in 5usize..20, overlap in 0usize..5,
        ) {
            let picture = Tensor::randn(0f32, 1., (1, 2, height, width), &Device::Cpu).unwrap();
            let tiling = Tiling::new(height, width, tile, overlap).unwrap();
            let whole = tiled(&tiling, 1, |y, x| {
                picture.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())
            }).unwrap();
            let error = (whole - picture).unwrap().abs().unwrap().max_all().unwrap();
            prop_assert!(error.to_scalar::<f32>().unwrap() < 1e-5);
        }
    }

    #[test]
    fn refuses_an_overlap_as_large_as_the_tile() {
        assert!(Tiling::new(9, 9, 4, 4).is_err());
    }
}
