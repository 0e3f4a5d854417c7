//! SaveImageWebsocket: pictures for whoever asked for them, and for no folder.

use std::path::Path;

use node::memory::ask;
use node::{Context, Error, Image, Inputs, Node, Result, json, outputs};

use super::pictures;
use super::preview_image::random_letters;
use crate::encode::write_png;
use crate::levels::to_levels;
use kosmograph_output_files::Series;

/// Sends pictures as PNG over the socket of the client that queued the workflow; none is kept and the history does not name
/// them. Where there is no such client, as under `kosmograph run`, they lie in the folder for temporary files.
#[derive(Inputs)]
#[node(category = "api/image", output_node, impure, writes = "temp")]
pub struct SaveImageWebsocket {
    /// The pictures to send.
    pub images: Image,
}

impl Node for SaveImageWebsocket {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let (shape, values) = pictures(&self.images).map_err(|error| error.of_input("images"))?;
        let root = cx.property("temp_directory").ok_or_else(|| {
            Error::new("the host does not say where its temporary files are (\"temp_directory\")")
        })?;
        let prefix = format!("ComfyUI_websocket_{}", random_letters());
        let mut series = Series::begin(Path::new(&root), &prefix, shape.batch)?;
        for (picture, index) in values.chunks(shape.picture()).zip(cx.steps(shape.batch)) {
            let index = index?;
            ask("the levels of a picture", &[picture.len()], 1)?;
            let levels = to_levels(picture);
            // Without the workflow: whoever asked for the picture knows it.
            let write = |file: &mut dyn std::io::Write| {
                write_png(file, &levels, (shape.width, shape.channels), 1, &[])
            };
            let filename = series.save(index, |_| (), write)?;
            let subfolder = series.subfolder();
            let item = json!({"filename": filename, "subfolder": subfolder, "type": "temp"});
            cx.output(&json!({"sent": [item]}));
        }
        Ok(())
    }
}
