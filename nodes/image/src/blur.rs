//! Gaussian blur, and sharpening by what the blur took away.
//!
//! A Gaussian over a square is the product of one along rows and one along columns, so each is a pass of its own. Beyond the border the
//! picture is mirrored at its outermost pixels, which are not repeated: torch's padding "reflect" and OpenCV's BORDER_REFLECT_101.

use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;
use kosmograph_pixels::work::each_row;

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
/// [`Undone`].
pub fn blur(values: &[f32], shape: Shape, kernel: &[f32]) -> Result<Vec<f32>, Undone> {
    let (channels, radius) = (shape.channels, kernel.len() / 2);
    let mut between = shape.zeros()?;
    let columns = sources(shape.width, radius);
    each_row(&mut between, shape.row(), |i, out| {
        let row = &values[i * shape.row()..][..shape.row()];
        for (x, pixel) in out.chunks_mut(channels).enumerate() {
            for (source, weight) in columns[x..].iter().zip(kernel) {
                for (value, source) in pixel.iter_mut().zip(&row[source * channels..]) {
                    *value += weight * source;
                }
            }
        }
    })?;
    let mut out = shape.zeros()?;
    let rows = sources(shape.height, radius);
    each_row(&mut out, shape.row(), |i, out| {
        let (picture, y) = (i / shape.height, i % shape.height);
        for (source, weight) in rows[y..].iter().zip(kernel) {
            let source = &between[picture * shape.picture() + source * shape.row()..];
            for (value, source) in out.iter_mut().zip(source) {
                *value += weight * source;
            }
        }
    })?;
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
) -> Result<Vec<f32>, Undone> {
    let strength = (alpha * 10.0) as f32;
    let mut out = blur(values, shape, kernel)?;
    each_row(&mut out, shape.row(), |i, row| {
        for (blurred, value) in row.iter_mut().zip(&values[i * shape.row()..]) {
            *blurred = (value + strength * (value - *blurred)).clamp(0.0, 1.0);
        }
    })?;
    Ok(out)
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
            let values = vec![level; shape.values()];
            let kernel = comfy_kernel(radius, 1.5);
            for out in [blur(&values, shape, &kernel), sharpen(&values, shape, &kernel, 1.0)] {
                prop_assert!(out.unwrap().iter().all(|value| (value - level).abs() < 1e-4));
            }
        }
    }
}
