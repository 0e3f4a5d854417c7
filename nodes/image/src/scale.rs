//! Scaling a batch of pictures as ComfyUI's `common_upscale` does: cut to the new proportions if asked to, then one of five methods.

use crate::interpolate::{Mode, interpolate};
use crate::lanczos::{lanczos, lanczos_rgba};
use crate::levels::{from_levels, to_levels};
use crate::shape::Shape;
use crate::work::{Undone, each_row};

/// ComfyUI's `upscale_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Interpolate(Mode),
    /// Pillow's, in 8 bits: the result has 256 levels.
    Lanczos,
}

impl Method {
    /// The method of that name; `None` for another name than the nodes' choices.
    pub fn named(name: &str) -> Option<Method> {
        Some(match name {
            "nearest-exact" => Method::Interpolate(Mode::NearestExact),
            "bilinear" => Method::Interpolate(Mode::Bilinear),
            "area" => Method::Interpolate(Mode::Area),
            "bicubic" => Method::Interpolate(Mode::Bicubic),
            "lanczos" => Method::Lanczos,
            _ => return None,
        })
    }
}

/// The size that is asked for when 0 means "in proportion to the other side"; both 0 keep the size.
pub fn in_proportion(shape: Shape, width: usize, height: usize) -> (usize, usize) {
    let proportional = |side: usize, given: usize, of: usize| {
        let exact = (side as f64 * given as f64) / of as f64;
        (exact.round_ties_even() as usize).max(1)
    };
    match (width, height) {
        (0, 0) => (shape.width, shape.height),
        (0, height) => (proportional(shape.width, height, shape.height), height),
        (width, 0) => (width, proportional(shape.height, width, shape.width)),
        given => given,
    }
}

/// Scales [B, H, W, C] to [B, `height`, `width`, C]; neither side is 0.
///
/// # Errors
/// [`Undone`].
pub fn scale(
    values: &[f32],
    shape: Shape,
    width: usize,
    height: usize,
    method: Method,
) -> Result<Vec<f32>, Undone> {
    match method {
        Method::Interpolate(mode) => interpolate(values, shape, height, width, mode),
        Method::Lanczos => {
            let resized = Shape { height, width, ..shape };
            let mut out = resized.room()?;
            for picture in values.chunks(shape.picture()) {
                let (levels, to) = (to_levels(picture), (height, width));
                let resized = match shape.channels {
                    4 => lanczos_rgba(&levels, shape.width, to)?,
                    channels => lanczos(&levels, (shape.width, channels), to)?,
                };
                out.extend(from_levels(&resized));
            }
            Ok(out)
        }
    }
}

/// The largest part around the centre that has the proportions `width` : `height`: the new shape and its values [B, H', W', C].
///
/// # Errors
/// [`Undone`].
pub fn crop_center(
    values: &[f32],
    shape: Shape,
    width: usize,
    height: usize,
) -> Result<(Shape, Vec<f32>), Undone> {
    let (old_width, old_height) = (shape.width as f64, shape.height as f64);
    let old_aspect = old_width / old_height;
    let new_aspect = width as f64 / height as f64;
    let margin = |excess: f64, side: usize| {
        // At least one pixel stays, however thin the part.
        ((excess / 2.0).round_ties_even() as usize).min((side - 1) / 2)
    };
    let (mut x, mut y) = (0, 0);
    if old_aspect > new_aspect {
        x = margin(old_width - old_width * (new_aspect / old_aspect), shape.width);
    } else if old_aspect < new_aspect {
        y = margin(old_height - old_height * (old_aspect / new_aspect), shape.height);
    }
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

    const SHAPE: Shape = Shape { batch: 1, height: 300, width: 451, channels: 3 };

    #[test]
    fn a_side_of_zero_keeps_the_proportions() {
        assert_eq!(in_proportion(SHAPE, 0, 0), (451, 300));
        assert_eq!(in_proportion(SHAPE, 0, 150), (226, 150), "225.5 rounds to even");
        assert_eq!(in_proportion(SHAPE, 512, 0), (512, 341));
        assert_eq!(in_proportion(SHAPE, 100, 7), (100, 7));
        let strip = Shape { height: 1, width: 1000, ..SHAPE };
        assert_eq!(in_proportion(strip, 10, 0), (10, 1));
    }

    #[test]
    fn the_centre_is_cut_out() {
        let shape = Shape { batch: 2, height: 2, width: 6, channels: 1 };
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let (cropped, out) = crop_center(&values, shape, 64, 64).unwrap();
        assert_eq!(cropped, Shape { width: 2, ..shape });
        assert_eq!(out, [2., 3., 8., 9., 14., 15., 20., 21.]);
        let (same, out) = crop_center(&values, shape, 300, 100).unwrap();
        assert_eq!((same, out), (shape, values));
    }

    #[test]
    fn a_thin_strip_keeps_a_pixel() {
        let shape = Shape { batch: 1, height: 1000, width: 1, channels: 1 };
        let (cropped, out) = crop_center(&vec![1.0; 1000], shape, 512, 512).unwrap();
        assert_eq!((cropped.width, out.len()), (1, cropped.height));
        assert!(cropped.height >= 1);
    }
}
