//! Latents at another size, as ComfyUI's `common_upscale` gives them: torch's `interpolate` by four modes, or "bislerp".
//!
//! Values are [B, C, h, w]. The first four modes are separable and written as lists of (source, weight) along one axis; positions are
//! torch's, in f32, for `align_corners=False` and without antialiasing.

use node::interrupt::{self, Interrupted};

/// ComfyUI's `upscale_method` for latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The pixel under the centre of the new one.
    NearestExact,
    Bilinear,
    /// The mean of the pixels that the new one touches.
    Area,
    /// Keys' cubic, a = -0.75.
    Bicubic,
    /// Bilinear positions, but each pixel's vector of channels is turned from one neighbour's direction to the other's, its length
    /// interpolated by itself: mixing two latents shortens no vector, and so loses no contrast.
    Bislerp,
}

impl Method {
    /// In the order of ComfyUI's choices.
    pub const NAMES: [&'static str; 5] =
        ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"];

    pub fn named(name: &str) -> Option<Method> {
        use Method::*;
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        [NearestExact, Bilinear, Area, Bicubic, Bislerp].get(index).copied()
    }
}

/// [B, C, h, w]; no size is 0.
pub type Dims = [usize; 4];

/// The largest part around the centre with the proportions `width` : `height`: its dims and values.
pub fn crop_center(
    values: &[f32],
    dims: Dims,
    (height, width): (usize, usize),
) -> (Dims, Vec<f32>) {
    let [batch, channels, old_height, old_width] = dims;
    let (h, w) = (old_height as f64, old_width as f64);
    let (old_aspect, aspect) = (w / h, width as f64 / height as f64);
    // At least one pixel stays.
    let margin =
        |excess: f64, side: usize| ((excess / 2.0).round_ties_even() as usize).min((side - 1) / 2);
    let (mut x, mut y) = (0, 0);
    if old_aspect > aspect {
        x = margin(w - w * (aspect / old_aspect), old_width);
    } else if old_aspect < aspect {
        y = margin(h - h * (old_aspect / aspect), old_height);
    }
    let cropped = [batch, channels, old_height - 2 * y, old_width - 2 * x];
    let planes = values.chunks(old_height * old_width);
    let rows = planes.flat_map(|plane| {
        let rows = plane.chunks(old_width).skip(y).take(old_height - 2 * y);
        rows.map(|row| &row[x..old_width - x])
    });
    (cropped, rows.flatten().copied().collect())
}

/// [B, C, h, w] → [B, C, `height`, `width`].
///
/// # Errors
/// The work is to stop.
pub fn resize(
    values: &[f32],
    dims: Dims,
    (height, width): (usize, usize),
    method: Method,
) -> Result<Vec<f32>, Interrupted> {
    let [batch, channels, old_height, old_width] = dims;
    if method == Method::Bislerp {
        let wide = bislerp_rows(values, dims, width)?;
        let wide_dims = [batch, channels, old_height, width];
        let turned = transposed(&wide, wide_dims);
        let turned = bislerp_rows(&turned, [batch, channels, width, old_height], height)?;
        return Ok(transposed(&turned, [batch, channels, width, height]));
    }
    let columns = taps(old_width, width, method);
    let rows = taps(old_height, height, method);
    let mut out = Vec::with_capacity(batch * channels * height * width);
    for plane in values.chunks(old_height * old_width) {
        let mut between = Vec::with_capacity(old_height * width);
        for row in plane.chunks(old_width) {
            interrupt::check()?;
            let value =
                |taps: &Vec<(usize, f32)>| taps.iter().map(|(x, w)| row[*x] * w).sum::<f32>();
            between.extend(columns.iter().map(value));
        }
        for taps in &rows {
            interrupt::check()?;
            let value =
                |x: usize| taps.iter().map(|(y, w)| between[y * width + x] * w).sum::<f32>();
            out.extend((0..width).map(value));
        }
    }
    Ok(out)
}

/// For each new pixel along one axis, the old ones it is made of.
fn taps(from: usize, to: usize, method: Method) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f32 / to as f32;
    let position = |out: usize| scale.mul_add(out as f32 + 0.5, -0.5);
    let clamp = |i: i64| i.clamp(0, from as i64 - 1) as usize;
    let taps = |out: usize| match method {
        Method::NearestExact => {
            vec![(((position(out).max(0.0) + 0.5) as usize).min(from - 1), 1.0)]
        }
        Method::Bilinear | Method::Bislerp => {
            let x = position(out).max(0.0);
            let first = (x as usize).min(from - 1);
            let t = (x - first as f32).min(1.0);
            vec![(first, 1.0 - t), ((first + 1).min(from - 1), t)]
        }
        Method::Area => {
            let (first, end) = (out * from / to, ((out + 1) * from).div_ceil(to));
            (first..end).map(|source| (source, 1.0 / (end - first) as f32)).collect()
        }
        Method::Bicubic => {
            let x = position(out);
            let (first, t) = (x.floor() as i64, x - x.floor());
            // Keys' weights at the distances t + 1, t, 1 - t and 2 - t.
            const A: f32 = -0.75;
            let inner = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
            let outer = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
            vec![
                (clamp(first - 1), outer(t + 1.0)),
                (clamp(first), inner(t)),
                (clamp(first + 1), inner(1.0 - t)),
                (clamp(first + 2), outer(2.0 - t)),
            ]
        }
    };
    (0..to).map(taps).collect()
}

