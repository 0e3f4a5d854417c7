//! Scaling a batch of pictures as ComfyUI's `common_upscale` does, by one of five methods.

use kosmograph_pixels::pillow::{Filter, Picture, resize, resize_rgba};
use kosmograph_pixels::torch::{Mode, interpolate};

use crate::levels::{from_levels, to_levels};
use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;

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
        match name {
            "lanczos" => Some(Method::Lanczos),
            name => Mode::named(name).map(Method::Interpolate),
        }
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
        Method::Interpolate(mode) => interpolate(values, shape, (height, width), mode),
        Method::Lanczos => {
            let resized = Shape { height, width, ..shape };
            let mut out = resized.room()?;
            for picture in values.chunks(shape.picture()) {
                let levels = to_levels(picture);
                let resized = match shape.channels {
                    4 => {
                        let from = (shape.width, shape.height);
                        resize_rgba(&levels, from, (width, height), Filter::Lanczos)?
                    }
                    channels => {
                        let Shape { width: old_width, height: old_height, .. } = shape;
                        let picture = Picture {
                            pixels: &levels,
                            width: old_width,
                            height: old_height,
                            channels,
                        };
                        resize(picture, width, height, Filter::Lanczos)?
                    }
                };
                out.extend(from_levels(&resized));
            }
            Ok(out)
        }
    }
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
}
