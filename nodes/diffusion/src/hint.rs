//! A hint picture as a ControlNet takes it.

use kosmograph_pixels::crop::margins;
use kosmograph_pixels::torch::nearest_exact;
use node::{Error, Image, Result, Tensor, memory};

/// A hint [B, H, W, 3] as [rows, 3, height, width]: its middle at the aspect of the target, scaled to the
/// nearest pixel, as ComfyUI does ("nearest-exact", centre crop), so that thin lines stay hard.
///
/// `rows` is the latents' batch. One hint serves any number and stays one; fewer serve them in turn, and of
/// more the first are taken. Guidance doubles the rows later.
pub fn hint_for(hint: &Image, rows: usize, height: usize, width: usize) -> Result<Tensor> {
    let (batch, from_height, from_width, channels) = hint.dims();
    if channels < 3 {
        return Err(Error::at("control", format!("a hint has 3 channels, this has {channels}")));
    }
    let pixels = hint.0.to_f32()?;
    // The largest part of the hint that has the target's aspect, around its middle.
    let (top, left) = margins((from_height, from_width), (height, width));
    let part = (from_height - 2 * top, from_width - 2 * left);
    let (rows_of, columns_of) = nearest_exact(part, (height, width));
    let rows = if batch == 1 { 1 } else { rows };
    let shape = [rows, 3, height, width];
    let mut values = memory::room("the hints", &shape)?;
    for b in (0..rows).map(|row| row % batch) {
        for channel in 0..3 {
            for y in &rows_of {
                let row = (b * from_height + top + y) * from_width + left;
                values.extend(columns_of.iter().map(|x| pixels[(row + x) * channels + channel]));
            }
        }
    }
    Tensor::from_f32(&shape, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_taken_and_scaled() {
        // 2 × 4 pixels whose red value is their column.
        let values = (0..8).flat_map(|i| [(i % 4) as f32, 0.0, 0.0]).collect();
        let hint = Image(Tensor::from_f32(&[1, 2, 4, 3], values).unwrap());
        let scaled = hint_for(&hint, 1, 4, 4).unwrap();
        assert_eq!(scaled.shape(), [1, 3, 4, 4]);
        assert_eq!(scaled.to_f32().unwrap()[..4], [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn two_hints_serve_three_latents_in_turn() {
        let hint =
            Image(Tensor::from_f32(&[2, 1, 1, 3], vec![0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).unwrap());
        let hints = hint_for(&hint, 3, 1, 1).unwrap();
        assert_eq!(hints.to_f32().unwrap()[..], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(hint_for(&hint, 1, 1, 1).unwrap().shape(), [1, 3, 1, 1]);
    }
}
