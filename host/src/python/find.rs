//! From `--python-nodes DIR` to packs, and from `--python PATH` to what that interpreter is.

use super::PythonPack;
use crate::folders::Folders;
use serde::Deserialize;
use serde_json::{Map, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thiserror::Error;

/// Most files of a pack that are looked at.
const MOST_FILES: usize = 20_000;
/// How deep folders of a pack are looked into.
const DEEPEST: usize = 12;
/// The largest file whose contents are hashed, in bytes; of larger ones size and time of change are.
const LARGEST: u64 = 4 << 20;

/// Asks an interpreter what it is, in any version of Python.
const ASK: &str = "import json,os,sys\n\
    where = [sys.prefix, sys.exec_prefix, getattr(sys, 'base_prefix', sys.prefix), getattr(sys, 'base_exec_prefix', sys.prefix)]\n\
    where += [p for p in sys.path if p and os.path.isdir(p)] + [os.path.realpath(sys.executable)]\n\
    print(json.dumps({'program': sys.executable, 'version': list(sys.version_info[:2]), 'reads': where}))";

/// Why packs cannot be used, as sentences.
#[derive(Debug, Error)]
pub enum PacksError {
    #[error("--python-nodes {}: there is no such file or folder", .0.display())]
    Missing(PathBuf),
    #[error(
        "--python-nodes {}: there is no pack of nodes in it; a pack is a folder with an __init__.py, or a file NAME.py",
        .0.display()
    )]
    None(PathBuf),
    #[error("--python {}: it cannot be started: {reason}", program.display())]
    Interpreter { program: PathBuf, reason: String },
    #[error("--python {}: it is Python {major}.{minor}; 3.9 or later is needed", program.display())]
    Old { program: PathBuf, major: u32, minor: u32 },
    #[error("--python-nodes: nodes in Python need Linux")]
    System,
}

/// Packs that were found, each with the interpreter that runs it.
#[derive(Clone, Debug, Default)]
pub struct Packs(pub Vec<PythonPack>);

#[derive(Deserialize)]
struct Interpreter {
    program: PathBuf,
    version: (u32, u32),
    reads: Vec<PathBuf>,
}

impl Packs {
    /// The packs in the folders `given`: a pack itself, or a folder of packs. `python` is the interpreter.
    ///
    /// # Errors
    /// A folder is not there or has no pack, or the interpreter cannot be started or is too old.
    pub fn find(given: &[PathBuf], python: &Path, folders: &Folders) -> Result<Self, PacksError> {
        if given.is_empty() {
            return Ok(Self::default());
        }
        if !cfg!(target_os = "linux") {
            return Err(PacksError::System);
        }
        let mut paths: Vec<PathBuf> = Vec::new();
        for given in given {
            let Ok(path) = given.canonicalize() else {
                return Err(PacksError::Missing(given.clone()));
            };
            let found = packs_in(&path);
            if found.is_empty() {
                return Err(PacksError::None(given.clone()));
            }
            // The same pack by two ways is one.
            for path in found {
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        let Interpreter { program, version: (major, minor), reads } = ask(python)?;
        if (major, minor) < (3, 9) {
            return Err(PacksError::Old { program: python.to_owned(), major, minor });
        }
        let folders = told(folders);
        let pack = |path: PathBuf| PythonPack {
            program: program.clone(),
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            version: hash(&path),
            path,
            folders: folders.clone(),
            reads: reads.clone(),
        };
        Ok(Self(paths.into_iter().map(pack).collect()))
    }
}

/// `path` itself where it is a pack, else the packs in it, by name.
fn packs_in(path: &Path) -> Vec<PathBuf> {
    let is_file =
        |path: &Path| path.extension().is_some_and(|extension| extension == "py") && path.is_file();
    if is_file(path) || path.join("__init__.py").is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_pack = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_hidden = name.starts_with(['.', '_']) || name.ends_with(".disabled");
        !is_hidden && (is_file(path) || path.join("__init__.py").is_file())
    };
    let mut packs: Vec<PathBuf> =
        entries.filter(is_pack).filter_map(|path| path.canonicalize().ok()).collect();
    packs.sort();
    packs
}

fn ask(python: &Path) -> Result<Interpreter, PacksError> {
    let failed = |reason: String| PacksError::Interpreter { program: python.to_owned(), reason };
    let mut command = Command::new(python);
    command.args(["-c", ASK]).stdin(Stdio::null());
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let answer = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    answer.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.lines().last().unwrap_or("it does not answer as Python does");
        failed(last.to_owned())
    })
}

