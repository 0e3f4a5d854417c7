//! Masks and latents at the size of the latents that are sampled, as ComfyUI brings them there.

use candle_core::{Error, Result, Tensor};

use kosmograph_pixels::torch::Mode;

use crate::latent_resize::{Dims, Method, crop_center, resize};

const BILINEAR: Method = Method::Interpolate(Mode::Bilinear);

/// [B, C, H, W] at `height` × `width`: torch's `interpolate` by mode "bilinear".
///
/// # Errors
/// The tensor has other than four axes.
pub fn bilinear(image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    if image.dims()[2..] == [height, width] {
        return Ok(image.clone());
    }
    let (values, dims) = parts(image)?;
    let values = resize(&values, dims, (height, width), BILINEAR);
    from_parts(values.map_err(Error::wrap)?, dims, height, width, image)
}

/// As [`bilinear`], of the largest middle part that has the proportions `height` : `width`.
///
/// # Errors
/// The tensor has other than four axes.
pub fn bilinear_middle(image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (values, dims) = parts(image)?;
    let middle = crop_center(&values, dims, (height, width));
    let (dims, middle) = middle.map_err(Error::wrap)?;
    let values = resize(&middle, dims, (height, width), BILINEAR);
    from_parts(values.map_err(Error::wrap)?, dims, height, width, image)
}

fn parts(image: &Tensor) -> Result<(Vec<f32>, Dims)> {
    let (batch, channels, height, width) = image.dims4()?;
    Ok((image.flatten_all()?.to_vec1()?, [batch, channels, height, width]))
}

fn from_parts(
    values: Vec<f32>,
    [batch, channels, _, _]: Dims,
    height: usize,
    width: usize,
    like: &Tensor,
) -> Result<Tensor> {
    Tensor::from_vec(values, (batch, channels, height, width), like.device())
}

/// `rows` rows of a tensor that has fewer or more, taken evenly over all of them.
///
/// # Errors
/// A tensor operation failed.
pub fn spread_rows(tensor: &Tensor, rows: usize) -> Result<Tensor> {
    let given = tensor.dim(0)?;
    let index = |i: usize| match rows < given {
        true if rows <= 1 => i,
        true => (i as f64 * ((given - 1) as f64 / (rows - 1) as f64)).round_ties_even() as usize,
        false => ((i as f64 + 0.5) * (given as f64 / rows as f64)).floor() as usize,
    };
    let indices: Vec<u32> = (0..rows).map(|i| index(i).min(given - 1) as u32).collect();
    tensor.index_select(&Tensor::new(indices, tensor.device())?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_middle_of_a_wide_one() -> Result<()> {
        let image = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((1, 1, 2, 6))?;
        let middle: Vec<f32> = bilinear_middle(&image, 2, 2)?.flatten_all()?.to_vec1()?;
        assert_eq!(middle, [2.0, 3.0, 8.0, 9.0]);
        Ok(())
    }

    #[test]
    fn rows_are_taken_evenly() -> Result<()> {
        let tensor = Tensor::arange(0f32, 5., &Device::Cpu)?.reshape((5, 1))?;
        let rows = |n| spread_rows(&tensor, n)?.flatten_all()?.to_vec1::<f32>();
        assert_eq!(rows(3)?, [0., 2., 4.]);
        assert_eq!(rows(1)?, [0.]);
        assert_eq!(rows(10)?, [0., 0., 1., 1., 2., 2., 3., 3., 4., 4.]);
        Ok(())
    }
}
