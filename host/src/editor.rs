//! The editor's own saved format → [`Graph`]: what ComfyUI's web page does when Queue is pressed.
//!
//! The editor saves what it shows: nodes with the values of their widgets in a bare list, links by
//! number, nodes that are muted or bypassed, and nodes that exist in the page alone (reroutes,
//! primitives, notes). To run it, the values need their names, which only the class's descriptor
//! knows, and everything that is the page's must be gone. This module does that, in these parts:
//!
//! - [`saved`]: the JSON as it is, versions 0.4 (links are lists) and 1 (links are objects);
//! - [`groups`]: group nodes, which older editors had, as subgraphs;
//! - [`follow`]: subgraphs laid flat, and each link followed to the node that computes its value;
//! - [`widgets`]: the bare list of values → named inputs;
//! - [`texts`]: `{a|b}` and `%…%` in texts, which depend on the seed and the day.
//!
//! What cannot be converted is a [`Problem`] with the node's id and title, and never the end of the
//! conversion: whoever repairs a workflow wants the whole list, the plan's problems too.

mod follow;
mod groups;
mod saved;
mod texts;
mod widgets;

pub use saved::is_left_out;
pub use texts::{Now, Texts};
pub use widgets::is_the_pages;

use crate::catalogue::Catalogue;
use crate::graph::{Graph, Input, Node, Origin};
use crate::problem::{Kind, NodeName, Problem};
use follow::{End, Flat, Place};
use saved::{Remarks, Saved, SavedNode};
use serde_json::{Map, Value, json};

/// What became of an editor's graph.
#[derive(Debug)]
pub struct Converted {
    pub graph: Graph,
    /// What is put into the graph when the seed and the day are known.
    pub texts: Texts,
    /// What could not be converted.
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

/// Converts what the editor saved. Ids stay what they are; a node inside a subgraph is `"12:3"`, as
/// ComfyUI calls it. Titles stay as `_meta.title`.
pub fn convert(object: &Map<String, Value>, catalogue: &Catalogue) -> Converted {
    let mut remarks = Remarks::default();
    let mut saved = Saved::read(object, &mut remarks);
    groups::expand(&mut saved, object, catalogue, &mut remarks.problems);
    let Remarks { mut problems, mut warnings } = remarks;
    let flat = Flat::new(&saved, catalogue, &mut problems);
    let mut graph = Graph::default();
    let mut texts = Texts::default();
    for place in flat.places() {
        let node = flat.node(place);
        let name = flat.name(place);
        let (class, id) = (catalogue.get(&node.class), name.id.clone());
        let descriptor = class.map(|class| &*class.descriptor);
        let gone = || catalogue.replacement(&node.class);
        let of_gone =
            || gone().map_or(Vec::new(), |(_, gone)| widgets::by_names(node, &gone.widgets));
        let mut values = descriptor.map_or_else(of_gone, |descriptor| {
            let odd = |warning: Problem| {
                // What is left out need not be sound.
                if flat.runs(place) {
                    warnings.push(warning.at(name.clone()));
                }
            };
            widgets::named(node, descriptor, odd)
        });
        for (input, value) in flat.overrides(place) {
            match values.iter_mut().find(|(name, _)| *name == input) {
                Some((_, place)) => *place = value.clone(),
                None => values.push((input, value.clone())),
            }
        }
        texts.remember(node, &id, &values);
        if !flat.runs(place) {
            continue;
        }
        let meta = node.title.as_ref().map(|title| json!({ "title": title }));
        let mut converted = Node { id, class: node.class.clone(), meta, inputs: Vec::new() };
        let literal = |value: Value| Input::literal(value, Origin::File);
        for (input, value) in values {
            converted.set(&input, literal(value));
        }
        for input in &node.inputs {
            let Some(link) = &input.link else { continue };
            let odd = |kind, message: String| {
                Problem::new(kind, message).at(name.clone()).input(input.name())
            };
            match flat.follow(place, link, &input.type_name) {
                End::Node(from, slot) => {
                    let id = flat.name(from).id;
                    converted.set(input.name(), Input::Link { id, slot: slot as u64 });
                }
                End::Value(value) => converted.set(input.name(), literal(value.clone())),
                End::Nothing => (),
                End::Muted(from) => {
                    let message = format!("is linked to {}, which is muted", flat.name(from));
                    warnings.push(odd(Kind::BadLinkedInput, message));
                }
                End::Dangling(link) => {
                    let message = format!("is linked by link {link}, which the file does not have");
                    warnings.push(odd(Kind::BadLinkedInput, message));
                }
                End::NoSetter(from, variable) => {
                    let message = format!(
                        "is linked to {}, and no SetNode sets \"{variable}\"",
                        flat.name(from)
                    );
                    problems.push(odd(Kind::BadLinkedInput, message));
                }
                End::Circle => {
                    let message = "is linked to nodes that only pass values on, in a circle";
                    problems.push(odd(Kind::DependencyCycle, message.to_owned()));
                }
            }
        }
        if let Some(descriptor) = descriptor {
            texts.collect(&converted, descriptor);
        }
        if !graph.push(converted) {
            let message = "its id is another node's, too; ids must be unique";
            problems.push(Problem::new(Kind::InvalidPrompt, message).at(name));
        }
    }
    Converted { graph, texts, problems, warnings }
}

/// A workflow that needed no conversion.
impl From<Graph> for Converted {
    fn from(graph: Graph) -> Self {
        Self { graph, texts: Texts::default(), problems: Vec::new(), warnings: Vec::new() }
    }
}

impl SavedNode {
    fn name(&self, prefix: &str) -> NodeName {
        let id = format!("{prefix}{}", self.id);
        NodeName { id, title: self.title.clone(), class: self.class.clone() }
    }
}

impl Flat<'_> {
    /// What a sentence calls the node; its id is the one it has in the converted graph.
    fn name(&self, place: Place) -> NodeName {
        self.node(place).name(self.prefix(place))
    }
}

#[cfg(test)]
mod tests;
