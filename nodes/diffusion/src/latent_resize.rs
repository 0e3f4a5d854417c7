//! Latents at another size, as ComfyUI's `common_upscale` gives them: torch's `interpolate` by four modes, or "bislerp".

use kosmograph_pixels::torch::{Mode, between, interpolate};
use kosmograph_pixels::{Shape, Undone, crop};
use node::interrupt;

/// ComfyUI's `upscale_method` for latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Interpolate(Mode),
    /// Bilinear positions, but each pixel's vector of channels is turned from one neighbour's direction to the other's, its length
    /// interpolated by itself: mixing two latents shortens no vector, and so loses no contrast.
    Bislerp,
}

impl Method {
    /// In the order of ComfyUI's choices.
    pub const NAMES: [&'static str; 5] =
        ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"];

    pub fn named(name: &str) -> Option<Method> {
        match name {
            "bislerp" => Some(Method::Bislerp),
            name => Mode::named(name).map(Method::Interpolate),
        }
    }
}

/// [B, C, h, w]; no size is 0.
pub type Dims = [usize; 4];

/// Its planes as pictures of one channel.
fn planes([batch, channels, height, width]: Dims) -> Shape {
    Shape { batch: batch * channels, height, width, channels: 1 }
}

/// The largest part around the centre with the proportions `width` : `height`: its dims and values.
///
/// # Errors
/// [`Undone`].
pub fn crop_center(
    values: &[f32],
    dims: Dims,
    size: (usize, usize),
) -> Result<(Dims, Vec<f32>), Undone> {
    let (cropped, values) = crop::crop_center(values, planes(dims), size)?;
    Ok(([dims[0], dims[1], cropped.height, cropped.width], values))
}

/// [B, C, h, w] → [B, C, `height`, `width`].
///
/// # Errors
/// [`Undone`].
pub fn resize(
    values: &[f32],
    dims: Dims,
    (height, width): (usize, usize),
    method: Method,
) -> Result<Vec<f32>, Undone> {
    let [batch, channels, old_height, _] = dims;
    match method {
        Method::Interpolate(mode) => interpolate(values, planes(dims), (height, width), mode),
        Method::Bislerp => {
            let wide = bislerp_rows(values, dims, width)?;
            let turned = transposed(&wide, [batch, channels, old_height, width]);
            let turned = bislerp_rows(&turned, [batch, channels, width, old_height], height)?;
            Ok(transposed(&turned, [batch, channels, width, height]))
        }
    }
}

/// [B, C, h, w] → [B, C, h, `width`], each row by turning vectors of C channels.
fn bislerp_rows(
    values: &[f32],
    [batch, channels, height, width]: Dims,
    to: usize,
) -> Result<Vec<f32>, Undone> {
    let columns: Vec<_> = between(width, to).collect();
    let mut out = vec![0.0; batch * channels * height * to];
    let (mut a, mut b) = (vec![0.0; channels], vec![0.0; channels]);
    for picture in 0..batch {
        for y in 0..height {
            interrupt::check()?;
            let start = |channel: usize| ((picture * channels + channel) * height + y) * width;
            for (x, &(first, second, t)) in columns.iter().enumerate() {
                for channel in 0..channels {
                    a[channel] = values[start(channel) + first];
                    b[channel] = values[start(channel) + second];
                }
                // Past the last pixel's centre there is no second one.
                let t = if first == second { 0.0 } else { t };
                for (channel, value) in slerp(&a, &b, t).into_iter().enumerate() {
                    out[((picture * channels + channel) * height + y) * to + x] = value;
                }
            }
        }
    }
    Ok(out)
}

/// From `a` (t = 0) to `b` (t = 1) along the arc between their directions, the length between theirs. Shoemake, "Animating Rotation with
/// Quaternion Curves" (1985). Vectors that point the same way give `a`, opposite ones are mixed.
fn slerp(a: &[f32], b: &[f32], t: f32) -> Vec<f32> {
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let (norm_a, norm_b) = (norm(a), norm(b));
    let unit = |x: f32, norm: f32| if norm == 0.0 { 0.0 } else { x / norm };
    let units = |(a, b): (&f32, &f32)| (unit(*a, norm_a), unit(*b, norm_b));
    let dot: f32 = a.iter().zip(b).map(units).map(|(a, b)| a * b).sum();
    if dot > 1.0 - 1e-5 {
        return a.to_vec();
    }
    if dot < 1e-5 - 1.0 {
        return a.iter().zip(b).map(|(a, b)| a * (1.0 - t) + b * t).collect();
    }
    let omega = dot.acos();
    let (from, to) = (((1.0 - t) * omega).sin() / omega.sin(), (t * omega).sin() / omega.sin());
    let length = norm_a * (1.0 - t) + norm_b * t;
    a.iter().zip(b).map(units).map(|(a, b)| (from * a + to * b) * length).collect()
}

/// [B, C, h, w] → [B, C, w, h].
fn transposed(values: &[f32], [_, _, height, width]: Dims) -> Vec<f32> {
    let planes = values.chunks(height * width);
    planes
        .flat_map(|plane| (0..width).flat_map(move |x| plane[x..].iter().step_by(width)))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(value: &serde_json::Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn bislerp_is_what_it_is_defined_as() {
        let text = include_str!("../tests/data/bislerp.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            let dims = |key: &str| -> Vec<usize> {
                numbers(&case[key]).into_iter().map(|number| number as usize).collect()
            };
            let from: Dims = dims("from").try_into().unwrap();
            let to = dims("to");
            let count = from.iter().product::<usize>();
            let values: Vec<f32> =
                (0..count).map(|i| ((i * i * 7 + i * 31) % 256) as f32 / 64.0 - 2.0).collect();
            let found = if case["crop"] == true {
                let (dims, values) = crop_center(&values, from, (to[0], to[1])).unwrap();
                resize(&values, dims, (to[0], to[1]), Method::Bislerp).unwrap()
            } else {
                resize(&values, from, (to[0], to[1]), Method::Bislerp).unwrap()
            };
            let expected = numbers(&case["values"]);
            assert_eq!(found.len(), expected.len(), "{from:?} to {to:?}");
            for (found, expected) in found.iter().zip(expected) {
                // The arc cosine of nearly parallel vectors loses half of the digits.
                let error = (found - expected).abs();
                assert!(error < 2e-4, "{from:?} to {to:?}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn the_same_size_is_the_same_latent() {
        let values: Vec<f32> = (0..2 * 4 * 3 * 5).map(|i| (i as f32).sin()).collect();
        for name in Method::NAMES {
            let method = Method::named(name).unwrap();
            let same = resize(&values, [2, 4, 3, 5], (3, 5), method).unwrap();
            assert!(same.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
        }
        let (dims, cropped) = crop_center(&values, [2, 4, 3, 5], (1000, 1)).unwrap();
        assert_eq!(dims, [2, 4, 3, 1]);
        assert_eq!(cropped[..3], [values[2], values[7], values[12]]);
    }
}
