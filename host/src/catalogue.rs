//! What the libraries say of themselves → [`Catalogue`]: every class that a workflow may name, with
//! its inputs typed and checked once, so that the plan never meets a nonsensical descriptor.
//!
//! The descriptor's format is specified in `nodes/abi/node.h`. Keys it does not know are left
//! alone: libraries may be newer than the host.

mod read;

use crate::folders::Entry;
use crate::graph::Node;
use crate::need::Need;
use crate::python::PythonPack;
use crate::replace::Replaces;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// One class of node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDescriptor {
    pub class: String,
    /// What editors show instead of the class; empty where that is the same.
    #[serde(default)]
    pub display_name: String,
    pub doc: String,
    pub category: String,
    pub inputs: Vec<InputDescriptor>,
    pub outputs: Vec<OutputDescriptor>,
    /// Equal inputs give equal outputs, so results may be kept.
    pub pure: bool,
    /// It is run for what it does outside the graph.
    pub output_node: bool,
    /// It takes every input as a list and runs once for all of them.
    #[serde(default)]
    pub input_is_list: bool,
    /// It is run by `check`, since it reads no more than headers.
    #[serde(default)]
    pub checked: bool,
    /// It takes what is linked to it under any name besides; of packs in Python alone.
    #[serde(default)]
    pub any_inputs: bool,
    /// What is asked about it before it runs; of packs in Python alone.
    #[serde(default)]
    pub asks: Asks,
    /// Where it writes files.
    pub writes: Option<Writes>,
    /// How much memory its results take at least, where the library says so.
    pub memory: Option<Need>,
    /// Classes that are gone and whose work it does.
    #[serde(default)]
    pub replaces: Vec<Replaces>,
}

/// What a class of a pack in Python wants to be asked before anything runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asks {
    /// IS_CHANGED: what stands for its results besides its inputs.
    pub changed: bool,
    /// VALIDATE_INPUTS: whether its inputs are right.
    pub valid: bool,
    /// And it looks at the types of its links itself.
    pub types: bool,
}

/// A folder of the host's that a node writes files into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writes {
    Output,
    Temp,
}

impl NodeDescriptor {
    /// The same with inputs that it has under these names besides.
    pub fn with_inputs(&self, names: impl IntoIterator<Item = String>) -> Self {
        let more = names.into_iter().map(|name| InputDescriptor {
            name,
            optional: true,
            doc: String::new(),
            type_name: "*".into(),
            kind: InputKind::Socket,
            unchecked: false,
            lazy: false,
            extensions: Vec::new(),
        });
        let mut with = self.clone();
        with.inputs.extend(more);
        with
    }

    pub fn input(&self, name: &str) -> Option<&InputDescriptor> {
        self.inputs.iter().find(|input| input.name == name)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputDescriptor {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// It is a list of values of that type, for each of which the nodes behind it run.
    #[serde(default)]
    pub is_list: bool,
}

/// One input of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputDescriptor {
    pub name: String,
    pub optional: bool,
    pub doc: String,
    /// The type as the library writes it: "INT", "MODEL", "IMAGE,MASK", "*".
    pub type_name: String,
    pub kind: InputKind,
    /// Its class looks itself at the range of a number and whether a choice is listed; of packs in Python alone.
    #[serde(default)]
    pub unchecked: bool,
    /// It need not be computed unless the class says so when it has the others; of packs in Python alone.
    #[serde(default)]
    pub lazy: bool,
    /// Of a path, the extensions of the files that are offered; none where they are those of its folder.
    #[serde(default)]
    pub extensions: Vec<String>,
}

impl InputDescriptor {
    /// Whether editors list it among the optional ones. A file that a word stands for, where there is none, always has a value there.
    pub fn is_beside(&self) -> bool {
        self.optional && !matches!(self.kind, InputKind::Path { none: Some(_), .. })
    }
}

/// What an input takes: a socket, or one of the widgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum InputKind {
    /// The output of another node, of the type that [`InputDescriptor::type_name`] names.
    Socket,
    /// Both bounds inclusive and inside i64, or inside u64 where `max` is above i64's.
    Int {
        default: Option<i128>,
        min: i128,
        max: i128,
        step: Option<i128>,
        seed: bool,
    },
    /// Both bounds inclusive.
    Float {
        default: Option<f64>,
        min: Option<f64>,
        max: Option<f64>,
        step: Option<f64>,
    },
    Text {
        default: Option<String>,
        multiline: bool,
        /// The kind of folder whose files the text may name, `embedding:NAME` for "embeddings".
        mentions: Option<String>,
        /// Whether the text begins the names of the files that the node writes.
        prefix: bool,
    },
    Boolean {
        default: Option<bool>,
    },
    /// One of `choices`, which are not empty.
    Combo {
        default: Option<String>,
        choices: Vec<String>,
        /// By choice the files that it may need, as FOLDER/NAME.
        files: BTreeMap<String, Vec<String>>,
    },
    /// A file's name, looked for in the folders of kind `folder`.
    Path {
        default: Option<String>,
        folder: String,
        entry: Entry,
        /// What stands for no file: then the input is absent.
        none: Option<String>,
    },
}

