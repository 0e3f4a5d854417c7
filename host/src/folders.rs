//! Where the files that a workflow names are: models, input pictures, what was saved.
//!
//! A workflow may come from anybody, so a name in one stays inside its root: no absolute path, no
//! `..`. What the person types on the command line is the person's own and may be any path. A linked
//! file or folder inside a root is the person's own, too, who put it there (another disk, a hub's
//! cache), and is followed.

mod elsewhere;
mod extra_paths;
mod identity;
mod listing;
mod models;
mod yaml;

pub use elsewhere::Elsewhere;
pub use extra_paths::{ExtraFolder, ExtraPathsError};
pub use identity::{Identify, identity};

use crate::graph::Origin;
use listing::Walk;
use models::Models;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// What a path is wanted to be, the descriptor's `entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    "ipadapter",
    "kosmos",
    "loras",
    "measures",
    "photomaker",
    "style_models",
    "text_encoders",
    "unet",
    "upscale_models",
    "vae",
    "vae_approx",
];

/// Names that stand for several files of another kind, where all of them lie in one folder of it, as ComfyUI offers them: the
/// kind and the name, the other kind and its files without their extensions. Whoever is given the name is given the path of the first.
const SETS: &[(&str, &str, &str, &[&str])] = &[
    ("vae", "taesd", "vae_approx", &["taesd_encoder", "taesd_decoder"]),
    ("vae", "taesdxl", "vae_approx", &["taesdxl_encoder", "taesdxl_decoder"]),
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
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// Models roots, the first ones first.
    pub models: Vec<PathBuf>,
    /// Folders of one kind each, in the order of their files.
    pub extra: Vec<ExtraFolder>,
    pub input: Vec<PathBuf>,
    /// Where output nodes write; it need not exist yet.
    pub output: PathBuf,
    /// Where previews are written; it need not exist yet.
    pub temp: PathBuf,
    /// What input, output and temp are copies of, where they are.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
    pub identify: Identify,
    /// Whether nothing will be written: then it does not matter whether it could be.
    pub only_read: bool,
    /// Whether workflows come from a server's clients: they are told nothing of the command line nor of
    /// files outside of the folders, and write through no link.
    pub of_clients: bool,
}

/// What the command line says about folders.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    pub models: &'a [PathBuf],
    /// Files as ComfyUI's `extra_model_paths.yaml`.
    pub extra_model_paths: &'a [PathBuf],
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
    #[error("\"{name}\" leads out of the folders a workflow may read; put the file in {place}")]
    Escapes { name: String, place: String },
    #[error("there is no {wanted} {path}", wanted = wanted.wanted().trim_start_matches("a "))]
    NotThere { path: String, wanted: Entry },
    #[error("\"{name}\" is {found}; {wanted} is wanted", wanted = wanted.wanted())]
    WrongEntry { name: String, found: &'static str, wanted: Entry },
    #[error("there is no \"{name}\" in {searched}{unreached}")]
    Missing { name: String, searched: String, unreached: Unreached },
    #[error("there is no \"{name}\": no folder of this kind was found{unreached}; {hint}")]
    NoFolder { name: String, hint: &'static str, unreached: Unreached },
    #[error("{path}: cannot be read: {source}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path}: holds more than {MOST_FILES} files, or folders more than {DEEPEST} deep; that is no model's folder"
    )]
    TooMany { path: String },
}

/// A link on the way to a file that leads to nothing, and where it leads: a disk that is not mounted.
#[derive(Debug, Default)]
pub struct Unreached(Option<(PathBuf, PathBuf)>);

impl Unreached {
    /// The first such link on the way to `path`.
    pub fn on_the_way(path: &Path) -> Self {
        // What is behind it is not there, so only one of the folders around can be one.
        let link = path.ancestors().find(|path| fs::symlink_metadata(path).is_ok());
        let broken = link.filter(|link| fs::metadata(link).is_err());
        Self(broken.and_then(|link| Some((link.to_owned(), fs::read_link(link).ok()?))))
    }

    /// In words, where there is one.
    pub fn sentence(&self) -> Option<String> {
        let (link, to) = self.0.as_ref()?;
        let (link, to) = (link.display(), to.display());
        Some(format!("{link} is a link to {to}, which cannot be reached"))
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.sentence().map_or(Ok(()), |sentence| write!(f, "; {sentence}"))
    }
}

