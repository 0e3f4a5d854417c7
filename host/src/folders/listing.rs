//! What there is in the folders of a kind: the names that are offered.
//!
//! Links are followed, as [`super::Folders::resolve`] follows them; one that leads back to a folder it
//! lies in is not followed again.

use super::{DEEPEST, Entry, KINDS, MOST_FILES};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders in a model of diffusers' layout and the kinds that its parts are.
const PARTS: &[(&str, &str)] = &[
    ("unet", "diffusion_models"),
    ("vae", "vae"),
    ("text_encoder", "text_encoders"),
    ("image_encoder", "clip_vision"),
    ("controlnet", "controlnet"),
];

pub(super) struct Walk<'a> {
    pub entry: Entry,
    /// Extensions of the files that are offered.
    pub files: &'a [&'a str],
    pub deepest: usize,
    /// The names of the kind.
    pub own: &'a [&'a str],
    /// Whether models of every kind lie here, which those of other kinds' folders are then not offered.
    pub of_any_kind: bool,
}

/// A folder on the way, and what it is.
struct Place<'a> {
    path: &'a Path,
    /// "sub/" in names.
    prefix: &'a str,
    depth: usize,
    /// The real folders around and the folder itself.
    around: &'a [PathBuf],
    /// Whether it is known that what lies here is of the kind.
    is_own: bool,
    /// Whether single files are offered here. Beside folders of kinds a folder of another name has what
    /// is of no kind, and only a model in a folder shows what it is.
    has_files: bool,
}

impl Walk<'_> {
    /// Adds the names of what is in `base`; `left` is how many entries may still be looked at.
    pub fn all(&self, base: &Path, names: &mut Vec<String>, left: &mut usize) {
        let around = [real(base)];
        let is_own = !self.of_any_kind;
        let (prefix, depth, around) = ("", 0, &around[..]);
        let place = Place { path: base, prefix, depth, around, is_own, has_files: true };
        self.folder(&place, names, left);
    }

    fn folder(&self, place: &Place, names: &mut Vec<String>, left: &mut usize) {
        let Ok(entries) = fs::read_dir(place.path) else { return };
        let is_model = place.depth > 0 && is_model_folder(place.path);
        let has_parts = place.depth > 0 && place.path.join("model_index.json").is_file();
        let by_kinds = || KINDS.iter().any(|kind| place.path.join(kind).is_dir());
        let below_has_files = place.has_files && (place.is_own || !by_kinds());
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
            let full = format!("{}{name}", place.prefix);
            if !metadata.is_dir() {
                let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
                let is_offered =
                    self.files.iter().any(|known| known.eq_ignore_ascii_case(extension));
                let may_be = self.entry != Entry::Directory && !is_model && place.has_files;
                if may_be && is_offered {
                    names.push(full);
                }
                continue;
            }
            let Some(is_own) = self.enters(&name, has_parts, place.is_own) else { continue };
            // The kind's own folder in a root has its models' names without it.
            if place.depth == 0 && self.of_any_kind && is_own && !is_model_folder(&path) {
                continue;
            }
            if self.entry != Entry::File && is_model_folder(&path) {
                names.push(full.clone());
            }
            let real = real(&path);
            if place.depth + 1 < self.deepest && !place.around.contains(&real) {
                let around: Vec<PathBuf> = place.around.iter().cloned().chain([real]).collect();
                let prefix = format!("{full}/");
                let (depth, around) = (place.depth + 1, &around[..]);
                let has_files = below_has_files || is_own;
                let place =
                    Place { path: &path, prefix: &prefix, depth, around, is_own, has_files };
                self.folder(&place, names, left);
            }
        }
    }

    /// Whether models of the kind may lie in a folder of this name, and if so, whether they must be.
    fn enters(&self, name: &str, of_a_model: bool, is_own: bool) -> Option<bool> {
        let is_one_of = |kinds: &[&str]| kinds.iter().any(|kind| kind.eq_ignore_ascii_case(name));
        if of_a_model {
            let part = PARTS.iter().find(|(part, _)| *part == name);
            return part.filter(|(_, kind)| self.own.contains(kind)).map(|_| true);
        }
        if is_own || is_one_of(self.own) {
            return Some(true);
        }
        (!is_one_of(KINDS)).then_some(false)
    }
}

/// The folders in `base` and in those, the nearer ones first, each level sorted by name.
pub(super) fn folders_below(base: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([real(base)]);
    let mut level = vec![base.to_owned()];
    let mut left = MOST_FILES;
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for folder in &level {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let Some(fewer) = left.checked_sub(1) else { return found };
                left = fewer;
                let path = entry.path();
                let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
                if !is_hidden && path.is_dir() && seen.insert(real(&path)) {
                    next.push(path);
                }
            }
        }
        next.sort();
        found.extend_from_slice(&next);
        level = next;
    }
    found
}

/// Where a path leads when its links are followed.
pub(super) fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn is_model_folder(path: &Path) -> bool {
    path.join("config.json").is_file() || path.join("model_index.json").is_file()
}
