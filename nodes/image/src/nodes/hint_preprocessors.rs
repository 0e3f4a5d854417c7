//! Preprocessors of ControlNets that need no network, by the names that saved workflows know.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{MAX_RESOLUTION, image, pictures};
use crate::canny::{canny, grey};
use crate::hint::{Levels, binary, scribble, tile, xdog};
use crate::levels::{from_levels, to_levels};
use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;

/// Black and white: white where the picture is brighter than the threshold.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct BinaryPreprocessor {
    pub image: Image,
    /// 0 and 255 find the threshold by Otsu's method.
    #[widget(default = 100, min = 0, max = 255, step = 1)]
    pub bin_threshold: u64,
    /// The side of the hint that `scale_to` names, in pixels.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 64)]
    pub resolution: u64,
    /// Which side that is. The longer one makes both sides multiples of 64, as Kosmos-G's authors bring hints
    /// to size.
    #[widget(choices = Size::NAMES, default = "shorter side")]
    pub scale_to: Option<String>,
}

impl Node for BinaryPreprocessor {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let threshold = self.bin_threshold as u8;
        each(cx, &self.image, Some(Size::new(self.resolution, &self.scale_to)), |picture| {
            Ok(binary(picture, threshold))
        })
    }
}

/// A drawn scribble made hard: dark strokes become black, all else white.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct ScribblePreprocessor {
    pub image: Image,
    /// The side of the hint that `scale_to` names, in pixels.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 64)]
    pub resolution: u64,
    /// Which side that is. The longer one makes both sides multiples of 64, as Kosmos-G's authors bring hints
    /// to size.
    #[widget(choices = Size::NAMES, default = "shorter side")]
    pub scale_to: Option<String>,
}

impl Node for ScribblePreprocessor {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        each(cx, &self.image, Some(Size::new(self.resolution, &self.scale_to)), |picture| {
            Ok(scribble(picture))
        })
    }
}

/// A scribble from any picture: white strokes on black where it is darker than around (XDoG).
#[derive(Inputs)]
#[node(class = "Scribble_XDoG_Preprocessor", category = "image/preprocessors")]
pub struct ScribbleXDoGPreprocessor {
    pub image: Image,
    /// How much darker; less gives more strokes.
    #[widget(default = 32, min = 1, max = 64, step = 1)]
    pub threshold: u64,
    /// The side of the hint that `scale_to` names, in pixels.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 64)]
    pub resolution: u64,
    /// Which side that is. The longer one makes both sides multiples of 64, as Kosmos-G's authors bring hints
    /// to size.
    #[widget(choices = Size::NAMES, default = "shorter side")]
    pub scale_to: Option<String>,
}

impl Node for ScribbleXDoGPreprocessor {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let threshold = self.threshold as u8;
        each(cx, &self.image, Some(Size::new(self.resolution, &self.scale_to)), |picture| {
            xdog(picture, threshold)
        })
    }
}

/// A blurred picture for the tile ControlNet: shrunk and enlarged again, its sides multiples of 64.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
#[allow(non_snake_case, reason = "saved workflows write it so")]
pub struct TilePreprocessor {
    pub image: Image,
    /// How often it is halved.
    #[widget(default = 3, min = 1, max = 10, step = 1)]
    pub pyrUp_iters: u64,
    /// Not used, as in the preprocessor of this name: the hint has the picture's size.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 64)]
    pub resolution: u64,
}

impl Node for TilePreprocessor {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        each(cx, &self.image, None, |picture| tile(picture, self.pyrUp_iters as u32))
    }
}

/// Edges, white on black, equal to OpenCV's for these thresholds.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct CannyEdgePreprocessor {
    pub image: Image,
    /// An edge goes on where the gradient is above this.
    #[widget(default = 100, min = 0, max = 255, step = 1)]
    pub low_threshold: u64,
    /// An edge begins where the gradient is above this.
    #[widget(default = 200, min = 0, max = 255, step = 1)]
    pub high_threshold: u64,
    /// The side of the hint that `scale_to` names, in pixels.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 64)]
    pub resolution: u64,
    /// Which side that is. The longer one makes both sides multiples of 64, as Kosmos-G's authors bring hints
    /// to size.
    #[widget(choices = Size::NAMES, default = "shorter side")]
    pub scale_to: Option<String>,
}

impl Node for CannyEdgePreprocessor {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (low, high) = (self.low_threshold as i32, self.high_threshold as i32);
        each(cx, &self.image, Some(Size::new(self.resolution, &self.scale_to)), |picture| {
            let greys: Vec<u8> =
                picture.pixels.chunks_exact(3).map(|p| grey(p[0], p[1], p[2])).collect();
            let edges = canny(&greys, picture.width, low, high)?;
            let pixels = edges.into_iter().flat_map(|level| [level; 3]).collect();
            Ok(Levels { pixels, width: picture.width })
        })
    }
}

/// The size that a picture is brought to before it becomes a hint.
#[derive(Clone, Copy)]
enum Size {
    Shorter(usize),
    LongerTo64s(usize),
}

impl Size {
    const NAMES: [&'static str; 2] = ["shorter side", "longer side, multiples of 64"];

    fn new(resolution: u64, scale_to: &Option<String>) -> Self {
        match scale_to.as_deref() == Some(Self::NAMES[1]) {
            true => Self::LongerTo64s(resolution as usize),
            false => Self::Shorter(resolution as usize),
        }
    }
}

/// Each picture of a batch, at the size if there is one, through `hint`.
fn each(
    cx: &Context,
    batch: &Image,
    size: Option<Size>,
    hint: impl Fn(&Levels) -> Result<Levels, Undone>,
) -> Result<Image> {
    let (shape, values) = pictures(batch).map_err(|error| error.of_input("image"))?;
    let mut out = Vec::new();
    let mut drawn = Shape { channels: 3, ..shape };
    for (picture, step) in values.chunks(shape.picture()).zip(cx.steps(shape.batch)) {
        step?;
        let levels = to_levels(picture);
        let pixels = match shape.channels {
            1 => levels.into_iter().flat_map(|level| [level; 3]).collect(),
            channels => levels.chunks_exact(channels).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        };
        let mut levels = Levels { pixels, width: shape.width };
        match size {
            Some(Size::Shorter(resolution)) => levels = levels.resized(resolution)?,
            Some(Size::LongerTo64s(resolution)) => levels = levels.resized_to_64s(resolution)?,
            None => {}
        }
        let levels = hint(&levels)?;
        (drawn.height, drawn.width) = (levels.height(), levels.width);
        if out.is_empty() {
            out = drawn.room()?;
        }
        out.extend(from_levels(&levels.pixels));
    }
    image(drawn, out)
}
