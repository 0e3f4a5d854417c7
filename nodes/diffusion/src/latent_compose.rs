//! LatentComposite, LatentCrop, LatentFlip and LatentRotate: latents put together and turned.
//!
//! Sizes and places are those of the picture, in pixels; eight of them are one of the latent.

use node::*;

/// Puts latents over others, from a point on; the edges inside may fade.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct LatentComposite {
    /// What lies below.
    samples_to: Latent,
    /// What is put over it.
    samples_from: Latent,
    /// The left edge, in pixels.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    x: i64,
    /// The upper edge, in pixels.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    y: i64,
    /// Over how many pixels the edges fade.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    feather: i64,
}

impl Node for LatentComposite {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let (samples_to, samples_from) = self
            .samples_to
            .at_one_scale(&self.samples_from)
            .map_err(|error| error.of_input("samples_from"))?;
        let (below, above) = (samples_to.samples()?, samples_from.samples()?);
        let (shape, own) = (below.shape(), above.shape());
        if shape[1] != own[1] || (own[0] != 1 && own[0] != shape[0]) {
            return Err(Error::at(
                "samples_from",
                format!("latents of the shape {own:?} cannot be put over those of {shape:?}"),
            ));
        }
        let [x, y, feather] = [self.x, self.y, self.feather].map(|pixels| pixels as usize / 8);
        let (rows, columns) =
            (own[2].min(shape[2].saturating_sub(y)), own[3].min(shape[3].saturating_sub(x)));
        if rows == 0 || columns == 0 {
            return Ok(samples_to);
        }
        let (mut values, above) = (below.to_vec()?, above.to_f32()?);
        // An edge at the border of what lies below does not fade.
        let vertical = fade(rows, feather, y != 0, y + rows < shape[2]);
        let horizontal = fade(columns, feather, x != 0, x + columns < shape[3]);
        let planes = shape[0] * shape[1];
        for plane in 0..planes {
            let own_plane = plane % (own[0] * own[1]);
            for (row, vertical) in vertical.iter().enumerate() {
                let to = (plane * shape[2] + y + row) * shape[3] + x;
                let from = (own_plane * own[2] + row) * own[3];
                let pairs = values[to..][..columns].iter_mut().zip(&above[from..][..columns]);
                for ((value, above), horizontal) in pairs.zip(&horizontal) {
                    let share = vertical * horizontal;
                    *value = above * share + *value * (1.0 - share);
                }
            }
        }
        Ok(samples_to.with_samples(Tensor::from_f32(&shape, values)?))
    }
}

/// 1, falling to 1 / `feather` over the outermost pixels of the ends that fade.
fn fade(length: usize, feather: usize, first: bool, last: bool) -> Vec<f32> {
    let share = |from_end: usize, fades: bool| {
        if fades && from_end < feather { (from_end + 1) as f32 / feather as f32 } else { 1.0 }
    };
    (0..length).map(|i| share(i, first) * share(length - 1 - i, last)).collect()
}

/// Cuts a rectangle out of latents.
#[derive(Inputs)]
#[node(category = "latent/transform")]
pub struct LatentCrop {
    /// What is cut.
    samples: Latent,
    /// In pixels.
    #[widget(default = 512, min = 64, max = 16384, step = 8)]
    width: i64,
    /// In pixels.
    #[widget(default = 512, min = 64, max = 16384, step = 8)]
    height: i64,
    /// The left edge, in pixels.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    x: i64,
    /// The upper edge, in pixels.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    y: i64,
}

impl Node for LatentCrop {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let shape = samples.shape();
        let [x, y, width, height] =
            [self.x, self.y, self.width, self.height].map(|pixels| pixels as usize / 8);
        // At least 64 pixels are left, where there are so many.
        let (x, y) = (x.min(shape[3].saturating_sub(8)), y.min(shape[2].saturating_sub(8)));
        let (width, height) = (width.min(shape[3] - x), height.min(shape[2] - y));
        let cut = [shape[0], shape[1], height, width];
        let at = |plane, row, column| (plane, y + row, x + column);
        Ok(self.samples.with_samples(rearranged(&samples, cut, at)?))
    }
}

/// Mirrors latents.
#[derive(Inputs)]
#[node(category = "latent/transform")]
pub struct LatentFlip {
    /// What is mirrored.
    samples: Latent,
    /// Upside down, or left to right.
    #[widget(default = "x-axis: vertically", choices = ["x-axis: vertically", "y-axis: horizontally"])]
    flip_method: String,
}

impl Node for LatentFlip {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let [batch, channels, height, width] = dims(&samples);
        let vertically = self.flip_method.starts_with('x');
        let at = |plane, row, column| match vertically {
            true => (plane, height - 1 - row, column),
            false => (plane, row, width - 1 - column),
        };
        let flipped = rearranged(&samples, [batch, channels, height, width], at)?;
        Ok(self.samples.with_samples(flipped))
    }
}

/// Turns latents clockwise.
#[derive(Inputs)]
#[node(category = "latent/transform")]
pub struct LatentRotate {
    /// What is turned.
    samples: Latent,
    /// How far.
    #[widget(default = "none", choices = ["none", "90 degrees", "180 degrees", "270 degrees"])]
    rotation: String,
}

impl Node for LatentRotate {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let [batch, channels, height, width] = dims(&samples);
        let (upright, turned) =
            ([batch, channels, height, width], [batch, channels, width, height]);
        let rotated = match self.rotation.as_str() {
            "90 degrees" => {
                rearranged(&samples, turned, |plane, row, column| (plane, height - 1 - column, row))
            }
            "180 degrees" => rearranged(&samples, upright, |plane, row, column| {
                (plane, height - 1 - row, width - 1 - column)
            }),
            "270 degrees" => {
                rearranged(&samples, turned, |plane, row, column| (plane, column, width - 1 - row))
            }
            _ => return Ok(self.samples),
        };
        Ok(self.samples.with_samples(rotated?))
    }
}

fn dims(samples: &Tensor) -> [usize; 4] {
    let shape = samples.shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

/// A latent of that shape whose value at (plane, row, column) is that of `samples` at `source` of it.
fn rearranged(
    samples: &Tensor,
    shape: [usize; 4],
    source: impl Fn(usize, usize, usize) -> (usize, usize, usize),
) -> Result<Tensor> {
    let [_, _, old_height, old_width] = dims(samples);
    let values = samples.to_f32()?;
    let mut out = memory::room("the latents", &shape)?;
    for plane in 0..shape[0] * shape[1] {
        for row in 0..shape[2] {
            for column in 0..shape[3] {
                let (plane, row, column) = source(plane, row, column);
                out.push(values[(plane * old_height + row) * old_width + column]);
            }
        }
    }
    Tensor::from_f32(&shape, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_inside_fade() {
        assert_eq!(fade(4, 2, true, false), [0.5, 1.0, 1.0, 1.0]);
        assert_eq!(fade(3, 2, true, true), [0.5, 1.0, 0.5]);
        assert_eq!(fade(2, 0, true, true), [1.0, 1.0]);
    }

    #[test]
    fn values_are_taken_from_their_source() {
        let samples = Tensor::from_f32(&[1, 1, 2, 3], vec![0., 1., 2., 3., 4., 5.]).unwrap();
        let turned = rearranged(&samples, [1, 1, 3, 2], |p, row, column| (p, 1 - column, row));
        assert_eq!(turned.unwrap().to_f32().unwrap()[..], [3., 0., 4., 1., 5., 2.]);
    }
}
