//! Subgraphs laid flat, and links followed through what exists in the page alone.
//!
//! A copy of a subgraph is a scope: the definition's nodes under the copy's id. Nothing is copied; a
//! node is addressed by its scope and its position in there. A link is followed from the input it
//! ends at, back to what computes its value, through reroutes, bypassed nodes and the edges of
//! subgraphs.

use super::saved::{Definition, Mode, Saved, SavedGraph, SavedLink, SavedNode, Values, text};
use crate::catalogue::{Catalogue, types_fit};
use crate::problem::{Kind, Problem};
use serde_json::Value;
use std::collections::HashMap;

/// Most nodes a workflow may have when its subgraphs are laid flat: ten nested tenfold copies would
/// be ten thousand million.
pub(super) const MOST_NODES: usize = 100_000;
/// Most subgraphs inside each other.
pub(super) const DEEPEST: usize = 64;

/// A node of one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    scope: usize,
    node: usize,
}

/// Where a link leads when it is followed back.
pub(super) enum End<'a> {
    /// An output of a node that is run.
    Node(Place, usize),
    /// What a primitive holds, or a widget of a subgraph's copy.
    Value(&'a Value),
    /// Nothing is connected at the other end.
    Nothing,
    Muted(Place),
    /// The file has no link of this number.
    Dangling(&'a str),
    /// A GetNode, and the name that no SetNode has.
    NoSetter(Place, &'a str),
    Circle,
}

/// What a node is to the conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Computes,
    /// A copy of a subgraph.
    Copy,
    Reroute,
    /// Its value is its first widget's.
    Primitive,
    /// KJNodes' links without lines: a GetNode gives what the SetNode of that name is given.
    Get,
    Set,
    Note,
}

/// One copy of a subgraph, or the workflow itself.
struct Scope<'a> {
    graph: &'a SavedGraph,
    definition: Option<&'a Definition>,
    /// The copy in the scope around; none for the workflow itself.
    copy: Option<Place>,
    /// Of the ids in here, "12:".
    prefix: String,
    by_id: HashMap<&'a str, usize>,
    roles: Vec<Role>,
    /// The scopes of the copies in here, by their position.
    inner: HashMap<usize, usize>,
    depth: usize,
}

/// The workflow with its subgraphs laid flat.
pub(super) struct Flat<'a> {
    scopes: Vec<Scope<'a>>,
    nodes: usize,
}

