//! EmptyImage, ImageCrop and ImageScaleToTotalPixels.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::image_scale::method;
use super::{MAX_RESOLUTION, UPSCALE_METHODS, image, pictures};
use crate::levels::from_level;
use crate::scale::scale;
use kosmograph_pixels::Shape;
use kosmograph_pixels::work::each_row;

/// Pictures of one colour.
#[derive(Inputs)]
#[node(category = "image", memory = [12, width, height, batch_size])]
pub struct EmptyImage {
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub width: u64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub height: u64,
    #[widget(default = 1, min = 1, max = 4096)]
    pub batch_size: u64,
    /// Red · 65536 + green · 256 + blue, each 0 to 255.
    #[widget(default = 0, min = 0, max = 0xff_ff_ff, step = 1)]
    pub color: u64,
}

impl Node for EmptyImage {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let [_, red, green, blue] = (self.color as u32).to_be_bytes();
        let [batch, height, width] =
            [self.batch_size, self.height, self.width].map(|size| size as usize);
        let shape = Shape { batch, height, width, channels: 3 };
        let colour = [red, green, blue].map(from_level);
        let mut values = shape.zeros()?;
        each_row(&mut values, shape.row(), |_, row| {
            row.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&colour));
        })?;
        image(shape, values)
    }
}

/// Cuts a rectangle out of pictures; what would lie outside is left off.
#[derive(Inputs)]
#[node(category = "image/transform")]
pub struct ImageCrop {
    pub image: Image,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub width: u64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub height: u64,
    /// The left edge, in pixels from the picture's.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub x: u64,
    /// The upper edge, in pixels from the picture's.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub y: u64,
}

impl Node for ImageCrop {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let [x, y, width, height] =
            [self.x, self.y, self.width, self.height].map(|size| size as usize);
        let (cut, values) = cut(&values, shape, (x, y), (width, height))?;
        image(cut, values)
    }
}

/// The rectangle from (`x`, `y`) on, at least one pixel of it inside.
pub(super) fn cut(
    values: &[f32],
    shape: Shape,
    (x, y): (usize, usize),
    (width, height): (usize, usize),
) -> Result<(Shape, Vec<f32>)> {
    let (x, y) = (x.min(shape.width - 1), y.min(shape.height - 1));
    let (width, height) = (width.min(shape.width - x), height.min(shape.height - y));
    let cut = Shape { width, height, ..shape };
    let mut out = cut.room()?;
    for picture in values.chunks(shape.picture()) {
        for row in picture.chunks(shape.row()).skip(y).take(height) {
            out.extend_from_slice(&row[x * shape.channels..][..cut.row()]);
        }
    }
    Ok((cut, out))
}

/// Scales pictures to a number of pixels, their proportions kept.
#[derive(Inputs)]
#[node(category = "image/upscaling")]
pub struct ImageScaleToTotalPixels {
    pub image: Image,
    /// As in ImageScale.
    #[widget(default = "nearest-exact", choices = UPSCALE_METHODS)]
    pub upscale_method: String,
    /// In units of 1024 · 1024 pixels.
    #[widget(default = 1.0, min = 0.01, max = 16.0, step = 0.01)]
    pub megapixels: f64,
    /// Both sides become multiples of this.
    #[widget(default = 1, min = 1, max = 256, step = 1)]
    pub resolution_steps: u64,
}

impl Node for ImageScaleToTotalPixels {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let pixels = self.megapixels * 1024.0 * 1024.0;
        let factor = (pixels / (shape.width as f64 * shape.height as f64)).sqrt();
        let steps = self.resolution_steps as f64;
        let times = |side: usize| {
            ((side as f64 * factor / steps).round_ties_even().max(1.0) * steps) as usize
        };
        let (width, height) = (times(shape.width), times(shape.height));
        let scaled = scale(&values, shape, width, height, method(&self.upscale_method)?)?;
        image(Shape { width, height, ..shape }, scaled)
    }
}
