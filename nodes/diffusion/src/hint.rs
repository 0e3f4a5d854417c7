//! A hint picture as a ControlNet takes it.

use candle_core::Tensor as Candle;
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

/// What a network made of its last hints. A sampler asks with the same hints at every step: with one, or by turns with several,
/// where the network acts twice or on areas of their own size.
#[derive(Default)]
pub struct Embedded(Vec<(Tensor, Candle)>);

/// Hints whose embeddings a network keeps: at 512 × 512 each is 5 MB.
const MOST_KEPT: usize = 4;

impl Embedded {
    /// The embedding of `hint`, which is made where the same tensor was not among the last that were asked for.
    ///
    /// # Errors
    /// Those of `embed`.
    pub fn of(&mut self, hint: &Tensor, embed: impl FnOnce() -> Result<Candle>) -> Result<Candle> {
        let known = self.0.iter().position(|(known, _)| known.is_same(hint));
        let last = match known {
            Some(place) => self.0.remove(place),
            None => (hint.clone(), embed()?),
        };
        let embedding = last.1.clone();
        if self.0.len() == MOST_KEPT {
            self.0.remove(0);
        }
        self.0.push(last);
        Ok(embedding)
    }

    /// What the embeddings take in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Candle| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.0.iter().map(|(_, embedding)| bytes(embedding)).sum()
    }

    /// Lets go of all.
    pub fn release(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_that_take_turns_are_embedded_once() {
        let hint = |level| Tensor::from_f32(&[1], vec![level]).unwrap();
        let hints: Vec<Tensor> = (0..MOST_KEPT).map(|i| hint(i as f32)).collect();
        let (mut embedded, mut made) = (Embedded::default(), 0);
        let mut ask = |embedded: &mut Embedded, hint: &Tensor| {
            let embed = || {
                made += 1;
                let level = hint.to_f32()?[0];
                Ok(Candle::full(2.0 * level, 3, &candle_core::Device::Cpu)?)
            };
            let embedding = embedded.of(hint, embed).unwrap().to_vec1::<f32>().unwrap();
            (embedding[0], made)
        };
        for step in 0..3 {
            for (i, hint) in hints.iter().enumerate() {
                let made = if step == 0 { i + 1 } else { MOST_KEPT };
                assert_eq!(ask(&mut embedded, hint), (2.0 * i as f32, made));
            }
        }
        assert_eq!(embedded.bytes(), MOST_KEPT * 3 * 4);
        // Another takes the place of what was not asked for the longest.
        assert_eq!(ask(&mut embedded, &hint(9.0)), (18.0, MOST_KEPT + 1));
        assert_eq!(ask(&mut embedded, &hints[1]), (2.0, MOST_KEPT + 1));
        assert_eq!(ask(&mut embedded, &hints[0]), (0.0, MOST_KEPT + 2));
        embedded.release();
        assert_eq!(embedded.bytes(), 0);
    }

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
