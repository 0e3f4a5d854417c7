//! JoinImageWithAlpha, SplitImageWithAlpha and PorterDuffImageComposite.

use node::{Context, Error, Image, Inputs, Mask, Node, Result, outputs};

use super::{image, mask, masks, pictures};
use crate::batch::with_channels;
use crate::composite::{PorterDuff, fitted};
use kosmograph_pixels::Shape;
use kosmograph_pixels::torch::{Mode, interpolate};

/// Gives pictures an alpha channel: transparent where the mask is 1, which is scaled to their size. Of pictures and masks the fewer are taken
/// again from the first on.
#[derive(Inputs)]
#[node(category = "mask/compositing")]
pub struct JoinImageWithAlpha {
    pub image: Image,
    /// 1 where nothing is seen.
    pub alpha: Mask,
}

impl Node for JoinImageWithAlpha {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let (mask_shape, alpha) = masks(&self.alpha).map_err(|error| error.of_input("alpha"))?;
        let alpha = interpolate(&alpha, mask_shape, (shape.height, shape.width), Mode::Bilinear)?;
        let values = with_channels(&values, shape, shape.channels.max(3))?;
        let channels = shape.channels.max(3);
        let pixels = shape.height * shape.width;
        let joined = Shape { batch: shape.batch.max(mask_shape.batch), channels: 4, ..shape };
        let mut out = joined.room()?;
        for i in 0..joined.batch {
            let picture = &values[i % shape.batch * pixels * channels..][..pixels * channels];
            let alpha = &alpha[i % mask_shape.batch * pixels..][..pixels];
            for (pixel, alpha) in picture.chunks_exact(channels).zip(alpha) {
                out.extend_from_slice(&[pixel[0], pixel[1], pixel[2], 1.0 - alpha]);
            }
        }
        image(joined, out)
    }
}

/// Takes pictures apart into their colours and a mask that is 1 where they are transparent; without an alpha channel it is 0 everywhere.
#[derive(Inputs)]
#[node(category = "mask/compositing")]
pub struct SplitImageWithAlpha {
    pub image: Image,
}

impl Node for SplitImageWithAlpha {
    outputs![image: Image, mask: Mask];

    fn run(self, _cx: &Context) -> Result<(Image, Mask)> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let alone = Shape { channels: 1, ..shape };
        if shape.channels < 4 {
            return Ok((self.image.clone(), mask(alone, alone.zeros()?)?));
        }
        let colours = Shape { channels: 3, ..shape };
        let (mut out, mut alpha) = (colours.room()?, alone.room()?);
        for pixel in values.chunks_exact(4) {
            out.extend_from_slice(&pixel[..3]);
            alpha.push(1.0 - pixel[3]);
        }
        Ok((image(colours, out)?, mask(alone, alpha)?))
    }
}

/// Lays transparent pictures on others by an operator of Porter and Duff. Masks are 1 where nothing is seen. As many pictures come out as the
/// input with the fewest has; source and masks are cut around their centre and scaled to the destination's size.
#[derive(Inputs)]
#[node(category = "mask/compositing")]
pub struct PorterDuffImageComposite {
    pub source: Image,
    pub source_alpha: Mask,
    pub destination: Image,
    pub destination_alpha: Mask,
    /// What remains of the two.
    #[widget(default = "DST", choices = PorterDuff::NAMES)]
    pub mode: String,
}

impl Node for PorterDuffImageComposite {
    outputs![image: Image, mask: Mask];

    fn run(self, _cx: &Context) -> Result<(Image, Mask)> {
        let mode = PorterDuff::named(&self.mode)
            .ok_or_else(|| Error::at("mode", format!("\"{}\" is no operator", self.mode)))?;
        let (source_shape, source) = pictures(&self.source).map_err(|e| e.of_input("source"))?;
        let (shape, destination) =
            pictures(&self.destination).map_err(|e| e.of_input("destination"))?;
        if source_shape.channels != shape.channels {
            return Err(Error::at(
                "source",
                format!(
                    "has {} channels, but the destination has {}; SplitImageWithAlpha takes an alpha channel off",
                    source_shape.channels, shape.channels
                ),
            ));
        }
        let (source_mask_shape, source_mask) =
            masks(&self.source_alpha).map_err(|e| e.of_input("source_alpha"))?;
        let (mask_shape, destination_mask) =
            masks(&self.destination_alpha).map_err(|e| e.of_input("destination_alpha"))?;
        let batches = [source_shape, source_mask_shape, shape, mask_shape].map(|s| s.batch);
        let batch = batches.into_iter().fold(usize::MAX, usize::min);

        let first = |values: &[f32], shape: Shape| {
            let shape = Shape { batch, ..shape };
            (values[..shape.values()].to_vec(), shape)
        };
        let to = Shape { batch, ..shape };
        let brought = |values: &[f32], shape: Shape| -> Result<Vec<f32>> {
            let (values, shape) = first(values, shape);
            Ok(fitted(values, shape, to)?.1)
        };
        let source = brought(&source, source_shape)?;
        let source_mask = brought(&source_mask, source_mask_shape)?;
        let destination_mask = brought(&destination_mask, mask_shape)?;
        let destination = &destination[..to.values()];
        let (values, alpha) =
            mode.of((&source, &source_mask), (destination, &destination_mask), to)?;
        Ok((image(to, values)?, mask(Shape { channels: 1, ..to }, alpha)?))
    }
}
