//! Canny: the edges in pictures, as ControlNets for edges know them.

use node::{Context, Error, Image, Inputs, Node, Result, outputs};
use rayon::prelude::*;

use super::{image, pictures};
use crate::canny::{canny, grey};
use crate::levels::{from_level, to_levels};
use kosmograph_pixels::Shape;

/// Finds the edges in pictures: white lines on black, equal to OpenCV's for the thresholds times 255.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct Canny {
    pub image: Image,
    /// An edge goes on where the gradient is above this.
    #[widget(default = 0.4, min = 0.01, max = 0.99, step = 0.01)]
    pub low_threshold: f64,
    /// An edge begins where the gradient is above this.
    #[widget(default = 0.8, min = 0.01, max = 0.99, step = 0.01)]
    pub high_threshold: f64,
}

impl Node for Canny {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (low, high) = (self.low_threshold, self.high_threshold);
        if low > high {
            let sentence = format!("{low} is above high_threshold, {high}; it should be below");
            return Err(Error::at("low_threshold", sentence));
        }
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let drawn = Shape { channels: 3, ..shape };
        let mut out = drawn.room()?;
        for picture in values.chunks(shape.picture()) {
            let levels = to_levels(picture);
            let greys: Vec<u8> = match shape.channels {
                1 => levels,
                channels => levels.par_chunks(channels).map(|p| grey(p[0], p[1], p[2])).collect(),
            };
            let edges = canny(&greys, shape.width, threshold(low), threshold(high))?;
            out.extend(edges.iter().flat_map(|level| [from_level(*level); 3]));
        }
        image(drawn, out)
    }
}

/// 0..1 → 0..255, the fraction dropped as OpenCV does; 100 / 255 is 100, although the multiplication may end a hair below.
fn threshold(value: f64) -> i32 {
    (value * 255.0 + 1e-9).floor() as i32
}
