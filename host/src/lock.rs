//! What a picture depends on, written down: `kosmograph lock`, and `run --locked`, which refuses anything else.
//!
//! The workflow as it is run, with its seed; every file that its nodes read, by BLAKE3; the node libraries, the program and the processor's instruction
//! sets, by which sums are rounded. Not the files' places: a model may lie elsewhere on another machine.

use crate::catalogue::Catalogue;
use crate::folders::{self, Identify};
use crate::graph::Graph;
use crate::plan::{Literal, Plan, Source};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The longest lock that is read, in bytes.
const LONGEST: u64 = 64 << 20;
/// The most differences that a sentence tells.
const MOST_TOLD: usize = 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    /// The version of this format, 1.
    pub kosmograph_lock: u32,
    /// The program's version.
    pub program: String,
    /// The processor's kind and the instruction sets it has.
    pub isa: String,
    /// "cpu" or "cuda:0".
    pub device: String,
    pub libraries: Vec<LockedLibrary>,
    pub files: Vec<LockedFile>,
    /// The workflow in the API format.
    pub prompt: Json,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockedLibrary {
    pub name: String,
    pub version: String,
    /// Of its file, in hexadecimal.
    pub blake3: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockedFile {
    /// The id of the node that reads it.
    pub node: String,
    pub input: String,
    /// The last part of its path.
    pub name: String,
    /// Of the file, as b3sum prints it; of a folder "folder:" and the hash of its files' names, sizes and contents.
    pub blake3: String,
}

impl Lock {
    /// What `plan`, which is of `graph`, depends on. Reads every file through.
    ///
    /// # Errors
    /// A sentence: a file cannot be read.
    pub fn of(
        plan: &Plan,
        graph: &Graph,
        catalogue: &Catalogue,
        device: &str,
    ) -> Result<Self, String> {
        let mut libraries = BTreeSet::new();
        let mut files = BTreeSet::new();
        for step in plan.steps() {
            if let Some(entry) = catalogue.libraries().get(step.library) {
                libraries.insert(LockedLibrary {
                    name: entry.name.clone(),
                    version: entry.version.clone(),
                    blake3: match &entry.python {
                        Some(pack) => pack.version.clone(),
                        None => hash(&entry.path)?,
                    },
                });
            }
            for (source, input) in step.inputs.iter().zip(&step.descriptor.inputs) {
                let paths: Vec<&str> = match source {
                    Source::Literal(Literal::Path { path, .. }) => vec![path],
                    Source::Literal(Literal::TextWithFiles { files, .. }) => {
                        files.iter().map(|file| file.path.as_str()).collect()
                    }
                    _ => Vec::new(),
                };
                for path in paths {
                    let path = Path::new(path);
                    let name = path.file_name().unwrap_or(path.as_os_str());
                    files.insert(LockedFile {
                        node: step.name.id.clone(),
                        input: input.name.clone(),
                        name: name.to_string_lossy().into_owned(),
                        blake3: hash(path)?,
                    });
                }
            }
        }
        let prompt = serde_json::from_str(&graph.to_json())
            .map_err(|error| format!("the workflow cannot be written down: {error}"))?;
        Ok(Self {
            kosmograph_lock: 1,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            isa: isa(),
            device: device.to_owned(),
            libraries: libraries.into_iter().collect(),
            files: files.into_iter().collect(),
            prompt,
        })
    }

    /// Reads a lock.
    ///
    /// # Errors
    /// A sentence: there is none, or it is none.
    pub fn read(file: &Path) -> Result<Self, String> {
        let failed = |why: String| format!("the lock {} {why}", file.display());
        let metadata =
            fs::metadata(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            return Err(failed("is no lock: it is no file, or far too long".to_owned()));
        }
        let text = fs::read(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
        let lock: Self = serde_json::from_slice(&text)
            .map_err(|error| failed(format!("is no lock as kosmograph lock writes it: {error}")))?;
        match lock.kosmograph_lock {
            1 => Ok(lock),
            other => Err(failed(format!("is of the format {other}; this program knows format 1"))),
        }
    }

    /// As it is written to a file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// What is otherwise now: sentences without their full stops, as many as one reads.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (what, locked, now) in [
            ("program's version", &self.program, &now.program),
            ("processor", &self.isa, &now.isa),
            ("device", &self.device, &now.device),
        ] {
            if locked != now {
                found.push(format!("the {what} is {now}; it was {locked}"));
            }
        }
        let name = |library: &LockedLibrary| library.name.clone();
        for library in &now.libraries {
            match self.libraries.iter().find(|locked| locked.name == library.name) {
                None => found.push(format!("the library {} was not used", library.name)),
                Some(locked) if locked.version != library.version => found.push(format!(
                    "the library {} has the version {}; it had {}",
                    name(library),
                    library.version,
                    locked.version
                )),
                Some(locked) if locked.blake3 != library.blake3 => {
                    found.push(format!("the library {} is another file", library.name));
                }
                Some(_) => {}
            }
        }
        let same = |a: &LockedFile, b: &LockedFile| {
            (&a.node, &a.input, &a.name) == (&b.node, &b.input, &b.name)
        };
        for file in &now.files {
            let place = format!("{}, which node {} reads as {},", file.name, file.node, file.input);
            match self.files.iter().find(|locked| same(locked, file)) {
                None => found.push(format!("{place} is not in the lock")),
                Some(locked) if locked.blake3 != file.blake3 => {
                    found.push(format!("{place} has changed"));
                }
                Some(_) => {}
            }
        }
        for locked in &self.files {
            if !now.files.iter().any(|file| same(locked, file)) {
                let LockedFile { name, node, input, .. } = locked;
                found.push(format!(
                    "{name}, which node {node} read as {input}, is not read any more"
                ));
            }
        }
        let none = Map::new();
        let (before, after) =
            (self.prompt.as_object().unwrap_or(&none), now.prompt.as_object().unwrap_or(&none));
        for id in after.keys().filter(|id| !before.contains_key(*id)) {
            found.push(format!("node {id} is new in the workflow"));
        }
        for (id, node) in before {
            let Some(other) = after.get(id) else {
                found.push(format!("node {id} is not in the workflow any more"));
                continue;
            };
            if node["class_type"] != other["class_type"] {
                let (class, was) = (&other["class_type"], &node["class_type"]);
                found.push(format!("node {id} is of the class {class}; it was {was}"));
                continue;
            }
            let inputs = |node: &Json| node["inputs"].as_object().cloned().unwrap_or_default();
            let (before, after) = (inputs(node), inputs(other));
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names.into_iter().filter(|name| before.get(*name) != after.get(*name)) {
                let shown = |value: Option<&Json>| {
                    let text = value.map_or("nothing".to_owned(), Json::to_string);
                    match text.char_indices().nth(60) {
                        Some((end, _)) => format!("{}…", &text[..end]),
                        None => text,
                    }
                };
                let (now, was) = (shown(after.get(name)), shown(before.get(name)));
                found.push(format!("input {name} of node {id} is {now}; it was {was}"));
            }
        }
        if found.len() > MOST_TOLD {
            let rest = found.len() - MOST_TOLD;
            found.truncate(MOST_TOLD);
            found.push(format!("and {rest} more"));
        }
        found
    }
}

