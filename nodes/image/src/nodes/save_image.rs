//! SaveImage: pictures as PNG files that carry the workflow which drew them.

use std::path::Path;

use node::memory::ask;
use node::{Context, Error, Image, Inputs, Node, Result, json, outputs};

use super::pictures;
use crate::encode::write_png;
use crate::levels::to_levels;
use kosmograph_output_files::{OutputError, Patterns, Series};
use kosmograph_pixels::Shape;

/// Saves pictures as PNG files in the output folder, named prefix_00001_.png and counting on, with the workflow inside each: such a file
/// can be run again and draws the same picture. The pictures are passed on.
#[derive(Inputs)]
#[node(category = "image", output_node, writes = "output")]
pub struct SaveImage {
    /// The pictures to save.
    pub images: Image,
    /// How the files begin. May name sub-folders and hold %width%, %height%, %year%, %month%, %day%, %hour%, %minute%, %second%,
    /// %batch_num% and %date:yyyy-MM-dd%.
    #[widget(default = "ComfyUI", prefix)]
    pub filename_prefix: String,
}

impl Node for SaveImage {
    outputs![images: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let to = Destination { property: "output_directory", kind: "output", compression: 4 };
        save_pictures(cx, &self.images, &self.filename_prefix, &to)?;
        Ok(self.images)
    }
}

/// Where pictures are saved and how.
pub(super) struct Destination {
    /// The context's property that names the folder.
    pub property: &'static str,
    /// What the output's event calls the folder.
    pub kind: &'static str,
    /// zlib's level.
    pub compression: u8,
}

/// Saves each picture and tells the host of it: what comes after it may fail, and it is there.
pub(super) fn save_pictures(
    cx: &Context,
    images: &Image,
    prefix: &str,
    to: &Destination,
) -> Result<()> {
    let (shape, values) = pictures(images).map_err(|error| error.of_input("images"))?;
    let (mut series, texts) = begin(cx, (shape, &values), shape.batch, prefix, to)?;
    let texts: Vec<(&str, &str)> =
        texts.iter().map(|(name, json)| (*name, json.as_str())).collect();
    for (picture, index) in values.chunks(shape.picture()).zip(cx.steps(shape.batch)) {
        let index = index?;
        ask("the levels of a picture", &[picture.len()], 1)?;
        let levels = to_levels(picture);
        let subfolder = series.subfolder().to_owned();
        let item =
            |filename: &str| json!({"filename": filename, "subfolder": subfolder, "type": to.kind});
        let filename = series.save(
            index,
            // Should the process end between the file's renaming and the word about it, the host finds it.
            |temporary| cx.output(&json!({"making": item(temporary)})),
            |file| write_png(file, &levels, (shape.width, shape.channels), to.compression, &texts),
        )?;
        cx.output(&json!({"images": [item(&filename)]}));
    }
    Ok(())
}

/// A series of `files` files for pictures, and the texts that go into each: the workflow in both formats, as far as the host knows them.
pub(super) fn begin(
    cx: &Context,
    (shape, values): (Shape, &[f32]),
    files: usize,
    prefix: &str,
    to: &Destination,
) -> Result<(Series, Vec<(&'static str, String)>)> {
    let root = cx.property(to.property).ok_or_else(|| {
        Error::new(format!("the host does not say where pictures go (\"{}\")", to.property))
    })?;
    let not_numbers = values.iter().filter(|value| value.is_nan()).count();
    if not_numbers > 0 {
        cx.warn(format!(
            "{not_numbers} of the picture's {} values are not numbers (NaN) and are saved as black",
            values.len()
        ));
    }
    let texts = ["prompt", "workflow"]
        .into_iter()
        .filter_map(|name| cx.property(name).map(|json| (name, json)))
        .collect();
    let now = kosmograph_output_files::now();
    let patterns = Patterns { width: shape.width, height: shape.height, now };
    let series = Series::begin(Path::new(&root), &patterns.apply(prefix), files);
    let series = series.map_err(|error| match error {
        OutputError::Outside { .. } => Error::at("filename_prefix", error),
        other => other.into(),
    })?;
    Ok((series, texts))
}
