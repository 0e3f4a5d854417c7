//! The editor's JSON as it stands in the file.
//!
//! Read with a light hand: keys that say how things look are passed over, and what is malformed is a
//! problem of that node alone.

use super::widgets::is_the_pages;
use crate::graph::json_kind;
use crate::problem::{Kind, NodeName, Problem};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// What the editor does with a node, litegraph's `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Runs,
    /// It and what it gives are left out.
    Muted,
    /// What comes in goes out, by type.
    Bypassed,
}

#[derive(Clone, Debug)]
pub(super) struct SavedInput {
    pub own_name: String,
    /// "*" where the file does not say.
    pub type_name: String,
    /// The number of a link, as text.
    pub link: Option<String>,
    /// The widget that this input stands in the place of.
    pub widget: Option<String>,
}

impl SavedInput {
    /// The class's name for this input.
    pub fn name(&self) -> &str {
        self.widget.as_deref().unwrap_or(&self.own_name)
    }
}

/// `widgets_values`.
#[derive(Clone, Debug)]
pub(super) enum Values {
    Listed(Vec<Value>),
    Named(Map<String, Value>),
}

#[derive(Clone, Debug)]
pub(super) struct SavedNode {
    pub id: String,
    pub class: String,
    /// The definition that it is a copy of, where the class is not the definition's id: a group node.
    pub laid_out: Option<String>,
    pub title: Option<String>,
    pub mode: Mode,
    pub inputs: Vec<SavedInput>,
    pub outputs: usize,
    pub values: Values,
    /// `widgets_values_named`: the same by the widgets' names, in newer files.
    pub named: Option<Map<String, Value>>,
    pub properties: Map<String, Value>,
}

impl SavedNode {
    /// The id of the definition that it is a copy of, if there is one of this id.
    pub fn definition(&self) -> &str {
        self.laid_out.as_deref().unwrap_or(&self.class)
    }

    /// The value of the first widget: of a list the first, of values by name the one that is called `value`, or else the first that is
    /// not what becomes of it afterwards.
    pub fn first_value(&self) -> Option<&Value> {
        match &self.values {
            Values::Listed(values) => {
                values.first().or_else(|| self.named.as_ref().and_then(first_by_name))
            }
            Values::Named(values) => first_by_name(values),
        }
    }
}

fn first_by_name(values: &Map<String, Value>) -> Option<&Value> {
    let mut others = values.iter().filter(|(name, _)| !is_the_pages(name));
    values.get("value").or_else(|| others.next().map(|(_, value)| value))
}

/// From output `from_slot` of the node `from` to input `to_slot` of `to`.
#[derive(Debug)]
pub(super) struct SavedLink {
    pub from: String,
    pub from_slot: usize,
    pub to: String,
    pub to_slot: usize,
}

#[derive(Debug, Default)]
pub(super) struct SavedGraph {
    pub nodes: Vec<SavedNode>,
    /// By their number, as text.
    pub links: HashMap<String, SavedLink>,
}

/// A subgraph: nodes of this type are copies of it.
#[derive(Debug)]
pub(super) struct Definition {
    pub graph: SavedGraph,
    /// The names of its inputs, in the order of the input node's outputs.
    pub inputs: Vec<String>,
    /// The ids that stand for its inputs and its outputs among its links.
    pub input_node: String,
    pub output_node: String,
}

/// A workflow as the editor saved it.
#[derive(Debug)]
pub(super) struct Saved {
    pub graph: SavedGraph,
    /// By the class name that their copies have.
    pub definitions: HashMap<String, Definition>,
}

/// What is said about a file while it is read.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Saved {
    pub fn read(object: &Map<String, Value>, remarks: &mut Remarks) -> Self {
        let mut definitions = HashMap::new();
        // One subgraph may bring the definitions of those that are in it.
        let mut waiting: Vec<&Value> = subgraphs(object).iter().collect();
        let mut next = 0;
        while let Some(subgraph) = waiting.get(next).copied() {
            next += 1;
            let Some(object) = subgraph.as_object() else { continue };
            waiting.extend(subgraphs(object));
            let Some(id) = object.get("id").and_then(text) else { continue };
            let end = |key: &str, usual: &str| {
                let id = object.get(key).and_then(|node| node.get("id")).and_then(text);
                id.unwrap_or_else(|| usual.to_owned())
            };
            let inputs = object.get("inputs").and_then(Value::as_array).into_iter().flatten();
            let name = |input: &Value| input.get("name").and_then(text).unwrap_or_default();
            let definition = Definition {
                graph: graph(object, remarks),
                inputs: inputs.map(name).collect(),
                input_node: end("inputNode", "-10"),
                output_node: end("outputNode", "-20"),
            };
            // An outer one of the same id is the one that is meant outside.
            definitions.entry(id).or_insert(definition);
        }
        Self { graph: graph(object, remarks), definitions }
    }
}

