//! Group nodes, which editors had before subgraphs: each is laid out as a subgraph of its own.
//!
//! A group node is of the class `workflow>Name` (`workflow/Name` in older files), and its definition
//! stands under `extra.groupNodes`: nodes, links between them by position, and which outputs are
//! seen outside. It has no list of its inputs: they are the inputs of its nodes that nothing inside
//! is linked to, and their names follow from those of the nodes. The values of its widgets are one
//! list for all of its nodes.

use super::follow::{DEEPEST, MOST_NODES};
use super::saved::{
    Definition, Mode, Saved, SavedGraph, SavedInput, SavedLink, SavedNode, Values, node, slot, text,
};
use super::widgets::{is_control_word, named};
use crate::catalogue::{Catalogue, InputDescriptor, InputKind};
use crate::problem::{Kind, Problem};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

const INPUT_NODE: &str = "-10";
const OUTPUT_NODE: &str = "-20";

/// Makes of each group node a copy of a subgraph.
pub(super) fn expand(
    saved: &mut Saved,
    object: &Map<String, Value>,
    catalogue: &Catalogue,
    problems: &mut Vec<Problem>,
) {
    let groups = object.get("extra").and_then(|extra| extra.get("groupNodes"));
    let groups = groups.and_then(Value::as_object).into_iter().flatten();
    let read = |(name, group): (&String, &Value)| Some((name.clone(), Group::read(group)?));
    let groups: HashMap<String, Group> = groups.filter_map(read).collect();
    let mut expansion =
        Expansion { groups: &groups, catalogue, definitions: HashMap::new(), nodes: 0, problems };
    expansion.graph(&mut saved.graph, "", 0);
    for (id, definition) in &mut saved.definitions {
        expansion.graph(&mut definition.graph, &format!("{id}:"), 0);
    }
    let Expansion { definitions, .. } = expansion;
    saved.definitions.extend(definitions);
}

/// A group's definition.
struct Group {
    nodes: Vec<Inner>,
    links: Vec<InnerLink>,
    /// Outputs, by node and slot, that are seen outside although something inside takes them.
    external: HashSet<(usize, usize)>,
    /// What its owner changed: by node, then "input" or "output", then the name or slot.
    config: Value,
}

/// A node of a group, and its JSON.
struct Inner {
    node: SavedNode,
    json: Value,
}

struct InnerLink {
    from: usize,
    from_slot: usize,
    to: usize,
    to_slot: usize,
}

impl Group {
    fn read(group: &Value) -> Option<Self> {
        let list = |key: &str| group.get(key).and_then(Value::as_array).into_iter().flatten();
        let inner = |(at, json): (usize, &Value)| {
            let mut json = json.clone();
            json.as_object_mut()?.insert("id".to_owned(), at.into());
            Some(Inner { node: node(&json).ok()?, json })
        };
        // A node that cannot be read would move those behind it to other places.
        let nodes: Option<Vec<Inner>> = list("nodes").enumerate().map(inner).collect();
        let link = |link: &Value| {
            let part = |at: usize| link.get(at).and_then(slot);
            // Those from outside have no node that they come from.
            Some(InnerLink { from: part(0)?, from_slot: part(1)?, to: part(2)?, to_slot: part(3)? })
        };
        let outside = |output: &Value| Some((slot(output.get(0)?)?, slot(output.get(1)?)?));
        Some(Self {
            nodes: nodes?,
            links: list("links").filter_map(link).collect(),
            external: list("external").filter_map(outside).collect(),
            config: group.get("config").cloned().unwrap_or_default(),
        })
    }

    /// What the owner changed at one input or output.
    fn custom(&self, node: usize, kind: &str, name: &str) -> &Value {
        let at = self.config.get(node.to_string()).or_else(|| self.config.get(node));
        at.and_then(|at| at.get(kind)?.get(name)).unwrap_or(&Value::Null)
    }

    fn taken_inside(&self, node: usize, slot: usize) -> bool {
        self.links.iter().any(|link| (link.from, link.from_slot) == (node, slot))
    }

