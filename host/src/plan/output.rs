//! What the nodes that write files are going to meet: told before anything is computed.

use super::{Check, Literal, Source};
use crate::catalogue::{Class, InputKind, Writes};
use crate::folders::Unreached;
use crate::graph::Node;
use crate::problem::{Kind, Problem};
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// The longest name of a file and the longest path, in bytes, of the usual file systems.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4095;
/// What a node adds to a prefix: `_00001_.png`, and room for a longer number.
const ADDED: usize = 16;

impl Check<'_> {
    /// Checks where a node writes: the prefix of its files' names, and that the folder can be written.
    pub(super) fn writes(&mut self, node: &Node, class: &Class, sources: &[Source]) {
        let Some(writes) = class.descriptor.writes else { return };
        let root = match writes {
            Writes::Output => &self.folders.output,
            Writes::Temp => &self.folders.temp,
        };
        let mut problems = Vec::new();
        let mut folders = Vec::new();
        if root.to_str().is_none() {
            let message = format!("the folder {} has a name that is not UTF-8", root.display());
            problems.push(Problem::new(Kind::InvalidPath, message).at(node.name()));
        }
        for (input, source) in class.descriptor.inputs.iter().zip(sources) {
            let (InputKind::Text { prefix: true, .. }, Source::Literal(Literal::Text(text))) =
                (&input.kind, source)
            else {
                continue;
            };
            match folder_of(text, root) {
                Ok(folder) => folders.push(folder),
                Err(message) => {
                    let problem = Problem::new(Kind::InvalidPath, message);
                    problems.push(problem.at(node.name()).input(&input.name));
                }
            }
        }
        if folders.is_empty() && problems.is_empty() {
            folders.push(root.clone());
        }
        if self.folders.only_read {
            folders.clear();
        }
        for folder in folders {
            let known = self.writable.get(&folder).cloned();
            let reason = known.unwrap_or_else(|| {
                let linked = self.folders.of_clients.then(|| linked_out(root, &folder)).flatten();
                linked.or_else(|| why_not_written(&folder))
            });
            self.writable.insert(folder.clone(), reason.clone());
            if let Some(reason) = reason {
                let message =
                    format!("the folder {} cannot be written to: {reason}", folder.display());
                problems.push(Problem::new(Kind::InvalidPath, message).at(node.name()));
            }
        }
        self.problems.append(&mut problems);
    }
}

/// The folder that files whose names begin with `prefix` are written into.
fn folder_of(prefix: &str, root: &Path) -> Result<PathBuf, String> {
    let shown = || match prefix.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}", format!("{}…", &prefix[..end])),
        None => format!("{prefix:?}"),
    };
    if prefix.contains('\0') {
        return Err(format!("{} holds a sign that no file's name may have", shown()));
    }
    let text = without_patterns(prefix);
    let leads_out =
        || format!("{} leads out of {}; files are written inside of it", shown(), root.display());
    let path = Path::new(&text);
    let path = match path.is_absolute() {
        true => path.strip_prefix(root).map_err(|_| leads_out())?,
        false => path,
    };
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::CurDir => (),
            Component::ParentDir => drop(parts.pop().ok_or_else(leads_out)?),
            Component::RootDir | Component::Prefix(_) => return Err(leads_out()),
        }
    }
    let name = parts.pop().unwrap_or_default();
    let folder = parts.iter().fold(root.to_owned(), |folder, part| folder.join(part));
    let too_long = |what: &str, most: usize| {
        Err(format!("{} is too long: {what} may have {most} bytes at most", shown()))
    };
    if name.len() + ADDED > LONGEST_NAME {
        return too_long("the beginning of a file's name", LONGEST_NAME - ADDED);
    }
    if parts.iter().any(|part| part.len() > LONGEST_NAME) {
        return too_long("a folder's name", LONGEST_NAME);
    }
    if folder.as_os_str().len() + 1 + name.len() + ADDED > LONGEST_PATH {
        return too_long("a path", LONGEST_PATH);
    }
    Ok(folder)
}

/// `prefix` with each pattern, which a node replaces by a number, as its shortest; of a date the other
/// signs stay, as they are signs of the name.
fn without_patterns(prefix: &str) -> String {
    let mut text = prefix.to_owned();
    for name in ["width", "height", "year", "month", "day", "hour", "minute", "second", "batch_num"]
    {
        text = text.replace(&format!("%{name}%"), "0");
    }
    const DATE: &str = "%date:";
    let mut from = 0;
    while let Some(start) = text[from..].find(DATE).map(|at| from + at) {
        let inside = start + DATE.len();
        let Some(length) = text[inside..].find('%') else { break };
        let date = text[inside..inside + length].to_owned();
        from = start + date.len();
        text.replace_range(start..=inside + length, &date);
    }
    text
}

