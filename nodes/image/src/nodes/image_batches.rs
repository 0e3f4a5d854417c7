//! ImageFromBatch, RepeatImageBatch, ImageFlip and ImageRotate: the same pixels in another order.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{image, pictures};
use kosmograph_pixels::Shape;
use kosmograph_pixels::work::each_row;

/// Takes pictures out of a batch; what would lie behind its end is left off.
#[derive(Inputs)]
#[node(category = "image/batch")]
pub struct ImageFromBatch {
    pub image: Image,
    /// The first picture, counted from 0.
    #[widget(default = 0, min = 0, max = 4095)]
    pub batch_index: u64,
    /// How many.
    #[widget(default = 1, min = 1, max = 4096)]
    pub length: u64,
}

impl Node for ImageFromBatch {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let first = (self.batch_index as usize).min(shape.batch - 1);
        let batch = (self.length as usize).min(shape.batch - first);
        let taken = Shape { batch, ..shape };
        let mut out = taken.room()?;
        out.extend_from_slice(&values[first * shape.picture()..][..taken.values()]);
        image(taken, out)
    }
}

/// Puts a batch behind itself a number of times.
#[derive(Inputs)]
#[node(category = "image/batch")]
pub struct RepeatImageBatch {
    pub image: Image,
    /// How often the batch is there in the end.
    #[widget(default = 1, min = 1, max = 4096)]
    pub amount: u64,
}

impl Node for RepeatImageBatch {
    outputs![image: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let amount = self.amount as usize;
        let repeated = Shape { batch: shape.batch.saturating_mul(amount), ..shape };
        let mut out = repeated.room()?;
        for _ in 0..amount {
            cx.cancelled()?;
            out.extend_from_slice(&values);
        }
        image(repeated, out)
    }
}

const FLIPS: [&str; 2] = ["x-axis: vertically", "y-axis: horizontally"];

/// Mirrors pictures: the upper half with the lower, or the left with the right.
#[derive(Inputs)]
#[node(category = "image/transform")]
pub struct ImageFlip {
    pub image: Image,
    #[widget(default = "x-axis: vertically", choices = FLIPS)]
    pub flip_method: String,
}

impl Node for ImageFlip {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let (height, width) = (shape.height, shape.width);
        let upside_down = self.flip_method == FLIPS[0];
        let from = |y: usize, x: usize| match upside_down {
            true => (height - 1 - y, x),
            false => (y, width - 1 - x),
        };
        image(shape, rearranged(&values, shape, shape, from)?)
    }
}

/// Turns pictures clockwise.
#[derive(Inputs)]
#[node(category = "image/transform")]
pub struct ImageRotate {
    pub image: Image,
    #[widget(default = "none", choices = ["none", "90 degrees", "180 degrees", "270 degrees"])]
    pub rotation: String,
}

impl Node for ImageRotate {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let Shape { height, width, .. } = shape;
        let turned = Shape { height: width, width: height, ..shape };
        match self.rotation.as_str() {
            "90 degrees" => {
                let from = |y, x: usize| (height - 1 - x, y);
                image(turned, rearranged(&values, shape, turned, from)?)
            }
            "180 degrees" => {
                let from = |y: usize, x: usize| (height - 1 - y, width - 1 - x);
                image(shape, rearranged(&values, shape, shape, from)?)
            }
            "270 degrees" => {
                let from = |y: usize, x| (x, width - 1 - y);
                image(turned, rearranged(&values, shape, turned, from)?)
            }
            _ => Ok(self.image),
        }
    }
}

/// Pictures whose pixel at (row, column) is that of `values` at `from` of it.
pub(super) fn rearranged(
    values: &[f32],
    shape: Shape,
    to: Shape,
    from: impl Fn(usize, usize) -> (usize, usize) + Sync,
) -> Result<Vec<f32>> {
    let mut out = to.zeros()?;
    each_row(&mut out, to.row(), |i, row| {
        let (picture, y) = (i / to.height, i % to.height);
        for (x, pixel) in row.chunks_exact_mut(to.channels).enumerate() {
            let (y, x) = from(y, x);
            let at = picture * shape.picture() + y * shape.row() + x * shape.channels;
            pixel.copy_from_slice(&values[at..][..shape.channels]);
        }
    })?;
    Ok(out)
}
