//! ComfyUI's `extra_model_paths.yaml`: folders of models that lie elsewhere.
//!
//! A section is a map of kinds to folders, one a line, under its `base_path`; its name says nothing
//! ("comfyui", "a111"). The folders of a section with `is_default: true` are looked through before
//! those of the models roots, the others after them. As in ComfyUI, `~` and `$NAME` stand for what
//! they do in a shell, a relative `base_path` begins at the file's folder, and a folder that is not
//! there is none. A kind that we do not know may be one of a library's.
//!
//! The YAML is read in [`yaml`].

use super::absolute;
use super::yaml::{self, Data, Node};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The name that is looked for beside a models root.
pub(super) const FILE_NAME: &str = "extra_model_paths.yaml";

/// The longest file that is read, in bytes: real ones have a few hundred.
const LONGEST: u64 = 1 << 20;

/// One folder of one kind of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraFolder {
    /// As the file says, "checkpoints".
    pub kind: String,
    /// Absolute; it need not be there.
    pub path: PathBuf,
    /// It comes before the models roots.
    pub is_default: bool,
}

/// What is wrong with a file of paths; each sentence says where.
#[derive(Debug, Error)]
pub enum ExtraPathsError {
    #[error("{file}: cannot be read: {source}")]
    Io { file: String, source: std::io::Error },
    #[error("{file}: is longer than {} MB; a file of model paths has a few lines", LONGEST >> 20)]
    TooLong { file: String },
    #[error("{file}: is not valid YAML: {reason}")]
    Syntax { file: String, reason: String },
    #[error("{file}, line {line}: {place}is {found}; {wanted}")]
    Kind { file: String, line: usize, place: String, found: &'static str, wanted: &'static str },
}

/// The folders that the file says, in its order.
///
/// # Errors
/// [`ExtraPathsError`].
pub(super) fn read(file: &Path) -> Result<Vec<ExtraFolder>, ExtraPathsError> {
    let name = file.display().to_string();
    let io = |source| ExtraPathsError::Io { file: name.clone(), source };
    let mut text = String::new();
    let opened = fs::File::open(file).map_err(io)?;
    opened.take(LONGEST + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > LONGEST {
        return Err(ExtraPathsError::TooLong { file: name });
    }
    let absolute = absolute(file);
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    parse(&text, &name, folder, &|variable| std::env::var(variable).ok())
}

/// `folder` is where relative paths begin, `variable` the value of an environment variable.
fn parse(
    text: &str,
    file: &str,
    folder: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<ExtraFolder>, ExtraPathsError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = yaml::documents(text).map_err(|reason| {
        let file = file.to_owned();
        ExtraPathsError::Syntax { file, reason }
    })?;
    let wrong = |node: &Node, place: String, wanted| ExtraPathsError::Kind {
        file: file.to_owned(),
        line: node.line,
        place,
        found: kind(node),
        wanted,
    };
    let mut folders = Vec::new();
    // A file in which every line is a comment has no document.
    for document in documents.iter().filter(|document| !document.is_null()) {
        let wanted = "sections were expected, each a map of kinds to folders";
        let sections = document.as_map().ok_or_else(|| wrong(document, String::new(), wanted))?;
        for (name, section) in sections.iter().filter(|(_, section)| !section.is_null()) {
            let section_name = name.as_text().unwrap_or("?");
            let in_section = |what: &str| format!("section {section_name}{what} ");
            let wanted = "a map of kinds to folders was expected";
            let entries = section.as_map();
            let entries = entries.ok_or_else(|| wrong(section, in_section(""), wanted))?;
            let entry = |key: &str| {
                let found = entries.iter().find(|(name, _)| name.as_text() == Some(key));
                found.map(|(_, value)| value).filter(|value| !value.is_null())
            };
            let mut base = None;
            if let Some(value) = entry("base_path") {
                let wanted = "the path of a folder was expected";
                let path = value
                    .as_text()
                    .ok_or_else(|| wrong(value, in_section(", base_path"), wanted))?;
                base = Some(folder.join(expanded(path, variable)));
            }
            let is_default = match entry("is_default") {
                None => false,
                Some(value) => boolean(value).ok_or_else(|| {
                    wrong(value, in_section(", is_default"), "true or false was expected")
                })?,
            };
            for (key, value) in entries {
                let wanted = "the name of a kind of models was expected";
                let key_name =
                    key.as_text().ok_or_else(|| wrong(key, in_section(", a key"), wanted))?;
                if matches!(key_name, "base_path" | "is_default") {
                    continue;
                }
                let place = || in_section(&format!(", {key_name}"));
                let wanted = "a folder, or several of them one a line, was expected";
                let lines = lines(value).ok_or_else(|| wrong(value, place(), wanted))?;
                folders.extend(lines.into_iter().map(|line| ExtraFolder {
                    kind: key_name.to_owned(),
                    path: normal(&base.as_deref().unwrap_or(folder).join(expanded(line, variable))),
                    is_default,
                }));
            }
        }
    }
    Ok(folders)
}

/// What Python's YAML takes for a boolean.
fn boolean(node: &Node) -> Option<bool> {
    match node.as_text()?.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// The folders of a kind: lines of a text, or the items of a list. None where it is neither.
fn lines(node: &Node) -> Option<Vec<&str>> {
    let of_text = |text| str::lines(text).map(str::trim).filter(|line| !line.is_empty());
    match &node.data {
        _ if node.is_null() => Some(Vec::new()),
        Data::Text { text, .. } => Some(of_text(text).collect()),
        Data::List(items) => {
            let items = items.iter().map(Node::as_text).collect::<Option<Vec<_>>>()?;
            Some(items.into_iter().flat_map(of_text).collect())
        }
        Data::Map(_) => None,
    }
}

fn kind(node: &Node) -> &'static str {
    match &node.data {
        _ if node.is_null() => "nothing",
        Data::Text { .. } => "a text",
        Data::List(_) => "a list",
        Data::Map(_) => "a map",
    }
}

/// `~`, `$NAME` and `${NAME}` as in a shell; a name that is not set stays as it is.
fn expanded(path: &str, variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let mut text = String::new();
    let mut rest = path.trim();
    let home =
        rest.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(['/', '\\']));
    if let (Some(after), Some(home)) = (home, variable("HOME")) {
        text.push_str(&home);
        rest = after;
    }
    while let Some(at) = rest.find('$') {
        text.push_str(&rest[..at]);
        let from = &rest[at..];
        let (name, length) = match from[1..].strip_prefix('{').and_then(|name| name.split_once('}'))
        {
            Some((name, _)) => (name, name.len() + 3),
            None => {
                let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let end = from[1..].find(|c| !in_name(c)).unwrap_or(from.len() - 1);
                (&from[1..1 + end], 1 + end)
            }
        };
        match variable(name) {
            Some(value) => text.push_str(&value),
            None => text.push_str(&from[..length]),
        }
        rest = &from[length..];
    }
    text.push_str(rest);
    PathBuf::from(text)
}