/// Why the folders of a run cannot be told.
#[derive(Debug, Error)]
pub enum FoldersError {
    #[error("{option} {path}: there is no such folder")]
    Missing { option: &'static str, path: String },
    #[error(transparent)]
    ExtraPaths(#[from] ExtraPathsError),
}

impl Folders {
    /// The kinds of models by the names that ComfyUI has for them today.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        let is_old = |kind: &str| ALIASES.iter().any(|names| names[1..].contains(&kind));
        KINDS.iter().copied().filter(move |kind| !is_old(kind))
    }

    /// Where models of a kind are looked for, the first places first; those that are there.
    pub fn places_of(&self, kind: &str) -> Vec<PathBuf> {
        self.bases(kind).into_iter().map(|(_, base)| base).collect()
    }

    /// The folders given, then those found: see `kosmograph run --help`.
    ///
    /// # Errors
    /// A folder that was given and is not there (output folders are made when they are needed), and
    /// what is wrong with a file of model paths.
    pub fn find(given: Given) -> Result<Self, FoldersError> {
        let mut models = Models::default();
        for path in given.models {
            models.given("--models", path)?;
        }
        if let Some(paths) = std::env::var_os("KOSMOGRAPH_MODELS") {
            for path in std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()) {
                models.given("KOSMOGRAPH_MODELS", &path)?;
            }
        }
        for file in given.extra_model_paths {
            models.file(file)?;
        }
        models.likely(Path::new("models"))?;
        if let Some(folder) = given.workflow {
            // A file of paths that comes with a workflow is a stranger's, as the workflow is.
            let beside = folder.join("../models");
            models.roots.extend(beside.is_dir().then(|| absolute(&beside)));
        }
        if let Ok(program) = std::env::current_exe() {
            for folder in program.ancestors().skip(1) {
                models.likely(&folder.join("models"))?;
            }
        }
        let Models { mut roots, extra, input: of_bases, .. } = models;
        without_repeats(&mut roots);

        let mut input = Vec::new();
        if let Some(path) = given.input {
            input.push(existing("--input", path)?);
        } else {
            let beside = given.workflow.map(|folder| folder.join("input"));
            let likely = [Some("input".into()), beside, given.workflow.map(Path::to_owned)];
            let likely = of_bases.into_iter().chain(likely.into_iter().flatten());
            input.extend(likely.filter(|path| path.is_dir()).map(|path| absolute(&path)));
            without_repeats(&mut input);
        }
        let output = absolute(given.output.unwrap_or(Path::new("output")));
        let (temp, identify) = (absolute(Path::new("temp")), Identify::default());
        let (elsewhere, only_read, of_clients) = (None, false, false);
        Ok(Self {
            models: roots,
            extra,
            input,
            output,
            temp,
            elsewhere,
            identify,
            only_read,
            of_clients,
        })
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
        let escapes = || match origin {
            // The person's own path may lead anywhere, and this one leads to nothing.
            Origin::CommandLine if !plain.contains('\0') => PathError::NotThere {
                path: absolute(Path::new(name)).display().to_string(),
                wanted: entry,
            },
            _ => PathError::Escapes { name: name.to_owned(), place: searched.clone() },
        };
        if plain.contains('\0') || !relative.components().all(inside) {
            return Err(escapes());
        }
        if bases.is_empty() {
            let hint = match folder {
                "input" => "say where it is with --input DIR",
                "output" | "temp" => "nothing was written there yet",
                _ => "say where the models are with --models DIR",
            };
            let unreached = self.unreached(folder, Path::new(""));
            return Err(PathError::NoFolder { name: name.to_owned(), hint, unreached });
        }
        let mut wrong_entry = None;
        for (_, base) in &bases {
            let path = base.join(&relative);
            self.bring(folder, &path)?;
            let Ok(metadata) = fs::metadata(&path) else { continue };
            match check_entry(name, entry, &metadata) {
                Ok(()) => return Ok(path),
                Err(error) => wrong_entry = Some(error),
            }
        }
        if entry != Entry::Directory
            && let Some(first) = self.set(folder, plain).into_iter().next()
        {
            return Ok(first);
        }
        Err(wrong_entry.unwrap_or_else(|| {
            let unreached = self.unreached(folder, &relative);
            PathError::Missing { name: name.to_owned(), searched, unreached }
        }))
    }

