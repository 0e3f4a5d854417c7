//! `widgets_values`, a bare list, → named inputs.
//!
//! The editor writes down what each of a node's widgets holds, without names. The order is that of
//! the class's inputs that have a widget, the required ones first. Between them stand the values of
//! widgets that only the page has: after a seed what becomes of it when a picture is done ("fixed",
//! "randomize"; older files: true or false), and after the required inputs of a class that takes a
//! picture its upload button ("image"). An input that was turned into a socket keeps its place. Files
//! of older editors lack values at the end, or the whole list: those are the defaults.

use super::saved::{SavedNode, Values};
use crate::catalogue::{InputDescriptor, InputKind, NodeDescriptor};
use crate::problem::{Kind, Problem};
use serde_json::Value;

/// The inputs of `class` that `node` has values for. `odd` takes what is said about values that
/// have no input.
pub(super) fn named(
    node: &SavedNode,
    class: &NodeDescriptor,
    mut odd: impl FnMut(Problem),
) -> Vec<(String, Value)> {
    let is_widget = |input: &InputDescriptor| !matches!(input.kind, InputKind::Socket);
    let mut inputs = match &node.values {
        Values::Named(values) => {
            let mine = |name: &String| class.input(name).is_some_and(is_widget);
            let there = values.iter().filter(|(name, value)| mine(name) && !value.is_null());
            there.map(|(name, value)| (name.clone(), value.clone())).collect()
        }
        Values::Listed(values) => listed(node, values, class, &mut odd),
    };
    for input in class.inputs.iter().filter(|input| is_widget(input) && !input.optional) {
        if !inputs.iter().any(|(name, _)| *name == input.name)
            && let Some(value) = left_out(node, input)
        {
            inputs.push((input.name.clone(), value));
        }
    }
    inputs
}

/// What stands at one place of the list.
#[derive(Clone, Copy)]
enum Widget<'a> {
    Input(&'a InputDescriptor),
    /// An input that the file names and the class does not have.
    Unknown(&'a str),
    /// The button with which the page uploads a picture.
    Upload,
}

fn listed(
    node: &SavedNode,
    values: &[Value],
    class: &NodeDescriptor,
    odd: &mut impl FnMut(Problem),
) -> Vec<(String, Value)> {
    let mut inputs = Vec::new();
    let mut rest = values;
    let order = order(node, class);
    for (at, widget) in order.iter().enumerate() {
        if let Widget::Upload = widget {
            if let [Value::String(text), after @ ..] = rest
                && text == "image"
            {
                rest = after;
            }
            continue;
        }
        let [value, after @ ..] = rest else { break };
        rest = after;
        let name = match widget {
            Widget::Input(input) => input.name.as_str(),
            Widget::Unknown(name) => {
                odd(Problem::new(Kind::UnknownInput, "the class has no such input").input(name));
                name
            }
            Widget::Upload => continue,
        };
        if let (Widget::Input(input), false) = (widget, value.is_null()) {
            inputs.push((input.name.clone(), value.clone()));
        }
        let is_seed = match widget {
            Widget::Input(input) => input.kind.is_seed(),
            _ => false,
        };
        if (is_seed || matches!(name, "seed" | "noise_seed"))
            && let [control, after @ ..] = rest
            && is_control(control, order.get(at + 1))
        {
            rest = after;
        }
    }
    // Buttons leave nothing, "" or their name.
    let means = |value: &&Value| !matches!(value, Value::Null) && *value != "" && *value != "image";
    let left = rest.iter().filter(means).count();
    if left > 0 {
        let message = format!(
            "holds {left} values more than its class has widgets, which are left out: the class was \
             another one when the workflow was saved"
        );
        odd(Problem::new(Kind::UnknownInput, message));
    }
    inputs
}

/// The widgets in the order in which the editor wrote their values.
fn order<'a>(node: &'a SavedNode, class: &'a NodeDescriptor) -> Vec<Widget<'a>> {
    let widgets = |optional: bool| {
        let inputs = class.inputs.iter().filter(move |input| input.optional == optional);
        inputs.filter(|input| !matches!(input.kind, InputKind::Socket))
    };
    // Editors since 2025 name every widget among the inputs, in the order of the class as it was
    // then; older ones only those that were turned into sockets.
    let named = || node.inputs.iter().filter(|input| input.widget.is_some());
    let all = widgets(false).all(|input| named().any(|named| named.name() == input.name));
    if all && widgets(false).next().is_some() {
        let widget = |name: &'a str| match class.input(name) {
            Some(input) => Widget::Input(input),
            None if name == "upload" => Widget::Upload,
            None => Widget::Unknown(name),
        };
        let newer = class.inputs.iter().filter(|input| {
            let is_widget = !matches!(input.kind, InputKind::Socket);
            is_widget && !named().any(|named| named.name() == input.name)
        });
        let newer = newer.map(Widget::Input);
        return named().map(|input| widget(input.name())).chain(newer).collect();
    }
    let takes_picture = |input: &InputDescriptor| matches!(&input.kind, InputKind::Path { folder, .. } if folder == "input");
    let upload = widgets(false).any(takes_picture).then_some(Widget::Upload);
    widgets(false)
        .map(Widget::Input)
        .chain(upload)
        .chain(widgets(true).map(Widget::Input))
        .collect()
}

/// Whether `value`, which stands behind a seed, is what becomes of the seed afterwards.
fn is_control(value: &Value, next: Option<&Widget>) -> bool {
    match value {
        Value::String(text) => {
            matches!(&**text, "fixed" | "increment" | "decrement" | "randomize")
        }
        Value::Bool(_) => {
            let boolean = |input: &InputDescriptor| matches!(input.kind, InputKind::Boolean { .. });
            !matches!(next, Some(Widget::Input(input)) if boolean(input))
        }
        _ => false,
    }
}

/// What the editor shows at an input that the file has no value for and whose class says no default:
/// the model that the workflow's author noted in the node's properties, or the first choice.
fn left_out(node: &SavedNode, input: &InputDescriptor) -> Option<Value> {
    match &input.kind {
        InputKind::Combo { default: None, choices } => choices.first().cloned().map(Value::from),
        InputKind::Path { default: None, folder, .. } => {
            let models = node.properties.get("models")?.as_array()?;
            let of_folder = |model: &&Value| {
                model.get("directory").and_then(Value::as_str).is_some_and(|name| name == folder)
            };
            models.iter().find(of_folder)?.get("name").filter(|name| name.is_string()).cloned()
        }
        _ => None,
    }
}
