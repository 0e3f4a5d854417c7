//! A descriptor as JSON → [`NodeDescriptor`]s, typed and checked, or the sentence about what is wrong with it and where.

use super::{
    Asks, DescriptorError, InputDescriptor, InputKind, NodeDescriptor, OutputDescriptor, Writes,
};
use crate::folders::Entry;
use crate::need::Need;
use crate::replace::Replaces;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

#[derive(Deserialize)]
struct RawLibrary {
    name: String,
    version: String,
    nodes: Vec<Value>,
}

#[derive(Deserialize)]
struct RawNode {
    class: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    doc: String,
    #[serde(default)]
    category: String,
    #[serde(default)]
    inputs: Vec<Value>,
    #[serde(default)]
    outputs: Vec<OutputDescriptor>,
    #[serde(default = "yes")]
    pure: bool,
    #[serde(default)]
    output_node: bool,
    #[serde(default)]
    input_is_list: bool,
    #[serde(default)]
    checked: bool,
    #[serde(default)]
    any_inputs: bool,
    #[serde(default)]
    asks: Asks,
    writes: Option<Writes>,
    #[serde(default)]
    memory: Value,
    #[serde(default)]
    replaces: Vec<Replaces>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct RawInput {
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    doc: String,
    #[serde(default)]
    default: Value,
    #[serde(default)]
    min: Value,
    #[serde(default)]
    max: Value,
    #[serde(default)]
    step: Value,
    #[serde(default)]
    choices: Vec<String>,
    #[serde(default)]
    files: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    multiline: bool,
    mentions: Option<String>,
    #[serde(default)]
    role: String,
    #[serde(default)]
    folder: String,
    entry: Option<Entry>,
    none: Option<String>,
    #[serde(default)]
    extensions: Vec<String>,
    #[serde(default)]
    unchecked: bool,
    #[serde(default)]
    lazy: bool,
}

/// Its name, its version, its nodes.
pub(super) type Parsed = (String, String, Vec<NodeDescriptor>);

/// A library's descriptor, typed and checked.
pub(super) fn parse(path: &Path, descriptor: &Value) -> Result<Parsed, DescriptorError> {
    let library = path.display().to_string();
    let wrong =
        |place: String, reason: String| DescriptorError { library: library.clone(), place, reason };
    let raw = RawLibrary::deserialize(descriptor)
        .map_err(|error| wrong(String::new(), error.to_string()))?;
    if raw.name.is_empty() {
        return Err(wrong(String::new(), "the library has no name".into()));
    }
    let mut seen = HashSet::new();
    let mut nodes = Vec::with_capacity(raw.nodes.len());
    for (index, value) in raw.nodes.iter().enumerate() {
        let class = value.get("class").and_then(Value::as_str).filter(|class| !class.is_empty());
        let place = class.map_or(format!("node number {index}: "), |class| format!("{class}: "));
        let node = parse_node(value)
            .map_err(|Fault { input, reason }| wrong(format!("{place}{input}"), reason))?;
        if !seen.insert(node.class.clone()) {
            return Err(wrong(place, "the class stands twice".into()));
        }
        nodes.push(node);
    }
    Ok((raw.name, raw.version, nodes))
}

/// What is wrong with a node, and "input X: " if it is an input's.
struct Fault {
    input: String,
    reason: String,
}

impl<T: ToString> From<T> for Fault {
    fn from(reason: T) -> Self {
        Self { input: String::new(), reason: reason.to_string() }
    }
}

fn parse_node(value: &Value) -> Result<NodeDescriptor, Fault> {
    let raw = RawNode::deserialize(value)?;
    if raw.class.is_empty() {
        return Err("its class has no name".into());
    }
    let mut seen = HashSet::new();
    let mut inputs = Vec::with_capacity(raw.inputs.len());
    for (index, value) in raw.inputs.iter().enumerate() {
        let name = value.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let input =
            name.map_or(format!("input number {index}: "), |name| format!("input {name}: "));
        let parsed = RawInput::deserialize(value).map_err(|error| error.to_string());
        let parsed = parsed.and_then(parse_input);
        let parsed = parsed.map_err(|reason| Fault { input: input.clone(), reason })?;
        if !seen.insert(parsed.name.clone()) {
            return Err(Fault { input, reason: "stands twice".into() });
        }
        inputs.push(parsed);
    }
    let is_prefix =
        |input: &&InputDescriptor| matches!(input.kind, InputKind::Text { prefix: true, .. });
    if let (None, Some(input)) = (raw.writes, inputs.iter().find(is_prefix)) {
        let input = format!("input {}: ", input.name);
        let reason = "is a prefix, and the node does not say where it writes".to_owned();
        return Err(Fault { input, reason });
    }
    if raw.outputs.iter().any(|output| output.kind.is_empty()) {
        return Err("an output has no type".into());
    }
    let memory = Need::parse(&raw.memory, &inputs)?;
    for replaces in &raw.replaces {
        if replaces.class.is_empty() {
            return Err("it replaces a class without a name".into());
        }
        let mut named = replaces.inputs.keys().chain(replaces.values.keys());
        if let Some(name) = named.find(|name| !seen.contains(*name)) {
            return Err(format!(
                "it replaces {} by its input {name}, which it does not have",
                replaces.class
            )
            .into());
        }
        if replaces.outputs.len() > raw.outputs.len() {
            return Err(
                format!("it replaces more outputs of {} than it has", replaces.class).into()
            );
        }
    }
    Ok(NodeDescriptor {
        class: raw.class,
        display_name: raw.display_name,
        doc: raw.doc,
        category: raw.category,
        inputs,
        outputs: raw.outputs,
        pure: raw.pure,
        output_node: raw.output_node,
        input_is_list: raw.input_is_list,
        checked: raw.checked,
        any_inputs: raw.any_inputs,
        asks: raw.asks,
        writes: raw.writes,
        memory,
        replaces: raw.replaces,
    })
}

fn parse_input(raw: RawInput) -> Result<InputDescriptor, String> {
    if raw.name.is_empty() {
        return Err("has no name".into());
    }
    let kind = match (raw.role.as_str(), raw.type_name.as_str()) {
        ("path", "STRING" | "COMBO") => {
            if raw.folder.is_empty() {
                return Err("is a path without the folder it is looked for in".into());
            }
            let entry = raw.entry.ok_or("is a path without an entry: file, directory or any")?;
            if raw.none.is_some() && !raw.optional {
                return Err("has a word for no file, but is not optional".into());
            }
            if raw.extensions.iter().any(|one| one.is_empty() || one.contains(['.', '/'])) {
                return Err(
                    "has an extension that is none: \"latent\" is one, without a dot".into()
                );
            }
            let (default, folder) = (text(&raw.default)?, raw.folder.clone());
            InputKind::Path { default, folder, entry, none: raw.none.clone() }
        }
        ("path", other) => return Err(format!("is a path of type {other}, not STRING or COMBO")),
        ("seed", other) if other != "INT" => {
            return Err(format!("is a seed of type {other}, not INT"));
        }
        ("prefix", other) if other != "STRING" => {
            return Err(format!("is a prefix of type {other}, not STRING"));
        }
        _ if !raw.extensions.is_empty() => return Err("has extensions, but is no path".into()),
        (_, "INT") => int(&raw)?,
        (_, "FLOAT") => float(&raw)?,
        (_, "STRING") => {
            if raw.mentions.as_ref().is_some_and(String::is_empty) {
                return Err("mentions files of a folder without a name".into());
            }
            let (multiline, mentions) = (raw.multiline, raw.mentions.clone());
            let prefix = raw.role == "prefix";
            InputKind::Text { default: text(&raw.default)?, multiline, mentions, prefix }
        }
        (_, "BOOLEAN") => match &raw.default {
            Value::Null => InputKind::Boolean { default: None },
            Value::Bool(default) => InputKind::Boolean { default: Some(*default) },
            other => return Err(format!("its default {other} is not true or false")),
        },
        (_, "COMBO") => {
            let default = text(&raw.default)?;
            if raw.choices.is_empty() {
                return Err("is a COMBO without choices".into());
            }
            if let Some(default) = &default
                && !raw.choices.contains(default)
            {
                return Err(format!("its default \"{default}\" is not among its choices"));
            }
            let odd = |(choice, names): (&String, &Vec<String>)| {
                !raw.choices.contains(choice) || names.iter().any(|name| !name.contains('/'))
            };
            if raw.files.iter().any(odd) {
                return Err("names files for what is no choice, or not as FOLDER/NAME".into());
            }
            InputKind::Combo { default, choices: raw.choices.clone(), files: raw.files.clone() }
        }
        (_, "") => return Err("has no type".into()),
        _ => InputKind::Socket,
    };
    let RawInput { name, type_name, optional, doc, unchecked, lazy, extensions, .. } = raw;
    Ok(InputDescriptor { name, optional, doc, type_name, kind, unchecked, lazy, extensions })
}

fn text(default: &Value) -> Result<Option<String>, String> {
    match default {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(format!("its default {other} is not a string")),
    }
}

fn int(raw: &RawInput) -> Result<InputKind, String> {
    let whole = |what: &str, value: &Value| match value {
        Value::Null => Ok(None),
        value => {
            let signed = value.as_i64().map(i128::from);
            let whole = signed.or(value.as_u64().map(i128::from));
            whole
                .map(Some)
                .ok_or_else(|| format!("its {what} {value} is not a whole number of 64 bits"))
        }
    };
    let default = whole("default", &raw.default)?;
    let min = whole("min", &raw.min)?;
    let max = whole("max", &raw.max)?.unwrap_or(i64::MAX.into());
    let step = whole("step", &raw.step)?;
    let lowest = if InputKind::is_unsigned(max) { 0 } else { i128::from(i64::MIN) };
    let min = min.unwrap_or(lowest);
    if min < lowest {
        return Err(format!("its min {min} is negative though its max makes it unsigned"));
    }
    if min > max {
        return Err(format!("its min {min} is above its max {max}"));
    }
    if step.is_some_and(|step| step <= 0) {
        return Err("its step is not above 0".into());
    }
    if let Some(default) = default
        && !(min..=max).contains(&default)
    {
        return Err(format!("its default {default} is not between {min} and {max}"));
    }
    Ok(InputKind::Int { default, min, max, step, seed: raw.role == "seed" })
}

fn float(raw: &RawInput) -> Result<InputKind, String> {
    let number = |what: &str, value: &Value| match value {
        Value::Null => Ok(None),
        value => {
            value.as_f64().map(Some).ok_or_else(|| format!("its {what} {value} is not a number"))
        }
    };
    let default = number("default", &raw.default)?;
    let (min, max) = (number("min", &raw.min)?, number("max", &raw.max)?);
    let step = number("step", &raw.step)?;
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        return Err(format!("its min {min} is above its max {max}"));
    }
    if step.is_some_and(|step| step <= 0.0) {
        return Err("its step is not above 0".into());
    }
    if let Some(default) = default {
        let below = min.is_some_and(|min| default < min);
        if below || max.is_some_and(|max| default > max) {
            return Err(format!("its default {default} is outside its range"));
        }
    }
    Ok(InputKind::Float { default, min, max, step })
}
