//! Masks from masks: grown, feathered, cut, put together.

use node::{Context, Error, Inputs, Mask, Node, Result, outputs};

use super::image_size::cut;
use super::{MAX_RESOLUTION, mask, masks};
use crate::mask::{Edges, Operation, composite, feather, grow};

/// Grows the white of masks by a number of pixels, or shrinks it by a negative number.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct GrowMask {
    pub mask: Mask,
    #[widget(default = 0, min = -16_384, max = 16_384, step = 1)]
    pub expand: i64,
    /// Grow to the four sides alone, so that corners are cut off.
    #[widget(default = true)]
    pub tapered_corners: bool,
}

impl Node for GrowMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = masks(&self.mask)?;
        mask(shape, grow(&values, shape, self.expand, self.tapered_corners)?)
    }
}

/// Lets masks fade towards their edges, over a number of pixels on each side.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct FeatherMask {
    pub mask: Mask,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub left: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub top: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub right: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub bottom: u64,
}

impl Node for FeatherMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = masks(&self.mask)?;
        let [left, top, right, bottom] =
            [self.left, self.top, self.right, self.bottom].map(|edge| edge as usize);
        mask(shape, feather(&values, shape, Edges { left, top, right, bottom })?)
    }
}

/// Cuts a rectangle out of masks; what would lie outside is left off.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct CropMask {
    pub mask: Mask,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub x: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub y: u64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub width: u64,
    #[widget(default = 512, min = 1, max = MAX_RESOLUTION, step = 1)]
    pub height: u64,
}

impl Node for CropMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = masks(&self.mask)?;
        let [x, y, width, height] =
            [self.x, self.y, self.width, self.height].map(|size| size as usize);
        let (cut, values) = cut(&values, shape, (x, y), (width, height))?;
        mask(cut, values)
    }
}

/// Joins a mask to another, from a point on.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct MaskComposite {
    pub destination: Mask,
    pub source: Mask,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub x: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub y: u64,
    /// and, or and xor take what is above a half as true.
    #[widget(default = "multiply", choices = Operation::NAMES)]
    pub operation: String,
}

impl Node for MaskComposite {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, destination) = masks(&self.destination)?;
        let (source_shape, source) = masks(&self.source)?;
        if source_shape.batch != 1 && source_shape.batch != shape.batch {
            return Err(Error::at(
                "source",
                format!(
                    "{} masks cannot be joined to {}; one, or one for each, would be right",
                    source_shape.batch, shape.batch
                ),
            ));
        }
        let operation = Operation::named(&self.operation).ok_or_else(|| {
            Error::at("operation", format!("\"{}\" is not an operation", self.operation))
        })?;
        let at = (self.x as usize, self.y as usize);
        mask(shape, composite((&destination, shape), (&source, source_shape), at, operation)?)
    }
}
