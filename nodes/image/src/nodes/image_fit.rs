//! ResizeAndPadImage, ImageScaleToMaxDimension and ImageStitch: pictures brought to a size, and beside each other.

use node::{Context, Image, Inputs, Node, Replaces, Result, outputs};

use super::image_scale::method;
use super::{MAX_RESOLUTION, image, pictures};
use crate::batch::with_channels;
use crate::scale::{Method, scale};
use kosmograph_pixels::Shape;
use kosmograph_pixels::work::each_row;

/// Scales pictures so that they fit into a size, their proportions kept, and fills the rest on both sides.
#[derive(Inputs)]
#[node(category = "image/transform")]
pub struct ResizeAndPadImage {
    pub image: Image,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub target_width: u64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub target_height: u64,
    #[widget(default = "white", choices = ["white", "black"])]
    pub padding_color: String,
    /// As in ImageScale.
    #[widget(default = "area", choices = ["area", "bicubic", "nearest-exact", "bilinear", "lanczos"])]
    pub interpolation: String,
}

impl Node for ResizeAndPadImage {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let (width, height) = (self.target_width as usize, self.target_height as usize);
        let (old_width, old_height) = (shape.width as f64, shape.height as f64);
        let factor = (width as f64 / old_width).min(height as f64 / old_height);
        let side = |old: f64, most: usize| ((old * factor) as usize).clamp(1, most);
        let inner =
            Shape { width: side(old_width, width), height: side(old_height, height), ..shape };
        let scaled =
            scale(&values, shape, inner.width, inner.height, method(&self.interpolation)?)?;
        let level = if self.padding_color == "black" { 0.0 } else { 1.0 };
        let outer = Shape { width, height, ..shape };
        let at = ((width - inner.width) / 2, (height - inner.height) / 2);
        image(outer, framed(&scaled, inner, outer, at, level)?)
    }
}

/// `values` from (x, y) on in pictures of the shape `outer`, whose other values are all `level`.
pub(super) fn framed(
    values: &[f32],
    shape: Shape,
    outer: Shape,
    (x, y): (usize, usize),
    level: f32,
) -> Result<Vec<f32>> {
    let mut out = outer.zeros()?;
    each_row(&mut out, outer.row(), |i, row| {
        let (picture, line) = (i / outer.height, i % outer.height);
        row.fill(level);
        if (y..y + shape.height).contains(&line) {
            let from = picture * shape.picture() + (line - y) * shape.row();
            row[x * shape.channels..][..shape.row()]
                .copy_from_slice(&values[from..][..shape.row()]);
        }
    })?;
    Ok(out)
}

/// Scales pictures so that their longer side has a length, their proportions kept.
#[derive(Inputs)]
#[node(category = "image/upscaling")]
pub struct ImageScaleToMaxDimension {
    pub image: Image,
    /// As in ImageScale.
    #[widget(default = "area", choices = ["area", "lanczos", "bilinear", "nearest-exact", "bicubic"])]
    pub upscale_method: String,
    /// In pixels.
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub largest_size: u64,
}

impl Node for ImageScaleToMaxDimension {
    outputs![image: Image];
    const REPLACES: &'static [Replaces] = &[Replaces {
        widgets: &["longer_edge"],
        inputs: &[("image", "images"), ("largest_size", "longer_edge")],
        values: &[("upscale_method", "lanczos")],
        ..Replaces::named("ResizeImagesByLongerEdge")
    }];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let longest = self.largest_size as usize;
        let other = |short: usize, long: usize| {
            let exact = short as f64 / long as f64 * longest as f64;
            (exact.round_ties_even() as usize).max(1)
        };
        let (width, height) = match shape.height > shape.width {
            true => (other(shape.width, shape.height), longest),
            false => (longest, other(shape.height, shape.width)),
        };
        let scaled = scale(&values, shape, width, height, method(&self.upscale_method)?)?;
        image(Shape { width, height, ..shape }, scaled)
    }
}