/// Where the lock of a workflow is: beside it, with ".lock" behind its name.
pub fn beside(workflow: &Path) -> PathBuf {
    let mut name = workflow.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn hash(path: &Path) -> Result<String, String> {
    let failed = |error: String| format!("{} cannot be read: {error}", path.display());
    if path.is_dir() {
        let identity = folders::identity(path, Identify::Contents)
            .map_err(|error| failed(error.to_string()))?;
        let hex: String = identity.iter().map(|byte| format!("{byte:02x}")).collect();
        return Ok(format!("folder:{hex}"));
    }
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    hasher.update_reader(file).map_err(|error| failed(error.to_string()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The processor, and which of the instruction sets it has that change how sums are rounded.
pub fn isa() -> String {
    let mut sets = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            sets.push(name);
        }
    }
    sets.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lock() -> Lock {
        let library = |name: &str| LockedLibrary {
            name: name.into(),
            version: "1".into(),
            blake3: "aa".into(),
        };
        let file = |node: &str, name: &str| LockedFile {
            node: node.into(),
            input: "file".into(),
            name: name.into(),
            blake3: "bb".into(),
        };
        Lock {
            kosmograph_lock: 1,
            program: "1".into(),
            isa: "x86_64 avx2".into(),
            device: "cpu".into(),
            libraries: vec![library("a"), library("b")],
            files: vec![file("1", "m.safetensors"), file("2", "in.png")],
            prompt: json!({"1": {"class_type": "A", "inputs": {"file": "m.safetensors", "seed": 5}},
                "2": {"class_type": "B", "inputs": {"file": "in.png"}}}),
        }
    }

    #[test]
    fn a_lock_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("w.json.lock");
        fs::write(&file, lock().to_json()).unwrap();
        assert_eq!(Lock::read(&file).unwrap(), lock());
        assert!(lock().differences(&lock()).is_empty());
        assert_eq!(beside(Path::new("a/w.json")), Path::new("a/w.json.lock"));
        for (text, part) in [
            ("", "is no lock as kosmograph lock writes it"),
            ("{}", "is no lock as kosmograph lock writes it"),
            (
                &lock().to_json().replace("\"kosmograph_lock\": 1", "\"kosmograph_lock\": 2"),
                "is of the format 2",
            ),
        ] {
            fs::write(&file, text).unwrap();
            let error = Lock::read(&file).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(Lock::read(&folder.path().join("none")).unwrap_err().contains("cannot be read"));
        assert!(Lock::read(folder.path()).unwrap_err().contains("is no file"));
    }

    #[test]
    fn each_difference_is_named() {
        let differences = |change: &dyn Fn(&mut Lock)| {
            let mut now = lock();
            change(&mut now);
            lock().differences(&now).join("\n")
        };
        assert_eq!(
            differences(&|now| now.isa = "x86_64".into()),
            "the processor is x86_64; it was x86_64 avx2"
        );
        assert_eq!(
            differences(&|now| now.device = "cuda:0".into()),
            "the device is cuda:0; it was cpu"
        );
        assert_eq!(
            differences(&|now| now.libraries[1].version = "2".into()),
            "the library b has the version 2; it had 1"
        );
        assert_eq!(
            differences(&|now| now.libraries[0].blake3 = "cc".into()),
            "the library a is another file"
        );
        assert_eq!(
            differences(&|now| now.files[0].blake3 = "cc".into()),
            "m.safetensors, which node 1 reads as file, has changed"
        );
        assert_eq!(
            differences(&|now| now.prompt["1"]["inputs"]["seed"] = json!(6)),
            "input seed of node 1 is 6; it was 5"
        );
        assert_eq!(
            differences(&|now| now.prompt["2"]["class_type"] = json!("C")),
            "node 2 is of the class \"C\"; it was \"B\""
        );
        let other = differences(&|now| now.files[1].name = "other.png".into());
        assert!(
            other.contains("other.png, which node 2 reads as file, is not in the lock"),
            "{other}"
        );
        assert!(
            other.contains("in.png, which node 2 read as file, is not read any more"),
            "{other}"
        );
        let many = differences(&|now| {
            for i in 0..50 {
                now.prompt[format!("n{i}")] = json!({"class_type": "A", "inputs": {}});
            }
        });
        assert!(many.ends_with("and 30 more"), "{many}");
    }

    #[test]
    fn files_and_folders_are_known_by_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "abc").unwrap();
        // b3sum's.
        let abc = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(hash(&file).unwrap(), abc);
        let before = hash(folder.path()).unwrap();
        fs::write(&file, "abd").unwrap();
        assert!(before.starts_with("folder:") && hash(folder.path()).unwrap() != before);
        assert!(hash(&folder.path().join("none")).unwrap_err().contains("cannot be read"));
    }
}