    fn given_inside(&self, node: usize, slot: usize) -> bool {
        self.links.iter().any(|link| (link.to, link.to_slot) == (node, slot))
    }
}

/// What a group node looks like from outside.
#[derive(Default)]
struct Shape {
    /// In the order of the list of values.
    widgets: Vec<Entry>,
    /// Inputs that are sockets.
    sockets: Vec<Entry>,
    /// Nodes and slots, in the order of the group's outputs.
    outputs: Vec<(usize, usize)>,
}

struct Entry {
    node: usize,
    /// What the node inside calls it; nothing for a button that uploads.
    inner: Option<String>,
    outer: String,
}

struct Expansion<'a> {
    groups: &'a HashMap<String, Group>,
    catalogue: &'a Catalogue,
    definitions: HashMap<String, Definition>,
    nodes: usize,
    problems: &'a mut Vec<Problem>,
}

/// The name of the group that a class is, where it is one.
fn group_name(class: &str) -> Option<&str> {
    class.strip_prefix("workflow>").or_else(|| class.strip_prefix("workflow/"))
}

impl Expansion<'_> {
    /// Expands the group nodes of one graph, whose nodes have ids with `prefix`.
    fn graph(&mut self, graph: &mut SavedGraph, prefix: &str, depth: usize) {
        for node in &mut graph.nodes {
            let Some(name) = group_name(&node.class) else { continue };
            // One that is muted or bypassed need not be known.
            if node.mode != Mode::Runs {
                continue;
            }
            let Some(group) = self.groups.get(name) else {
                let reason = "extra.groupNodes of the file has no definition of its name";
                self.problems.push(not_laid_out(node, prefix, reason));
                continue;
            };
            let inside = format!("{prefix}{}:", node.id);
            self.nodes = self.nodes.saturating_add(group.nodes.len());
            let shape = match self.shape(group, depth) {
                Ok(_) if depth >= DEEPEST || self.nodes > MOST_NODES => {
                    Err("does a group node hold itself?".to_owned())
                }
                shape => shape,
            };
            match shape {
                Ok(shape) => {
                    let id = format!("{} ({})", node.class, inside.trim_end_matches(':'));
                    let mut definition = self.definition(group, &shape, node);
                    self.graph(&mut definition.graph, &inside, depth + 1);
                    self.definitions.insert(id.clone(), definition);
                    node.laid_out = Some(id);
                }
                Err(reason) => self.problems.push(not_laid_out(node, prefix, &reason)),
            }
        }
    }

    /// The inputs and outputs of a group; or what is in the way.
    fn shape(&self, group: &Group, depth: usize) -> Result<Shape, String> {
        let mut shape = Shape::default();
        // What was a widget inside and is a socket now stands behind all other sockets.
        let mut converted = Vec::new();
        let mut seen = HashMap::new();
        for (at, Inner { node, json }) in group.nodes.iter().enumerate() {
            let Some(class) = self.inner_class(group, at, depth)? else { continue };
            let mut entry = |name: &str| Entry {
                node: at,
                inner: Some(name.to_owned()),
                outer: outer_name(group, at, name, &mut seen),
            };
            let place = |name: &str| node.inputs.iter().position(|input| input.own_name == name);
            let mut sockets = Vec::new();
            for input in &class.inputs {
                let name = input.name.as_str();
                let is_converted =
                    place(name).is_some_and(|at| node.inputs[at].widget.as_deref() == Some(name));
                match (input.is_widget, is_converted) {
                    (true, _) if input.is_button => {
                        shape.widgets.push(Entry { node: at, inner: None, outer: String::new() });
                    }
                    (true, false) => shape.widgets.push(entry(name)),
                    (true, true) => converted.push((at, name.to_owned(), place(name))),
                    (false, _) => sockets.push(name),
                }
            }
            for (number, name) in sockets.into_iter().enumerate() {
                if group.given_inside(at, place(name).unwrap_or(number)) {
                    continue;
                }
                let socket = entry(name);
                if group.custom(at, "input", name).get("visible") != Some(&Value::Bool(false)) {
                    shape.sockets.push(socket);
                }
            }
            let outputs = json.get("outputs").and_then(Value::as_array).map_or(0, Vec::len);
            for slot in 0..class.outputs.unwrap_or(outputs) {
                let inside = group.taken_inside(at, slot) && !group.external.contains(&(at, slot));
                let custom = group.custom(at, "output", &slot.to_string()).get("visible");
                if custom.and_then(Value::as_bool).unwrap_or(!inside) {
                    shape.outputs.push((at, slot));
                }
            }
        }
        for (at, name, place) in converted {
            if !place.is_some_and(|place| group.given_inside(at, place)) {
                let outer = outer_name(group, at, &name, &mut seen);
                shape.sockets.push(Entry { node: at, inner: Some(name), outer });
            }
        }
        Ok(shape)
    }

    /// What the node number `at` of a group looks like; none for what the group passes over.
    fn inner_class(
        &self,
        group: &Group,
        at: usize,
        depth: usize,
    ) -> Result<Option<InnerClass>, String> {
        let node = &group.nodes[at].node;
        let input = |name: &str, is_widget| InnerInput {
            name: name.to_owned(),
            is_widget,
            is_button: false,
        };
        if let Some(class) = self.catalogue.get(&node.class) {
            let inputs = &class.descriptor.inputs;
            let takes_picture = |input: &&InputDescriptor| matches!(&input.kind, InputKind::Path { folder, .. } if folder == "input");
            let of = |optional: bool| {
                let inputs = inputs.iter().filter(move |input| input.is_beside() == optional);
                inputs.map(|input| InnerInput {
                    name: input.name.clone(),
                    is_widget: input.kind != InputKind::Socket,
                    is_button: false,
                })
            };
            let button = inputs.iter().find(|input| !input.optional && takes_picture(input));
            let button = button.map(|_| InnerInput { is_button: true, ..input("upload", true) });
            let inputs = of(false).chain(button).chain(of(true));
            let outputs = Some(class.descriptor.outputs.len());
            return Ok(Some(InnerClass { inputs: inputs.collect(), outputs }));
        }
        if let Some(inner) = group_name(&node.class).and_then(|name| self.groups.get(name)) {
            if depth >= DEEPEST {
                return Err("does a group node hold itself?".to_owned());
            }
            let shape = self.shape(inner, depth + 1)?;
            let widgets = shape.widgets.iter().map(|entry| (entry, true));
            let inputs = widgets.chain(shape.sockets.iter().map(|entry| (entry, false)));
            let inputs = inputs.map(|(entry, is_widget)| InnerInput {
                is_button: entry.inner.is_none(),
                ..input(&entry.outer, is_widget)
            });
            let inputs = inputs.collect();
            return Ok(Some(InnerClass { inputs, outputs: Some(shape.outputs.len()) }));
        }
        let (gives, takes) = (group.taken_inside(at, 0), group.given_inside(at, 0));
        match node.class.as_str() {
            "PrimitiveNode" if gives => {
                Ok(Some(InnerClass { inputs: vec![input("value", true)], outputs: Some(1) }))
            }
            "Reroute" if !(gives && takes && !group.external.contains(&(at, 0))) => {
                let kind = reroute_type(group, at);
                Ok(Some(InnerClass { inputs: vec![input(&kind, false)], outputs: Some(1) }))
            }
            "PrimitiveNode" | "Reroute" | "Note" | "MarkdownNote" => Ok(None),
            class => Err(format!("it holds a node of the class \"{class}\", which no library has")),
        }
    }

    /// The group as a subgraph of its own, with the values and links of one group node.
    fn definition(&self, group: &Group, shape: &Shape, outside: &SavedNode) -> Definition {
        let mut nodes: Vec<SavedNode> =
            group.nodes.iter().map(|inner| inner.node.clone()).collect();
        for input in nodes.iter_mut().flat_map(|node| &mut node.inputs) {
            input.link = None;
        }
        let mut links = HashMap::new();
        let id = |at: usize| at.to_string();
        for (number, link) in group.links.iter().enumerate() {
            let input = nodes.get_mut(link.to).and_then(|to| to.inputs.get_mut(link.to_slot));
            let Some(input) = input else { continue };
            input.link = Some(number.to_string());
            let (from, to) = (id(link.from), id(link.to));
            let (from_slot, to_slot) = (link.from_slot, link.to_slot);
            links.insert(number.to_string(), SavedLink { from, from_slot, to, to_slot });
        }
        self.give(&mut nodes, group, shape, outside);
        let mut inputs = Vec::new();
        for given in outside.inputs.iter().filter(|input| input.link.is_some()) {
            let of_widget = shape.widgets.iter().zip(std::iter::repeat(true));
            let mut entries = shape.sockets.iter().zip(std::iter::repeat(false)).chain(of_widget);
            let is_this =
                |entry: &Entry| entry.outer == given.own_name || entry.outer == given.name();
            let found = entries.find(|(entry, _)| is_this(entry));
            let Some((Entry { node, inner: Some(name), .. }, is_widget)) = found else { continue };
            let inside = &mut nodes[*node].inputs;
            let to_slot = match inside.iter().position(|input| input.name() == name) {
                Some(at) => at,
                // A reroute's only one has no name.
                None if !is_widget && inside.len() == 1 && inside[0].link.is_none() => 0,
                None => {
                    let widget = is_widget.then(|| name.clone());
                    let type_name = given.type_name.clone();
                    inside.push(SavedInput {
                        own_name: name.clone(),
                        type_name,
                        link: None,
                        widget,
                    });
                    inside.len() - 1
                }
            };
            let number = format!("in {}", inputs.len());
            inside[to_slot].link = Some(number.clone());
            let (from, to) = (INPUT_NODE.to_owned(), id(*node));
            links.insert(number, SavedLink { from, from_slot: inputs.len(), to, to_slot });
            inputs.push(given.own_name.clone());
        }
        for (to_slot, &(node, from_slot)) in shape.outputs.iter().enumerate() {
            let (from, to) = (id(node), OUTPUT_NODE.to_owned());
            links.insert(format!("out {to_slot}"), SavedLink { from, from_slot, to, to_slot });
        }
        Definition {
            graph: SavedGraph { nodes, links },
            inputs,
            input_node: INPUT_NODE.to_owned(),
            output_node: OUTPUT_NODE.to_owned(),
        }
    }

    /// Gives the nodes inside the values of the group node's widgets.
    fn give(&self, nodes: &mut [SavedNode], group: &Group, shape: &Shape, outside: &SavedNode) {
        let given = values_of(shape, &outside.values);
        for (at, node) in nodes.iter_mut().enumerate() {
            let mine: Vec<(&str, &Value)> = given
                .iter()
                .filter(|(entry, value)| entry.node == at && !value.is_null())
                .filter_map(|(entry, value)| Some((entry.inner.as_deref()?, *value)))
                .collect();
            if let Some(class) = self.catalogue.get(&node.class) {
                let mut values: Map<String, Value> =
                    named(node, &class.descriptor, |_| ()).into_iter().collect();
                values
                    .extend(mine.into_iter().map(|(name, value)| (name.to_owned(), value.clone())));
                node.values = Values::Named(values);
            } else if let Some(inner) =
                group_name(&node.class).and_then(|name| self.groups.get(name))
            {
                // Its own list, without the values that only the page has.
                let Ok(inner) = self.shape(inner, 0) else { continue };
                let own = values_of(&inner, &group.nodes[at].node.values);
                let own: HashMap<&str, &Value> =
                    own.iter().map(|(entry, value)| (&*entry.outer, *value)).collect();
                let value = |entry: &Entry| {
                    let mine = mine.iter().find(|(name, _)| *name == entry.outer);
                    let value = mine.map(|(_, value)| *value).or(own.get(&*entry.outer).copied());
                    value.cloned().unwrap_or_default()
                };
                let widgets = inner.widgets.iter().filter(|entry| entry.inner.is_some());
                node.values = Values::Listed(widgets.map(value).collect());
            } else if let Some((_, value)) = mine.first() {
                node.values = Values::Listed(vec![(*value).clone()]);
            }
        }
    }
}

