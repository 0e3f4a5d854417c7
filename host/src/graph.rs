//! Workflow JSON → [`Graph`]: what was written, before anybody knows what it means.
//!
//! The format is ComfyUI's API format: `{id: {"class_type": NAME, "inputs": {…}, "_meta": {…}}}`,
//! a link is `["id", slot]`, a literal list is `{"__value__": […]}`. A graph knows no types: whether
//! a class exists and a link fits is the plan's business. It does refuse JSON that is no workflow.

mod body;
mod json;
mod placeholder;

pub use body::Opened;
pub use json::{not_finite, parse as parse_json};
pub use placeholder::placeholder;

use crate::problem::{Kind, NodeName, Problem};
use serde_json::{Map, Value};
use std::collections::HashMap;
use thiserror::Error;

/// Where a literal comes from: a workflow file may come from anybody, the command line is the
/// person's own. See [`crate::folders`], which treats the two differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    File,
    CommandLine,
}

/// What stands at an input.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// `["id", slot]`: output number `slot` of the node `id`.
    Link { id: String, slot: u64 },
    /// Anything else; a `{"__value__": […]}` arrives here as the list. A number that JSON does not
    /// have is what [`not_finite`] knows.
    Literal { value: Value, origin: Origin },
    /// A list that is neither a link nor wrapped as a literal.
    BareList(Vec<Value>),
}

impl Input {
    /// What `value`, which is no link, stands for: `{"__value__": …}` is what is in it, of every type.
    pub fn literal(value: Value, origin: Origin) -> Self {
        let value = match value {
            Value::Object(mut object) => match object.shift_remove(VALUE) {
                Some(inside) => inside,
                None => Value::Object(object),
            },
            value => value,
        };
        Self::Literal { value, origin }
    }
}

/// The key under which a value stands that might be taken for something else.
const VALUE: &str = "__value__";

/// One node as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub id: String,
    pub class: String,
    /// `_meta`, kept as it is: `_meta.title` is what people address a node by.
    pub meta: Option<Value>,
    /// In the order of the file.
    pub inputs: Vec<(String, Input)>,
}

impl Node {
    pub fn title(&self) -> Option<&str> {
        self.meta.as_ref()?.get("title")?.as_str()
    }

    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|(key, _)| key == name).map(|(_, input)| input)
    }

    /// Puts `input` in the place of what stands at `name`, or after the others.
    pub fn set(&mut self, name: &str, input: Input) {
        match self.inputs.iter_mut().find(|(key, _)| key == name) {
            Some((_, place)) => *place = input,
            None => self.inputs.push((name.to_owned(), input)),
        }
    }

    pub fn name(&self) -> NodeName {
        NodeName {
            id: self.id.clone(),
            title: self.title().map(str::to_owned),
            class: self.class.clone(),
        }
    }
}

/// A workflow as it was written: nodes in the order of the file, ids unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    by_id: HashMap<String, usize>,
}

/// Why a text is no workflow.
#[derive(Debug, Error)]
pub enum GraphError {
    #[error("the workflow is empty; an API-format JSON object was expected")]
    Empty,
    #[error("the workflow ends in the middle, at line {line}, column {column}: was it cut off?")]
    Truncated { line: usize, column: usize },
    #[error("the workflow is nested too deeply to be one, at line {line}, column {column}")]
    TooDeep { line: usize, column: usize },
    #[error("the workflow is not valid JSON: {reason}, at line {line}, column {column}")]
    Syntax { reason: String, line: usize, column: usize },
    #[error(
        "the workflow is {found}; an object of nodes was expected, {{\"1\": {{\"class_type\": …}}}}"
    )]
    NotAnObject { found: &'static str },
    #[error(
        "this JSON is no workflow, there is no node with a class_type in it; it has {keys} where the ids of nodes were expected"
    )]
    NoNodes { keys: String },
    #[error(
        "this is the editor's format, in which values have no names; the API format was expected, \
         which the editor writes with Export (API)"
    )]
    EditorFormat,
    #[error("the file holds {count} workflows ({places}); one was expected")]
    Several { count: usize, places: String },
    #[error("{}", sentences(.0))]
    Nodes(Vec<Problem>),
}