/// [B, C, h, w] → [B, C, h, `width`], each row by turning vectors of C channels.
fn bislerp_rows(
    values: &[f32],
    [batch, channels, height, width]: Dims,
    to: usize,
) -> Result<Vec<f32>, Interrupted> {
    let columns = taps(width, to, Method::Bislerp);
    let mut out = vec![0.0; batch * channels * height * to];
    let (mut a, mut b) = (vec![0.0; channels], vec![0.0; channels]);
    for picture in 0..batch {
        for y in 0..height {
            interrupt::check()?;
            let start = |channel: usize| ((picture * channels + channel) * height + y) * width;
            for (x, taps) in columns.iter().enumerate() {
                let ((first, _), (second, t)) = (taps[0], taps[1]);
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
    fn sizes_are_torchs() {
        let text = include_str!("../tests/data/latent_resize.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 30);
        for case in cases {
            let dims = |key: &str| -> Vec<usize> {
                numbers(&case[key]).into_iter().map(|number| number as usize).collect()
            };
            let from: Dims = dims("from").try_into().unwrap();
            let to = dims("to");
            let count = from.iter().product::<usize>();
            let values: Vec<f32> =
                (0..count).map(|i| ((i * i * 7 + i * 31) % 256) as f32 / 64.0 - 2.0).collect();
            let name = case["method"].as_str().unwrap();
            let method = Method::named(name).unwrap();
            let found = if case["crop"] == true {
                let (dims, values) = crop_center(&values, from, (to[0], to[1]));
                resize(&values, dims, (to[0], to[1]), method).unwrap()
            } else {
                resize(&values, from, (to[0], to[1]), method).unwrap()
            };
            let expected = numbers(&case["values"]);
            assert_eq!(found.len(), expected.len(), "{name} {from:?} to {to:?}");
            for (found, expected) in found.iter().zip(expected) {
                // The arc cosine of nearly parallel vectors loses half of the digits.
                let bound = if method == Method::Bislerp { 2e-4 } else { 5e-6 };
                let error = (found - expected).abs();
                assert!(error < bound, "{name} {from:?} to {to:?}: {found}, not {expected}");
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
        let (dims, cropped) = crop_center(&values, [2, 4, 3, 5], (1000, 1));
        assert_eq!(dims, [2, 4, 3, 1]);
        assert_eq!(cropped[..3], [values[2], values[7], values[12]]);
    }
}