impl InputKind {
    /// Whether an INT of this range is read as unsigned.
    pub fn is_unsigned(max: i128) -> bool {
        max > i128::from(i64::MAX)
    }

    pub fn is_seed(&self) -> bool {
        matches!(self, Self::Int { seed: true, .. })
    }
}

/// Whether an output of type `output` fits an input of type `input`: equal, or one is `*`, or a
/// list of types with commas has one in common.
pub fn types_fit(output: &str, input: &str) -> bool {
    let one_of = |types: &str, name: &str| types.split(',').any(|one| one.trim() == name);
    output == input
        || output.split(',').any(|name| name.trim() == "*" || one_of(input, name.trim()))
        || one_of(input, "*")
}

/// A descriptor that is not what `node.h` says.
#[derive(Debug, Error)]
#[error("{library}: its descriptor is wrong: {place}{reason}")]
pub struct DescriptorError {
    pub library: String,
    place: String,
    reason: String,
}

/// A library, as the catalogue lists it.
#[derive(Clone, Debug)]
pub struct LibraryEntry {
    pub name: String,
    pub version: String,
    pub path: PathBuf,
    pub classes: usize,
    /// Tells its descriptor from every other.
    pub digest: [u8; 16],
    /// Whether it has "check/1".
    pub checks: bool,
    /// Where it is no shared library: the pack, and the Python that runs it.
    pub python: Option<PythonPack>,
    /// Classes of such a pack that cannot be used, and why.
    pub left_out: Vec<LeftOut>,
}

/// A class that is not there, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    pub class: String,
    pub reason: String,
}

/// A class and who provides it: node number `node` of library number `library`.
#[derive(Clone, Debug)]
pub struct Class {
    pub library: usize,
    pub node: u32,
    /// The library's name, version and path: what tells its results from another's.
    pub provider: Arc<str>,
    pub descriptor: Arc<NodeDescriptor>,
}

/// Every class that a workflow may name.
#[derive(Debug, Default)]
pub struct Catalogue {
    libraries: Vec<LibraryEntry>,
    classes: Vec<Class>,
    by_name: HashMap<String, usize>,
    /// The class that replaces one that is gone, and which of its replacements that is.
    replacements: HashMap<String, (usize, usize)>,
    /// The classes that do the work of one for certain texts at its inputs, likewise.
    stand_ins: HashMap<String, Vec<(usize, usize)>>,
    warnings: Vec<String>,
}

impl Catalogue {
    /// Adds what the library at `path` describes; returns its number, counted from 0 in the order
    /// of adding. A class that is already there stays the first library's, with a warning.
    ///
    /// # Errors
    /// Every fault of the descriptor is a reason to refuse the library: what it says of one node
    /// cannot be trusted if it is wrong about another.
    pub fn add(&mut self, path: &Path, descriptor: &Value) -> Result<usize, DescriptorError> {
        let (name, version, mut nodes) = read::parse(path, descriptor)?;
        // What the boundary does not know is said by packs alone.
        for node in &mut nodes {
            (node.asks, node.any_inputs) = (Asks::default(), false);
            for input in &mut node.inputs {
                (input.unchecked, input.lazy) = (false, false);
            }
        }
        self.add_parsed(path, descriptor, (name, version, nodes))
    }

    fn add_parsed(
        &mut self,
        path: &Path,
        descriptor: &Value,
        (name, version, nodes): read::Parsed,
    ) -> Result<usize, DescriptorError> {
        let number = self.libraries.len();
        let classes = nodes.len();
        let provider: Arc<str> = format!("{name} {version} {}", path.display()).into();
        for (index, node) in nodes.into_iter().enumerate() {
            if let Some(&first) = self.by_name.get(&node.class) {
                let library = &self.libraries[self.classes[first].library];
                self.warnings.push(format!(
                    "the class {} is in two libraries; {} is used, {} is not",
                    node.class,
                    library.path.display(),
                    path.display()
                ));
                continue;
            }
            self.by_name.insert(node.class.clone(), self.classes.len());
            for (at, replaces) in node.replaces.iter().enumerate() {
                let place = (self.classes.len(), at);
                match replaces.when.is_empty() {
                    true => _ = self.replacements.entry(replaces.class.clone()).or_insert(place),
                    false => {
                        self.stand_ins.entry(replaces.class.clone()).or_default().push(place);
                    }
                }
            }
            let node_number = index as u32;
            let descriptor = Arc::new(node);
            let provider = provider.clone();
            self.classes.push(Class { library: number, node: node_number, provider, descriptor });
        }
        self.offer_what_stands_in();
        let (path, digest) = (path.to_owned(), digest(descriptor));
        let checks = descriptor.get("checks") == Some(&Value::Bool(true));
        let (python, left_out) = (None, Vec::new());
        self.libraries.push(LibraryEntry {
            name,
            version,
            path,
            classes,
            digest,
            checks,
            python,
            left_out,
        });
        Ok(number)
    }

