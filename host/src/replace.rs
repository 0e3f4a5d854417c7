//! Classes that are gone and whose work another one does: a workflow that names one runs with the other.
//!
//! A node says in its descriptor whom it replaces ("replaces" in `node.h`). Where a library has the old
//! class nothing is replaced; where none has, the node becomes one of the new class before anything is
//! checked, and that is told. A class that does one of several things, which a value says, may be replaced
//! for that value alone, though it is there ("when"): so a library brings a choice to another's node.

use crate::catalogue::{Catalogue, Class};
use crate::graph::{Graph, Input, Node, Origin};
use crate::problem::{Kind, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// A class that a node stands in for. Inputs and outputs that are not named are called the same in both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replaces {
    pub class: String,
    /// An input of the old class → the text that must stand there. Where there are some, the class may well be
    /// there: the texts are choices of its that this node brings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub when: BTreeMap<String, String>,
    /// The old class's widgets in their order, as the editor saves their values.
    #[serde(default)]
    pub widgets: Vec<String>,
    /// An input of the new class → the one of the old class that it takes.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// An input of the new class → what it is set to, since the old one had none like it.
    #[serde(default)]
    pub values: Map<String, Value>,
    /// For each output of the new class the old one's number; none: the same.
    #[serde(default)]
    pub outputs: Vec<u64>,
}

impl Replaces {
    /// The input of the new class that takes what stood at `old`.
    fn input<'a>(&'a self, old: &'a str) -> &'a str {
        self.inputs.iter().find(|(_, from)| *from == old).map_or(old, |(to, _)| to)
    }

    /// Whether what stands at `node`'s inputs is what it does the work for.
    pub fn is_for(&self, node: &Node) -> bool {
        self.when.iter().all(|(input, wanted)| match node.input(input) {
            Some(Input::Literal { value, .. }) => value.as_str() == Some(wanted),
            _ => false,
        })
    }

    /// The output of the new class that gives what the old one gave at `slot`, if one does.
    fn output(&self, slot: u64) -> Option<u64> {
        if self.outputs.is_empty() {
            return Some(slot);
        }
        self.outputs.iter().position(|old| *old == slot).map(|new| new as u64)
    }
}

/// Makes the nodes of classes that are gone nodes of those that replace them; what is told of each.
pub fn replace(graph: &mut Graph, catalogue: &Catalogue) -> Vec<Problem> {
    let gone = |(at, node): (usize, &Node)| {
        let stands_in = || catalogue.stands_in(node);
        Some((at, catalogue.replacement(&node.class).or_else(stands_in)?))
    };
    let nodes = graph.nodes().iter().enumerate();
    let gone: HashMap<usize, (&Class, &Replaces)> = nodes.filter_map(gone).collect();
    if gone.is_empty() {
        return Vec::new();
    }
    let mut told = Vec::new();
    for at in 0..graph.nodes().len() {
        // Links first: they name the old class's outputs, wherever they stand.
        let linked = |input: &Input| match input {
            Input::Link { id, slot } => {
                let (class, replaces) = gone.get(&graph.position(id)?)?;
                // Where the new class gives nothing like it the link leads to the output behind its last,
                // which the plan refuses by what there is.
                let behind = class.descriptor.outputs.len() as u64;
                Some(replaces.output(*slot).unwrap_or(behind))
            }
            _ => None,
        };
        let slots: Vec<Option<u64>> =
            graph.nodes()[at].inputs.iter().map(|(_, input)| linked(input)).collect();
        let node = graph.inputs_mut(at);
        for ((_, input), new) in node.inputs.iter_mut().zip(slots) {
            if let (Input::Link { slot, .. }, Some(new)) = (input, new) {
                *slot = new;
            }
        }
        let Some((class, replaces)) = gone.get(&at) else { continue };
        let new = &class.descriptor.class;
        if replaces.when.is_empty() {
            let message = format!("no library has this class any more; {new} does its work");
            let name = node.name();
            told.push(Problem::new(Kind::MissingNodeType, message).at(name));
        }
        node.class.clone_from(new);
        // What chose the class is no input of it.
        node.inputs.retain(|(input, _)| {
            !replaces.when.contains_key(input) || class.descriptor.input(input).is_some()
        });
        for (input, _) in &mut node.inputs {
            *input = replaces.input(input).to_owned();
        }
        for (input, value) in &replaces.values {
            if node.input(input).is_none() {
                node.set(input, Input::literal(value.clone(), Origin::File));
            }
        }
    }
    told
}

