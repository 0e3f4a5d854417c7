//! Sizes of pictures as numbers: GetImageSize, and nodes of that kind that saved workflows know from packs.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{MAX_RESOLUTION, pictures};
use node::plain::Whole;

/// The size of pictures in pixels, and how many there are.
#[derive(Inputs)]
#[node(category = "image")]
pub struct GetImageSize {
    pub image: Image,
}

impl Node for GetImageSize {
    outputs![width: Whole, height: Whole, batch_size: Whole];

    fn run(self, _cx: &Context) -> Result<(Whole, Whole, Whole)> {
        measured(&self.image)
    }
}

/// The size of pictures in pixels, and how many there are.
#[derive(Inputs)]
#[node(class = "GetImageSize+", category = "image")]
pub struct GetImageSizePlus {
    pub image: Image,
}

impl Node for GetImageSizePlus {
    outputs![width: Whole, height: Whole, count: Whole];

    fn run(self, _cx: &Context) -> Result<(Whole, Whole, Whole)> {
        measured(&self.image)
    }
}

fn measured(image: &Image) -> Result<(Whole, Whole, Whole)> {
    let (shape, _) = pictures(image).map_err(|error| error.of_input("image"))?;
    Ok((Whole::of(shape.width), Whole::of(shape.height), Whole::of(shape.batch)))
}

/// The size of pictures in pixels, for the picture that is drawn after them.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct ImageGenResolutionFromImage {
    pub image: Image,
}

impl Node for ImageGenResolutionFromImage {
    outputs![width: Whole, height: Whole];

    fn run(self, _cx: &Context) -> Result<(Whole, Whole)> {
        let (width, height, _) = measured(&self.image)?;
        Ok((width, height))
    }
}

const FILL: &str = "Resize and Fill";

/// The resolution for a preprocessor whose hint is scaled to a picture of another size afterwards: the shorter side that the hint's picture has
/// at that size.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct PixelPerfectResolution {
    pub original_image: Image,
    /// Of the picture that is drawn, in pixels.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 8)]
    pub image_gen_width: u64,
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 8)]
    pub image_gen_height: u64,
    /// How the hint is brought to that size: whether it lies within the picture ("Resize and Fill") or covers it.
    #[widget(default = "Just Resize", choices = ["Just Resize", "Crop and Resize", FILL])]
    pub resize_mode: String,
}

impl Node for PixelPerfectResolution {
    outputs![resolution: Whole];

    fn run(self, _cx: &Context) -> Result<Whole> {
        let (shape, _) =
            pictures(&self.original_image).map_err(|error| error.of_input("original_image"))?;
        let factors = [
            self.image_gen_height as f64 / shape.height as f64,
            self.image_gen_width as f64 / shape.width as f64,
        ];
        let factor = match self.resize_mode == FILL {
            true => factors[0].min(factors[1]),
            false => factors[0].max(factors[1]),
        };
        let shorter = shape.height.min(shape.width) as f64;
        Ok(Whole((factor * shorter).round_ties_even() as i64))
    }
}
