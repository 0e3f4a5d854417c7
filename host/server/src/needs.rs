//! What a job needs of whoever runs it: classes with the inputs that it gives them, and models.
//!
//! A number for a whole catalogue would keep a worker from jobs that it can do, whenever any class changed;
//! so a job names what it uses. A worker that has those classes, with those inputs, can run it, whatever its
//! version. Jobs that need the same are of one *kind*: a worker learns once of each kind whether it fits.

use kosmograph::catalogue::{Catalogue, InputKind};
use kosmograph::graph::{Graph, Input};
use kosmograph::plan::Plan;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A short text that equal needs share.
    pub kind: String,
    /// `{class: [input, …]}`, JSON.
    pub text: String,
    /// `folder/name` of each model.
    pub models: Vec<String>,
}

/// What the nodes of `plan` use, which was made of `graph`.
pub fn of(plan: &Plan, graph: &Graph, catalogue: &Catalogue) -> Needs {
    let mut classes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut models = BTreeSet::new();
    for step in plan.steps() {
        let inputs = classes.entry(&step.name.class).or_default();
        let node = graph.position(&step.name.id).map(|at| &graph.nodes()[at]);
        let Some((node, class)) = node.zip(catalogue.get(&step.name.class)) else { continue };
        for (name, input) in &node.inputs {
            // What no class here knows is nobody's need: it is left aside everywhere.
            let Some(descriptor) = class.descriptor.input(name) else { continue };
            inputs.insert(&descriptor.name);
            if let InputKind::Path { folder, .. } = &descriptor.kind
                && folder != "input"
                && let Input::Literal { value: Json::String(name), .. } = input
            {
                models.insert(format!("{folder}/{name}"));
            }
        }
    }
    let text = json!(classes).to_string();
    let kind = blake3::hash(text.as_bytes()).to_hex()[..16].to_owned();
    Needs { kind, text, models: models.into_iter().collect() }
}

/// The first thing that a catalogue lacks of what a job needs, as words: a class, or a class's input.
pub fn lacking(text: &str, catalogue: &Catalogue) -> Option<String> {
    let needs: BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap_or_default();
    needs.iter().find_map(|(name, inputs)| {
        let Some(class) = catalogue.get(name) else { return Some(format!("the class {name}")) };
        let missing = inputs.iter().find(|input| class.descriptor.input(input).is_none())?;
        Some(format!("the input {missing} of the class {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn catalogue(inputs: Json) -> Catalogue {
        let mut catalogue = Catalogue::default();
        let library = json!({"name": "l", "version": "1", "nodes": [
            {"class": "A", "doc": "", "category": "", "inputs": inputs, "outputs": []}]});
        catalogue.add(Path::new("l.so"), &library).unwrap();
        catalogue
    }

    #[test]
    fn an_older_catalogue_lacks_what_came_later() {
        let old = catalogue(json!([{"name": "x", "type": "FLOAT"}]));
        assert_eq!(lacking(r#"{"A": ["x"]}"#, &old), None);
        assert_eq!(lacking(r#"{"A": ["x", "y"]}"#, &old).unwrap(), "the input y of the class A");
        assert_eq!(lacking(r#"{"A": [], "B": []}"#, &old).unwrap(), "the class B");
    }
}
