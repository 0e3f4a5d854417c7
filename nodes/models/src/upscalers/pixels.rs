//! Pixels to channels and back, and what is alike in the upscalers' activations.

use candle_core::{Result as CandleResult, Tensor};
use kosmograph_kernels::bounds::larger;

/// [B, C·r², H, W] → [B, C, r·H, r·W] (Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
/// Sub-Pixel Convolutional Neural Network", arXiv 1609.05158): channel c·r² + i·r + j is row i, column j of each square.
pub(super) fn shuffle(x: &Tensor, r: usize) -> CandleResult<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let channels = channels / (r * r);
    x.reshape(&[batch, channels, r, r, height, width][..])?
        .permute(vec![0, 1, 4, 2, 5, 3])?
        .reshape((batch, channels, height * r, width * r))
}

/// The inverse of [`shuffle`]; H and W are multiples of `r`.
pub(super) fn unshuffle(x: &Tensor, r: usize) -> CandleResult<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    x.reshape(&[batch, channels, height / r, r, width / r, r][..])?
        .permute(vec![0, 1, 3, 5, 2, 4])?
        .reshape((batch, channels * r * r, height / r, width / r))
}

/// Rows below and columns to the right until both sides are multiples of `r`, mirrored at the last one. A picture too small to be
/// mirrored so far repeats its edge.
pub(super) fn pad_to_multiple(x: &Tensor, r: usize) -> CandleResult<Tensor> {
    let mut x = x.clone();
    for axis in [2, 3] {
        let length = x.dim(axis)?;
        let missing = length.next_multiple_of(r) - length;
        if missing > 0 {
            let mirrored = |i: usize| (length as i64 - 2 - i as i64).max(0) as u32;
            let index: Vec<u32> = (0..length as u32).chain((0..missing).map(mirrored)).collect();
            let index = Tensor::new(index, x.device())?;
            x = x.contiguous()?.index_select(&index, axis)?;
        }
    }
    Ok(x)
}

/// max(x, 0.2·x), ESRGAN's activation.
pub(super) fn leaky_relu(x: &Tensor) -> CandleResult<Tensor> {
    larger(x, &(x * 0.2)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn squares_become_channels_and_back() -> CandleResult<()> {
        let x = Tensor::arange(0f32, 16., &Device::Cpu)?.reshape((1, 1, 4, 4))?;
        let channels = unshuffle(&x, 2)?;
        assert_eq!(channels.dims(), [1, 4, 2, 2]);
        // The first channel has the upper left pixel of every square.
        assert_eq!(channels.get(0)?.get(0)?.to_vec2::<f32>()?, [[0., 2.], [8., 10.]]);
        assert_eq!(channels.get(0)?.get(1)?.to_vec2::<f32>()?, [[1., 3.], [9., 11.]]);
        let back = shuffle(&channels, 2)?;
        assert_eq!(back.flatten_all()?.to_vec1::<f32>()?, x.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn odd_sides_are_mirrored() -> CandleResult<()> {
        let x = Tensor::arange(0f32, 3., &Device::Cpu)?.reshape((1, 1, 1, 3))?;
        let padded = pad_to_multiple(&x, 2)?;
        assert_eq!(padded.get(0)?.get(0)?.to_vec2::<f32>()?, [[0., 1., 2., 1.], [0., 1., 2., 1.]]);
        let far = pad_to_multiple(&x.to_dtype(DType::F32)?, 8)?;
        assert_eq!(far.dims(), [1, 1, 8, 8]);
        Ok(())
    }
}
