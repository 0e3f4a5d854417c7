//! ImageBlur and ImageSharpen.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{image, pictures};
use crate::blur::{blur, comfy_kernel, sharpen};

/// Blurs pictures with a Gaussian.
#[derive(Inputs)]
#[node(category = "image/postprocessing")]
pub struct ImageBlur {
    pub image: Image,
    /// How far a pixel reaches.
    #[widget(default = 1, min = 1, max = 31, step = 1)]
    pub blur_radius: u64,
    /// How wide the Gaussian is, in units of the radius: 1 is nearly a box.
    #[widget(default = 1.0, min = 0.1, max = 10.0, step = 0.1)]
    pub sigma: f64,
}

impl Node for ImageBlur {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let kernel = comfy_kernel(self.blur_radius as usize, self.sigma);
        image(shape, blur(&values, shape, &kernel)?)
    }
}

/// Sharpens pictures: adds the difference from a blurred copy.
#[derive(Inputs)]
#[node(category = "image/postprocessing")]
pub struct ImageSharpen {
    pub image: Image,
    /// How far a pixel reaches.
    #[widget(default = 1, min = 1, max = 31, step = 1)]
    pub sharpen_radius: u64,
    /// How wide the Gaussian is, in units of the radius.
    #[widget(default = 1.0, min = 0.1, max = 10.0, step = 0.01)]
    pub sigma: f64,
    /// How strongly: a tenth of the share of the difference that is added.
    #[widget(default = 1.0, min = 0.0, max = 5.0, step = 0.01)]
    pub alpha: f64,
}

impl Node for ImageSharpen {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let kernel = comfy_kernel(self.sharpen_radius as usize, self.sigma);
        image(shape, sharpen(&values, shape, &kernel, self.alpha)?)
    }
}
