//! DepthAnythingV2Preprocessor: a picture's depth as a hint.

use std::path::PathBuf;

use candle_core::Tensor as Candle;
use kosmograph_models::{Resident, Weights};
use kosmograph_pixels::Shape;
use kosmograph_pixels::opencv::area;
use kosmograph_pixels::torch::{Mode, interpolate};
use node::*;
use node_candle::device;

use crate::depth_anything::{DepthAnything, TOLERATED, by_transformers_names, enlarged};
use crate::pictures::{IMAGENET, Levels, each, planes};

/// What the shorter side of a picture has at the least, in pixels: the authors'.
const SHORTER: usize = 518;

/// How near everything is, white the nearest: a hint for a ControlNet of depth, by Depth Anything V2.
#[derive(Inputs)]
#[node(category = "image/preprocessors")]
pub struct DepthAnythingV2Preprocessor {
    /// What is looked at.
    image: Image,
    /// The file, the authors' (depth_anything_v2_vits.pth) or transformers' (model.safetensors), or its folder.
    #[file(folder = "depth_anything", entry = "any")]
    ckpt_name: PathBuf,
    /// The shorter side of the hint, in pixels.
    #[widget(default = 512, min = 64, max = 16384, step = 64)]
    resolution: Option<u64>,
}

impl Node for DepthAnythingV2Preprocessor {
    outputs![IMAGE: Image];

    // The node of all preprocessors runs this one with the file that it has by default in the pack.
    const REPLACES: &'static [Replaces] = &[Replaces {
        when: &[("preprocessor", "DepthAnythingV2Preprocessor")],
        values: &[("ckpt_name", "depth_anything_v2_vitl.pth")],
        ..Replaces::named("AIO_Preprocessor")
    }];

    fn run(self, cx: &Context) -> Result<Image> {
        let open = || -> Result<Resident<DepthAnything>> {
            let name = self.ckpt_name.file_name().unwrap_or_default().to_string_lossy();
            if name.contains("metric") {
                return Err(Error::new(
                    "a model of metres draws depth the other way round and is not read; one without \"metric\" in its name would be right",
                ));
            }
            let weights = Weights::open(&self.ckpt_name, &device(&cx.device())?)?;
            Ok(Resident::open(by_transformers_names(&weights)?, &TOLERATED, DepthAnything::load)?)
        };
        let network = open().map_err(|error| error.of_input("ckpt_name"))?;
        let network = network.get()?;
        let resolution = self.resolution.unwrap_or(512) as usize;
        let batch = self.image.dims().0;
        let hints = each(cx, &self.image, |picture, number| {
            hint(cx, &network, &picture, resolution, (number, batch))
        })?;
        let Some((height, width, _)) = hints.first() else {
            return Err(Error::at("image", "there is no picture"));
        };
        let shape = [hints.len(), *height, *width, 3];
        let mut values = memory::room("the hints", &shape)?;
        let grey = |level: &u8| [f32::from(*level) / 255.0; 3];
        values.extend(hints.iter().flat_map(|(_, _, levels)| levels.iter().flat_map(grey)));
        Ok(Image(Tensor::from_f32(&shape, values)?))
    }
}

