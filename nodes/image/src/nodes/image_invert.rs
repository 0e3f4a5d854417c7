//! ImageInvert: one minus the picture.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{image, pictures};
use kosmograph_pixels::work::map;

/// Inverts pictures: each value becomes one minus itself.
#[derive(Inputs)]
#[node(category = "image")]
pub struct ImageInvert {
    pub image: Image,
}

impl Node for ImageInvert {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        image(shape, map(&values, shape, |value| 1.0 - value)?)
    }
}
