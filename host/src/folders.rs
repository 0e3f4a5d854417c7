//! Where the files that a workflow names are: models, input pictures, what was saved.
//!
//! A workflow may come from anybody, so a name in one stays inside its root: no absolute path, no
//! `..`, no symbolic link that leads out. What the person types on the command line is the person's
//! own and may be any path.

use crate::graph::Origin;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;
use thiserror::Error;

/// What a path is wanted to be, the descriptor's `entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    File,
    Directory,
    Any,
}

impl Entry {
    fn wanted(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a folder",
            Self::Any => "a file or folder",
        }
    }

    fn fits(self, metadata: &fs::Metadata) -> bool {
        match self {
            Self::File => metadata.is_file(),
            Self::Directory => metadata.is_dir(),
            Self::Any => metadata.is_file() || metadata.is_dir(),
        }
    }
}

/// Folders of models that have two names in ComfyUI.
const ALIASES: &[&[&str]] = &[&["text_encoders", "clip"], &["diffusion_models", "unet"]];

/// The kinds of models that are folders of a models root; what else is in a root is looked
/// through for every kind.
const KINDS: &[&str] = &[
    "checkpoints",
    "clip",
    "clip_vision",
    "configs",
    "controlnet",
    "diffusers",
    "diffusion_models",
    "embeddings",
    "gligen",
    "hypernetworks",
    "kosmos",
    "loras",
    "photomaker",
    "style_models",
    "text_encoders",
    "unet",
    "upscale_models",
    "vae",
    "vae_approx",
];

/// Files that are offered as a model's name, by extension.
const MODEL_FILES: &[&str] = &["safetensors", "sft", "ckpt", "pt", "pth", "bin"];
/// What may be left out at the end of a name in a text, ComfyUI's order.
const EXTENSIONS_LEFT_OUT: &[&str] = &["safetensors", "pt", "bin"];
/// Files that are offered as a picture's name.
const PICTURE_FILES: &[&str] = &["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"];

/// Most files a folder may hold that is given as a model, and most that are looked at for names.
const MOST_FILES: usize = 10_000;
const DEEPEST: usize = 8;

/// The folders of one run. All paths are absolute.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Models roots, the first ones first.
    pub models: Vec<PathBuf>,
    pub input: Vec<PathBuf>,
    /// Where output nodes write; it need not exist yet.
    pub output: PathBuf,
    /// Where previews are written; it need not exist yet.
    pub temp: PathBuf,
}

/// What the command line says about folders.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    pub models: &'a [PathBuf],
    pub input: Option<&'a Path>,
    pub output: Option<&'a Path>,
    /// The folder the workflow file is in.
    pub workflow: Option<&'a Path>,
}

/// Why a name leads to no file.
#[derive(Debug, Error)]
pub enum PathError {
    #[error("names no file")]
    Empty,
    #[error(
        "\"{name}\" leads out of the folders a workflow may read; put the file in {place}, or give \
         its path on the command line with --set"
    )]
    Escapes { name: String, place: String },
    #[error("\"{name}\" is {found}; {wanted} is wanted", wanted = wanted.wanted())]
    WrongEntry { name: String, found: &'static str, wanted: Entry },
    #[error("there is no \"{name}\" in {searched}")]
    Missing { name: String, searched: String },
    #[error("there is no \"{name}\": no folder of this kind was found; {hint}")]
    NoFolder { name: String, hint: &'static str },
    #[error("{path}: cannot be read: {source}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path}: holds more than {MOST_FILES} files, or folders more than {DEEPEST} deep; that is no model's folder"
    )]
    TooMany { path: String },
}

/// A folder the command line names that is not there.
#[derive(Debug, Error)]
#[error("{option} {path}: there is no such folder")]
pub struct MissingFolder {
    pub option: &'static str,
    pub path: String,
}

