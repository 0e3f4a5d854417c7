//! SaveAnimatedPNG and SaveAnimatedWEBP: a batch of pictures as one animation.

use node::memory::ask;
use node::{Context, Error, Image, Inputs, Node, Result, json, outputs};

use super::pictures;
use super::save_image::{Destination, begin};
use crate::encode::{ascii_json, write_apng};
use crate::levels::to_levels;
use crate::webp;

/// Saves pictures as the frames of one PNG file in the output folder, with the workflow inside. It runs for ever.
#[derive(Inputs)]
#[node(category = "image/animation", output_node, writes = "output")]
pub struct SaveAnimatedPNG {
    /// The frames.
    pub images: Image,
    /// How the file begins; as in SaveImage.
    #[widget(default = "ComfyUI", prefix)]
    pub filename_prefix: String,
    /// Frames in a second.
    #[widget(default = 6.0, min = 0.01, max = 1000.0, step = 0.01)]
    pub fps: f64,
    /// zlib's level, from none to slow.
    #[widget(default = 4, min = 0, max = 9)]
    pub compress_level: u64,
}

impl Node for SaveAnimatedPNG {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let (shape, values) = pictures(&self.images).map_err(|error| error.of_input("images"))?;
        let compression = self.compress_level as u8;
        let to = Destination { property: "output_directory", kind: "output", compression };
        let (series, texts) = begin(cx, (shape, &values), 1, &self.filename_prefix, &to)?;
        ask("the levels of a picture", &[shape.picture()], 1)?;
        let texts: Vec<(&str, &str)> =
            texts.iter().map(|(name, json)| (*name, json.as_str())).collect();
        save(cx, series, &to, |file| {
            let frames = values.chunks(shape.picture()).map(to_levels);
            let size = (shape.width, shape.height, shape.channels);
            let shown = (milliseconds(self.fps), compression);
            write_apng(file, (shape.batch, frames), size, shown, &texts)
        })
    }
}

const METHODS: [&str; 3] = ["default", "fastest", "slowest"];

/// Saves pictures as the frames of one WebP file in the output folder, with the workflow in its EXIF data. It runs for ever, and is always without
/// loss: asked for less, it says so and is larger.
#[derive(Inputs)]
#[node(category = "image/animation", output_node, writes = "output")]
pub struct SaveAnimatedWEBP {
    /// The frames.
    pub images: Image,
    /// How the file begins; as in SaveImage.
    #[widget(default = "ComfyUI", prefix)]
    pub filename_prefix: String,
    /// Frames in a second.
    #[widget(default = 6.0, min = 0.01, max = 1000.0, step = 0.01)]
    pub fps: f64,
    #[widget(default = true)]
    pub lossless: bool,
    /// Of a file with loss: not used.
    #[widget(default = 80, min = 0, max = 100)]
    pub quality: u64,
    /// How hard to look for a small file: not used, there is one way.
    #[widget(default = "default", choices = METHODS)]
    pub method: String,
}

impl Node for SaveAnimatedWEBP {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let (shape, values) = pictures(&self.images).map_err(|error| error.of_input("images"))?;
        if shape.width.max(shape.height) > webp::LONGEST {
            let (width, height, most) = (shape.width, shape.height, webp::LONGEST);
            return Err(Error::at(
                "images",
                format!(
                    "are {width} x {height} pixels, but a WebP file has at most {most} to a side"
                ),
            ));
        }
        if !self.lossless {
            cx.warn(
                "WebP files are saved without loss here: the file is larger than one of this quality",
            );
        }
        let to = Destination { property: "output_directory", kind: "output", compression: 0 };
        let (series, texts) = begin(cx, (shape, &values), 1, &self.filename_prefix, &to)?;
        let texts: Vec<(&str, String)> =
            texts.iter().map(|(name, json)| (*name, ascii_json(json))).collect();
        // All of it is put together before it is written.
        ask("the frames of the animation", &[2, shape.batch, shape.picture()], 1)?;
        save(cx, series.ending("webp"), &to, |file| {
            let frames = values.chunks(shape.picture()).map(to_levels);
            let size = (shape.width, shape.height, shape.channels);
            Ok(webp::write(file, frames, size, milliseconds(self.fps), &texts)?)
        })
    }
}

/// How long a frame is seen.
fn milliseconds(fps: f64) -> u32 {
    (1000.0 / fps) as u32
}

/// Saves the one file of a series and tells of it.
fn save(
    cx: &Context,
    mut series: kosmograph_output_files::Series,
    to: &Destination,
    write: impl FnOnce(&mut dyn std::io::Write) -> Result<(), png::EncodingError>,
) -> Result<()> {
    let subfolder = series.subfolder().to_owned();
    let item =
        |filename: &str| json!({"filename": filename, "subfolder": subfolder, "type": to.kind});
    let filename =
        series.save(0, |temporary| cx.output(&json!({"making": item(temporary)})), write)?;
    cx.output(&json!({"images": [item(&filename)], "animated": [true]}));
    Ok(())
}