impl<'a> Flat<'a> {
    pub fn new(saved: &'a Saved, catalogue: &Catalogue, problems: &mut Vec<Problem>) -> Self {
        let scope = |graph: &'a SavedGraph, definition, copy, prefix, depth| Scope {
            graph,
            definition,
            copy,
            prefix,
            by_id: graph.nodes.iter().enumerate().map(|(at, node)| (&*node.id, at)).collect(),
            roles: graph.nodes.iter().map(|node| role(node, saved, catalogue)).collect(),
            inner: HashMap::new(),
            depth,
        };
        let mut this = Self { scopes: Vec::new(), nodes: saved.graph.nodes.len() };
        this.scopes.push(scope(&saved.graph, None, None, String::new(), 0));
        let mut next = 0;
        while next < this.scopes.len() {
            let Scope { graph, depth, .. } = this.scopes[next];
            for (at, node) in graph.nodes.iter().enumerate() {
                let is_copy = this.scopes[next].roles[at] == Role::Copy;
                let Some(definition) = saved.definitions.get(node.definition()).filter(|_| is_copy)
                else {
                    continue;
                };
                if node.mode != Mode::Runs {
                    continue;
                }
                let place = Place { scope: next, node: at };
                this.nodes = this.nodes.saturating_add(definition.graph.nodes.len());
                if depth >= DEEPEST || this.nodes > MOST_NODES {
                    let message = format!(
                        "its subgraphs would be {} deep and have {} nodes so far; {DEEPEST} deep and \
                         {MOST_NODES} nodes are the most: does a subgraph hold itself?",
                        depth + 1,
                        this.nodes
                    );
                    let problem = Problem::new(Kind::DependencyCycle, message);
                    problems.push(problem.at(node.name(&this.scopes[next].prefix)));
                    return this;
                }
                let prefix = format!("{}{}:", this.scopes[next].prefix, node.id);
                let inner = this.scopes.len();
                let copy =
                    scope(&definition.graph, Some(definition), Some(place), prefix, depth + 1);
                this.scopes[next].inner.insert(at, inner);
                this.scopes.push(copy);
            }
            next += 1;
        }
        this
    }

    /// Every node that a class computes, muted ones too: not those of the page alone.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.scopes.iter().enumerate().flat_map(|(scope, inside)| {
            let computes = |(_, role): &(usize, &Role)| **role == Role::Computes;
            let roles = inside.roles.iter().enumerate().filter(computes);
            roles.map(move |(node, _)| Place { scope, node })
        })
    }

    pub fn node(&self, place: Place) -> &'a SavedNode {
        &self.scopes[place.scope].graph.nodes[place.node]
    }

    pub fn prefix(&self, place: Place) -> &str {
        &self.scopes[place.scope].prefix
    }

    /// Whether the node is neither muted nor bypassed.
    pub fn runs(&self, place: Place) -> bool {
        self.node(place).mode == Mode::Runs
    }

    /// Values of the node's widgets that the copy of the subgraph shows as its own; of what a copy further
    /// out shows of that one, those.
    pub fn overrides(&self, place: Place) -> Vec<(String, &'a Value)> {
        let Some(copy) = self.scopes[place.scope].copy else { return Vec::new() };
        let id = &self.node(place).id;
        let listed = shown(self.node(copy)).into_iter().filter(|shown| shown.node == *id);
        let mut listed = listed.peekable();
        if listed.peek().is_none() {
            return Vec::new();
        }
        let further_out = self.overrides(copy);
        let value = |shown: Shown<'a>| {
            let outer = further_out.iter().find(|(name, _)| *name == shown.widget);
            let value = outer.map(|(_, value)| *value).or(shown.value)?;
            (!value.is_null()).then_some((shown.widget, value))
        };
        listed.filter_map(value).collect()
    }

    /// What link number `link` brings to an input of the node at `place` that takes `wanted`.
    pub fn follow(&self, place: Place, link: &'a str, wanted: &str) -> End<'a> {
        let (mut scope, mut link) = (place.scope, link);
        // No way without a circle visits more edges than there are nodes and edges of scopes.
        for _ in 0..2 * (self.nodes + self.scopes.len()) + 2 {
            let inside = &self.scopes[scope];
            let Some(SavedLink { from, from_slot, .. }) = inside.graph.links.get(link) else {
                return End::Dangling(link);
            };
            if let (Some(definition), Some(copy)) = (inside.definition, inside.copy)
                && *from == definition.input_node
            {
                // By name: slots that are only widgets need not be in the file.
                let Some(name) = definition.inputs.get(*from_slot) else { return End::Nothing };
                let mut inputs = self.node(copy).inputs.iter();
                let input = inputs.find(|input| input.own_name == *name);
                match input.and_then(|input| input.link.as_deref()) {
                    Some(next) => (scope, link) = (copy.scope, next),
                    None => return self.promoted(scope, name).map_or(End::Nothing, End::Value),
                }
                continue;
            }
            let Some(&node) = inside.by_id.get(from.as_str()) else { return End::Nothing };
            let at = Place { scope, node };
            let saved = self.node(at);
            let first = || saved.inputs.first().and_then(|input| input.link.as_deref());
            let next = match (inside.roles[node], saved.mode) {
                (Role::Note, _) => None,
                (Role::Reroute | Role::Set, _) => first(),
                (Role::Primitive, _) => match first() {
                    Some(next) => Some(next),
                    None => return saved.first_value().map_or(End::Nothing, End::Value),
                },
                (Role::Get, _) => {
                    let Some(name) = saved.first_value().and_then(Value::as_str) else {
                        return End::Nothing;
                    };
                    match self.setter(scope, name) {
                        Some((set_in, next)) => {
                            scope = set_in;
                            next
                        }
                        None => return End::NoSetter(at, name),
                    }
                }
                (_, Mode::Muted) => return End::Muted(at),
                (_, Mode::Bypassed) => passed(saved, *from_slot, wanted),
                (Role::Computes, Mode::Runs) => return End::Node(at, *from_slot),
                (Role::Copy, Mode::Runs) => {
                    let Some(&inner) = inside.inner.get(&node) else { return End::Nothing };
                    scope = inner;
                    self.given_out(inner, *from_slot)
                }
            };
            match next {
                Some(next) => link = next,
                None => return End::Nothing,
            }
        }
        End::Circle
    }

    /// The link in the scope `inner` that ends at output `slot` of its subgraph.
    fn given_out(&self, inner: usize, slot: usize) -> Option<&'a str> {
        let Scope { graph, definition, .. } = &self.scopes[inner];
        let output_node = &definition.as_ref()?.output_node;
        let ends_there = |link: &SavedLink| link.to == *output_node && link.to_slot == slot;
        let there = graph.links.iter().filter(|(_, link)| ends_there(link));
        // There is one in a sound file.
        there.map(|(number, _)| number.as_str()).min()
    }

    /// The scope of the SetNode of this name, near or in the workflow itself, and the link that it
    /// is given.
    fn setter(&self, scope: usize, name: &str) -> Option<(usize, Option<&'a str>)> {
        let set_in = |scope: usize| {
            let Scope { graph, roles, .. } = &self.scopes[scope];
            let mut nodes = graph.nodes.iter().zip(roles);
            let sets = |(node, role): &(&'a SavedNode, &Role)| {
                **role == Role::Set && node.first_value().and_then(Value::as_str) == Some(name)
            };
            let (node, _) = nodes.find(sets)?;
            Some((scope, node.inputs.first().and_then(|input| input.link.as_deref())))
        };
        set_in(scope).or_else(|| set_in(0))
    }

    /// What the copy of a subgraph shows as the value of its input `name`, where nothing is linked.
    /// `scope` is the inside of the copy.
    fn promoted(&self, scope: usize, name: &String) -> Option<&'a Value> {
        let copy = self.scopes[scope].copy?;
        let node = self.node(copy);
        let further_out = self.overrides(copy);
        if let Some((_, value)) = further_out.iter().find(|(widget, _)| widget == name) {
            return Some(value);
        }
        let mut listed = shown(node).into_iter();
        if let Some(of_input) = listed.find(|shown| shown.node == INPUTS && shown.widget == *name)
            && let Some(value) = of_input.value
        {
            return Some(value).filter(|value| !value.is_null());
        }
        let value = match (&node.named, &node.values) {
            (Some(values), _) | (None, Values::Named(values)) => values.get(name),
            // Without a list of what is shown: the inputs that are widgets, in their order.
            (None, Values::Listed(values)) if !node.properties.contains_key("proxyWidgets") => {
                let slots = self.widget_slots(scope);
                values.get(slots.iter().position(|slot| *slot == name)?)
            }
            (None, Values::Listed(_)) => None,
        };
        value.filter(|value| !value.is_null())
    }

    /// The inputs of a subgraph that lead to widgets inside, in the order in which its copy has their
    /// values: as the copy lists them, or, as editors do not save those that nothing is linked to, as
    /// the subgraph does.
    fn widget_slots(&self, scope: usize) -> Vec<&'a str> {
        let Scope { graph, definition, copy, by_id, .. } = &self.scopes[scope];
        let (Some(definition), Some(copy)) = (definition, copy) else { return Vec::new() };
        let leads_to_widget = |slot: usize| {
            graph.links.iter().any(|(number, link)| {
                let target = by_id.get(link.to.as_str()).map(|&at| &graph.nodes[at]);
                let mut inputs = target.into_iter().flat_map(|node| &node.inputs);
                link.from == definition.input_node
                    && link.from_slot == slot
                    && inputs
                        .any(|input| input.link.as_ref() == Some(number) && input.widget.is_some())
            })
        };
        let slots = definition.inputs.iter().enumerate();
        let slots: Vec<&str> =
            slots.filter(|(slot, _)| leads_to_widget(*slot)).map(|(_, name)| &**name).collect();
        let listed = self.node(*copy).inputs.iter().filter(|input| input.widget.is_some());
        let listed: Vec<&str> = listed.map(|input| &*input.own_name).collect();
        if slots.iter().all(|slot| listed.contains(slot)) { listed } else { slots }
    }
}