fn not_laid_out(node: &SavedNode, prefix: &str, reason: &str) -> Problem {
    let message = format!("this group node cannot be laid out: {reason}");
    Problem::new(Kind::MissingNodeType, message).at(node.name(prefix))
}

/// What a group takes a node inside for.
struct InnerClass {
    inputs: Vec<InnerInput>,
    /// None where the file says how many.
    outputs: Option<usize>,
}

struct InnerInput {
    name: String,
    is_widget: bool,
    /// The page's own, that uploads a picture.
    is_button: bool,
}

/// The name that a group has for an input of its node number `at`: the input's own, or with the
/// node's title before it where another one has that. `seen` counts the names that were given.
fn outer_name(group: &Group, at: usize, name: &str, seen: &mut HashMap<String, usize>) -> String {
    let Inner { node, json } = &group.nodes[at];
    let custom = group.custom(at, "input", name).get("name").and_then(Value::as_str);
    let mut inputs = json.get("inputs").and_then(Value::as_array).into_iter().flatten();
    let label = inputs
        .find(|input| input.get("name").and_then(Value::as_str) == Some(name))
        .and_then(|input| input.get("label").and_then(Value::as_str));
    let mut outer = custom.or(label).unwrap_or(name).to_owned();
    let mut key = outer.clone();
    let is_titled_primitive = node.class == "PrimitiveNode" && node.title.is_some();
    if is_titled_primitive || seen.contains_key(&outer) {
        let title = node.title.as_deref().unwrap_or(&node.class);
        key = format!("{title} {name}");
        outer = match seen.get(&key) {
            Some(count) => format!("{title} {count} {name}"),
            None => key.clone(),
        };
    }
    *seen.entry(key).or_insert(1) += 1;
    outer
}

