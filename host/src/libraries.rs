//! Where node libraries are looked for, and what became of each.

use crate::catalogue::Catalogue;
use crate::plugin::Library;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The libraries of this process and what they offer.
#[derive(Debug, Default)]
pub struct Libraries {
    /// Numbered as in the catalogue.
    pub loaded: Vec<Library>,
    pub catalogue: Catalogue,
    pub failed: Vec<FailedLibrary>,
    /// The folders and files that were looked at.
    pub searched: Vec<PathBuf>,
}

/// A library that cannot be used.
#[derive(Debug, serde::Serialize)]
pub struct FailedLibrary {
    pub path: PathBuf,
    /// A sentence that names the file.
    pub reason: String,
}

/// A folder that was named and cannot be searched.
#[derive(Debug, Error)]
pub enum SearchError {
    #[error("{option} {path}: there is no such file or folder")]
    Missing { option: &'static str, path: String },
}

impl Libraries {
    /// Loads what is in the folders `given` (`--plugins`; a library itself will do, too), then in
    /// those of the environment variable KOSMOGRAPH_PLUGINS, then what lies beside the program under
    /// the name of a node library, then in `../lib/kosmograph` from there.
    ///
    /// A library that does not load is no error here: the workflow may not need it.
    ///
    /// # Errors
    /// A place that was named and is not there.
    pub fn find(given: &[PathBuf]) -> Result<Self, SearchError> {
        let mut this = Self::default();
        let mut files = Vec::new();
        for path in given {
            this.named("--plugins", path, &mut files)?;
        }
        if let Some(paths) = std::env::var_os("KOSMOGRAPH_PLUGINS") {
            for path in std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()) {
                this.named("KOSMOGRAPH_PLUGINS", &path, &mut files)?;
            }
        }
        let program = std::env::current_exe().ok();
        let program = program.and_then(|path| path.canonicalize().ok().or(Some(path)));
        if let Some(beside) = program.as_deref().and_then(Path::parent) {
            // Where cargo builds, other libraries and the examples of this one lie about.
            files.extend(shared_libraries(beside).into_iter().filter(|path| is_ours(path)));
            this.searched.push(beside.to_owned());
            let installed = beside.join("../lib/kosmograph");
            if installed.is_dir() {
                files.extend(shared_libraries(&installed));
                this.searched.push(installed);
            }
        }
        let mut seen = Vec::new();
        for path in files {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            if !seen.contains(&real) {
                this.load(&path);
                seen.push(real);
            }
        }
        Ok(this)
    }

    fn named(
        &mut self,
        option: &'static str,
        path: &Path,
        files: &mut Vec<PathBuf>,
    ) -> Result<(), SearchError> {
        if path.is_dir() {
            files.extend(shared_libraries(path));
        } else if path.is_file() {
            files.push(path.to_owned());
        } else {
            return Err(SearchError::Missing { option, path: path.display().to_string() });
        }
        self.searched.push(path.to_owned());
        Ok(())
    }

    fn load(&mut self, path: &Path) {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |reason: String| FailedLibrary { path: absolute.clone(), reason };
        match Library::load(&absolute) {
            Err(error) => self.failed.push(failed(error.to_string())),
            Ok(library) => match self.catalogue.add(&absolute, &library.descriptor) {
                Err(error) => self.failed.push(failed(error.to_string())),
                Ok(number) => {
                    debug_assert_eq!(number, self.loaded.len());
                    self.loaded.push(library);
                }
            },
        }
        tracing::debug!(path = %absolute.display(), loaded = self.loaded.len(), "library");
    }
}

const EXTENSION: &str = std::env::consts::DLL_EXTENSION;

/// The shared libraries of a folder, by name.
fn shared_libraries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let is_library =
        |path: &PathBuf| path.extension() == Some(OsStr::new(EXTENSION)) && path.is_file();
    let mut libraries: Vec<PathBuf> = paths.filter(is_library).collect();
    libraries.sort();
    libraries
}

/// Whether a file beside the program is called as our node libraries are.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let prefix = format!("{}kosmograph_", std::env::consts::DLL_PREFIX);
    // The SDK's derive is a shared library, too: one for the compiler.
    let other = name.contains("_example_") || name.contains("_sdk_derive");
    name.starts_with(&prefix) && !other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_the_program() {
        let name = |stem: &str| {
            let prefix = std::env::consts::DLL_PREFIX;
            PathBuf::from(format!("/bin/{prefix}{stem}.{EXTENSION}"))
        };
        assert!(is_ours(&name("kosmograph_image")));
        assert!(!is_ours(&name("kosmograph_example_invert")));
        assert!(!is_ours(&name("kosmograph_sdk_derive")));
        assert!(!is_ours(&name("serde_derive")));
    }

    #[test]
    fn a_file_that_is_no_library_is_listed_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("libbad.{EXTENSION}"));
        std::fs::write(&path, "not a library").unwrap();
        std::fs::write(folder.path().join("readme.txt"), "").unwrap();
        let found = Libraries::find(&[folder.path().to_owned()]).unwrap();
        let bad: Vec<_> = found.failed.iter().filter(|failed| failed.path == path).collect();
        assert_eq!(bad.len(), 1, "{:?}", found.failed);
        assert!(bad[0].reason.contains("libbad"), "{}", bad[0].reason);
        let missing = Libraries::find(&[folder.path().join("none")]).unwrap_err();
        assert!(missing.to_string().contains("there is no such file or folder"));
    }
}