    /// Puts the texts that bring another class among the choices of the one that they are given to.
    fn offer_what_stands_in(&mut self) {
        let mut brought = Vec::new();
        for (class, places) in &self.stand_ins {
            let Some(&chosen) = self.by_name.get(class) else { continue };
            for &(new, at) in places {
                let when = &self.classes[new].descriptor.replaces[at].when;
                brought
                    .extend(when.iter().map(|(input, text)| (chosen, input.clone(), text.clone())));
            }
        }
        for (chosen, name, text) in brought {
            let descriptor = Arc::make_mut(&mut self.classes[chosen].descriptor);
            let input = descriptor.inputs.iter_mut().find(|input| input.name == name);
            if let Some(InputKind::Combo { choices, .. }) = input.map(|input| &mut input.kind)
                && !choices.contains(&text)
            {
                choices.push(text);
            }
        }
    }

    /// Adds what a pack of nodes in Python describes, as [`Self::add`] does of a library.
    ///
    /// # Errors
    /// As there.
    pub fn add_pack(
        &mut self,
        pack: &PythonPack,
        descriptor: &Value,
    ) -> Result<usize, DescriptorError> {
        let parsed = read::parse(&pack.path, descriptor)?;
        let number = self.add_parsed(&pack.path, descriptor, parsed)?;
        if let Some(entry) = self.libraries.get_mut(number) {
            (entry.python, entry.digest) = (Some(pack.clone()), classes_digest(descriptor));
            let left_out = descriptor.get("left_out").cloned().unwrap_or_default();
            entry.left_out = serde_json::from_value(left_out).unwrap_or_default();
        }
        Ok(number)
    }

    /// Why a pack has the class and does not offer it, and which pack that is.
    pub fn left_out(&self, class: &str) -> Option<(&str, &str)> {
        self.libraries.iter().find_map(|library| {
            let left_out = library.left_out.iter().find(|left_out| left_out.class == class)?;
            Some((library.name.as_str(), left_out.reason.as_str()))
        })
    }

    pub fn get(&self, class: &str) -> Option<&Class> {
        self.by_name.get(class).map(|&index| &self.classes[index])
    }

    /// The class that does the work of `class`, where no library has that.
    pub fn replacement(&self, class: &str) -> Option<(&Class, &Replaces)> {
        if self.by_name.contains_key(class) {
            return None;
        }
        let &(new, at) = self.replacements.get(class)?;
        let new = &self.classes[new];
        Some((new, new.descriptor.replaces.get(at)?))
    }

    /// The class that does the work of a node for what stands at its inputs, though the node's own class is there.
    pub fn stands_in(&self, node: &Node) -> Option<(&Class, &Replaces)> {
        let places = self.stand_ins.get(&node.class)?;
        let mut all = places.iter().filter_map(|&(new, at)| {
            let new = &self.classes[new];
            Some((new, new.descriptor.replaces.get(at)?))
        });
        all.find(|(_, replaces)| replaces.is_for(node))
    }

    /// In the order of the libraries and, in them, of their descriptors.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    pub fn class_names(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().map(|class| class.descriptor.class.as_str())
    }

    pub fn libraries(&self) -> &[LibraryEntry] {
        &self.libraries
    }

    /// Classes that are in two libraries.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Tells the classes of a pack, and their order, from others. Lists of files among its choices may change meanwhile.
pub fn classes_digest(descriptor: &Value) -> [u8; 16] {
    let nodes = descriptor["nodes"].as_array().into_iter().flatten();
    let named = |list: &Value| -> Vec<Value> {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|one| serde_json::json!([one["name"], one["type"]]))
            .collect()
    };
    let classes = nodes.map(|node| {
        serde_json::json!([node["class"], named(&node["inputs"]), named(&node["outputs"])])
    });
    digest(&Value::Array(classes.collect()))
}

