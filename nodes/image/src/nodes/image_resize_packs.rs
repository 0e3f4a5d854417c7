//! Nodes that change the size of pictures and that saved workflows know from packs: ImageResize+, Image Resize, JWImageResizeByLongerSide.

use node::{Context, Error, Image, Inputs, Node, Result, outputs};

use super::image_batches::rearranged;
use super::image_fit::framed;
use super::image_scale::method;
use super::image_size::cut;
use super::{MAX_RESOLUTION, image, pictures};
use crate::levels::{from_levels, to_levels};
use crate::scale::scale;
use kosmograph_pixels::Shape;
use kosmograph_pixels::pillow::{Filter, Picture, resize};
use kosmograph_pixels::torch::{Mode, antialiased, interpolate};
use node::plain::Whole;

/// What ImageResize+ makes of a picture: the size it is scaled to, and what of it is cut out or added.
struct Plan {
    size: (usize, usize),
    /// The corner of the part that is kept, and the part's size.
    cut: Option<((usize, usize), (usize, usize))>,
    /// Where the picture lies, and in what size.
    pad: Option<((usize, usize), (usize, usize))>,
}

impl Plan {
    /// For a picture of `old` width and height; a wanted side of 0 is left to the picture. Both are at least 1 in the result.
    fn new(old: (usize, usize), wanted: (usize, usize), method: &str) -> Self {
        let (ow, oh) = (old.0 as f64, old.1 as f64);
        let own = (or(wanted.0, old.0), or(wanted.1, old.1));
        let times = |ratio: f64| {
            let side = |old: f64| ((old * ratio).round_ties_even() as usize).max(1);
            (side(ow), side(oh))
        };
        match method {
            "keep proportion" | "pad" => {
                // The side that is left open does not hold the other one back, unless that would enlarge the picture.
                let open = |given: usize, other: usize, old: usize, old_other: usize| match given {
                    0 if old_other < other => MAX_RESOLUTION as usize,
                    0 => old,
                    given => given,
                };
                let width = open(wanted.0, wanted.1, old.0, old.1);
                let height = open(wanted.1, width, old.1, old.0);
                let size = times((width as f64 / ow).min(height as f64 / oh));
                let at = |outer: usize, inner: usize| outer.saturating_sub(inner) / 2;
                let outer = (width.max(size.0), height.max(size.1));
                let pad =
                    (method == "pad").then(|| ((at(outer.0, size.0), at(outer.1, size.1)), outer));
                Self { size, cut: None, pad }
            }
            "fill / crop" => {
                let size = times((own.0 as f64 / ow).max(own.1 as f64 / oh));
                let part = (own.0.min(size.0), own.1.min(size.1));
                let at = ((size.0 - part.0) / 2, (size.1 - part.1) / 2);
                Self { size, cut: Some((at, part)), pad: None }
            }
            _ => Self { size: own, cut: None, pad: None },
        }
    }
}

/// `given`, or `old` where 0 is given.
fn or(given: usize, old: usize) -> usize {
    if given == 0 { old } else { given }
}

/// Scales pictures: to a size, into it or over it, always or where they are larger or smaller.
#[derive(Inputs)]
#[node(class = "ImageResize+", category = "image/transform")]
pub struct ImageResizePlus {
    pub image: Image,
    /// In pixels; 0 leaves it to the picture.
    #[widget(default = 512, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub width: u64,
    /// In pixels; 0 leaves it to the picture.
    #[widget(default = 512, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub height: u64,
    #[widget(default = "nearest", choices = ["nearest", "bilinear", "bicubic", "area", "nearest-exact", "lanczos"])]
    pub interpolation: Option<String>,
    /// stretch: exactly this size; keep proportion: as large as fits into it; fill / crop: the smallest that covers it, cut; pad: as large as fits
    /// into it, the rest black.
    #[widget(default = "stretch", choices = ["stretch", "keep proportion", "fill / crop", "pad"])]
    pub method: Option<String>,
    /// When it is done; otherwise the picture stays.
    #[widget(default = "always", choices = ["always", "downscale if bigger", "upscale if smaller", "if bigger area", "if smaller area"])]
    pub condition: Option<String>,
    /// Both sides become multiples of this; 0 and 1 say nothing.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub multiple_of: Option<u64>,
    /// How earlier workflows say "keep proportion".
    #[widget(default = false)]
    pub keep_proportion: Option<bool>,
}

impl Node for ImageResizePlus {
    outputs![image: Image, width: Whole, height: Whole];