/// A widget inside a subgraph that a copy shows.
struct Shown<'a> {
    /// The id of the node inside, or [`INPUTS`].
    node: String,
    widget: String,
    /// What the copy has for it.
    value: Option<&'a Value>,
}

/// What stands in the place of a node's id where an input of the subgraph itself is shown.
const INPUTS: &str = "-1";

/// What the copy of a subgraph shows of its nodes' widgets.
fn shown(copy: &SavedNode) -> Vec<Shown<'_>> {
    let widgets = match copy.properties.get("proxyWidgets") {
        Some(Value::Array(widgets)) => widgets.clone(),
        // Some files hold the list as a text.
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Vec::new(),
    };
    let values = match &copy.values {
        Values::Listed(values) => &values[..],
        Values::Named(_) => &[],
    };
    let shown = |(at, widget): (usize, &Value)| match widget.as_array()?.as_slice() {
        [id, Value::String(name), ..] => {
            Some(Shown { node: text(id)?, widget: name.clone(), value: values.get(at) })
        }
        _ => None,
    };
    widgets.iter().enumerate().filter_map(shown).collect()
}

/// The link that a bypassed node passes on to who takes `wanted`, as the editor chooses it: of the
/// input at the output's own place if its type is the wanted one, or else of the first one that is.
fn passed<'a>(node: &'a SavedNode, slot: usize, wanted: &str) -> Option<&'a str> {
    let in_order = || node.inputs.get(slot).into_iter().chain(&node.inputs);
    let same = in_order().find(|input| input.type_name == wanted);
    let input = same.or_else(|| in_order().find(|input| types_fit(&input.type_name, wanted)))?;
    input.link.as_deref()
}