/// Tells a descriptor from every other: [`LibraryEntry::digest`].
pub fn digest(descriptor: &Value) -> [u8; 16] {
    let mut digest = [0; 16];
    let mut hasher = blake3::Hasher::new();
    // Writing to a hasher cannot fail.
    let _ = serde_json::to_writer(&mut hasher, descriptor);
    hasher.finalize_xof().fill(&mut digest);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn library(inputs: Value) -> Value {
        json!({"name": "l", "version": "1", "nodes": [
            {"class": "A", "inputs": inputs, "outputs": [{"name": "x", "type": "IMAGE"}]}]})
    }

    fn one(input: Value) -> Result<InputKind, String> {
        let mut catalogue = Catalogue::default();
        let added = catalogue.add(Path::new("liba.so"), &library(json!([input])));
        added.map_err(|error| error.to_string())?;
        Ok(catalogue.get("A").unwrap().descriptor.inputs[0].kind.clone())
    }

    #[test]
    fn inputs_are_typed() {
        let seed = json!({"name": "s", "type": "INT", "max": u64::MAX, "role": "seed"});
        let wanted =
            InputKind::Int { default: None, min: 0, max: u64::MAX.into(), step: None, seed: true };
        assert_eq!(one(seed).unwrap(), wanted);
        let path = json!({"name": "p", "type": "STRING", "role": "path", "folder": "vae",
            "entry": "any"});
        let (folder, entry) = ("vae".to_owned(), Entry::Any);
        let wanted = InputKind::Path { default: None, folder: folder.clone(), entry, none: None };
        assert_eq!(one(path).unwrap(), wanted);
        let mut path = json!({"name": "p", "type": "STRING", "role": "path", "folder": "vae",
            "entry": "any", "none": "None", "optional": true});
        let none = Some("None".to_owned());
        let wanted = InputKind::Path { default: None, folder, entry, none };
        assert_eq!(one(path.clone()).unwrap(), wanted);
        path["optional"] = json!(false);
        assert!(one(path).unwrap_err().contains("has a word for no file, but is not optional"));
        assert_eq!(one(json!({"name": "m", "type": "MODEL"})).unwrap(), InputKind::Socket);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let sentence = |input| one(input).unwrap_err();
        for (input, part) in [
            (json!({"type": "INT"}), "A: input number 0: missing field `name`"),
            (json!({"name": "", "type": "INT"}), "has no name"),
            (json!({"name": "a", "type": ""}), "A: input a: has no type"),
            (json!({"name": "a", "type": "INT", "default": 1.5}), "default 1.5 is not a whole"),
            (json!({"name": "a", "type": "INT", "min": 3, "max": 2}), "min 3 is above its max 2"),
            (json!({"name": "a", "type": "INT", "min": -1, "max": u64::MAX}), "unsigned"),
            (json!({"name": "a", "type": "INT", "max": 2, "default": 3}), "is not between"),
            (json!({"name": "a", "type": "INT", "step": 0}), "step"),
            (json!({"name": "a", "type": "FLOAT", "max": 2, "default": 3}), "outside its range"),
            (json!({"name": "a", "type": "COMBO"}), "without choices"),
            (
                json!({"name": "a", "type": "COMBO", "choices": ["x"], "files": {"y": ["f/n"]}}),
                "no choice",
            ),
            (json!({"name": "a", "type": "COMBO", "choices": ["x"], "default": "y"}), "\"y\""),
            (json!({"name": "a", "type": "FLOAT", "role": "seed"}), "seed of type FLOAT"),
            (json!({"name": "a", "type": "STRING", "role": "path"}), "without the folder"),
            (json!({"name": "a", "type": "BOOLEAN", "default": 1}), "true or false"),
            (json!({"name": "a", "type": "STRING", "mentions": ""}), "without a name"),
            (json!({"name": "a", "type": "INT", "role": "prefix"}), "prefix of type INT"),
            (json!({"name": "a", "type": "STRING", "role": "prefix"}), "say where it writes"),
        ] {
            let found = sentence(input);
            assert!(found.contains("liba.so: its descriptor is wrong"), "{found}");
            assert!(found.contains(part), "{found:?} has no {part:?}");
        }
    }

    #[test]
    fn the_first_of_two_libraries_keeps_a_class() {
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("one.so"), &library(json!([]))).unwrap();
        catalogue.add(Path::new("two.so"), &library(json!([]))).unwrap();
        assert_eq!(catalogue.get("A").unwrap().library, 0);
        let [warning] = catalogue.warnings() else { panic!("one warning") };
        assert!(warning.contains("one.so is used, two.so is not"), "{warning}");
        assert!(catalogue.get("B").is_none());
    }

    #[test]
    fn types() {
        assert!(types_fit("IMAGE", "IMAGE") && types_fit("*", "IMAGE") && types_fit("IMAGE", "*"));
        assert!(types_fit("MASK", "IMAGE,MASK") && types_fit("IMAGE,MASK", "MASK, LATENT"));
        assert!(!types_fit("MASK", "IMAGE") && !types_fit("INT", "FLOAT"));
    }
}
