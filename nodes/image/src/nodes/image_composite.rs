//! ImageCompositeMasked, LatentCompositeMasked and ImageBlend.

use std::borrow::Cow;

use node::{Context, Error, Image, Inputs, Latent, Mask, Node, Result, Tensor, outputs};

use super::{MAX_RESOLUTION, image, masks, pictures};
use crate::batch::with_channels;
use crate::composite::{Blend, blend, fitted, masked};
use kosmograph_pixels::Shape;
use kosmograph_pixels::torch::{Mode, interpolate};
use kosmograph_pixels::work::each_row;

/// Lays pictures on others from a point on, through a mask if there is one. What would lie outside is left off.
#[derive(Inputs)]
#[node(category = "image")]
pub struct ImageCompositeMasked {
    /// What is laid on.
    pub destination: Image,
    /// What is laid there; fewer pictures than the destination has are taken again from the first on.
    pub source: Image,
    /// The left edge of the source, in pixels.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub x: u64,
    /// The upper edge of the source, in pixels.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 1)]
    pub y: u64,
    /// Scale the source to the destination's size first.
    #[widget(default = false)]
    pub resize_source: bool,
    /// 1 where the source is seen; scaled to the source's size.
    pub mask: Option<Mask>,
}

impl Node for ImageCompositeMasked {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, destination) =
            pictures(&self.destination).map_err(|e| e.of_input("destination"))?;
        let (source_shape, source) = pictures(&self.source).map_err(|e| e.of_input("source"))?;
        let (source_shape, source) = channels_of(source, source_shape, shape.channels)?;
        let at = (self.x as usize, self.y as usize);
        let source = (source.as_ref(), source_shape);
        let values = laid_on((&destination, shape), source, &self.mask, at, self.resize_source)?;
        image(shape, values)
    }
}

/// Lays latents on others from a point on, through a mask if there is one. What would lie outside is left off.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct LatentCompositeMasked {
    /// What is laid on; what it carries besides its samples stays.
    pub destination: Latent,
    /// What is laid there; fewer latents than the destination has are taken again from the first on.
    pub source: Latent,
    /// The left edge of the source, in pixels of the picture, eight to one of a latent.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 8)]
    pub x: u64,
    /// The upper edge of the source, in pixels of the picture.
    #[widget(default = 0, min = 0, max = MAX_RESOLUTION, step = 8)]
    pub y: u64,
    /// Scale the source to the destination's size first.
    #[widget(default = false)]
    pub resize_source: bool,
    /// 1 where the source is seen; scaled to the source's size.
    pub mask: Option<Mask>,
}

impl Node for LatentCompositeMasked {
    outputs![latent: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let (to, source) =
            self.destination.at_one_scale(&self.source).map_err(|e| e.of_input("source"))?;
        let samples = to.samples().map_err(|e| e.of_input("destination"))?;
        let (shape, destination) = channels_last(&samples)?;
        let source = source.samples().map_err(|e| e.of_input("source"))?;
        let (source_shape, source) = channels_last(&source)?;
        if source_shape.channels != shape.channels {
            return Err(Error::at(
                "source",
                format!(
                    "latents of {} channels cannot be laid on latents of {}: they are of two families of models",
                    source_shape.channels, shape.channels
                ),
            ));
        }
        let at = (self.x as usize / 8, self.y as usize / 8);
        let values = laid_on(
            (&destination, shape),
            (&source, source_shape),
            &self.mask,
            at,
            self.resize_source,
        )?;
        Ok(to.with_samples(channels_first(&values, shape)?))
    }
}

/// [`masked`], with the source at the destination's size if it is to have that, and the mask at the source's.
fn laid_on(
    (destination, shape): (&[f32], Shape),
    (source, source_shape): (&[f32], Shape),
    mask: &Option<Mask>,
    at: (usize, usize),
    resize_source: bool,
) -> Result<Vec<f32>> {
    let size = (shape.height, shape.width);
    let (source, source_shape) = match resize_source {
        true if (source_shape.height, source_shape.width) != size => (
            Cow::from(interpolate(source, source_shape, size, Mode::Bilinear)?),
            Shape { height: size.0, width: size.1, ..source_shape },
        ),
        _ => (Cow::from(source), source_shape),
    };
    let mask = match mask {
        None => None,
        Some(mask) => {
            let (mask_shape, values) = masks(mask).map_err(|error| error.of_input("mask"))?;
            let size = (source_shape.height, source_shape.width);
            let values = interpolate(&values, mask_shape, size, Mode::Bilinear)?;
            Some((values, Shape { height: size.0, width: size.1, ..mask_shape }))
        }
    };
    let mask = mask.as_ref().map(|(values, shape)| (values.as_slice(), *shape));
    Ok(masked((destination, shape), (&source, source_shape), mask, at)?)
}