/// The hint of one picture, of which there are `(number, batch)`: height, width, levels.
fn hint(
    cx: &Context,
    network: &DepthAnything,
    picture: &Levels,
    resolution: usize,
    (number, batch): (usize, usize),
) -> Result<(usize, usize, Vec<u8>)> {
    let (height, width) = (picture.height, picture.width);
    let (to_height, to_width) = enlarged_size(height, width, network.patch());
    memory::ask_bytes(
        format!("the depth of a picture that is computed at {to_width} × {to_height} pixels"),
        network.working_bytes(to_height, to_width),
        "its tokens and its maps",
    )?;
    let pixels = pixels(network.patch(), picture)?.to_device(&device(&cx.device())?)?;
    let depth = network.forward(&pixels, |done, blocks| {
        let told = cx.progress(number * blocks + done, batch * blocks);
        told.map_err(|_| kosmograph_models::Error::Cancelled)
    });
    let depth = depth.map_err(stopped)?;
    memory::ask("the depth", &[height, width], 2 * size_of::<f32>())?;
    let depth = enlarged(&depth.unsqueeze(1)?, (height, width))?;
    let depth = depth.flatten_all()?.to_vec1::<f32>()?;
    // To the size of a hint as the preprocessors bring theirs, after the levels.
    let levels = levels(&depth);
    let factor = resolution as f64 / height.min(width) as f64;
    let side = |side: usize| ((side as f64 * factor).round_ties_even() as usize).max(1);
    let (to_height, to_width) = (side(height), side(width));
    memory::ask("the hint", &[to_height, to_width, 3], size_of::<f32>() + 2)?;
    let hint = if factor > 1.0 {
        let shape = Shape { batch: 1, height, width, channels: 1 };
        let values: Vec<f32> = levels.iter().map(|level| f32::from(*level)).collect();
        let values = interpolate(&values, shape, (to_height, to_width), Mode::Bicubic)?;
        values.iter().map(|value| value.round_ties_even().clamp(0.0, 255.0) as u8).collect()
    } else {
        area(&levels, (height, width, 1), (to_height, to_width))?
    };
    Ok((to_height, to_width, hint))
}

/// A picture as the network takes it: no side below [`SHORTER`], each a multiple of a patch, by a cubic; normalised.
///
/// # Errors
/// There is no memory.
pub fn pixels(patch: usize, picture: &Levels) -> Result<Candle> {
    let (height, width) = (picture.height, picture.width);
    let (to_height, to_width) = enlarged_size(height, width, patch);
    let shape = Shape { batch: 1, height, width, channels: 3 };
    let values: Vec<f32> = picture.pixels.iter().map(|level| f32::from(*level) / 255.0).collect();
    let values = match (to_height, to_width) == (height, width) {
        true => values,
        false => interpolate(&values, shape, (to_height, to_width), Mode::Bicubic)?,
    };
    planes(|at| values[at], (to_height, to_width), IMAGENET)
}

fn enlarged_size(height: usize, width: usize, patch: usize) -> (usize, usize) {
    let factor = SHORTER as f64 / height.min(width) as f64;
    let side = |side: usize| {
        let wanted = factor * side as f64 / patch as f64;
        let near = wanted.round_ties_even() as usize * patch;
        if near < SHORTER { wanted.ceil() as usize * patch } else { near }
    };
    (side(height), side(width))
}

/// From the farthest, 0, to the nearest, 255, cut off to whole levels; 0 where all is as far.
fn levels(depth: &[f32]) -> Vec<u8> {
    let (low, high) =
        depth.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
    let level = |value: &f32| ((value - low) / (high - low) * 255.0) as u8;
    depth.iter().map(level).collect()
}

/// A model's error; that somebody stopped it is none.
pub fn stopped(error: kosmograph_models::Error) -> Error {
    match error {
        kosmograph_models::Error::Cancelled => Error::Cancelled,
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_side_is_below_the_authors_and_each_is_whole_patches() {
        // By the authors' Resize with lower_bound, multiples of 14.
        for (size, to) in [
            ((518, 518), (518, 518)),
            ((480, 640), (518, 686)),
            ((640, 480), (686, 518)),
            ((64, 100), (518, 812)),
            ((1080, 1920), (518, 924)),
        ] {
            assert_eq!(enlarged_size(size.0, size.1, 14), to, "{size:?}");
        }
    }

    #[test]
    fn levels_go_from_the_farthest_to_the_nearest() {
        assert_eq!(levels(&[1.0, 2.0, 3.0]), [0, 127, 255]);
        assert_eq!(levels(&[4.0, 4.0]), [0, 0]);
    }
}
