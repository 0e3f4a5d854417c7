//! The middle of a picture, as ComfyUI's `common_upscale` cuts it out before it scales.

use crate::shape::Shape;
use crate::work::{Undone, each_row};

/// How many pixels go above and below, and on the left and right, so that the rest has the proportions `width` : `height`. At least one
/// pixel stays on each side of the picture, however thin the part. No size is 0.
pub fn margins(
    (old_height, old_width): (usize, usize),
    (height, width): (usize, usize),
) -> (usize, usize) {
    let (h, w) = (old_height as f64, old_width as f64);
    let (old_aspect, aspect) = (w / h, width as f64 / height as f64);
    let margin =
        |excess: f64, side: usize| ((excess / 2.0).round_ties_even() as usize).min((side - 1) / 2);
    if old_aspect > aspect {
        (0, margin(w - w * (aspect / old_aspect), old_width))
    } else if old_aspect < aspect {
        (margin(h - h * (old_aspect / aspect), old_height), 0)
    } else {
        (0, 0)
    }
}

/// The largest part around the centre that has the proportions `width` : `height`: the new shape and its values [B, H', W', C].
///
/// # Errors
/// [`Undone`].
pub fn crop_center(
    values: &[f32],
    shape: Shape,
    (height, width): (usize, usize),
) -> Result<(Shape, Vec<f32>), Undone> {
    let (y, x) = margins((shape.height, shape.width), (height, width));
    let cropped = Shape { width: shape.width - 2 * x, height: shape.height - 2 * y, ..shape };
    let mut out = cropped.zeros()?;
    each_row(&mut out, cropped.row(), |i, out| {
        let (picture, row) = (i / cropped.height, i % cropped.height + y);
        let start = picture * shape.picture() + row * shape.row() + x * shape.channels;
        out.copy_from_slice(&values[start..][..cropped.row()]);
    })?;
    Ok((cropped, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_centre_is_cut_out() {
        let shape = Shape { batch: 2, height: 2, width: 6, channels: 1 };
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let (cropped, out) = crop_center(&values, shape, (64, 64)).unwrap();
        assert_eq!(cropped, Shape { width: 2, ..shape });
        assert_eq!(out, [2., 3., 8., 9., 14., 15., 20., 21.]);
        let (same, out) = crop_center(&values, shape, (100, 300)).unwrap();
        assert_eq!((same, out), (shape, values));
    }

    #[test]
    fn a_thin_strip_keeps_a_pixel() {
        let shape = Shape { batch: 1, height: 1000, width: 1, channels: 1 };
        let (cropped, out) = crop_center(&vec![1.0; 1000], shape, (512, 512)).unwrap();
        assert_eq!((cropped.width, out.len()), (1, cropped.height));
        assert!(cropped.height >= 1);
    }
}