    /// Asks for the file of a name in a folder of pictures, where those are copies.
    fn bring(&self, folder: &str, path: &Path) -> Result<(), PathError> {
        let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| is_of_pictures(folder)) else {
            return Ok(());
        };
        let failed = |source| PathError::Io { path: path.display().to_string(), source };
        elsewhere.bring(path).map_err(failed)
    }

    /// What is in the way where a name of a kind of folder may have been meant to lead.
    fn unreached(&self, folder: &str, name: &Path) -> Unreached {
        let places = self.places(folder).into_iter().map(|(_, base)| base.join(name));
        places
            .map(|path| Unreached::on_the_way(&path))
            .find(|found| found.0.is_some())
            .unwrap_or_default()
    }

    /// The file of `folder` that a text means by `name`: as [`Folders::resolve`], the extension may be
    /// left out, and the folders that lie in those of the kind may be, too, as in ComfyUI.
    ///
    /// # Errors
    /// [`PathError`], for the name as it is.
    pub fn resolve_mention(&self, folder: &str, name: &str) -> Result<PathBuf, PathError> {
        let find = |name: &str| self.resolve(folder, Entry::File, name, Origin::File);
        let plain = match find(name) {
            Err(error @ PathError::Missing { .. }) => error,
            other => return other,
        };
        let names = std::iter::once(name.to_owned())
            .chain(EXTENSIONS_LEFT_OUT.iter().map(|extension| format!("{name}.{extension}")));
        let names: Vec<String> = names.collect();
        if let Some(path) = names.iter().find_map(|name| find(name).ok()) {
            return Ok(path);
        }
        let below = self.own_bases(folder).flat_map(|base| listing::folders_below(&base));
        let found = below.into_iter().find_map(|below| {
            let paths = names.iter().map(|name| below.join(name.replace('\\', "/")));
            paths.into_iter().find(|path| path.is_file())
        });
        found.ok_or(plain)
    }

    /// The names that [`Folders::resolve`] would find and that may be of this kind: files, and folders
    /// that hold a model's `config.json` or `model_index.json`. Sorted. What lies in a folder of
    /// another kind is not of this one, nor is a part of a model in a folder. Pictures in folders below
    /// are not offered, as in ComfyUI, though they are found: the folder of pictures may be anybody's home.
    pub fn names(&self, folder: &str, entry: Entry) -> Vec<String> {
        self.names_of(folder, entry, &[])
    }

    /// As [`Folders::names`], of files with these extensions, where any are given.
    pub fn names_of(&self, folder: &str, entry: Entry, extensions: &[String]) -> Vec<String> {
        let pictures = is_of_pictures(folder);
        let (files, deepest) = if pictures { (PICTURE_FILES, 1) } else { (MODEL_FILES, DEEPEST) };
        let given: Vec<&str> = extensions.iter().map(String::as_str).collect();
        let files = if given.is_empty() { files } else { &given[..] };
        let own = same_kinds(folder);
        let mut names = Vec::new();
        let mut left = MOST_FILES;
        for (root, base) in self.bases(folder) {
            let of_any_kind = root == base && self.is_root(&root);
            let walk = Walk { entry, files, deepest, own: &own, of_any_kind };
            walk.all(&base, &mut names, &mut left);
            if let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| pictures) {
                let there = elsewhere.names(&base);
                names.extend(there.into_iter().filter(|name| has_extension(name, files)));
            }
        }
        if entry != Entry::Directory {
            let sets = SETS.iter().filter(|(_, name, ..)| !self.set(folder, name).is_empty());
            names.extend(sets.map(|(_, name, ..)| (*name).to_owned()));
        }
        names.sort();
        names.dedup();
        names
    }

    /// The files that `name` stands for in folders of kind `folder`, where it is the name of a set whose files are all there.
    pub fn set(&self, folder: &str, name: &str) -> Vec<PathBuf> {
        let known = SETS.iter().find(|(kind, set, ..)| *kind == folder && *set == name);
        let Some((_, _, kind, stems)) = known else { return Vec::new() };
        let of_base = |base: &Path| {
            stems.iter().map(|stem| with_extension(base, stem)).collect::<Option<Vec<_>>>()
        };
        self.own_bases(kind).find_map(|base| of_base(&base)).unwrap_or_default()
    }

    /// The files that show what a sampler has made so far better than colours do, by their names without the extension.
    pub fn preview_files(&self) -> BTreeMap<String, PathBuf> {
        let stems =
            SETS.iter().flat_map(|(_, _, kind, stems)| stems.iter().map(move |s| (kind, s)));
        let found = stems.filter_map(|(kind, stem)| {
            let path = self.own_bases(kind).find_map(|base| with_extension(&base, stem))?;
            Some(((*stem).to_owned(), path))
        });
        found.collect()
    }

    /// The kind's own folders: by its bare name a root has many other files.
    fn own_bases(&self, folder: &str) -> impl Iterator<Item = PathBuf> {
        let own = |(root, base): &(PathBuf, PathBuf)| root != base || !self.is_root(root);
        let bases: Vec<_> = self.bases(folder).into_iter().filter(own).collect();
        bases.into_iter().map(|(_, base)| base)
    }

    fn is_root(&self, path: &PathBuf) -> bool {
        self.models.contains(path)
    }

    /// Pairs of a root, which must not be left, and the folder in it where names are looked for.
    fn bases(&self, folder: &str) -> Vec<(PathBuf, PathBuf)> {
        let mut bases = self.places(folder);
        bases.retain(|(_, base)| base.is_dir());
        bases
    }

    /// As [`Folders::bases`], with those that are not there.
    fn places(&self, folder: &str) -> Vec<(PathBuf, PathBuf)> {
        let itself = |path: &PathBuf| (path.clone(), path.clone());
        match folder {
            "input" => self.input.iter().map(itself).collect(),
            "output" => vec![itself(&self.output)],
            "temp" => vec![itself(&self.temp)],
            _ => {
                let kinds = same_kinds(folder);
                let of_root = |root: &PathBuf| {
                    let kinds = kinds.iter().map(|kind| (root.clone(), root.join(kind)));
                    kinds.chain([itself(root)]).collect::<Vec<_>>()
                };
                let extra = |is_default: bool| {
                    let of_kind = move |extra: &&ExtraFolder| extra.is_default == is_default;
                    let extra = self.extra.iter().filter(of_kind);
                    extra.filter(|extra| kinds.contains(&extra.kind.as_str()))
                };
                // ComfyUI puts each default before what is there, so the last one is the first.
                let first = extra(true).rev().map(|extra| itself(&extra.path));
                let last = extra(false).map(|extra| itself(&extra.path));
                first.chain(self.models.iter().flat_map(of_root)).chain(last).collect()
            }
        }
    }
}

