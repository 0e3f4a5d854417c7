//! Where models are, by what a person names and by what lies there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{ExtraFolder, FoldersError, KINDS, absolute, existing, extra_paths};

/// Where models are, while it is found out.
#[derive(Default)]
pub(super) struct Models {
    pub roots: Vec<PathBuf>,
    pub extra: Vec<ExtraFolder>,
    /// Folders of input pictures that belong to a root.
    pub input: Vec<PathBuf>,
    /// Files of model paths that were read.
    files: Vec<PathBuf>,
}

impl Models {
    /// What a person names: a folder of models, ComfyUI's own folder, or a file of model paths.
    pub fn given(&mut self, option: &'static str, path: &Path) -> Result<(), FoldersError> {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        if path.is_file() && ["yaml", "yml"].iter().any(|yaml| extension.eq_ignore_ascii_case(yaml))
        {
            return self.file(path);
        }
        let path = existing(option, path)?;
        let inside = path.join("models");
        if inside.is_dir() && !KINDS.iter().any(|kind| path.join(kind).is_dir()) {
            self.input.push(path.join("input"));
            return self.root(inside);
        }
        self.root(path)
    }

    pub fn likely(&mut self, path: &Path) -> Result<(), FoldersError> {
        if path.is_dir() { self.root(absolute(path)) } else { Ok(()) }
    }

    /// A root, and the file of model paths that lies where ComfyUI has it: beside `models`.
    fn root(&mut self, root: PathBuf) -> Result<(), FoldersError> {
        let beside = root.parent().map(|base| base.join(extra_paths::FILE_NAME));
        let is_models = root.file_name() == Some(OsStr::new("models"));
        self.roots.push(root);
        match beside.filter(|file| is_models && file.is_file()) {
            Some(file) => self.file(&file),
            None => Ok(()),
        }
    }

    pub fn file(&mut self, file: &Path) -> Result<(), FoldersError> {
        let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        if !self.files.contains(&real) {
            self.extra.extend(extra_paths::read(file)?);
            self.files.push(real);
        }
        Ok(())
    }
}
