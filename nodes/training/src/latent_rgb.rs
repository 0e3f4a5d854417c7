//! What colour each latent channel of a VAE has: the linear picture of its latents, by least squares over pictures. Previews are
//! drawn with it (node.h, "describe/1").

use std::path::Path;

use candle_core::{Device, Tensor};
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::vae::Vae;

use crate::data;
use crate::error::{Error, Result};

/// Red, green and blue in −1 … 1 are `bias` and the channels times `factors`, rounded to four digits.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentRgb {
    /// Of each channel.
    pub factors: Vec<[f64; 3]>,
    pub bias: [f64; 3],
    /// The root of the mean square error.
    pub error: f64,
}

/// Fits `most` of the pictures of a folder, spread over it, whose sides the VAE's factor divides.
///
/// # Errors
/// There is no VAE, or no such picture; a file cannot be read.
pub fn fit(vae: &Path, pictures: &Path, most: usize) -> Result<LatentRgb> {
    let (config, weights) = Checkpoint::open(vae, &Device::Cpu)?.vae()?;
    let vae = Vae::load(&weights, &config)?;
    let paths = data::pictures(pictures)?;
    let step = paths.len().div_ceil(most.max(1)).max(1);
    // For each latent pixel its channels and a one, and the mean colour of the pixels below it.
    let (mut rows, mut colours) = (Vec::new(), Vec::new());
    for path in paths.iter().step_by(step) {
        let unread = |reason: String| Error::Data(format!("{}: {reason}", path.display()));
        let picture = data::open(path).map_err(unread)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let factor = config.factor();
        if !width.is_multiple_of(factor) || !height.is_multiple_of(factor) {
            continue;
        }
        let values = picture.into_raw().into_iter().map(|level| f32::from(level) / 127.5 - 1.0);
        let image = Tensor::from_iter(values, &Device::Cpu)?.reshape((1, height, width, 3))?;
        let image = image.permute((0, 3, 1, 2))?.contiguous()?;
        let latents = (vae.encode(&image)?.mode() * config.scaling_factor())?;
        let small = image.avg_pool2d(factor)?;
        let by_pixel = |tensor: &Tensor| -> Result<Vec<Vec<f32>>> {
            Ok(tensor.reshape((tensor.dim(1)?, ()))?.t()?.to_vec2::<f32>()?)
        };
        for (latent, colour) in by_pixel(&latents)?.into_iter().zip(by_pixel(&small)?) {
            rows.push(latent.into_iter().map(f64::from).chain([1.0]).collect::<Vec<_>>());
            colours.push(colour);
        }
    }
    let Some(n) = rows.first().map(Vec::len) else {
        return Err(Error::Data(format!(
            "{} holds no picture whose sides are multiples of {}",
            pictures.display(),
            config.factor()
        )));
    };
    let products = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
    let a: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| products(i, j)).collect()).collect();
    let of_colour = |c: usize| {
        let pairs = || rows.iter().zip(&colours);
        let b = |i: usize| pairs().map(|(row, to)| row[i] * f64::from(to[c])).sum();
        solve(a.clone(), (0..n).map(b).collect())
    };
    let fits = [0, 1, 2].map(of_colour);
    let square = |row: &Vec<f64>, to: &Vec<f32>| -> f64 {
        let made = fits.iter().map(|fit| row.iter().zip(fit).map(|(x, by)| x * by).sum::<f64>());
        made.zip(to).map(|(made, to)| (made - f64::from(*to)).powi(2)).sum()
    };
    let squares: f64 = rows.iter().zip(&colours).map(|(row, to)| square(row, to)).sum();
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    let triple = |i: usize| [0, 1, 2].map(|c: usize| rounded(fits[c][i]));
    Ok(LatentRgb {
        factors: (0..n - 1).map(triple).collect(),
        bias: triple(n - 1),
        error: (squares / rows.len() as f64 / 3.0).sqrt(),
    })
}

/// Solves a · x = b by elimination; a is symmetric and positive.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = a[i].clone();
        for j in i + 1..n {
            let factor = a[j][i] / pivot[i];
            for (value, above) in a[j].iter_mut().zip(&pivot) {
                *value -= factor * above;
            }
            b[j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elimination_solves() {
        let a = vec![vec![4.0, 1.0, 0.5], vec![1.0, 3.0, 0.25], vec![0.5, 0.25, 2.0]];
        let x = [1.0, -2.0, 3.0];
        let b = a.iter().map(|row| row.iter().zip(x).map(|(a, x)| a * x).sum()).collect();
        assert!(solve(a, b).iter().zip(x).all(|(found, x)| (found - x).abs() < 1e-12));
    }
}
