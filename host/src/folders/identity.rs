//! What tells one state of a file from another, so that a model that was replaced under its name is
//! another model.

use super::listing::real;
use super::{DEEPEST, MOST_FILES, PathError};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What a file is recognised by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identify {
    /// Its size and the time of its last change in nanoseconds: a plan has no time for gigabytes.
    #[default]
    SizeAndTime,
    /// Its size and what is in it, which is read through: a file that was put back with its old time,
    /// or copied without it, is told from another and recognised as itself.
    Contents,
}

/// What tells one state of a file, or of a folder's files, from another: names, sizes, and what
/// `identify` says. Links are followed.
///
/// # Errors
/// [`PathError::Io`], [`PathError::TooMany`].
pub fn identity(path: &Path, identify: Identify) -> Result<[u8; 16], PathError> {
    let mut files = Vec::new();
    let io = |source| PathError::Io { path: path.display().to_string(), source };
    list_files(path, "", &mut Vec::new(), &mut files).map_err(|error| match error {
        ListError::Io(source) => io(source),
        ListError::TooMany => PathError::TooMany { path: path.display().to_string() },
    })?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, size, changed) in files {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&size.to_le_bytes());
        match identify {
            Identify::SizeAndTime => hasher.update(&changed.to_le_bytes()),
            Identify::Contents => {
                // The file itself has no name in the list.
                let file = path.join(name.trim_start_matches('/'));
                let file = if name.is_empty() { path } else { &file };
                let mut contents = blake3::Hasher::new();
                let read =
                    File::open(file).and_then(|file| contents.update_reader(file).map(|_| ()));
                read.map_err(io)?;
                hasher.update(contents.finalize().as_bytes())
            }
        };
    }
    let mut identity = [0; 16];
    hasher.finalize_xof().fill(&mut identity);
    Ok(identity)
}

enum ListError {
    Io(io::Error),
    TooMany,
}

/// `around` are the real folders that `path` lies in, as it was reached.
fn list_files(
    path: &Path,
    name: &str,
    around: &mut Vec<PathBuf>,
    files: &mut Vec<(String, u64, i128)>,
) -> Result<(), ListError> {
    let metadata = fs::metadata(path).map_err(ListError::Io)?;
    if files.len() >= MOST_FILES || around.len() > DEEPEST {
        return Err(ListError::TooMany);
    }
    if !metadata.is_dir() {
        let changed = match metadata.modified().map_err(ListError::Io)?.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        files.push((name.to_owned(), metadata.len(), changed));
        return Ok(());
    }
    let folder = real(path);
    if around.contains(&folder) {
        // A link back, whose files are listed already.
        return Ok(());
    }
    around.push(folder);
    for entry in fs::read_dir(path).map_err(ListError::Io)? {
        let entry = entry.map_err(ListError::Io)?;
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        match list_files(&entry.path(), &name, around, files) {
            // A link to nowhere inside a model's folder is not the model's.
            Err(ListError::Io(error)) if error.kind() == io::ErrorKind::NotFound => (),
            other => other?,
        }
    }
    around.pop();
    Ok(())
}
