//! The nodes: each reads its inputs and calls the function that does the work. Names, defaults and ranges are ComfyUI's.

use std::borrow::Cow;

use node::{Error, Image, Mask, Result, Tensor};

use kosmograph_pixels::Shape;

pub mod aio_preprocessor;
pub mod canny;
pub mod hint_preprocessors;
pub mod image_alpha;
pub mod image_batch;
pub mod image_batches;
pub mod image_colour;
pub mod image_composite;
pub mod image_filter;
pub mod image_fit;
pub mod image_grid;
pub mod image_invert;
pub mod image_measure;
pub mod image_packs;
pub mod image_pad_for_outpaint;
pub mod image_quantize;
pub mod image_resize_packs;
pub mod image_scale;
pub mod image_scale_by;
pub mod image_size;
pub mod load_image;
pub mod loss_graph;
pub mod mask_convert;
pub mod mask_edit;
pub mod mask_preview;
pub mod preview_image;
pub mod primitive;
pub mod prompt_styles;
pub mod rebatch_images;
pub mod save_animated;
pub mod save_image;
pub mod save_image_websocket;
pub mod text;
pub mod text_packs;

/// `upscale_method`'s choices.
const UPSCALE_METHODS: [&str; 5] = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"];

/// ComfyUI's longest side, in pixels.
const MAX_RESOLUTION: u64 = 16_384;

/// The shape and values of pictures.
///
/// # Errors
/// Another number of channels than 1, 3 or 4, and what [`Tensor::to_f32`] says.
fn pictures(image: &Image) -> Result<(Shape, Cow<'_, [f32]>)> {
    let (batch, height, width, channels) = image.dims();
    if !matches!(channels, 1 | 3 | 4) {
        return Err(Error::new(format!(
            "an IMAGE has 1, 3 or 4 channels, but this one has {channels}; its shape is {:?}",
            image.0.shape()
        )));
    }
    Ok((Shape { batch, height, width, channels }, image.0.to_f32()?))
}

fn image(shape: Shape, values: Vec<f32>) -> Result<Image> {
    Ok(Image(Tensor::from_f32(&shape.dims(), values)?))
}

/// The shape, with one channel, and values of masks.
fn masks(mask: &Mask) -> Result<(Shape, Cow<'_, [f32]>)> {
    let shape = mask.0.shape();
    let [batch, height, width] = shape[..] else {
        return Err(Error::new(format!("a MASK has three axes, but this one has {shape:?}")));
    };
    Ok((Shape { batch, height, width, channels: 1 }, mask.0.to_f32()?))
}

fn mask(shape: Shape, values: Vec<f32>) -> Result<Mask> {
    Ok(Mask(Tensor::from_f32(&[shape.batch, shape.height, shape.width], values)?))
}
