//! `widgets_values`, a bare list, → named inputs.
//!
//! The editor writes down what each of a node's widgets holds, without names. The order is that of
//! the class's inputs that have a widget, the required ones first. Between them stand the values of
//! widgets that only the page has: after a seed, or another number or choice, what becomes of it when a
//! picture is done ("fixed", "randomize"; older files: true or false), and after the required inputs of a class that takes a
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
            let mine = |(name, value): &(&String, &Value)| {
                let input = class.input(name).filter(|input| is_widget(input));
                input.is_some_and(|input| holds(input, value))
            };
            let there = values.iter().filter(mine);
            there.map(|(name, value)| (name.clone(), value.clone())).collect()
        }
        Values::Listed(values) => listed(node, values, class, &mut odd),
    };
    for input in class.inputs.iter().filter(|input| is_widget(input) && !input.is_beside()) {
        if !inputs.iter().any(|(name, _)| *name == input.name)
            && let Some(value) = left_out(node, input)
        {
            inputs.push((input.name.clone(), value));
        }
    }
    inputs
}

/// The values of a node whose class is not there, by the `names` of its widgets in their order.
pub(super) fn by_names(node: &SavedNode, names: &[String]) -> Vec<(String, Value)> {
    let pair = |(name, value): (&String, &Value)| (name.clone(), value.clone());
    match &node.values {
        Values::Named(values) => {
            values.iter().filter(|(name, _)| names.contains(name)).map(pair).collect()
        }
        Values::Listed(values) => names.iter().zip(values).map(pair).collect(),
    }
}

/// Whether `name` is a widget that only ComfyUI's page has, and that it writes among a node's inputs: the
/// button that uploads, what becomes of a seed afterwards, players and previews.
pub fn is_the_pages(name: &str) -> bool {
    const NAMES: &[&str] = &["audioUI", "videopreview", "$$canvas-image-preview"];
    is_upload(name) || is_control_name(name) || NAMES.contains(&name)
}

fn is_upload(name: &str) -> bool {
    matches!(name, "upload" | "choose file to upload")
}

fn is_control_name(name: &str) -> bool {
    // That of one of several seeds in a group has its node's title before it.
    let last = name.rsplit(' ').next().unwrap_or(name);
    matches!(last, "control_after_generate" | "control_filter_list")
}

/// What stands at one place of the list.
#[derive(Clone, Copy)]
enum Widget<'a> {
    Input(&'a InputDescriptor),
    /// An input that the file names and the class does not have.
    Unknown(&'a str),
    /// A widget of the page alone, the button with which it uploads a picture.
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
                if !is_the_pages(name) {
                    let odd_name = Problem::new(Kind::UnknownInput, "the class has no such input");
                    odd(odd_name.input(name));
                }
                name
            }
            Widget::Upload => continue,
        };
        if let Widget::Input(input) = widget
            && holds(input, value)
        {
            inputs.push((input.name.clone(), value.clone()));
        }
        let is_seed = match widget {
            Widget::Input(input) => input.kind.is_seed(),
            _ => false,
        };
        let is_seed = is_seed || matches!(name, "seed" | "noise_seed");
        let counts = match widget {
            Widget::Input(input) => {
                matches!(input.kind, InputKind::Int { .. } | InputKind::Combo { .. })
            }
            _ => false,
        };
        let left = &order[at + 1..];
        if let [control, after @ ..] = rest
            && ((is_seed && is_control(control, left.first()))
                || (counts && is_control_of(control, rest.len(), left)))
        {
            rest = after;
            // A list's choices are filtered by a text, which stands behind the word.
            let is_list = matches!(widget, Widget::Input(input) if matches!(input.kind, InputKind::Combo { .. }));
            if let [Value::String(_), after @ ..] = rest
                && is_list
                && rest.len() > with_values(left)
            {
                rest = after;
            }
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

/// Whether `value` is what the widget of `input` holds. Null is no value of a required one, which the
/// plan says; at an optional one it is left by a button that stood there, and a list of files that
/// was empty when the workflow was saved leaves it, too.
fn holds(input: &InputDescriptor, value: &Value) -> bool {
    let is_file = matches!(input.kind, InputKind::Path { default: None, .. });
    !value.is_null() || !(input.optional || is_file)
}

/// The widgets in the order in which the editor wrote their values.
fn order<'a>(node: &'a SavedNode, class: &'a NodeDescriptor) -> Vec<Widget<'a>> {
    let widgets = |optional: bool| {
        let inputs = class.inputs.iter().filter(move |input| input.is_beside() == optional);
        inputs.filter(|input| !matches!(input.kind, InputKind::Socket))
    };
    // Editors since 2025 name every widget among the inputs, in the order of the class as it was
    // then; older ones only those that were turned into sockets.
    let named = || node.inputs.iter().filter(|input| input.widget.is_some());
    let all = widgets(false).all(|input| named().any(|named| named.name() == input.name));
    if all && widgets(false).next().is_some() {
        let widget = |name: &'a str| match class.input(name) {
            Some(input) => Widget::Input(input),
            None if is_upload(name) || is_control_name(name) => Widget::Upload,
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
        Value::Bool(_) => {
            let boolean = |input: &InputDescriptor| matches!(input.kind, InputKind::Boolean { .. });
            !matches!(next, Some(Widget::Input(input)) if boolean(input))
        }
        value => is_control_word(value),
    }
}

/// Whether `value`, which stands behind a number or a choice and before the widgets `left`, is what becomes of that afterwards: any
/// number may have been given that in the page. `there` values are left, `value` among them.
fn is_control_of(value: &Value, there: usize, left: &[Widget]) -> bool {
    if !is_control_word(value) {
        return false;
    }
    let takes = |input: &InputDescriptor| match &input.kind {
        InputKind::Combo { choices, .. } => choices.iter().any(|choice| value == choice),
        InputKind::Text { .. } | InputKind::Path { .. } => true,
        _ => false,
    };
    // Where the next widget may hold the word itself, there has to be a value too many.
    match left.first() {
        Some(Widget::Input(input)) if takes(input) => there > with_values(left),
        Some(Widget::Unknown(_)) => there > with_values(left),
        _ => true,
    }
}

/// How many of the widgets surely have a value in the list.
fn with_values(widgets: &[Widget]) -> usize {
    widgets.iter().filter(|widget| !matches!(widget, Widget::Upload)).count()
}

/// Whether `value` is one of the page's words for what becomes of a seed.
pub(super) fn is_control_word(value: &Value) -> bool {
    matches!(value.as_str(), Some("fixed" | "increment" | "decrement" | "randomize"))
}

/// What the editor shows at an input that the file has no value for and whose class says no default:
/// the model that the workflow's author noted in the node's properties, or the first choice.
fn left_out(node: &SavedNode, input: &InputDescriptor) -> Option<Value> {
    match &input.kind {
        InputKind::Combo { default: None, choices, .. } => {
            choices.first().cloned().map(Value::from)
        }
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
