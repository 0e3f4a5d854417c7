//! ImageScale: pictures at a given size.

use node::{Context, Error, Image, Inputs, Node, Result, outputs};

use super::{MAX_RESOLUTION, UPSCALE_METHODS, image, pictures};
use crate::scale::{Method, in_proportion, scale};
use kosmograph_pixels::Shape;
use kosmograph_pixels::crop::crop_center;

/// Scales pictures to a width and height in pixels; 0 for one of them keeps the proportions.
#[derive(Inputs)]
#[node(category = "image/upscaling", memory = [4, width, height])]
pub struct ImageScale {
    pub image: Image,
    /// nearest-exact repeats pixels, bilinear and bicubic mix neighbours, area takes means (best for shrinking), lanczos is the sharpest
    /// and works in 8 bits.
    #[widget(default = "nearest-exact", choices = UPSCALE_METHODS)]
    pub upscale_method: String,
    #[widget(default = 512, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub width: u64,
    #[widget(default = 512, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub height: u64,
    /// center cuts off what does not fit the new proportions, disabled stretches.
    #[widget(default = "disabled", choices = ["disabled", "center"])]
    pub crop: String,
}

impl Node for ImageScale {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        if (self.width, self.height) == (0, 0) {
            return Ok(self.image);
        }
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let (width, height) = in_proportion(shape, self.width as usize, self.height as usize);
        let method = method(&self.upscale_method)?;
        let scaled = if self.crop == "center" {
            let (cropped_shape, cropped) = crop_center(&values, shape, (height, width))?;
            scale(&cropped, cropped_shape, width, height, method)?
        } else {
            scale(&values, shape, width, height, method)?
        };
        image(Shape { width, height, ..shape }, scaled)
    }
}

pub(super) fn method(name: &str) -> Result<Method> {
    Method::named(name).ok_or_else(|| {
        let choices = UPSCALE_METHODS.join(", ");
        Error::at("upscale_method", format!("\"{name}\" is not one of: {choices}"))
    })
}