/// Pictures with as many channels as others have: an alpha channel of 1 is added, or what is too much left off.
fn channels_of(
    values: Cow<'_, [f32]>,
    shape: Shape,
    channels: usize,
) -> Result<(Shape, Cow<'_, [f32]>)> {
    let to = Shape { channels, ..shape };
    if shape.channels == channels {
        return Ok((shape, values));
    }
    if shape.channels < channels {
        return Ok((to, with_channels(&values, shape, channels)?.into_owned().into()));
    }
    let mut out = to.room()?;
    values.chunks_exact(shape.channels).for_each(|pixel| out.extend_from_slice(&pixel[..channels]));
    Ok((to, out.into()))
}

/// [B, C, H, W] as [B, H, W, C].
fn channels_last(samples: &Tensor) -> Result<(Shape, Vec<f32>)> {
    let dims = samples.shape();
    let [batch, channels, height, width] = dims[..] else {
        return Err(Error::new(format!("latents have four axes, but these have {dims:?}")));
    };
    let shape = Shape { batch, height, width, channels };
    let values = samples.to_f32()?;
    let mut out = shape.zeros()?;
    each_row(&mut out, shape.row(), |i, row| {
        let (picture, y) = (i / height, i % height);
        for (at, value) in row.iter_mut().enumerate() {
            let (x, channel) = (at / channels, at % channels);
            *value = values[((picture * channels + channel) * height + y) * width + x];
        }
    })?;
    Ok((shape, out))
}

/// [B, H, W, C] as [B, C, H, W].
fn channels_first(values: &[f32], shape: Shape) -> Result<Tensor> {
    let Shape { batch, height, width, channels } = shape;
    let mut out = shape.zeros()?;
    each_row(&mut out, width, |i, row| {
        let (plane, y) = (i / height, i % height);
        let (picture, channel) = (plane / channels, plane % channels);
        for (x, value) in row.iter_mut().enumerate() {
            *value = values[((picture * height + y) * width + x) * channels + channel];
        }
    })?;
    Tensor::from_f32(&[batch, channels, height, width], out)
}

/// Blends two pictures. The second is cut around its centre and scaled to the first one's size where that differs.
#[derive(Inputs)]
#[node(category = "image/postprocessing")]
pub struct ImageBlend {
    pub image1: Image,
    pub image2: Image,
    /// How much of the blend is taken; the rest is the first picture.
    #[widget(default = 0.5, min = 0.0, max = 1.0, step = 0.01)]
    pub blend_factor: f64,
    /// How the second picture acts on the first.
    #[widget(default = "normal", choices = Blend::NAMES)]
    pub blend_mode: String,
}

impl Node for ImageBlend {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let mode = Blend::named(&self.blend_mode).ok_or_else(|| {
            Error::at("blend_mode", format!("\"{}\" is no way to blend", self.blend_mode))
        })?;
        let (shape, first) = pictures(&self.image1).map_err(|e| e.of_input("image1"))?;
        let (second_shape, second) = pictures(&self.image2).map_err(|e| e.of_input("image2"))?;
        if shape.batch != second_shape.batch && shape.batch.min(second_shape.batch) != 1 {
            return Err(Error::at(
                "image2",
                format!(
                    "{} pictures cannot be blended with {}; one, or one for each, would be right",
                    second_shape.batch, shape.batch
                ),
            ));
        }
        let (second_shape, second) = channels_of(second, second_shape, shape.channels)?;
        let (second_shape, second) = fitted(second.into_owned(), second_shape, shape)?;
        let (shape, values) =
            blend((&first, shape), (&second, second_shape), self.blend_factor, mode)?;
        image(shape, values)
    }
}