/// Without `.` and, where it can be told without looking, without `..`.
fn normal(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => (),
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/home/me".to_owned()),
            "DISK" => Some("/disk".to_owned()),
            _ => None,
        }
    }

    fn found(text: &str) -> Result<Vec<(String, String, bool)>, String> {
        let folders = parse(text, "x.yaml", Path::new("/comfy"), &variable);
        let plain = |one: ExtraFolder| (one.kind, one.path.display().to_string(), one.is_default);
        folders.map(|all| all.into_iter().map(plain).collect()).map_err(|error| error.to_string())
    }

    fn folder(kind: &str, path: &str, is_default: bool) -> (String, String, bool) {
        (kind.to_owned(), path.to_owned(), is_default)
    }

    #[test]
    fn sections_kinds_and_lines() {
        let text = "\
# The web page's own
a111:
    base_path: /a1111/

    checkpoints: models/Stable-diffusion
    loras: |
         models/Lora
         models/LyCORIS

    controlnet: models/ControlNet
comfyui:
    base_path: ../elsewhere
    is_default: True
    checkpoints: models/checkpoints/
    anything: [one, '/two']
    vae:
empty:
other:
    clip: ${DISK}/clip
    unet: ~/unet/$MISSING
";
        assert_eq!(
            found(text).unwrap(),
            [
                folder("checkpoints", "/a1111/models/Stable-diffusion", false),
                folder("loras", "/a1111/models/Lora", false),
                folder("loras", "/a1111/models/LyCORIS", false),
                folder("controlnet", "/a1111/models/ControlNet", false),
                folder("checkpoints", "/elsewhere/models/checkpoints", true),
                folder("anything", "/elsewhere/one", true),
                folder("anything", "/two", true),
                folder("clip", "/disk/clip", false),
                folder("unet", "/home/me/unet/$MISSING", false),
            ]
        );
        assert_eq!(found("# all of it\n"), Ok(vec![]));
        assert_eq!(found(""), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, sentence) in [
            ("- a\n", "x.yaml, line 1: is a list; sections were expected"),
            ("a:\n  b: c\nd: e\n", "x.yaml, line 3: section d is a text; a map of kinds"),
            ("a:\n  vae: [[x]]\n", "x.yaml, line 2: section a, vae is a list; a folder"),
            ("a:\n  vae:\n    b: c\n", "section a, vae is a map"),
            ("a:\n  is_default: maybe\n", "line 2: section a, is_default is a text; true or false"),
            ("a:\n  base_path: [x]\n", "section a, base_path is a list; the path of a folder"),
            ("a:\n  b: c\n b: d\n", "x.yaml: is not valid YAML"),
            (
                "a:\n  b: c\n  b: d\n",
                "x.yaml: is not valid YAML: line 3: the key \"b\" stands twice",
            ),
        ] {
            let error = found(text).unwrap_err();
            assert!(error.contains(sentence), "{error:?} has no {sentence:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_folders_or_a_sentence(text in "[a-c:~$ \\-\\[\\]{}|>&*#'\"\n]{0,60}|\\PC{0,40}") {
            match found(&text) {
                Ok(folders) => prop_assert!(folders.iter().all(|(_, path, _)| path.starts_with('/'))),
                Err(sentence) => prop_assert!(sentence.starts_with("x.yaml")),
            }
        }
    }
}