/// Whether names are looked for among pictures, and not among models.
fn is_of_pictures(folder: &str) -> bool {
    matches!(folder, "input" | "output" | "temp")
}

/// Whether files of these extensions are pictures: what is looked for among pictures without any is one.
pub fn are_pictures(extensions: &[String]) -> bool {
    extensions.iter().all(|one| PICTURE_FILES.iter().any(|known| known.eq_ignore_ascii_case(one)))
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let own = Path::new(name).extension().and_then(OsStr::to_str).unwrap_or_default();
    extensions.iter().any(|extension| own.eq_ignore_ascii_case(extension))
}

fn existing(option: &'static str, path: &Path) -> Result<PathBuf, FoldersError> {
    if path.is_dir() {
        return Ok(absolute(path));
    }
    Err(FoldersError::Missing { option, path: path.display().to_string() })
}

/// The file in `base` that is called `stem` but for its extension.
fn with_extension(base: &Path, stem: &str) -> Option<PathBuf> {
    let paths = MODEL_FILES.iter().map(|extension| base.join(format!("{stem}.{extension}")));
    paths.into_iter().find(|path| path.is_file())
}

/// Fails only for an empty path or without a current directory, where the path itself is as good.
pub(crate) fn absolute(path: &Path) -> PathBuf {
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
    if matches!(folder, "input" | "output") {
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

/// Whether two names of kinds are of one kind of folder.
pub fn same_kind(one: &str, other: &str) -> bool {
    same_kinds(one).contains(&other)
}

/// A kind of folder by all of its names, the given one first.
fn same_kinds(folder: &str) -> Vec<&str> {
    let aliases = ALIASES.iter().find(|names| names.contains(&folder)).copied().unwrap_or_default();
    let others = aliases.iter().copied().filter(|name| *name != folder);
    std::iter::once(folder).chain(others).collect()
}

#[cfg(test)]
mod tests;