impl Folders {
    /// The folders given, then those found: see `kosmograph run --help`.
    ///
    /// # Errors
    /// A folder that was given and is not there; output folders are made when they are needed.
    pub fn find(given: Given) -> Result<Self, MissingFolder> {
        let mut models = Vec::new();
        for path in given.models {
            models.push(existing("--models", path)?);
        }
        if let Some(paths) = std::env::var_os("KOSMOGRAPH_MODELS") {
            for path in std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()) {
                models.push(existing("KOSMOGRAPH_MODELS", &path)?);
            }
        }
        let mut likely = vec![PathBuf::from("models")];
        likely.extend(given.workflow.map(|folder| folder.join("../models")));
        if let Ok(program) = std::env::current_exe() {
            likely.extend(program.ancestors().skip(1).map(|folder| folder.join("models")));
        }
        models.extend(likely.iter().filter(|path| path.is_dir()).map(|path| absolute(path)));
        without_repeats(&mut models);

        let mut input = Vec::new();
        if let Some(path) = given.input {
            input.push(existing("--input", path)?);
        } else {
            let beside = given.workflow.map(|folder| folder.join("input"));
            let likely = [Some("input".into()), beside, given.workflow.map(Path::to_owned)];
            let found = likely.iter().flatten().filter(|path| path.is_dir());
            input.extend(found.map(|path| absolute(path)));
            without_repeats(&mut input);
        }
        let output = absolute(given.output.unwrap_or(Path::new("output")));
        Ok(Self { models, input, output, temp: absolute(Path::new("temp")) })
    }

    /// The absolute path of what is called `name` in the folders of kind `folder`.
    ///
    /// In a folder of models, `name` is looked for in `ROOT/folder`, in the folder's other name, and
    /// in `ROOT` itself, for each root. A picture's name may end in ` [output]`, ` [input]` or
    /// ` [temp]`, which says in which folder it is. From the command line, what is a path from the
    /// current directory is that path.
    ///
    /// # Errors
    /// [`PathError`]; see [`Folders::names`] for what there is instead.
    pub fn resolve(
        &self,
        folder: &str,
        entry: Entry,
        name: &str,
        origin: Origin,
    ) -> Result<PathBuf, PathError> {
        if name.is_empty() {
            return Err(PathError::Empty);
        }
        if origin == Origin::CommandLine
            && let Ok(metadata) = fs::metadata(name)
        {
            check_entry(name, entry, &metadata)?;
            return Ok(absolute(Path::new(name)));
        }
        let (plain, folder) = annotated(name, folder);
        let bases = self.bases(folder);
        let searched = places(bases.iter().map(|(_, base)| base.as_path()));
        // Workflows written on Windows have backslashes in their names.
        let relative = PathBuf::from(plain.replace('\\', "/"));
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        let escapes = || PathError::Escapes { name: name.to_owned(), place: searched.clone() };
        if plain.contains('\0') || !relative.components().all(inside) {
            return Err(escapes());
        }
        if bases.is_empty() {
            let hint = match folder {
                "input" => "say where it is with --input DIR",
                "output" | "temp" => "nothing was written there yet",
                _ => "say where the models are with --models DIR",
            };
            return Err(PathError::NoFolder { name: name.to_owned(), hint });
        }
        let mut wrong_entry = None;
        for (root, base) in &bases {
            let path = base.join(&relative);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let real = |path: &Path| {
                let io = |source| PathError::Io { path: path.display().to_string(), source };
                path.canonicalize().map_err(io)
            };
            if !real(&path)?.starts_with(real(root)?) {
                return Err(escapes());
            }
            match check_entry(name, entry, &metadata) {
                Ok(()) => return Ok(path),
                Err(error) => wrong_entry = Some(error),
            }
        }
        Err(wrong_entry.unwrap_or(PathError::Missing { name: name.to_owned(), searched }))
    }

    /// The file of `folder` that a text means by `name`: as [`Folders::resolve`], and the extension
    /// may be left out.
    ///
    /// # Errors
    /// [`PathError`], for the name as it is.
    pub fn resolve_mention(&self, folder: &str, name: &str) -> Result<PathBuf, PathError> {
        let find = |name: &str| self.resolve(folder, Entry::File, name, Origin::File);
        let plain = find(name);
        if plain.is_ok() {
            return plain;
        }
        let with = |extension: &&str| find(&format!("{name}.{extension}")).ok();
        EXTENSIONS_LEFT_OUT.iter().find_map(with).map_or(plain, Ok)
    }

    /// The names that [`Folders::resolve`] would find: files, and folders that hold a model's
    /// `config.json` or `model_index.json`. Sorted. Pictures in folders below are not offered, as in
    /// ComfyUI, though they are found: the folder of pictures may be anybody's home.
    pub fn names(&self, folder: &str, entry: Entry) -> Vec<String> {
        let pictures = matches!(folder, "input" | "output" | "temp");
        let (files, deepest) = if pictures { (PICTURE_FILES, 1) } else { (MODEL_FILES, DEEPEST) };
        let mut names = Vec::new();
        let mut left = MOST_FILES;
        for (root, base) in self.bases(folder) {
            let walk = Walk { entry, files, deepest, skip: if root == base { KINDS } else { &[] } };
            walk.folder(&base, "", 0, &mut names, &mut left);
        }
        names.sort();
        names.dedup();
        names
    }

    /// Pairs of a root, which must not be left, and the folder in it where names are looked for.
    fn bases(&self, folder: &str) -> Vec<(PathBuf, PathBuf)> {
        let itself = |path: &PathBuf| (path.clone(), path.clone());
        let mut bases = match folder {
            "input" => self.input.iter().map(itself).collect(),
            "output" => vec![itself(&self.output)],
            "temp" => vec![itself(&self.temp)],
            _ => {
                let same = [folder];
                let aliases = ALIASES.iter().find(|names| names.contains(&folder));
                let aliases = aliases.copied().unwrap_or(&same);
                let others = aliases.iter().copied().filter(|name| *name != folder);
                let kinds: Vec<&str> = std::iter::once(folder).chain(others).collect();
                let of_root = |root: &PathBuf| {
                    let kinds = kinds.iter().map(|kind| (root.clone(), root.join(kind)));
                    kinds.chain([itself(root)]).collect::<Vec<_>>()
                };
                self.models.iter().flat_map(of_root).collect()
            }
        };
        bases.retain(|(_, base)| base.is_dir());
        bases
    }
}

