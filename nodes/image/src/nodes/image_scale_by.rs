//! ImageScaleBy: pictures a number of times as large.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::image_scale::method;
use super::{UPSCALE_METHODS, image, pictures};
use crate::scale::scale;
use kosmograph_pixels::Shape;

/// Scales both sides of pictures by a factor.
#[derive(Inputs)]
#[node(category = "image/upscaling")]
pub struct ImageScaleBy {
    pub image: Image,
    /// As in ImageScale.
    #[widget(default = "nearest-exact", choices = UPSCALE_METHODS)]
    pub upscale_method: String,
    #[widget(default = 1.0, min = 0.01, max = 8.0, step = 0.01)]
    pub scale_by: f64,
}

impl Node for ImageScaleBy {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let times = |side: usize| ((side as f64 * self.scale_by).round_ties_even() as usize).max(1);
        let (width, height) = (times(shape.width), times(shape.height));
        let scaled = scale(&values, shape, width, height, method(&self.upscale_method)?)?;
        image(Shape { width, height, ..shape }, scaled)
    }
}
