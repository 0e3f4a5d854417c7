//! Where node libraries are looked for, and what became of each.

mod describe;

pub use describe::{answer, answer_of_pack};

use crate::catalogue::{Catalogue, LibraryEntry};
use crate::plugin::Library;
use crate::python::Packs;
use describe::{Store, describe, describe_pack};
use serde_json::Value as Json;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The libraries that were found and what they offer. None of them is loaded into this process:
/// each was asked in one of its own, now or at an earlier start.
#[derive(Debug, Default)]
pub struct Libraries {
    pub catalogue: Catalogue,
    pub failed: Vec<FailedLibrary>,
    /// The folders and files that were looked at.
    pub searched: Vec<PathBuf>,
}

/// What the process may touch in which a library is asked what it offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// All that this one may.
    Freely,
    /// What a confined worker may, but for models and pictures; it writes nothing.
    Confined,
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
    /// Asks what is in the folders `given` (`--plugins`; a library itself will do, too), then in
    /// those of the environment variable KOSMOGRAPH_PLUGINS, then what lies beside the program under
    /// the name of a node library, then in `../lib/kosmograph` from there.
    ///
    /// A library that cannot be used is no error here: the workflow may not need it.
    ///
    /// # Errors
    /// A place that was named and is not there.
    pub fn find(given: &[PathBuf]) -> Result<Self, SearchError> {
        Self::asked(given, Asked::Freely)
    }

    /// As [`Self::find`]; a library that was not asked before is asked as `asked` says.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn asked(given: &[PathBuf], asked: Asked) -> Result<Self, SearchError> {
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
        files.retain(|path| {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            let new = !seen.contains(&real);
            seen.push(real);
            new
        });
        for (path, descriptor) in described(files, asked) {
            this.add(path, descriptor);
        }
        Ok(this)
    }

    /// Adds packs of nodes in Python, behind the libraries: of two with one class the first is used. One that cannot
    /// be used is no error here.
    pub fn add_packs(&mut self, packs: &Packs, asked: Asked) {
        let store = Store::of_user();
        let store = store.as_ref();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let asks: Vec<_> = packs
                .0
                .iter()
                .map(|pack| {
                    let ask = move || describe_pack(pack, store, asked);
                    std::thread::Builder::new().name("describe".to_owned()).spawn_scoped(scope, ask)
                })
                .collect();
            let asks = packs.0.iter().zip(asks).map(|(pack, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("asking panicked".to_owned())),
                // No thread can be had: one after the other, then.
                Err(_) => describe_pack(pack, store, asked),
            });
            asks.collect()
        });
        for (pack, answer) in packs.0.iter().zip(answers) {
            let added = answer.and_then(|descriptor| {
                self.catalogue.add_pack(pack, &descriptor).map_err(|error| error.to_string())
            });
            if let Err(reason) = added {
                self.failed.push(FailedLibrary { path: pack.path.clone(), reason });
            }
            self.searched.push(pack.path.clone());
        }
    }

    /// Loads all of them into this process, which a library may take with it: numbered as in the
    /// catalogue.
    ///
    /// # Errors
    /// A sentence about the first that cannot be loaded, or is another one by now.
    pub fn load(&self) -> Result<Vec<Library>, String> {
        let load =
            |entry: &LibraryEntry| Library::load(&entry.path).map_err(|error| error.to_string());
        self.catalogue.libraries().iter().map(load).collect()
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

    fn add(&mut self, path: PathBuf, descriptor: Result<Json, String>) {
        let added = descriptor.and_then(|descriptor| {
            self.catalogue.add(&path, &descriptor).map_err(|error| error.to_string())
        });
        tracing::debug!(path = %path.display(), usable = added.is_ok(), "library");
        if let Err(reason) = added {
            self.failed.push(FailedLibrary { path, reason });
        }
    }
}

/// Each file, as an absolute path, and what it says of itself. Those that have to be asked are asked
/// side by side: one that hangs costs its own time and not the others'.
fn described(files: Vec<PathBuf>, asked: Asked) -> Vec<(PathBuf, Result<Json, String>)> {
    let store = Store::of_user();
    let (store, mut answers) = (store.as_ref(), Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .into_iter()
            .map(|path| {
                let path = std::path::absolute(&path).unwrap_or(path);
                let of_thread = path.clone();
                let name = "describe".to_owned();
                let ask = move || describe(&of_thread, store, asked);
                (path, std::thread::Builder::new().name(name).spawn_scoped(scope, ask))
            })
            .collect();
        for (path, thread) in threads {
            let answer = match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("asking panicked".to_owned())),
                // No thread can be had: one after the other, then.
                Err(_) => describe(&path, store, asked),
            };
            answers.push((path, answer));
        }
    });
    answers
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
    fn a_place_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Libraries::find(&[folder.path().join("none")]).unwrap_err();
        assert!(missing.to_string().contains("there is no such file or folder"));
    }
}
