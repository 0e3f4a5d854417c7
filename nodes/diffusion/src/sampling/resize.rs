//! Masks and latents at the size of the latents that are sampled, as ComfyUI brings them there.

use candle_core::{Result, Tensor};

/// [B, C, H, W] at `height` × `width`: torch's `interpolate` by mode "bilinear", `align_corners=False`,
/// without antialiasing.
///
/// # Errors
/// The tensor has other than four axes.
pub fn bilinear(image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, from_height, from_width) = image.dims4()?;
    if (from_height, from_width) == (height, width) {
        return Ok(image.clone());
    }
    let values: Vec<f32> = image.flatten_all()?.to_vec1()?;
    let (rows, columns) = (taps(from_height, height), taps(from_width, width));
    let mut resized = Vec::with_capacity(batch * channels * height * width);
    for plane in values.chunks_exact(from_height * from_width) {
        for &(y0, y1, v) in &rows {
            let row = |y: usize| &plane[y * from_width..][..from_width];
            let (upper, lower) = (row(y0), row(y1));
            for &(x0, x1, u) in &columns {
                let mix = |row: &[f32]| (1.0 - u) * row[x0] + u * row[x1];
                resized.push((1.0 - v) * mix(upper) + v * mix(lower));
            }
        }
    }
    Tensor::from_vec(resized, (batch, channels, height, width), image.device())
}

/// For each new pixel of one axis: the two old ones and the weight of the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    let tap = |i: usize| {
        let position = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (position as usize).min(from - 1);
        (first, (first + 1).min(from - 1), position - first as f32)
    };
    (0..to).map(tap).collect()
}

/// As [`bilinear`], of the largest middle part that has the proportions `height` : `width`.
///
/// # Errors
/// The tensor has other than four axes.
pub fn bilinear_middle(image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, from_height, from_width) = image.dims4()?;
    let (h, w) = (from_height as f64, from_width as f64);
    let (from_aspect, aspect) = (w / h, width as f64 / height as f64);
    let margin = |excess: f64| (excess / 2.0).round_ties_even().max(0.0) as usize;
    let (x, y) = (margin(w - w * (aspect / from_aspect)), margin(h - h * (from_aspect / aspect)));
    let (x, y) = (x.min((from_width - 1) / 2), y.min((from_height - 1) / 2));
    let middle = image.narrow(2, y, from_height - 2 * y)?.narrow(3, x, from_width - 2 * x)?;
    bilinear(&middle, height, width)
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
    fn torchs_bilinear() -> Result<()> {
        // torch.nn.functional.interpolate(torch.arange(12.).reshape(1, 1, 3, 4), (2, 6), mode="bilinear")
        let image = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((1, 1, 3, 4))?;
        let resized: Vec<f32> = bilinear(&image, 2, 6)?.flatten_all()?.to_vec1()?;
        let torch = [
            1.0,
            1.5,
            2.166_666_7,
            2.833_333_3,
            3.5,
            4.0,
            7.0,
            7.5,
            8.166_667,
            8.833_333,
            9.5,
            10.0,
        ];
        assert!(
            resized.iter().zip(torch).all(|(a, b): (&f32, f32)| (a - b).abs() < 2e-6),
            "{resized:?}"
        );
        Ok(())
    }

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