/// The type by which a group names the input of a reroute.
fn reroute_type(group: &Group, at: usize) -> String {
    let kind = |node: usize, side: &str, slot: usize| {
        let slot = group.nodes.get(node)?.json.get(side)?.get(slot)?;
        slot.get("type").and_then(text).filter(|kind| kind != "*")
    };
    let to = group.links.iter().find(|link| link.from == at);
    let from = group.links.iter().find(|link| link.to == at);
    to.and_then(|link| kind(link.to, "inputs", link.to_slot))
        .or_else(|| from.and_then(|link| kind(link.from, "outputs", link.from_slot)))
        .or_else(|| kind(at, "outputs", 0))
        .unwrap_or_else(|| "*".to_owned())
}

/// The values of a group node's widgets. After a seed or a primitive may stand what becomes of it
/// afterwards, which is the page's, and after a picture's name its button.
fn values_of<'a>(shape: &'a Shape, values: &'a Values) -> Vec<(&'a Entry, &'a Value)> {
    let values = match values {
        Values::Listed(values) => values,
        Values::Named(values) => {
            let value = |entry: &'a Entry| Some((entry, values.get(&entry.outer)?));
            return shape.widgets.iter().filter_map(value).collect();
        }
    };
    let mut rest = values.iter().peekable();
    let mut found = Vec::new();
    for entry in &shape.widgets {
        let Some(name) = &entry.inner else {
            rest.next_if(|value| *value == "image");
            continue;
        };
        let Some(value) = rest.next() else { break };
        found.push((entry, value));
        let last = name.rsplit(' ').next().unwrap_or(name);
        if matches!(last, "seed" | "noise_seed" | "value") {
            rest.next_if(|value| is_control_word(value));
        }
    }
    found
}