fn existing(option: &'static str, path: &Path) -> Result<PathBuf, MissingFolder> {
    if path.is_dir() {
        return Ok(absolute(path));
    }
    Err(MissingFolder { option, path: path.display().to_string() })
}

/// Fails only for an empty path or without a current directory, where the path itself is as good.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn without_repeats(paths: &mut Vec<PathBuf>) {
    let mut seen = Vec::new();
    paths.retain(|path| {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        let new = !seen.contains(&real);
        seen.push(real);
        new
    });
}

/// ComfyUI's `file.png [output]`: the name and the folder it says.
fn annotated<'a>(name: &'a str, folder: &'a str) -> (&'a str, &'a str) {
    if folder == "input" {
        for place in ["input", "output", "temp"] {
            let plain = name.strip_suffix(']').and_then(|name| name.strip_suffix(place));
            if let Some(plain) = plain.and_then(|name| name.strip_suffix(" [")) {
                return (plain, place);
            }
        }
    }
    (name, folder)
}

fn places<'a>(paths: impl Iterator<Item = &'a Path>) -> String {
    let list: Vec<String> = paths.map(|path| path.display().to_string()).collect();
    if list.is_empty() { "its folder".to_owned() } else { list.join(", ") }
}

fn check_entry(name: &str, wanted: Entry, metadata: &fs::Metadata) -> Result<(), PathError> {
    if wanted.fits(metadata) {
        return Ok(());
    }
    let found = match metadata {
        metadata if metadata.is_dir() => "a folder",
        metadata if metadata.is_file() => "a file",
        _ => "neither a file nor a folder",
    };
    Err(PathError::WrongEntry { name: name.to_owned(), found, wanted })
}

struct Walk {
    entry: Entry,
    files: &'static [&'static str],
    deepest: usize,
    /// Folders that are not entered at the top.
    skip: &'static [&'static str],
}