fn role(node: &SavedNode, saved: &Saved, catalogue: &Catalogue) -> Role {
    if catalogue.get(&node.class).is_some() {
        return Role::Computes;
    }
    match node.class.as_str() {
        _ if saved.definitions.contains_key(node.definition()) => Role::Copy,
        "Note" | "MarkdownNote" => Role::Note,
        class if switches_in_the_page(class) => Role::Note,
        "PrimitiveNode"
        | "PrimitiveInt"
        | "PrimitiveFloat"
        | "PrimitiveBoolean"
        | "PrimitiveString"
        | "PrimitiveStringMultiline" => Role::Primitive,
        "GetNode" => Role::Get,
        "SetNode" => Role::Set,
        class if is_reroute(class) && node.inputs.len() == 1 && node.outputs == 1 => Role::Reroute,
        _ => Role::Computes,
    }
}

/// Nodes of rgthree's that switch others on and off in the page, and send nothing to a server.
fn switches_in_the_page(class: &str) -> bool {
    let name = class.strip_suffix(" (rgthree)").unwrap_or_default();
    matches!(
        name,
        "Fast Muter"
            | "Fast Bypasser"
            | "Fast Groups Muter"
            | "Fast Groups Bypasser"
            | "Fast Actions Button"
            | "Mute / Bypass Repeater"
            | "Mute / Bypass Relay"
            | "Random Unmuter"
            | "Node Collector"
            | "Bookmark"
            | "Label"
    )
}

/// "Reroute", and what extensions call theirs: "Reroute (rgthree)".
fn is_reroute(class: &str) -> bool {
    class.to_ascii_lowercase().contains("reroute")
}
