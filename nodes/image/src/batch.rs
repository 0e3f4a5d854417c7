//! Two batches of pictures as one.

use std::borrow::Cow;

use crate::scale::{Method, scale};
use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;
use kosmograph_pixels::crop::crop_center;
use kosmograph_pixels::torch::Mode;

/// `first` followed by `second`. The second is cut around its centre and scaled to the first one's size where that differs; a picture
/// with fewer channels gets more: grey becomes colour, and alpha is 1.
///
/// # Errors
/// [`Undone`].
pub fn concatenate(
    (first, first_shape): (&[f32], Shape),
    (second, second_shape): (&[f32], Shape),
) -> Result<(Shape, Vec<f32>), Undone> {
    let channels = first_shape.channels.max(second_shape.channels);
    let shape = Shape { batch: first_shape.batch + second_shape.batch, channels, ..first_shape };
    let mut out = shape.room()?;
    out.extend_from_slice(&with_channels(first, first_shape, channels)?);

    let second = with_channels(second, second_shape, channels)?;
    let second_shape = Shape { channels, ..second_shape };
    if (second_shape.height, second_shape.width) == (shape.height, shape.width) {
        out.extend_from_slice(&second);
    } else {
        let (cropped_shape, cropped) =
            crop_center(&second, second_shape, (shape.height, shape.width))?;
        let bilinear = Method::Interpolate(Mode::Bilinear);
        out.extend(scale(&cropped, cropped_shape, shape.width, shape.height, bilinear)?);
    }
    Ok((shape, out))
}

/// `to` is at least as many as there are; both are 1, 3 or 4.
pub(crate) fn with_channels(
    values: &[f32],
    shape: Shape,
    to: usize,
) -> Result<Cow<'_, [f32]>, Undone> {
    let from = shape.channels;
    if from == to {
        return Ok(values.into());
    }
    let mut out = Shape { channels: to, ..shape }.room()?;
    for pixel in values.chunks(from) {
        let colour = if from == 1 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] };
        out.extend_from_slice(&colour);
        out.extend((to == 4).then_some(1.0));
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_channels_are_matched() {
        let (a, b) = ([0.25f32], [0.1f32, 0.2, 0.3, 0.1, 0.2, 0.3]);
        let grey = Shape { batch: 1, height: 1, width: 1, channels: 1 };
        let colour = Shape { batch: 1, height: 2, width: 1, channels: 3 };
        let (shape, out) = concatenate((&a, grey), (&b, colour)).unwrap();
        assert_eq!(shape.dims(), [2, 1, 1, 3]);
        assert_eq!(out[..3], [0.25; 3]);
        for (value, expected) in out[3..].iter().zip([0.1, 0.2, 0.3]) {
            assert!((value - expected).abs() < 1e-6);
        }
        let alpha = Shape { batch: 1, height: 1, width: 1, channels: 4 };
        let (shape, out) = concatenate((&a, grey), (&[0.0; 4], alpha)).unwrap();
        assert_eq!(shape.channels, 4);
        assert_eq!(out, [0.25, 0.25, 0.25, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