/// The folders as `folder_paths` has them: of a kind those that are for it alone, not the roots around them.
fn told(folders: &Folders) -> String {
    let places = |kind| -> Vec<PathBuf> {
        let places = folders.places_of(kind).into_iter();
        places.filter(|place| !folders.models.contains(place)).collect()
    };
    let kinds: Map<String, serde_json::Value> =
        Folders::kinds().map(|kind| (kind.to_owned(), json!(places(kind)))).collect();
    json!({"models": folders.models, "input": folders.input, "output": folders.output,
        "temp": folders.temp, "kinds": kinds})
    .to_string()
}

/// Tells one state of a pack's files from another.
pub(super) fn hash(pack: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut left = MOST_FILES;
    add(pack, Path::new(""), 0, &mut left, &mut hasher);
    hasher.finalize().to_hex()[..16].to_owned()
}

fn add(path: &Path, name: &Path, depth: usize, left: &mut usize, hasher: &mut blake3::Hasher) {
    let Some(fewer) = left.checked_sub(1) else { return };
    *left = fewer;
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.is_dir() {
        if depth > DEEPEST {
            return;
        }
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        for entry in names {
            let text = entry.to_string_lossy();
            // What Python and git keep for themselves.
            if text != "__pycache__" && !text.starts_with('.') {
                add(&path.join(&entry), &name.join(&entry), depth + 1, left, hasher);
            }
        }
        return;
    }
    hasher.update(name.as_os_str().as_encoded_bytes());
    hasher.update(&[0]);
    hasher.update(&metadata.size().to_le_bytes());
    match metadata.is_file() && metadata.size() <= LARGEST {
        true => {
            hasher.update(blake3::hash(&fs::read(path).unwrap_or_default()).as_bytes());
        }
        false => {
            hasher.update(&metadata.mtime().to_le_bytes());
            hasher.update(&metadata.mtime_nsec().to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_folders_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one", "two.disabled", "not", ".git"] {
            fs::create_dir(path(name)).unwrap();
        }
        for name in
            ["one/__init__.py", "two.disabled/__init__.py", "three.py", "_four.py", "readme.md"]
        {
            fs::write(path(name), "").unwrap();
        }
        let names = |path: &Path| -> Vec<String> {
            let packs = packs_in(path);
            packs
                .iter()
                .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(folder.path()), ["one", "three.py"]);
        assert_eq!(names(&path("one")), ["one"]);
        assert_eq!(names(&path("three.py")), ["three.py"]);
        assert!(names(&path("not")).is_empty());
    }

    #[test]
    fn a_changed_file_is_another_pack() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("__init__.py");
        fs::write(&file, "a = 1").unwrap();
        let before = hash(folder.path());
        fs::create_dir(folder.path().join("__pycache__")).unwrap();
        fs::write(folder.path().join("__pycache__/x.pyc"), "x").unwrap();
        assert_eq!(hash(folder.path()), before);
        fs::write(&file, "a = 2").unwrap();
        assert_ne!(hash(folder.path()), before);
    }

    #[test]
    fn what_is_no_interpreter_is_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.py"), "").unwrap();
        let find = |python: &str| {
            let given = [folder.path().to_owned()];
            Packs::find(&given, Path::new(python), &Folders::default()).unwrap_err().to_string()
        };
        assert!(find("/no/python").starts_with("--python /no/python: it cannot be started: "));
        assert!(find("true").contains("does not answer as Python does"));
        let missing = Packs::find(&["none".into()], Path::new("true"), &Folders::default());
        assert!(missing.unwrap_err().to_string().contains("no such file or folder"));
    }
}
