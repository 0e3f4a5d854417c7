//! ImageQuantize: pictures in few colours.

use node::memory::ask;
use node::{Context, Error, Image, Inputs, Node, Result, outputs};

use super::{image, pictures};
use crate::levels::{from_levels, to_levels};
use crate::quantize::{Colour, Entries, bayer, diffuse, palette};

/// Shows each picture in a number of colours of its own, chosen by median cut. Dithering mixes them where none is right.
#[derive(Inputs)]
#[node(category = "image/postprocessing")]
pub struct ImageQuantize {
    /// The pictures, of three channels.
    pub image: Image,
    /// How many colours at most.
    #[widget(default = 256, min = 1, max = 256, step = 1)]
    pub colors: u64,
    /// How colours are mixed: not at all, by passing on what is lost, or by a pattern of that many pixels.
    #[widget(default = "none", choices = ["none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"])]
    pub dither: String,
}

impl Node for ImageQuantize {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        if shape.channels != 3 {
            return Err(Error::at(
                "image",
                format!(
                    "colours have three channels, but this picture has {}; SplitImageWithAlpha takes the alpha off",
                    shape.channels
                ),
            ));
        }
        let side = self.dither.strip_prefix("bayer-").and_then(|side| side.parse().ok());
        let mut out = shape.room()?;
        ask("the levels of a picture", &[shape.picture()], 3)?;
        for (picture, step) in values.chunks(shape.picture()).zip(cx.steps(shape.batch)) {
            step?;
            let levels = to_levels(picture);
            let mut pixels: Vec<Colour> = levels.as_chunks().0.to_vec();
            let palette = palette(&pixels, self.colors as usize);
            match (self.dither.as_str(), side) {
                ("floyd-steinberg", _) => diffuse(&mut pixels, shape.width, &palette),
                (_, Some(side)) => ordered(&mut pixels, shape.width, side, &palette),
                _ => nearest(&mut pixels, &palette),
            }
            out.extend(from_levels(pixels.as_flattened()));
        }
        image(shape, out)
    }
}

/// Each pixel in the nearest colour.
fn nearest(pixels: &mut [Colour], palette: &[Colour]) {
    let mut entries = Entries::new(palette);
    pixels.iter_mut().for_each(|pixel| *pixel = entries.nearest(*pixel));
}

/// As [`nearest`], of pixels that a pattern made brighter or darker.
fn ordered(pixels: &mut [Colour], width: usize, side: usize, palette: &[Colour]) {
    let pattern = bayer(side, palette.len());
    for (y, row) in pixels.chunks_mut(width).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let more = pattern[y % side * side + x % side];
            *pixel = pixel.map(|level| (f32::from(level) + more).clamp(0.0, 255.0) as u8);
        }
    }
    nearest(pixels, palette);
}
