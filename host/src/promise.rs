//! Files that a node is about to give their names.
//!
//! Between a file's renaming and the word about it a worker may end, and then a picture would be there of
//! which nobody told. So a node says first under which temporary name it writes ("making"), the worker
//! sends what the file *is*, its device and inode, and whoever outlives the worker finds it under
//! whatever name it has then.

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use std::fs::{self, Metadata};
use std::path::{Component, Path, PathBuf};

/// An item of ComfyUI's convention for files in an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    filename: String,
    #[serde(default)]
    subfolder: String,
    #[serde(default, rename = "type")]
    kind: String,
}

/// A file that is being made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    item: Item,
    /// Device and inode.
    identity: (u64, u64),
}

/// A file of an output: its place, "output" or "temp", as the property that names it.
fn place(item: &Item, output_directory: &Path, temp_directory: &Path) -> Option<PathBuf> {
    let folder = if item.kind == "temp" { temp_directory } else { output_directory };
    // A name that leads out of the folder is no file that a node made there.
    let stays =
        |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    let stays = stays(&item.filename) && stays(&item.subfolder);
    stays.then(|| folder.join(&item.subfolder).join(&item.filename))
}

/// The paths of the files that an output names, in ComfyUI's convention: lists of objects with
/// "filename", "subfolder" and "type", "output" or "temp".
pub fn files(output: &Json, output_directory: &Path, temp_directory: &Path) -> Vec<String> {
    let lists = output.as_object().into_iter().flat_map(|object| object.values());
    let items = lists.filter_map(Json::as_array).flatten().filter_map(|item| {
        let text = |key: &str| item.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        let filename = item.get("filename").and_then(Json::as_str)?.to_owned();
        Some(Item { filename, subfolder: text("subfolder"), kind: text("type") })
    });
    items
        .filter_map(|item| place(&item, output_directory, temp_directory))
        .map(|path| path.display().to_string())
        .collect()
}

impl Promise {
    /// What an output of a node promises: `{"making": {"filename", "subfolder", "type"}}`, the name being
    /// the temporary one, which begins with a dot. `None` where it promises nothing, or a file that is not there.
    pub fn of(output: &Json, output_directory: &Path, temp_directory: &Path) -> Option<Self> {
        let item: Item = serde_json::from_value(output.get("making")?.clone()).ok()?;
        if !item.filename.starts_with('.') {
            return None;
        }
        let path = place(&item, output_directory, temp_directory)?;
        let identity = identity(&fs::symlink_metadata(path).ok()?);
        Some(Self { item, identity })
    }

    /// After the one who promised is gone: removes what still has its temporary name, and gives the output
    /// and the path of what has another.
    pub fn kept(&self, output_directory: &Path, temp_directory: &Path) -> Option<(Json, String)> {
        let temporary = place(&self.item, output_directory, temp_directory)?;
        if !self.item.filename.starts_with('.') {
            return None;
        }
        let is_it = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|data| identity(&data) == self.identity)
        };
        let entries = fs::read_dir(temporary.parent()?).ok()?.flatten();
        let mut found = entries.map(|entry| entry.path()).filter(|path| is_it(path));
        let named = found.find(|path| *path != temporary);
        if is_it(&temporary) {
            // Nobody is left to name it, or it has its other name already.
            let _ = fs::remove_file(&temporary);
        }
        let named = named?;
        let filename = named.file_name()?.to_str()?.to_owned();
        let item = Item { filename, ..self.item.clone() };
        Some((json!({"images": [item]}), named.display().to_string()))
    }
}

#[cfg(unix)]
fn identity(data: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (data.dev(), data.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_an_output() {
        let output = json!({"images": [
            {"filename": "a.png", "subfolder": "", "type": "output"},
            {"filename": "b.png", "subfolder": "x", "type": "temp"},
            {"filename": "passwd", "subfolder": "../etc", "type": "output"},
            {"filename": "/etc/passwd", "subfolder": "", "type": "output"}], "text": ["hello"], "n": 3});
        let found = files(&output, Path::new("/out"), Path::new("/temp"));
        assert_eq!(found, ["/out/a.png", "/temp/x/b.png"]);
    }

    #[test]
    fn a_promise_is_found_under_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let (out, temp) = (folder.path(), Path::new("/nowhere"));
        fs::create_dir(out.join("x")).unwrap();
        let hidden = out.join("x/.1.tmp");
        fs::write(&hidden, "picture").unwrap();
        let making = json!({"making": {"filename": ".1.tmp", "subfolder": "x", "type": "output"}});
        let promise = Promise::of(&making, out, temp).unwrap();
        // It travels.
        let line = serde_json::to_string(&promise).unwrap();
        assert_eq!(serde_json::from_str::<Promise>(&line).unwrap(), promise);
        fs::write(out.join("x/other.png"), "of somebody else").unwrap();
        fs::rename(&hidden, out.join("x/a.png")).unwrap();
        let (output, file) = promise.kept(out, temp).unwrap();
        let wanted = json!({"images": [{"filename": "a.png", "subfolder": "x", "type": "output"}]});
        assert_eq!(output, wanted);
        assert_eq!(file, out.join("x/a.png").display().to_string());
    }

    #[test]
    fn what_was_never_named_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (out, temp) = (folder.path(), Path::new("/nowhere"));
        fs::write(out.join(".1.tmp"), "half a pict").unwrap();
        let making = json!({"making": {"filename": ".1.tmp"}});
        let promise = Promise::of(&making, out, temp).unwrap();
        assert_eq!(promise.kept(out, temp), None);
        assert!(!out.join(".1.tmp").exists());
        assert_eq!(Promise::of(&making, out, temp), None, "it is not there");
        let outside = json!({"making": {"filename": "passwd", "subfolder": "../../etc"}});
        assert_eq!(Promise::of(&outside, out, temp), None);
        assert_eq!(Promise::of(&json!({"images": []}), out, temp), None);
    }
}
