//! Gaussian blur, and sharpening by what the blur took away.
//!
//! A Gaussian over a square is the product of one along rows and one along columns, so each is a pass of its own. Beyond the border the
//! picture is mirrored at its outermost pixels, which are not repeated: torch's padding "reflect" and OpenCV's BORDER_REFLECT_101.

use rayon::prelude::*;

use crate::shape::{Shape, TooLarge};

/// The weights of ComfyUI's ImageBlur along one axis: 2 · `radius` + 1 of them, `sigma` in units of the radius and not in pixels.
pub fn comfy_kernel(radius: usize, sigma: f64) -> Vec<f32> {
    let weight = |i: usize| {
        let x = if radius == 0 { 0.0 } else { i as f64 / radius as f64 - 1.0 };
        (-x * x / (2.0 * sigma * sigma)).exp()
    };
    normalised((0..=2 * radius).map(weight).collect())
}

/// The weights of `cv::GaussianBlur` for floating-point pictures when it chooses its size from `sigma`, in pixels.
pub fn opencv_kernel(sigma: f64) -> Vec<f32> {
    let size = (sigma * 8.0 + 1.0).round_ties_even() as usize | 1;
    let centre = (size - 1) as f64 / 2.0;
    let weight = |i: usize| (-(i as f64 - centre).powi(2) / (2.0 * sigma * sigma)).exp();
    normalised((0..size).map(weight).collect())
}

fn normalised(weights: Vec<f64>) -> Vec<f32> {
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| (weight / sum) as f32).collect()
}

/// Blurs pictures [B, H, W, C] by `kernel`, of odd length, along both axes.
///
/// # Errors
/// What lies between the passes would be [`TooLarge`].
pub fn blur(values: &[f32], shape: Shape, kernel: &[f32]) -> Result<Vec<f32>, TooLarge> {
    let (channels, radius) = (shape.channels, kernel.len() / 2);
    let mut between = vec![0.0; shape.values()?];
    let columns = sources(shape.width, radius);
    between.par_chunks_mut(shape.row()).zip(values.par_chunks(shape.row())).for_each(
        |(out, row)| {
            for (x, pixel) in out.chunks_mut(channels).enumerate() {
                for (source, weight) in columns[x..].iter().zip(kernel) {
                    for (value, source) in pixel.iter_mut().zip(&row[source * channels..]) {
                        *value += weight * source;
                    }
                }
            }
        },
    );
    let mut out = vec![0.0; values.len()];
    let rows = sources(shape.height, radius);
    out.par_chunks_mut(shape.row()).enumerate().for_each(|(i, out)| {
        let (picture, y) = (i / shape.height, i % shape.height);
        for (source, weight) in rows[y..].iter().zip(kernel) {
            let source = &between[picture * shape.picture() + source * shape.row()..];
            for (value, source) in out.iter_mut().zip(source) {
                *value += weight * source;
            }
        }
    });
    Ok(out)
}

/// ComfyUI's ImageSharpen: 10 · `alpha` times the difference from the blurred picture is added, and the result cut to 0..1.
///
/// # Errors
/// As [`blur`].
pub fn sharpen(
    values: &[f32],
    shape: Shape,
    kernel: &[f32],
    alpha: f64,
) -> Result<Vec<f32>, TooLarge> {
    let strength = (alpha * 10.0) as f32;
    let blurred = blur(values, shape, kernel)?;
    let sharpened = |(value, blurred): (&f32, &f32)| value + strength * (value - blurred);
    Ok(values.iter().zip(&blurred).map(|pair| sharpened(pair).clamp(0.0, 1.0)).collect())
}

/// The pixels at -`radius` .. `length` + `radius`, mirrored into 0..`length`.
fn sources(length: usize, radius: usize) -> Vec<usize> {
    let period = (2 * (length as i64 - 1)).max(1);
    let mirrored = |i: i64| {
        let i = i.rem_euclid(period);
        i.min(period - i).min(length as i64 - 1) as usize
    };
    (-(radius as i64)..length as i64 + radius as i64).map(mirrored).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn borders_are_mirrored() {
        assert_eq!(sources(4, 3), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
        assert_eq!(sources(1, 2), [0; 5]);
        assert_eq!(sources(2, 3), [1, 0, 1, 0, 1, 0, 1, 0]);
    }

    #[test]
    fn kernels_have_their_size() {
        assert_eq!(comfy_kernel(1, 1.0).len(), 3);
        assert_eq!((opencv_kernel(0.5).len(), opencv_kernel(5.0).len()), (5, 41));
    }

    proptest! {
        #[test]
        fn a_plain_picture_stays_plain(
            width in 1usize..20, height in 1usize..20, radius in 1usize..32, level in 0f32..1.0,
        ) {
            let shape = Shape { batch: 2, height, width, channels: 3 };
            let values = vec![level; shape.values().unwrap()];
            let kernel = comfy_kernel(radius, 1.5);
            for out in [blur(&values, shape, &kernel), sharpen(&values, shape, &kernel, 1.0)] {
                prop_assert!(out.unwrap().iter().all(|value| (value - level).abs() < 1e-4));
            }
        }
    }
}