/// Puts pictures beside, above or below others. Of two batches the shorter one's last picture is repeated; a picture with fewer channels gets
/// more: grey becomes colour, and alpha is 1.
#[derive(Inputs)]
#[node(category = "image/transform")]
pub struct ImageStitch {
    pub image1: Image,
    /// Where the second picture goes, seen from the first.
    #[widget(default = "right", choices = ["right", "down", "left", "up"])]
    pub direction: String,
    /// Scale the second picture so that the sides that touch are equally long; otherwise the smaller one is centred.
    #[widget(default = true)]
    pub match_image_size: bool,
    /// The pixels between the two; an odd number is made even.
    #[widget(default = 0, min = 0, max = 1024, step = 2)]
    pub spacing_width: u64,
    /// What is between them. Beside a centred picture are white or black, and black with a colour.
    #[widget(default = "white", choices = ["white", "black", "red", "green", "blue"])]
    pub spacing_color: String,
    pub image2: Option<Image>,
}

impl Node for ImageStitch {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let Some(second) = &self.image2 else { return Ok(self.image1) };
        let (first_shape, first) = pictures(&self.image1).map_err(|e| e.of_input("image1"))?;
        let (second_shape, second) = pictures(second).map_err(|e| e.of_input("image2"))?;
        let across = matches!(self.direction.as_str(), "left" | "right");
        let channels = first_shape.channels.max(second_shape.channels);
        let batch = first_shape.batch.max(second_shape.batch);

        let first = with_channels(&first, first_shape, channels)?;
        let second = with_channels(&second, second_shape, channels)?;
        let mut first = (first, Shape { channels, ..first_shape });
        let mut second = (second, Shape { channels, ..second_shape });
        if self.match_image_size {
            let (of, to) = (second.1, first.1);
            let aspect = of.width as f64 / of.height as f64;
            let (width, height) = match across {
                true => (((to.height as f64 * aspect) as usize).max(1), to.height),
                false => (to.width, ((to.width as f64 / aspect) as usize).max(1)),
            };
            let scaled = scale(&second.0, of, width, height, Method::Lanczos)?;
            second = (scaled.into(), Shape { width, height, ..of });
        } else {
            let level = if self.spacing_color == "white" { 1.0 } else { 0.0 };
            let longest = |side: fn(Shape) -> usize| side(first.1).max(side(second.1));
            let (width, height) = (longest(|shape| shape.width), longest(|shape| shape.height));
            for (values, shape) in [&mut first, &mut second] {
                let outer = match across {
                    true => Shape { height, ..*shape },
                    false => Shape { width, ..*shape },
                };
                let at = ((outer.width - shape.width) / 2, (outer.height - shape.height) / 2);
                if outer != *shape {
                    (*values, *shape) = (framed(values, *shape, outer, at, level)?.into(), outer);
                }
            }
        }
        let parts = match self.direction.as_str() {
            "left" | "up" => [second, first],
            _ => [first, second],
        };
        let between = (self.spacing_width + self.spacing_width % 2) as usize;
        let colour = match self.spacing_color.as_str() {
            "white" => [1.0, 1.0, 1.0, 1.0],
            "red" => [1.0, 0.0, 0.0, 1.0],
            "green" => [0.0, 1.0, 0.0, 1.0],
            "blue" => [0.0, 0.0, 1.0, 1.0],
            _ => [0.0, 0.0, 0.0, 1.0],
        };
        let [one, other] = parts.each_ref().map(|(_, shape)| *shape);
        let whole = match across {
            true => Shape { batch, width: one.width + between + other.width, ..one },
            false => Shape { batch, height: one.height + between + other.height, ..one },
        };
        let mut out = whole.room()?;
        let picture = |part: usize, i: usize| {
            let (values, shape) = &parts[part];
            &values[i.min(shape.batch - 1) * shape.picture()..][..shape.picture()]
        };
        for i in 0..batch {
            let (one_picture, other_picture) = (picture(0, i), picture(1, i));
            if across {
                let rows = one_picture.chunks(one.row()).zip(other_picture.chunks(other.row()));
                for (one, other) in rows {
                    out.extend_from_slice(one);
                    (0..between).for_each(|_| out.extend_from_slice(&colour[..channels]));
                    out.extend_from_slice(other);
                }
            } else {
                out.extend_from_slice(one_picture);
                (0..between * whole.width).for_each(|_| out.extend_from_slice(&colour[..channels]));
                out.extend_from_slice(other_picture);
            }
        }
        image(whole, out)
    }
}
