//! ImagePadForOutpaint: room around a picture, and the mask of what is to be painted there.

use node::{Context, Image, Inputs, Mask, Node, Result, Tensor, outputs};

use super::{MAX_RESOLUTION, image, pictures};
use crate::outpaint::{Margins, mask, pad};

/// Adds grey margins to pictures for a model to paint in, and gives the mask of what is to be painted: the margins, fading out over
/// `feathering` pixels into the picture.
#[derive(Inputs)]
#[node(category = "image")]
pub struct ImagePadForOutpaint {
    pub image: Image,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 8)]
    pub left: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 8)]
    pub top: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 8)]
    pub right: u64,
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 8)]
    pub bottom: u64,
    #[widget(default = 40, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub feathering: u64,
}

impl Node for ImagePadForOutpaint {
    outputs![image: Image, mask: Mask];

    fn run(self, _cx: &Context) -> Result<(Image, Mask)> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let margins = Margins {
            left: self.left as usize,
            top: self.top as usize,
            right: self.right as usize,
            bottom: self.bottom as usize,
        };
        let (padded_shape, padded) = pad(&values, shape, margins)?;
        let mask = mask(shape, margins, self.feathering as usize)?;
        let mask = Tensor::from_f32(&[1, padded_shape.height, padded_shape.width], mask)?;
        Ok((image(padded_shape, padded)?, Mask(mask)))
    }
}