impl Walk {
    /// `left` is how many entries may still be looked at.
    fn folder(
        &self,
        path: &Path,
        prefix: &str,
        depth: usize,
        names: &mut Vec<String>,
        left: &mut usize,
    ) {
        let Ok(entries) = fs::read_dir(path) else { return };
        let is_model = depth > 0 && is_model_folder(path);
        for entry in entries.flatten() {
            let Some(fewer) = left.checked_sub(1) else { return };
            *left = fewer;
            // A name that is not UTF-8 cannot be written in a workflow.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if name.starts_with('.') {
                continue;
            }
            let full = format!("{prefix}{name}");
            if metadata.is_dir() {
                if depth == 0 && self.skip.contains(&name.as_str()) {
                    continue;
                }
                if self.entry != Entry::File && is_model_folder(&path) {
                    names.push(full.clone());
                }
                if depth + 1 < self.deepest {
                    self.folder(&path, &format!("{full}/"), depth + 1, names, left);
                }
            } else if self.entry != Entry::Directory && !is_model {
                let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
                if self.files.iter().any(|known| known.eq_ignore_ascii_case(extension)) {
                    names.push(full);
                }
            }
        }
    }
}

fn is_model_folder(path: &Path) -> bool {
    path.join("config.json").is_file() || path.join("model_index.json").is_file()
}

/// What tells one state of a file, or of a folder's files, from another: names, sizes and the time
/// of the last change in nanoseconds. The contents are not read: a check has no time for gigabytes.
///
/// # Errors
/// [`PathError::Io`], [`PathError::TooMany`].
pub fn identity(path: &Path) -> Result<[u8; 16], PathError> {
    let mut files = Vec::new();
    list_files(path, "", 0, &mut files).map_err(|error| match error {
        ListError::Io(source) => PathError::Io { path: path.display().to_string(), source },
        ListError::TooMany => PathError::TooMany { path: path.display().to_string() },
    })?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, size, changed) in files {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&size.to_le_bytes());
        hasher.update(&changed.to_le_bytes());
    }
    let mut identity = [0; 16];
    hasher.finalize_xof().fill(&mut identity);
    Ok(identity)
}

enum ListError {
    Io(io::Error),
    TooMany,
}