/// All of them as ComfyUI's server tells its editor: by the old class, in a list each.
pub fn as_comfyui(catalogue: &Catalogue) -> Value {
    let mut all = Map::new();
    for class in catalogue.classes() {
        for replaces in class.descriptor.replaces.iter().filter(|one| one.when.is_empty()) {
            let is_used = catalogue
                .replacement(&replaces.class)
                .is_some_and(|(used, _)| used.descriptor.class == class.descriptor.class);
            if !is_used {
                continue;
            }
            let input = |name: &str| match replaces.values.get(name) {
                Some(value) => json!({"new_id": name, "set_value": value}),
                None => {
                    let old = replaces.inputs.get(name).map_or(name, String::as_str);
                    json!({"new_id": name, "old_id": old})
                }
            };
            let inputs = class.descriptor.inputs.iter().map(|each| input(&each.name));
            let output = |new: usize| {
                let old = replaces.outputs.get(new).copied().unwrap_or(new as u64);
                json!({"new_idx": new, "old_idx": old})
            };
            let outputs = (0..class.descriptor.outputs.len()).map(output);
            let one = json!({
                "new_node_id": class.descriptor.class,
                "old_node_id": replaces.class,
                "old_widget_ids": replaces.widgets,
                "input_mapping": inputs.collect::<Vec<_>>(),
                "output_mapping": outputs.collect::<Vec<_>>(),
            });
            all.insert(replaces.class.clone(), json!([one]));
        }
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::editor::convert;
    use crate::folders::Folders;
    use crate::plan::Plan;
    use std::path::Path;

    fn catalogue() -> Catalogue {
        let library = json!({"name": "test", "version": "1", "nodes": [
            {"class": "Load", "outputs": [{"name": "image", "type": "IMAGE"}]},
            {"class": "Fit", "inputs": [
                {"name": "image", "type": "IMAGE"},
                {"name": "method", "type": "COMBO", "choices": ["area", "lanczos"]},
                {"name": "size", "type": "INT", "min": 0, "max": 9999}],
             "outputs": [{"name": "mask", "type": "MASK"}, {"name": "image", "type": "IMAGE"}],
             "replaces": [
                {"class": "Old Fit ", "widgets": ["edge"], "inputs": {"image": "images", "size": "edge"},
                 "values": {"method": "lanczos"}, "outputs": [1, 0]},
                {"class": "Load"}]},
            {"class": "Show", "inputs": [{"name": "image", "type": "IMAGE"}], "output_node": true}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("test"), &library).unwrap();
        catalogue
    }

    #[test]
    fn what_is_gone_is_done_by_the_other() {
        let text = r#"{"1": {"class_type": "Load", "inputs": {}},
            "3": {"class_type": "Show", "inputs": {"image": ["2", 0]}},
            "2": {"class_type": "Old Fit ", "inputs": {"images": ["1", 0], "edge": 64}, "_meta": {"title": "T"}}}"#;
        let mut graph = Graph::parse(text).unwrap();
        let told = replace(&mut graph, &catalogue());
        let now = r#"{"1":{"class_type":"Load","inputs":{}},"3":{"class_type":"Show","inputs":{"image":["2",1]}},"2":{"class_type":"Fit","inputs":{"image":["1",0],"size":64,"method":"lanczos"},"_meta":{"title":"T"}}}"#;
        assert_eq!(graph, Graph::parse(now).unwrap());
        assert_eq!(told.len(), 1, "a class that is there is replaced by nobody");
        let said = told[0].to_string();
        assert!(said.contains("node 2") && said.contains("Fit does its work"), "{said}");
        assert!(replace(&mut graph, &catalogue()).is_empty());
    }

    #[test]
    fn a_choice_may_be_another_librarys_node() {
        let chooser = json!({"name": "one", "version": "1", "nodes": [
            {"class": "Load", "outputs": [{"name": "image", "type": "IMAGE"}]},
            {"class": "Any", "output_node": true, "inputs": [
                {"name": "image", "type": "IMAGE"},
                {"name": "how", "type": "COMBO", "choices": ["none", "edges"]},
                {"name": "size", "type": "INT", "min": 0, "max": 9999}]}]});
        let depth = json!({"name": "other", "version": "1", "nodes": [
            {"class": "Depth", "output_node": true, "inputs": [
                {"name": "image", "type": "IMAGE"},
                {"name": "file", "type": "STRING"},
                {"name": "size", "type": "INT", "min": 0, "max": 9999}],
             "replaces": [{"class": "Any", "when": {"how": "Depth"}, "values": {"file": "vitl"}}]}]});
        let text = |how: &str| {
            format!(
                r#"{{"1": {{"class_type": "Load", "inputs": {{}}}},
                "2": {{"class_type": "Any", "inputs": {{"image": ["1", 0], "how": {how}, "size": 64}}}}}}"#
            )
        };
        // Whichever library is found first.
        for order in [[&chooser, &depth], [&depth, &chooser]] {
            let mut catalogue = Catalogue::default();
            for (at, library) in order.into_iter().enumerate() {
                catalogue.add(Path::new(&at.to_string()), library).unwrap();
            }
            let mut graph = Graph::parse(&text("\"Depth\"")).unwrap();
            assert!(replace(&mut graph, &catalogue).is_empty(), "nothing is amiss");
            let now = r#"{"1":{"class_type":"Load","inputs":{}},"2":{"class_type":"Depth","inputs":{"image":["1",0],"size":64,"file":"vitl"}}}"#;
            assert_eq!(graph, Graph::parse(now).unwrap());
            for other in ["\"edges\"", "[\"1\", 0]"] {
                let mut graph = Graph::parse(&text(other)).unwrap();
                replace(&mut graph, &catalogue);
                assert_eq!(graph, Graph::parse(&text(other)).unwrap());
            }
            let refused = Graph::parse(&text("\"Pose\"")).unwrap();
            let refused = Plan::new(&refused, &catalogue, &Folders::default(), "cpu").unwrap_err();
            let said: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
            assert!(said.iter().any(|said| said.contains(r#""edges", "Depth""#)), "{said:?}");
            assert_eq!(as_comfyui(&catalogue), json!({}));
        }
        // Without the other library there is no such choice.
        let mut alone = Catalogue::default();
        alone.add(Path::new("one"), &chooser).unwrap();
        let mut graph = Graph::parse(&text("\"Depth\"")).unwrap();
        replace(&mut graph, &alone);
        let refused = Plan::new(&graph, &alone, &Folders::default(), "cpu").unwrap_err();
        assert!(refused.problems.iter().any(|said| said.to_string().contains("Depth")));
    }

    #[test]
    fn an_output_that_the_new_class_lacks_is_a_link_to_nothing() {
        let text = r#"{"3": {"class_type": "Show", "inputs": {"image": ["2", 2]}},
            "2": {"class_type": "Old Fit ", "inputs": {}}}"#;
        let mut graph = Graph::parse(text).unwrap();
        replace(&mut graph, &catalogue());
        let slot = Some(&Input::Link { id: "2".into(), slot: 2 });
        assert_eq!(graph.nodes()[0].input("image"), slot);
        let refused = Plan::new(&graph, &catalogue(), &Folders::default(), "cpu").unwrap_err();
        let said: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
        assert!(
            said.iter().any(|said| said.contains("node 3") && said.contains("image")),
            "{said:?}"
        );
    }

    #[test]
    fn the_editors_values_find_their_names() {
        let saved = json!({"nodes": [
            {"id": 2, "type": "Old Fit ", "widgets_values": [512],
             "inputs": [{"name": "images", "type": "IMAGE", "link": null}], "outputs": []}], "links": []});
        let mut graph = convert(saved.as_object().unwrap(), &catalogue()).graph;
        replace(&mut graph, &catalogue());
        let literal = Input::literal(512.into(), Origin::File);
        assert_eq!(graph.nodes()[0].input("size"), Some(&literal));
    }

    #[test]
    fn comfyuis_editor_is_told() {
        assert_eq!(
            as_comfyui(&catalogue()),
            json!({"Old Fit ": [{"new_node_id": "Fit", "old_node_id": "Old Fit ", "old_widget_ids": ["edge"],
                "input_mapping": [{"new_id": "image", "old_id": "images"},
                    {"new_id": "method", "set_value": "lanczos"}, {"new_id": "size", "old_id": "edge"}],
                "output_mapping": [{"new_idx": 0, "old_idx": 1}, {"new_idx": 1, "old_idx": 0}]}]})
        );
    }

    #[test]
    fn whoever_names_an_input_that_is_not_there_is_refused() {
        for (replaces, word) in [
            (json!([{"class": "Old", "inputs": {"picture": "x"}}]), "picture"),
            (json!([{"class": "Old", "values": {"n": 1}}]), "input n"),
            (json!([{"class": "Old", "outputs": [0]}]), "outputs"),
            (json!([{"class": ""}]), "class"),
        ] {
            let library = json!({"name": "l", "version": "1",
                "nodes": [{"class": "New", "replaces": replaces}]});
            let error = Catalogue::default().add(Path::new("l"), &library).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