/// That a link on the way from `root` to `folder` leads out of it: what a server hands out of its folders
/// lies in them, and a confined worker may write nowhere else.
fn linked_out(root: &Path, folder: &Path) -> Option<String> {
    let real = root.canonicalize().ok()?;
    let below = folder.strip_prefix(root).ok()?;
    let mut path = root.to_owned();
    for part in below.components() {
        path.push(part);
        let leads_out = || !path.canonicalize().is_ok_and(|to| to.starts_with(&real));
        if path.is_symlink() && leads_out() {
            let (link, to) = (path.display(), fs::read_link(&path).ok()?);
            let to = to.display();
            return Some(format!("{link} is a link to {to}; name that folder with --out"));
        }
    }
    None
}

/// Why no file can be made in `folder`, which is made itself when it is not there; none where one can.
pub(crate) fn why_not_written(folder: &Path) -> Option<String> {
    if let Some(sentence) = Unreached::on_the_way(folder).sentence() {
        return Some(sentence);
    }
    let mut nearest = None;
    for path in folder.ancestors() {
        match fs::metadata(path) {
            Ok(metadata) => {
                nearest = Some((path, metadata));
                break;
            }
            // What is not there yet is made; a name that no file can have, or a place that may not be
            // entered, never will be.
            Err(error) => {
                if ![ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) {
                    return Some(error.to_string());
                }
            }
        }
    }
    let Some((nearest, metadata)) = nearest else { return Some("there is no such place".into()) };
    if !metadata.is_dir() {
        return Some(format!("{} is not a folder", nearest.display()));
    }
    // Rights alone say nothing of a disk that is read-only, or of who may do everything.
    let probe = nearest.join(format!(".kosmograph-{}.tmp", std::process::id()));
    match OpenOptions::new().write(true).create_new(true).open(&probe) {
        Ok(_) => {
            let _ = fs::remove_file(&probe);
            None
        }
        // Another thread's.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Some("no file can be made there".to_owned())
        }
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_stay_inside_and_short() {
        let root = Path::new("/made/up");
        let folder = |prefix: &str| folder_of(prefix, root);
        for (prefix, inside) in [
            ("a", ""),
            ("", ""),
            ("a/b/c", "a/b"),
            ("a/../b/c", "b"),
            ("./x", ""),
            ("/made/up/d/e", "d"),
            ("%date:yyyy/MM%/x", "yyyy/MM"),
            ("%year%-%month%/%batch_num%", "0-0"),
        ] {
            assert_eq!(folder(prefix), Ok(root.join(inside).components().collect()), "{prefix}");
        }
        for prefix in ["../a", "a/../../b", "/etc/a", "..", "%date:../..%/a", "/made/upper/a"] {
            let sentence = folder(prefix).unwrap_err();
            assert!(sentence.contains("leads out of /made/up; files are written"), "{sentence}");
        }
        assert!(folder("a\0b").unwrap_err().contains("no file's name may have"));
        assert!(folder(&"x".repeat(239)).is_ok());
        let long = folder(&"x".repeat(240)).unwrap_err();
        assert!(
            long.ends_with(
                "is too long: the beginning of a file's name may have 239 bytes at most"
            )
        );
        assert!(long.len() < 200, "{long}");
        assert!(folder(&format!("{}/x", "ä".repeat(128))).unwrap_err().contains("a folder's name"));
        assert!(folder(&"abc/".repeat(1000)).is_ok_and(|folder| folder.starts_with(root)));
        assert!(folder(&"abc/".repeat(1030)).unwrap_err().contains("a path may have"));
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_out_are_known() {
        use std::os::unix::fs::symlink;
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("own")).unwrap();
        symlink(at("own"), at("inside")).unwrap();
        symlink(other.path(), at("archive")).unwrap();
        for name in ["", "own", "own/new", "inside", "inside/new"] {
            assert_eq!(linked_out(root.path(), &at(name)), None, "{name}");
        }
        let (link, to) = (at("archive"), other.path().display());
        let said = format!("{} is a link to {to}; name that folder with --out", link.display());
        for name in ["archive", "archive/new"] {
            assert_eq!(linked_out(root.path(), &at(name)), Some(said.clone()), "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_known() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "in the way").unwrap();
        assert_eq!(why_not_written(&root.path().join("not/yet/there")), None);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing is left behind");
        for folder in [file.clone(), file.join("below")] {
            let reason = why_not_written(&folder).unwrap();
            assert_eq!(reason, format!("{} is not a folder", file.display()));
        }
        assert_eq!(fs::read(&file).unwrap(), b"in the way");
        #[cfg(unix)]
        {
            let link = root.path().join("link");
            std::os::unix::fs::symlink("nowhere", &link).unwrap();
            let said = format!("{} is a link to nowhere, which cannot be reached", link.display());
            assert_eq!(why_not_written(&link), Some(said.clone()));
            assert_eq!(why_not_written(&link.join("below")), Some(said));
            let itself = root.path().join("itself");
            std::os::unix::fs::symlink(&itself, &itself).unwrap();
            assert!(why_not_written(&itself).unwrap().contains("is a link to"));
        }
        #[cfg(target_os = "linux")]
        assert!(why_not_written(Path::new("/proc/none")).is_some());
    }
}
