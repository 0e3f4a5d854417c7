//! Files that nodes of this library save, in the folder for output, with the workflow in them.

use std::io::{self, Write};
use std::path::Path;

use kosmograph_output_files::{OutputError, Patterns, Series};
use node::*;

/// Where a file goes.
pub struct Saved<'a> {
    pub root: &'a Path,
    pub prefix: &'a str,
    /// The input that said so.
    pub input: &'static str,
    /// Without its dot.
    pub ending: &'static str,
    /// What the output's event calls such files.
    pub key: &'static str,
}

/// The folder for output.
///
/// # Errors
/// The host does not say where it is.
pub fn root(cx: &Context<'_>) -> Result<String> {
    cx.property("output_directory")
        .ok_or_else(|| Error::new("the host does not say where files go (\"output_directory\")"))
}

/// The workflow in both formats, as far as the host knows them.
pub fn texts(cx: &Context<'_>) -> Vec<(&'static str, String)> {
    let known = |name| cx.property(name).map(|json| (name, json));
    ["prompt", "workflow"].into_iter().filter_map(known).collect()
}

/// Writes one file and tells the host of it.
///
/// # Errors
/// A prefix that leads out of the folder, and what the file system and `write` report.
pub fn save(
    cx: &Context<'_>,
    saved: &Saved<'_>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    // Of what is no picture there is no width.
    let now = kosmograph_output_files::now();
    let prefix = Patterns { width: 0, height: 0, now }.apply(saved.prefix);
    let series = Series::begin(saved.root, &prefix, 1).map_err(|error| match error {
        OutputError::Outside { .. } => Error::at(saved.input, error),
        other => other.into(),
    })?;
    let mut series = series.ending(saved.ending);
    let subfolder = series.subfolder().to_owned();
    let item =
        |filename: &str| json!({"filename": filename, "subfolder": subfolder, "type": "output"});
    let making = |temporary: &str| cx.output(&json!({"making": item(temporary)}));
    let filename = series.save(0, making, write)?;
    cx.output(&json!({saved.key: [item(&filename)]}));
    Ok(())
}
