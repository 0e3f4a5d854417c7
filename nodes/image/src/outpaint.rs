//! Room around a picture for a model to paint in, and the mask that says where.

use node::memory::filled;

use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;

/// How many pixels are added on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margins {
    pub left: usize,
    pub top: usize,
    pub right: usize,
    pub bottom: usize,
}

/// The pictures [B, H, W, C] with `margins` of mid-grey around them: their new shape and values.
///
/// # Errors
/// [`Undone`].
pub fn pad(values: &[f32], shape: Shape, margins: Margins) -> Result<(Shape, Vec<f32>), Undone> {
    let Margins { left, top, right, bottom } = margins;
    let padded =
        Shape { height: top + shape.height + bottom, width: left + shape.width + right, ..shape };
    let mut out = filled("the pictures", &padded.dims(), 0.5)?;
    for (i, row) in values.chunks(shape.row()).enumerate() {
        let (picture, y) = (i / shape.height, i % shape.height + top);
        let start = picture * padded.picture() + y * padded.row() + left * shape.channels;
        out[start..][..shape.row()].copy_from_slice(row);
    }
    Ok((padded, out))
}

/// What is to be painted: [top + H + bottom, left + W + right], 1 in the margins, 0 in the picture, and falling from 1 to 0 as a square
/// over `feathering` pixels inside of every side that has a margin. As in ComfyUI there is no feathering at all where the picture is not
/// more than twice as wide and high as it.
///
/// # Errors
/// [`Undone`].
pub fn mask(shape: Shape, margins: Margins, feathering: usize) -> Result<Vec<f32>, Undone> {
    let Margins { left, top, right, bottom } = margins;
    let Shape { height, width, .. } = shape;
    let feathered = feathering > 0 && feathering * 2 < height && feathering * 2 < width;
    let total_width = left + width + right;
    let mut mask = filled("the mask", &[top + height + bottom, total_width], 1.0)?;
    for y in 0..height {
        let start = (top + y) * total_width + left;
        for (x, value) in mask[start..][..width].iter_mut().enumerate() {
            let to_top = if top == 0 { height } else { y };
            let to_bottom = if bottom == 0 { height } else { height - y };
            let to_left = if left == 0 { width } else { x };
            let to_right = if right == 0 { width } else { width - x };
            let distance = to_top.min(to_bottom).min(to_left).min(to_right);
            *value = if feathered && distance < feathering {
                let nearness = (feathering - distance) as f64 / feathering as f64;
                (nearness * nearness) as f32
            } else {
                0.0
            };
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { batch: 2, height: 1, width: 2, channels: 1 };

    #[test]
    fn margins_are_grey() {
        let margins = Margins { left: 1, top: 1, right: 0, bottom: 0 };
        let (shape, out) = pad(&[0.1, 0.2, 0.3, 0.4], SHAPE, margins).unwrap();
        assert_eq!(shape, Shape { height: 2, width: 3, ..SHAPE });
        assert_eq!(out, [0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.5, 0.5, 0.5, 0.5, 0.3, 0.4]);
    }

    #[test]
    fn the_mask_falls_off_where_there_is_a_margin() {
        let shape = Shape { batch: 1, height: 9, width: 9, channels: 3 };
        let margins = Margins { left: 1, top: 0, right: 0, bottom: 0 };
        let out = mask(shape, margins, 4).unwrap();
        assert_eq!(out[..6], [1.0, 1.0, 0.5625, 0.25, 0.0625, 0.0]);
        // Eight is not more than twice four.
        let small = mask(Shape { width: 8, ..shape }, margins, 4).unwrap();
        assert_eq!(small[..3], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn too_much_room_is_refused() {
        let margins = Margins { left: 1 << 20, top: 1 << 20, right: 0, bottom: 0 };
        assert!(
            pad(&[0.0; 4], SHAPE, margins).unwrap_err().to_string().contains("would take 8.80 TB")
        );
    }
}
