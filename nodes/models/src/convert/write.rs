//! Writing safetensors tensor by tensor, and results that appear when they are whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::{ConvertError, Renamed, Result};
use crate::files::pickle::TorchFile;

/// A file or a folder under a name of its own until it is finished; it goes if it never is.
pub(super) struct Unfinished {
    output: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// For a file `output`, which is written to [`Self::path`].
    pub fn file(output: &Path) -> Result<Self> {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let path = output.with_file_name(format!(".{name}.{}.unfinished", std::process::id()));
        // Of an earlier process of the same number, which was killed.
        remove(&path);
        Ok(Self { output: output.to_owned(), path, finished: false })
    }

    /// For a folder, which is made now.
    pub fn folder(output: &Path) -> Result<Self> {
        let this = Self::file(output)?;
        this.make_folder("")?;
        Ok(this)
    }

    /// Makes a folder within.
    pub fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let write = |source| ConvertError::Write { path: path.clone(), source };
        std::fs::create_dir_all(&path).map_err(write)?;
        Ok(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, unless something has it meanwhile.
    pub fn finish(mut self) -> Result<()> {
        match self.path.is_dir() {
            true => self.name_folder(),
            false => self.name_file(),
        }
        .map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => {
                ConvertError::Exists(self.output.clone())
            }
            _ => ConvertError::Write { path: self.output.clone(), source },
        })?;
        self.finished = true;
        Ok(())
    }

    fn name_file(&self) -> std::io::Result<()> {
        let written = tempfile::TempPath::try_from_path(&self.path)?;
        Ok(written.persist_noclobber(&self.output)?)
    }

    fn name_folder(&self) -> std::io::Result<()> {
        // Made by us or not at all; what is empty is replaced in one step, and nothing else is.
        std::fs::create_dir(&self.output)?;
        std::fs::rename(&self.path, &self.output).inspect_err(|_| {
            // Where somebody has put something into it, it stays.
            let _ = std::fs::remove_dir(&self.output);
        })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            remove(&self.path);
        }
    }
}

fn remove(path: &Path) {
    // What cannot be removed has a name that nobody takes for a result.
    let _ = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
}

pub(super) fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// Writes `text` as a whole file.
pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    let write = |source| ConvertError::Write { path: path.to_owned(), source };
    std::fs::write(path, text).map_err(write)
}

/// Writes the tensors as the safetensors file `path`, in the types they have. At most one of them is
/// in memory at a time; after each `written` is told its bytes.
pub(super) fn write_safetensors(
    file: &TorchFile,
    tensors: &[Renamed],
    metadata: HashMap<String, String>,
    path: &Path,
    written: &mut dyn FnMut(u64) -> crate::Result<()>,
) -> Result<()> {
    let write = |source| ConvertError::Write { path: path.to_owned(), source };
    let mut order: Vec<(&str, &str, crate::files::pickle::TensorInfo)> = tensors
        .iter()
        .filter_map(|(name, source)| Some((&**name, &**source, file.info(source)?.clone())))
        .collect();
    // As the safetensors library does: wide types first, so that every tensor is aligned.
    order.sort_by(|a, b| b.2.dtype.cmp(&a.2.dtype).then(a.0.cmp(b.0)));
    let mut end = 0;
    let infos = order.iter().map(|(name, _, info)| {
        let start = end;
        end += info.byte_length();
        let (dtype, shape) = (info.dtype, info.shape.clone());
        ((*name).to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let mut metadata = metadata;
    metadata.insert("format".to_owned(), "pt".to_owned());
    let header = Metadata::new(Some(metadata), infos.collect())
        .map_err(std::io::Error::other)
        .and_then(|header| serde_json::to_vec(&header).map_err(std::io::Error::other));
    let mut header = header.map_err(write)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut out = BufWriter::new(File::create_new(path).map_err(write)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(write)?;
    out.write_all(&header).map_err(write)?;
    for (_, source, _) in &order {
        if let Some(data) = file.data(source) {
            // In pieces, so that a large tensor does not hide how far it is.
            for piece in data.chunks(32 << 20) {
                out.write_all(piece).map_err(write)?;
                written(piece.len() as u64)?;
            }
        }
        file.give_back(source);
    }
    let out = out.into_inner().map_err(|error| write(error.into_error()))?;
    // A name stands for a whole file, also after the power fails.
    out.sync_all().map_err(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_meanwhile_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model.safetensors");
        let unfinished = Unfinished::file(&output).unwrap();
        std::fs::write(unfinished.path(), "ours").unwrap();
        std::fs::write(&output, "theirs").unwrap();
        assert!(matches!(unfinished.finish(), Err(ConvertError::Exists(path)) if path == output));
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "theirs");

        // An empty folder is somebody's too.
        let output = folder.path().join("kosmos");
        let unfinished = Unfinished::folder(&output).unwrap();
        std::fs::create_dir(&output).unwrap();
        assert!(matches!(unfinished.finish(), Err(ConvertError::Exists(path)) if path == output));
        assert!(output.read_dir().unwrap().next().is_none());

        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "what is unfinished goes");
    }

    #[test]
    fn what_is_finished_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let unfinished = Unfinished::file(&file).unwrap();
        std::fs::write(unfinished.path(), "ours").unwrap();
        unfinished.finish().unwrap();
        let whole = folder.path().join("kosmos");
        let unfinished = Unfinished::folder(&whole).unwrap();
        write_text(&unfinished.path().join("config.json"), "{}").unwrap();
        unfinished.finish().unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "ours");
        assert_eq!(std::fs::read_to_string(whole.join("config.json")).unwrap(), "{}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