fn list_files(
    path: &Path,
    name: &str,
    depth: usize,
    files: &mut Vec<(String, u64, i128)>,
) -> Result<(), ListError> {
    let metadata = fs::metadata(path).map_err(ListError::Io)?;
    if files.len() >= MOST_FILES || depth > DEEPEST {
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
    for entry in fs::read_dir(path).map_err(ListError::Io)? {
        let entry = entry.map_err(ListError::Io)?;
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        match list_files(&entry.path(), &name, depth + 1, files) {
            // A link to nowhere inside a model's folder is not the model's.
            Err(ListError::Io(error)) if error.kind() == io::ErrorKind::NotFound => (),
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Place {
        folder: tempfile::TempDir,
        folders: Folders,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in ["models/checkpoints/sub", "models/clip", "models/tiny/sd/unet", "in", "out"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in [
            "models/checkpoints/sub/a.safetensors",
            "models/clip/c.safetensors",
            "models/tiny/sd/model_index.json",
            "models/tiny/sd/unet/config.json",
            "models/tiny/sd/unet/diffusion_pytorch_model.safetensors",
            "in/cat.png",
            "in/notes.txt",
            "out/made.png",
            "secret.png",
        ] {
            fs::write(root.join(path), path).unwrap();
        }
        let folders = Folders {
            models: vec![root.join("models")],
            input: vec![root.join("in")],
            output: root.join("out"),
            temp: root.join("temp"),
        };
        Place { folder, folders }
    }

    impl Place {
        fn find(&self, folder: &str, name: &str) -> Result<String, String> {
            let found = self.folders.resolve(folder, Entry::Any, name, Origin::File);
            let inside = |path: PathBuf| {
                path.strip_prefix(self.folder.path()).unwrap().display().to_string()
            };
            found.map(inside).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn names_are_found_by_kind_alias_and_root() {
        let place = place();
        let found = |folder, name| place.find(folder, name).unwrap();
        let a = "models/checkpoints/sub/a.safetensors";
        assert_eq!(found("checkpoints", "sub/a.safetensors"), a);
        assert_eq!(found("checkpoints", "sub\\a.safetensors"), a);
        assert_eq!(found("text_encoders", "c.safetensors"), "models/clip/c.safetensors");
        assert_eq!(found("clip", "c.safetensors"), "models/clip/c.safetensors");
        assert_eq!(found("checkpoints", "tiny/sd"), "models/tiny/sd");
        assert_eq!(found("input", "cat.png"), "in/cat.png");
        assert_eq!(found("input", "made.png [output]"), "out/made.png");
        let missing = place.find("input", "x.png [temp]").unwrap_err();
        assert!(missing.contains("nothing was written there"), "{missing}");
    }

    #[test]
    fn a_workflow_stays_inside_its_folders() {
        let place = place();
        let secret = place.folder.path().join("secret.png");
        for name in
            ["../secret.png", "a/../../secret.png", secret.to_str().unwrap(), "a\0b", "..\\x"]
        {
            let sentence = place.find("input", name).unwrap_err();
            assert!(sentence.contains("leads out"), "{sentence}");
        }
        let given = place.folders.resolve(
            "input",
            Entry::File,
            secret.to_str().unwrap(),
            Origin::CommandLine,
        );
        assert_eq!(given.unwrap(), secret);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_out_is_refused() {
        let place = place();
        let root = place.folder.path();
        std::os::unix::fs::symlink(root.join("secret.png"), root.join("in/link.png")).unwrap();
        std::os::unix::fs::symlink(root.join("in/cat.png"), root.join("in/fine.png")).unwrap();
        assert!(place.find("input", "link.png").unwrap_err().contains("leads out"));
        assert_eq!(place.find("input", "fine.png").unwrap(), "in/fine.png");
    }

    #[test]
    fn what_is_there_is_offered() {
        let folders = place();
        fs::create_dir(folders.folder.path().join("in/below")).unwrap();
        fs::write(folders.folder.path().join("in/below/dog.png"), "").unwrap();
        let names = |folder, entry| folders.folders.names(folder, entry);
        assert_eq!(names("input", Entry::File), ["cat.png"]);
        assert_eq!(
            names("checkpoints", Entry::Any),
            ["sub/a.safetensors", "tiny/sd", "tiny/sd/unet"]
        );
        assert_eq!(names("clip", Entry::File), ["c.safetensors"]);
        assert_eq!(names("vae", Entry::Directory), ["tiny/sd", "tiny/sd/unet"]);
    }

    #[test]
    fn a_file_for_a_folder_is_said() {
        let place = place();
        let found = place.folders.resolve("input", Entry::Directory, "cat.png", Origin::File);
        assert_eq!(found.unwrap_err().to_string(), "\"cat.png\" is a file; a folder is wanted");
        assert!(place.find("input", "dog.png").unwrap_err().contains("there is no \"dog.png\" in"));
        assert_eq!(place.find("input", "").unwrap_err(), "names no file");
    }

    #[test]
    fn a_changed_file_is_another() {
        let place = place();
        let file = place.folder.path().join("models/tiny/sd/unet/config.json");
        let folder = place.folder.path().join("models/tiny/sd");
        let before = (identity(&file).unwrap(), identity(&folder).unwrap());
        assert_eq!(before, (identity(&file).unwrap(), identity(&folder).unwrap()));
        fs::write(&file, "something else").unwrap();
        assert_ne!(before.0, identity(&file).unwrap());
        assert_ne!(before.1, identity(&folder).unwrap());
        assert!(identity(Path::new("/nowhere/at/all")).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_found_is_inside(name in "[./\\\\a-c~ ]{0,12}|\\PC{0,12}") {
            let place = place();
            if let Ok(path) = place.folders.resolve("input", Entry::Any, &name, Origin::File) {
                let root = place.folders.input[0].canonicalize().unwrap();
                prop_assert!(path.canonicalize().unwrap().starts_with(root));
            }
        }
    }
}
