//! ImageBatch: two batches of pictures as one.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{image, pictures};
use crate::batch::concatenate;

/// Puts the pictures of two inputs into one batch. The second ones are cut around their centre and scaled to the size of the first ones
/// where they differ.
#[derive(Inputs)]
#[node(category = "image")]
pub struct ImageBatch {
    pub image1: Image,
    pub image2: Image,
}

impl Node for ImageBatch {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (first_shape, first) = pictures(&self.image1).map_err(|e| e.of_input("image1"))?;
        let (second_shape, second) = pictures(&self.image2).map_err(|e| e.of_input("image2"))?;
        let (shape, values) = concatenate((&first, first_shape), (&second, second_shape))?;
        image(shape, values)
    }
}