    fn run(self, _cx: &Context) -> Result<(Image, Whole, Whole)> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let of = self.multiple_of.unwrap_or(0).max(1) as usize;
        let rounded = |side: u64| side as usize / of * of;
        let wanted = (rounded(self.width), rounded(self.height));
        let method_name = match self.keep_proportion {
            Some(true) => "keep proportion",
            _ => self.method.as_deref().unwrap_or("stretch"),
        };
        let old = (shape.width, shape.height);
        let plan = Plan::new(old, wanted, method_name);
        let (width, height) = plan.size;
        let condition = match self.condition.as_deref().unwrap_or("always") {
            "downscale if bigger" => shape.height > height || shape.width > width,
            "upscale if smaller" => shape.height < height || shape.width < width,
            "if bigger area" => old.0 * old.1 > width * height,
            "if smaller area" => old.0 * old.1 < width * height,
            _ => true,
        };
        let (mut now, mut out) = (shape, values.into_owned());
        if condition {
            let to = Shape { width, height, ..shape };
            out = match self.interpolation.as_deref().unwrap_or("nearest") {
                "nearest" => nearest(&out, shape, to)?,
                name => scale(&out, shape, width, height, method(name)?)?,
            };
            now = to;
            if let Some((at, (width, height))) = plan.pad {
                let outer = Shape { width, height, ..now };
                (now, out) = (outer, framed(&out, now, outer, at, 0.0)?);
            }
            if let Some((at, size)) = plan.cut {
                (now, out) = cut(&out, now, at, size)?;
            }
        }
        let (over_x, over_y) = (now.width % of, now.height % of);
        if of > 1 && (over_x, over_y) != (0, 0) {
            let size = (now.width - over_x, now.height - over_y);
            if size.0 == 0 || size.1 == 0 {
                return Err(Error::at(
                    "multiple_of",
                    format!(
                        "a picture of {} x {} pixels has no side of {of} pixels",
                        now.width, now.height
                    ),
                ));
            }
            (now, out) = cut(&out, now, (over_x / 2, over_y / 2), size)?;
        }
        out.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
        Ok((image(now, out)?, Whole::of(now.width), Whole::of(now.height)))
    }
}

/// Scales pictures in 8 bits as Pillow does, by a factor or to a size.
#[derive(Inputs)]
#[node(class = "Image Resize", category = "image/transform")]
pub struct ImageResizeWas {
    pub image: Image,
    /// rescale: by the factor; resize: to the size, made multiples of 8 by enlarging it.
    #[widget(default = "rescale", choices = ["rescale", "resize"])]
    pub mode: String,
    /// Scale to eight times the size first and from there to the size.
    #[widget(default = "true", choices = ["true", "false"])]
    pub supersample: String,
    #[widget(default = "lanczos", choices = ["lanczos", "nearest", "bilinear", "bicubic"])]
    pub resampling: String,
    #[widget(default = 2.0, min = 0.01, max = 16.0, step = 0.01)]
    pub rescale_factor: f64,
    #[widget(default = 1024, min = 1, max = 48_000, step = 1)]
    pub resize_width: u64,
    #[widget(default = 1536, min = 1, max = 48_000, step = 1)]
    pub resize_height: u64,
}

impl Node for ImageResizeWas {
    outputs![image: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let (width, height) = match self.mode.as_str() {
            "rescale" => {
                let times = |side: usize| (side as f64 * self.rescale_factor) as usize;
                (times(shape.width).max(1), times(shape.height).max(1))
            }
            _ => {
                let eights = |side: u64| side.next_multiple_of(8) as usize;
                (eights(self.resize_width), eights(self.resize_height))
            }
        };
        let filter = match self.resampling.as_str() {
            "nearest" => Filter::Nearest,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let to = Shape { width, height, ..shape };
        let mut out = to.room()?;
        for (picture, step) in values.chunks(shape.picture()).zip(cx.steps(shape.batch)) {
            step?;
            let mut levels = to_levels(picture);
            let mut size = (shape.width, shape.height);
            let by = |levels: &[u8], size: (usize, usize), (width, height): (usize, usize)| {
                let channels = shape.channels;
                let picture = Picture { pixels: levels, width: size.0, height: size.1, channels };
                resize(picture, width, height, filter)
            };
            if self.supersample == "true" {
                let large = (width * 8, height * 8);
                (levels, size) = (by(&levels, size, large)?, large);
            }
            out.extend(from_levels(&by(&levels, size, (width, height))?));
        }
        image(to, out)
    }
}

/// Scales pictures so that their longer side has a length, their proportions kept; where they shrink, every pixel counts.
#[derive(Inputs)]
#[node(category = "image/transform")]
pub struct JWImageResizeByLongerSide {
    pub image: Image,
    /// In pixels.
    #[widget(default = 512, min = 1, max = 99_999, step = 1)]
    pub size: u64,
    #[widget(default = "bicubic", choices = ["bicubic", "bilinear", "nearest", "nearest exact"])]
    pub interpolation_mode: String,
}

impl Node for JWImageResizeByLongerSide {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let longer = self.size as usize;
        let other = |short: usize, long: usize| {
            // Python multiplies first.
            ((short as f64 * longer as f64 / long as f64).round_ties_even() as usize).max(1)
        };
        let (width, height) = match shape.height >= shape.width {
            true => (other(shape.width, shape.height), longer),
            false => (longer, other(shape.height, shape.width)),
        };
        let to = Shape { width, height, ..shape };
        let size = (height, width);
        let scaled = match self.interpolation_mode.as_str() {
            "nearest" => nearest(&values, shape, to)?,
            "nearest exact" => interpolate(&values, shape, size, Mode::NearestExact)?,
            "bilinear" => antialiased(&values, shape, size, Filter::Bilinear)?,
            // A cubic goes past its neighbours at an edge, and no picture is brighter than 1.
            _ => {
                let scaled = antialiased(&values, shape, size, Filter::Bicubic)?;
                scaled.into_iter().map(|value| value.clamp(0.0, 1.0)).collect()
            }
        };
        image(to, scaled)
    }
}

/// torch's mode "nearest", whose rule rounds down, in f32: not the pixel under the centre.
fn nearest(values: &[f32], shape: Shape, to: Shape) -> Result<Vec<f32>> {
    let from = |side: usize, new: usize, at: usize| {
        ((at as f32 * (side as f32 / new as f32)) as usize).min(side - 1)
    };
    rearranged(values, shape, to, |y, x| {
        (from(shape.height, to.height, y), from(shape.width, to.width, x))
    })
}