/// The definitions of subgraphs that stand in a graph.
fn subgraphs(object: &Map<String, Value>) -> &[Value] {
    let subgraphs = object.get("definitions").and_then(|all| all.get("subgraphs"));
    subgraphs.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn graph(object: &Map<String, Value>, remarks: &mut Remarks) -> SavedGraph {
    let list = |key: &str| object.get(key).and_then(Value::as_array).into_iter().flatten();
    let mut graph = SavedGraph::default();
    for value in list("nodes") {
        match node(value) {
            Ok(node) => {
                remarks.warnings.extend(odd_mode(value, &node));
                graph.nodes.push(node);
            }
            Err(problem) => remarks.problems.push(problem),
        }
    }
    renumber(&mut graph, object, &mut remarks.warnings);
    // One that is malformed leads nowhere, which is said at the inputs that it feeds.
    graph.links.extend(list("links").filter_map(link));
    graph
}

/// Gives a node whose id is an earlier one's the next free number, as the editor does. It keeps the
/// links that it is given; those from the id are the first one's.
fn renumber(graph: &mut SavedGraph, object: &Map<String, Value>, warnings: &mut Vec<Problem>) {
    let state = object.get("state").and_then(|state| state.get("lastNodeId"));
    let counted = [object.get("last_node_id"), state].into_iter().flatten();
    let numbers = graph.nodes.iter().filter_map(|node| node.id.parse::<u64>().ok());
    let mut last = counted.filter_map(Value::as_u64).chain(numbers).max().unwrap_or_default();
    let mut seen = HashSet::new();
    for node in &mut graph.nodes {
        if seen.insert(node.id.clone()) {
            continue;
        }
        last = last.saturating_add(1);
        let message = format!("is node {last} here, as another node has the id {}, too", node.id);
        node.id = last.to_string();
        seen.insert(node.id.clone());
        let name =
            NodeName { id: node.id.clone(), title: node.title.clone(), class: node.class.clone() };
        warnings.push(Problem::new(Kind::InvalidPrompt, message).at(name));
    }
}

/// An id or a link's number: files hold them as numbers and as strings.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn slot(value: &Value) -> Option<usize> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    usize::try_from(number).ok()
}

fn link(value: &Value) -> Option<(String, SavedLink)> {
    // [number, from, from slot, to, to slot, type], or an object with the same by name.
    let part = |at: usize, key: &str| match value {
        Value::Array(parts) => parts.get(at),
        other => other.get(key),
    };
    let link = SavedLink {
        from: part(1, "origin_id").and_then(text)?,
        from_slot: part(2, "origin_slot").and_then(slot)?,
        to: part(3, "target_id").and_then(text)?,
        to_slot: part(4, "target_slot").and_then(slot)?,
    };
    Some((part(0, "id").and_then(text)?, link))
}

/// What the editor does with a node; none where its number is not known. Programs write it as 4, 4.0 or "4".
fn mode(node: &Value) -> Option<Mode> {
    let number = match node.get("mode") {
        None | Some(Value::Null) => return Some(Mode::Runs),
        Some(Value::Number(number)) => number.as_f64()?,
        Some(Value::String(text)) => text.trim().parse().ok()?,
        Some(_) => return None,
    };
    // litegraph's: always, on an event, never, on a trigger; and bypassed. A page without a server's events runs all but two.
    match number {
        2.0 => Some(Mode::Muted),
        4.0 => Some(Mode::Bypassed),
        0.0 | 1.0 | 3.0 => Some(Mode::Runs),
        _ => None,
    }
}

/// Whether the editor does not run the node whose JSON this is.
pub fn is_left_out(node: &Value) -> bool {
    mode(node).is_some_and(|mode| mode != Mode::Runs)
}

fn odd_mode(value: &Value, node: &SavedNode) -> Option<Problem> {
    if mode(value).is_some() {
        return None;
    }
    let message = format!(
        "its mode is {}, which no editor writes (0 runs, 2 is muted, 4 is bypassed): it is run",
        value["mode"]
    );
    let name =
        NodeName { id: node.id.clone(), title: node.title.clone(), class: node.class.clone() };
    Some(Problem::new(Kind::InvalidPrompt, message).at(name))
}

pub(super) fn node(value: &Value) -> Result<SavedNode, Problem> {
    let malformed = |id: &str, class: &str, message: String| {
        let name = NodeName { id: id.to_owned(), title: None, class: class.to_owned() };
        Problem::new(Kind::InvalidPrompt, message).at(name)
    };
    let Some(object) = value.as_object() else {
        let message =
            format!("is {}; an object with an id and a type was expected", json_kind(value));
        return Err(malformed("?", "", message));
    };
    let class = object.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(id) = object.get("id").and_then(text).filter(|id| !id.is_empty()) else {
        return Err(malformed("?", &class, "has no id".to_owned()));
    };
    if class.is_empty() {
        return Err(malformed(&id, "", "has no type, the name of its class".to_owned()));
    }
    let mode = mode(value).unwrap_or(Mode::Runs);
    let inputs = object.get("inputs").and_then(Value::as_array).into_iter().flatten();
    let values = match object.get("widgets_values") {
        Some(Value::Array(values)) => Values::Listed(values.clone()),
        Some(Value::Object(values)) => Values::Named(values.clone()),
        _ => Values::Listed(Vec::new()),
    };
    let title = object.get("title").and_then(Value::as_str).filter(|title| !title.is_empty());
    Ok(SavedNode {
        id,
        class,
        laid_out: None,
        title: title.map(str::to_owned),
        mode,
        inputs: inputs.map(input).collect(),
        outputs: object.get("outputs").and_then(Value::as_array).map_or(0, Vec::len),
        values,
        named: object.get("widgets_values_named").and_then(Value::as_object).cloned(),
        properties: object
            .get("properties")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
    })
}

fn input(value: &Value) -> SavedInput {
    let string = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    SavedInput {
        own_name: string(value.get("name")).unwrap_or_default(),
        type_name: string(value.get("type")).unwrap_or_else(|| "*".to_owned()),
        link: value.get("link").and_then(text),
        widget: string(value.get("widget").and_then(|widget| widget.get("name"))),
    }
}