fn sentences(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

impl Graph {
    /// Parses API-format JSON. Every malformed node is reported, not only the first.
    ///
    /// # Errors
    /// [`GraphError`], as [`parse_object`]; the editor's own format is one.
    pub fn parse(text: &str) -> Result<Self, GraphError> {
        Self::from_object(parse_object(text)?)
    }

    /// As [`Graph::parse`], from what [`parse_object`] read.
    ///
    /// # Errors
    /// As for [`Graph::parse`].
    pub fn from_object(object: Map<String, Value>) -> Result<Self, GraphError> {
        if is_editor_format(&object) {
            return Err(GraphError::EditorFormat);
        }
        let mut problems = Vec::new();
        let mut graph = Self {
            nodes: Vec::with_capacity(object.len()),
            by_id: HashMap::with_capacity(object.len()),
        };
        for (id, value) in object {
            match node(&id, value) {
                Ok(node) => {
                    graph.push(node);
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(graph) } else { Err(GraphError::Nodes(problems)) }
    }

    /// Adds a node behind the others; false, and nothing is added, when its id is there already.
    pub fn push(&mut self, node: Node) -> bool {
        if self.by_id.contains_key(&node.id) {
            return false;
        }
        self.by_id.insert(node.id.clone(), self.nodes.len());
        self.nodes.push(node);
        true
    }

    /// The workflow as API-format JSON, compact, nodes and inputs in their order: what a saved
    /// picture carries. [`Graph::parse`] gives the same graph back.
    pub fn to_json(&self) -> String {
        let nodes = self.nodes.iter().map(|node| {
            let inputs = node.inputs.iter().map(|(name, input)| {
                let value = match input {
                    Input::Link { id, slot } => serde_json::json!([id, slot]),
                    Input::Literal { value, .. } if is_ambiguous(value) => {
                        serde_json::json!({ VALUE: value })
                    }
                    Input::Literal { value, .. } => value.clone(),
                    Input::BareList(items) => Value::Array(items.clone()),
                };
                (name.clone(), value)
            });
            let mut object = Map::new();
            object.insert("class_type".into(), node.class.clone().into());
            object.insert("inputs".into(), Value::Object(inputs.collect()));
            if let Some(meta) = &node.meta {
                object.insert("_meta".into(), meta.clone());
            }
            (node.id.clone(), Value::Object(object))
        });
        Value::Object(nodes.collect()).to_string()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The position in [`Graph::nodes`] of the node with this id.
    pub fn position(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The node at a position, to change its inputs.
    ///
    /// # Panics
    /// Where `position` is not below the number of nodes.
    pub fn inputs_mut(&mut self, position: usize) -> &mut Node {
        &mut self.nodes[position]
    }
}

/// The workflow that a file is or, as the request of a client, holds; in either format.
///
/// # Errors
/// [`GraphError`], each with where it is. Nesting is limited to serde_json's 128 levels; the text's
/// length is the caller's to limit (see [`crate::workflow_file`]).
pub fn open(text: &str) -> Result<Opened, GraphError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().is_empty() {
        return Err(GraphError::Empty);
    }
    body::workflow_in(json::parse(text)?)
}

/// As [`open`]: the workflow alone.
///
/// # Errors
/// As for [`open`].
pub fn parse_object(text: &str) -> Result<Map<String, Value>, GraphError> {
    Ok(open(text)?.object)
}

/// Whether `value` would be read as something else if it stood alone.
fn is_ambiguous(value: &Value) -> bool {
    value.is_array() || value.get(VALUE).is_some()
}

/// Whether `object` is a workflow as the editor saves it, which [`crate::editor`] converts.
pub fn is_editor_format(object: &Map<String, Value>) -> bool {
    object.get("nodes").is_some_and(Value::is_array)
}

fn node(id: &str, value: Value) -> Result<Node, Problem> {
    let wrong = |class: &str, title: Option<&str>, message: String| {
        let title = title.map(str::to_owned);
        let name = NodeName { id: id.to_owned(), title, class: class.to_owned() };
        Problem::new(Kind::InvalidPrompt, message).at(name)
    };
    let object = match value {
        Value::Object(object) => object,
        other => {
            let found = json_kind(&other);
            return Err(wrong(
                "",
                None,
                format!("is {found}; an object with a class_type was expected"),
            ));
        }
    };
    let (mut meta, mut class, mut inputs) = (None, None, None);
    for (key, value) in object {
        match key.as_str() {
            "_meta" => meta = Some(value),
            "class_type" => class = Some(value),
            "inputs" => inputs = Some(value),
            _ => (),
        }
    }
    let title = meta.as_ref().and_then(|meta| meta.get("title")).and_then(Value::as_str);
    let class = match class {
        Some(Value::String(class)) if !class.is_empty() => class,
        Some(other) => {
            let found = json_kind(&other);
            return Err(wrong("", title, format!("its class_type is {found}, not a class's name")));
        }
        None => return Err(wrong("", title, "has no class_type".into())),
    };
    let inputs = match inputs {
        Some(Value::Object(inputs)) => inputs,
        None => Map::new(),
        Some(other) => {
            let found = json_kind(&other);
            return Err(wrong(&class, title, format!("its inputs are {found}, not an object")));
        }
    };
    let inputs = inputs.into_iter().map(|(name, value)| (name, input(value))).collect();
    Ok(Node { id: id.to_owned(), class, meta, inputs })
}

fn input(value: Value) -> Input {
    match value {
        Value::Array(items) => match link(&items) {
            Some((id, slot)) => Input::Link { id, slot },
            None => Input::BareList(items),
        },
        value => Input::literal(value, Origin::File),
    }
}

fn link(items: &[Value]) -> Option<(String, u64)> {
    let [Value::String(id), Value::Number(slot)] = items else {
        return None;
    };
    let whole =
        |slot: f64| ((0.0..=1e6).contains(&slot) && slot.fract() == 0.0).then_some(slot as u64);
    Some((id.clone(), slot.as_u64().or_else(|| slot.as_f64().and_then(whole))?))
}

/// What a person calls a JSON value.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Graph {
        Graph::parse(text).unwrap()
    }

    fn sentence(text: &str) -> String {
        Graph::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn nodes_links_literals_and_titles() {
        let graph = parse(
            r#"{"12:3": {"class_type": "A", "inputs": {"x": ["1", 2], "n": 18446744073709551615,
                "l": {"__value__": [1, 2]}, "o": {"a": 1}, "b": [1, 2, 3], "f": ["1", 0.0]},
                "_meta": {"title": "First"}},
              "1": {"class_type": "B"}}"#,
        );
        let node = &graph.nodes()[0];
        assert_eq!((node.id.as_str(), node.title()), ("12:3", Some("First")));
        assert_eq!(node.input("x"), Some(&Input::Link { id: "1".into(), slot: 2 }));
        assert_eq!(node.input("f"), Some(&Input::Link { id: "1".into(), slot: 0 }));
        let literal = |value: Value| Input::Literal { value, origin: Origin::File };
        assert_eq!(node.input("n"), Some(&literal(u64::MAX.into())));
        assert_eq!(node.input("l"), Some(&literal(serde_json::json!([1, 2]))));
        assert_eq!(node.input("o"), Some(&literal(serde_json::json!({"a": 1}))));
        assert!(matches!(node.input("b"), Some(Input::BareList(items)) if items.len() == 3));
        assert_eq!(graph.position("1"), Some(1));
        assert!(graph.nodes()[1].inputs.is_empty());
        assert_eq!(parse(&graph.to_json()), graph);
    }

    #[test]
    fn what_is_no_workflow_is_named() {
        assert!(sentence("").contains("is empty"));
        assert!(sentence(" \n ").contains("is empty"));
        assert!(sentence("{\n\"1\": {\"class_type\"").contains("cut off"));
        assert!(sentence("{\n\"1\": {\"class_type\"").contains("line 2, column"));
        assert!(sentence("[1]").contains("is a list"));
        assert!(sentence("{\"nodes\": [], \"links\": []}").contains("Export (API)"));
        assert!(sentence("{\"1\" 2}").contains("line 1, column 6"));
        assert!(
            sentence("{\"1\": {\"class_type\": \"A\"}, \"1\": {}}").contains("\"1\" stands twice")
        );
        assert!(sentence("{} {}").contains("trailing"));
        let deep = format!("{{\"1\": {}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(sentence(&deep).contains("nested too deeply"), "{}", sentence(&deep));
    }

    #[test]
    fn every_malformed_node_is_reported() {
        let text =
            r#"{"1": 4, "2": {}, "3": {"class_type": 1}, "4": {"class_type": "A", "inputs": []}}"#;
        let Err(GraphError::Nodes(problems)) = Graph::parse(text) else { panic!("accepted") };
        assert_eq!(problems.len(), 4);
        assert_eq!(problems[3].to_string(), "node 4 (A): its inputs are a list, not an object");
    }

    #[test]
    fn pythons_nan_is_known_and_no_null() {
        let graph = parse(
            r#"{"1": {"class_type": "A", "inputs": {"a": NaN, "b": {"__value__": -Infinity},
            "c": "NaN \" NaN", "d": null}, "is_changed": [NaN]}}"#,
        );
        let value = |name: &str| match graph.nodes()[0].input(name) {
            Some(Input::Literal { value, .. }) => value.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(not_finite(&value("a")), Some("NaN"));
        assert_eq!(not_finite(&value("b")), Some("-Infinity"));
        assert_eq!(value("c"), "NaN \" NaN");
        assert_eq!((not_finite(&value("d")), value("d")), (None, Value::Null));
        assert!(Graph::parse("{NaN").is_err());
    }

    #[test]
    fn wrapped_values_of_every_type_are_unwrapped() {
        let graph = parse(
            r#"{"1": {"class_type": "A", "inputs": {"n": {"__value__": 1}, "t": {"__value__": "x"},
            "l": {"__value__": ["2", 0]}, "o": {"__value__": {"__value__": 2}},
            "c": {"__type__": "CURVE", "__value__": 3}}}}"#,
        );
        let literal = |value: Value| Input::Literal { value, origin: Origin::File };
        let at = |name: &str| graph.nodes()[0].input(name).cloned();
        assert_eq!(at("n"), Some(literal(1.into())));
        assert_eq!(at("t"), Some(literal("x".into())));
        assert_eq!(at("l"), Some(literal(serde_json::json!(["2", 0]))));
        assert_eq!(at("o"), Some(literal(serde_json::json!({"__value__": 2}))));
        assert_eq!(at("c"), Some(literal(3.into())));
        assert_eq!(parse(&graph.to_json()), graph);
    }

    #[test]
    fn bare_placeholders_are_texts() {
        let graph = parse(
            r#"{"1": {"class_type": "A", "inputs": {"a": {{seed}}, "b": %cfg%, "c": __RANDOM_INT__,
            "d": {"x": 1}, "e": "{{text}}", "f": $seed, "g": {{seed | int}}, "h": %(n)s}}}"#,
        );
        let text = |name: &str| match graph.nodes()[0].input(name) {
            Some(Input::Literal { value, .. }) => value.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((text("a"), text("b")), ("{{seed}}".into(), "%cfg%".into()));
        assert_eq!((text("c"), text("e")), ("__RANDOM_INT__".into(), "{{text}}".into()));
        assert_eq!((text("f"), text("g")), ("$seed".into(), "{{seed | int}}".into()));
        assert_eq!(text("h"), "%(n)s");
        assert!(sentence("{\"1\": {{seed}").contains("line 1"));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(serde_json::json!(["1", 0])),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            let key = prop_oneof![
                Just("class_type".to_owned()),
                Just("inputs".to_owned()),
                Just("__value__".to_owned()),
                Just("nodes".to_owned()),
                Just("_meta".to_owned()),
                "[0-9:a-c]{1,2}",
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..5)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_text_is_a_graph_or_a_sentence(text in ".{0,200}") {
            if let Err(error) = Graph::parse(&text) {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn any_json_is_a_graph_or_a_sentence(value in json()) {
            match Graph::parse(&value.to_string()) {
                Ok(graph) => prop_assert_eq!(Graph::parse(&graph.to_json()).unwrap(), graph),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn nodes_survive_writing_and_reading(
            ids in prop::collection::hash_set("[0-9]{1,3}(:[0-9])?", 1..6),
            values in prop::collection::vec(json(), 6),
        ) {
            let nodes = ids.iter().zip(&values).map(|(id, value)| {
                (id.clone(), serde_json::json!({"class_type": "A", "inputs": {"x": value}}))
            });
            let graph = Graph::parse(&Value::Object(nodes.collect()).to_string()).unwrap();
            prop_assert_eq!(graph.nodes().len(), ids.len());
            prop_assert_eq!(Graph::parse(&graph.to_json()).unwrap(), graph);
        }

        #[test]
        fn a_cut_workflow_is_called_cut(cut in 1usize..60) {
            let text = r#"{"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}"#;
            prop_assert!(Graph::parse(&text[..cut]).is_err());
        }
    }
}
