//! MaskPreview: masks to look at now, as grey pictures.

use node::{Context, Inputs, Mask, Node, Result, outputs};

use super::mask_convert::MaskToImage;
use super::preview_image::PreviewImage;

/// Saves masks as grey pictures in the folder for temporary files, for looking at while working.
#[derive(Inputs)]
#[node(category = "mask", output_node, writes = "temp")]
pub struct MaskPreview {
    pub mask: Mask,
}

impl Node for MaskPreview {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        show(self.mask, cx)
    }
}

/// Saves masks as grey pictures in the folder for temporary files, for looking at while working.
#[derive(Inputs)]
#[node(class = "MaskPreview+", category = "mask", output_node, writes = "temp")]
pub struct MaskPreviewPlus {
    pub mask: Mask,
}

impl Node for MaskPreviewPlus {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        show(self.mask, cx)
    }
}

fn show(mask: Mask, cx: &Context) -> Result<()> {
    let images = MaskToImage { mask }.run(cx).map_err(|error| error.of_input("mask"))?;
    PreviewImage { images }.run(cx).map_err(|error| error.of_input("mask"))?;
    Ok(())
}
