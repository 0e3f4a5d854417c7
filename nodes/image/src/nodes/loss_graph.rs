//! LossGraphNode: how a training in the graph went.

use kosmograph_contact_sheet::{Cell, Picture, Sheet};
use kosmograph_pixels::Shape;
use node::{Context, Error, Inputs, LossMap, Node, Result, outputs};

use super::image;
use super::save_image::{Destination, save_pictures};

/// Draws the losses of a training, one after the other, as a picture in the folder for temporary files.
#[derive(Inputs)]
#[node(category = "training", output_node, writes = "temp")]
pub struct LossGraphNode {
    /// The losses.
    pub loss: LossMap,
    /// How the file begins.
    #[widget(default = "loss_graph", prefix)]
    pub filename_prefix: String,
}

impl Node for LossGraphNode {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let losses = self.loss.0;
        if losses.is_empty() || losses.iter().any(|loss| !loss.is_finite()) {
            return Err(Error::at("loss", "losses are one or more numbers that are not infinite"));
        }
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let most = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let picture = curve(&losses, (least, most));
        let cell = Cell {
            picture: Some(picture),
            label: format!(
                "steps 1 to {}; the last loss is {:.4}",
                losses.len(),
                losses[losses.len() - 1]
            ),
        };
        let sheet = Sheet {
            title: format!("Loss: {least:.4} to {most:.4}"),
            columns: vec![String::new()],
            rows: vec![String::new()],
            cells: vec![cell],
        };
        let drawn = sheet.draw().map_err(Error::new)?;
        let values = drawn.pixels.iter().map(|level| f32::from(*level) / 255.0).collect();
        let shape = Shape { batch: 1, height: drawn.height, width: drawn.width, channels: 3 };
        let to = Destination { property: "temp_directory", kind: "temp", compression: 4 };
        save_pictures(cx, &image(shape, values)?, &self.filename_prefix, &to)
    }
}

const WIDTH: usize = 800;
const HEIGHT: usize = 480;

/// The losses from left to right, the most at the top, in blue on white.
fn curve(losses: &[f64], (least, most): (f64, f64)) -> Picture {
    let mut pixels = vec![255u8; WIDTH * HEIGHT * 3];
    let spread = (most - least).max(f64::MIN_POSITIVE);
    let place = |i: usize| {
        let share = i as f64 / (losses.len().max(2) - 1) as f64;
        let height = (losses[i] - least) / spread;
        (share * (WIDTH - 1) as f64, (1.0 - height) * (HEIGHT - 1) as f64)
    };
    let mut dot = |x: f64, y: f64| {
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let (x, y) = (x.round() as usize + dx, y.round() as usize + dy);
            if x < WIDTH && y < HEIGHT {
                pixels[(y * WIDTH + x) * 3..][..3].copy_from_slice(&[0, 0, 255]);
            }
        }
    };
    let (x, y) = place(0);
    dot(x, y);
    for i in 1..losses.len() {
        let ((x0, y0), (x1, y1)) = (place(i - 1), place(i));
        let steps = (x1 - x0).abs().max((y1 - y0).abs()).ceil().max(1.0);
        for step in 0..=steps as usize {
            let share = step as f64 / steps;
            dot(x0 + share * (x1 - x0), y0 + share * (y1 - y0));
        }
    }
    Picture { width: WIDTH, height: HEIGHT, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_falls_from_the_upper_left_to_the_lower_right() {
        let picture = curve(&[3.0, 2.0, 1.0], (1.0, 3.0));
        let at = |x: usize, y: usize| picture.pixels[(y * WIDTH + x) * 3];
        assert_eq!([at(0, 0), at(WIDTH - 1, HEIGHT - 1), at(WIDTH - 1, 0)], [0, 0, 255]);
        // One loss, and losses that are all the same, are drawn too.
        assert_eq!(curve(&[2.0], (2.0, 2.0)).pixels.len(), WIDTH * HEIGHT * 3);
        assert_eq!(curve(&[2.0; 5], (2.0, 2.0)).pixels[(HEIGHT - 1) * WIDTH * 3], 0);
    }
}
