//! A workflow inside what a client of ComfyUI's server saves: `{"prompt": …, "client_id": …}`, a worker's
//! `{"input": {"workflow": …}}`, an entry of the server's queue or history. It may be a text that is JSON.
//!
//! What was run comes before what the editor shows: of a request that carries both, the API's graph
//! is taken, and the editor's is what goes with it into a picture.

use super::{GraphError, is_editor_format, json, json_kind};
use serde_json::{Map, Value};

/// How deep inside a file a workflow is looked for; the history of a server has it at four.
const DEEPEST: usize = 6;
/// How many places a sentence names.
const MOST_NAMED: usize = 5;

/// What [`super::open`] finds in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// The workflow, in either format.
    pub object: Map<String, Value>,
    /// The editor's graph, where one stands beside a workflow of the API's format.
    pub editor: Option<Map<String, Value>>,
    /// Whether the workflow is a part of the file, or stands in a text.
    pub inside: bool,
}

impl Opened {
    /// Whether the workflow, in either format, is an empty one.
    pub fn has_no_nodes(&self) -> bool {
        match self.object.get("nodes").filter(|_| is_editor_format(&self.object)) {
            Some(nodes) => nodes.as_array().is_some_and(Vec::is_empty),
            None => self.object.is_empty(),
        }
    }
}

/// The workflow that `value` is or holds. An object none of whose parts looks like a node of a workflow is
/// none; one with a malformed node is given back as it is.
///
/// # Errors
/// [`GraphError`], when it holds no workflow, or several that differ.
pub(super) fn workflow_in(value: Value) -> Result<Opened, GraphError> {
    let inside = value.is_string();
    let value = match unpacked(value) {
        Value::Object(object) if is_editor_format(&object) || is_api_format(&object) => {
            return Ok(Opened { object, editor: None, inside });
        }
        value => value,
    };
    let (mut of_api, mut of_editor) = (Vec::new(), Vec::new());
    let mut level = vec![(String::new(), value.clone())];
    for _ in 0..DEEPEST {
        let inside = level.into_iter().flat_map(|(path, value)| parts(&path, value));
        level = Vec::new();
        // The outermost one is the file's; what lies deeper may be an earlier one.
        let outermost = of_api.is_empty();
        for (path, value) in inside {
            match unpacked(value) {
                Value::Object(object) if is_editor_format(&object) => {
                    of_editor.push((path, object))
                }
                Value::Object(object) if is_api_format(&object) => {
                    if outermost {
                        of_api.push((path, object));
                    }
                }
                value => level.push((path, value)),
            }
        }
    }
    let editor = of_editor.first().map(|(_, object)| object.clone());
    if !of_api.is_empty() {
        let object = only(of_api)?;
        return Ok(Opened { object, editor, inside: true });
    }
    if !of_editor.is_empty() {
        return Ok(Opened { object: only(of_editor)?, editor: None, inside: true });
    }
    match value {
        Value::Object(object) if object.is_empty() || object.values().any(is_like_a_node) => {
            Ok(Opened { object, editor: None, inside: false })
        }
        Value::Object(object) => Err(GraphError::NoNodes { keys: keys(&object) }),
        other => Err(GraphError::NotAnObject { found: json_kind(&other) }),
    }
}

/// Whether somebody may have meant a node of the API's format.
fn is_like_a_node(value: &Value) -> bool {
    ["class_type", "inputs"].iter().any(|key| value.get(key).is_some())
}

/// The first keys of `object`, in words.
fn keys(object: &Map<String, Value>) -> String {
    const LONGEST: usize = 40;
    let shown = |key: &String| match key.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}", format!("{}…", &key[..end])),
        None => format!("{key:?}"),
    };
    let mut keys: Vec<String> = object.keys().take(MOST_NAMED).map(shown).collect();
    if object.len() > MOST_NAMED {
        keys.push("…".to_owned());
    }
    keys.join(", ")
}

/// Whether `object` has a node of the API's format.
fn is_api_format(object: &Map<String, Value>) -> bool {
    object.values().any(|node| node.get("class_type").is_some_and(Value::is_string))
}

/// What is in a list or an object, with its place.
fn parts(path: &str, value: Value) -> Vec<(String, Value)> {
    let place = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(object) => {
            object.into_iter().map(|(key, value)| (place(&key), value)).collect()
        }
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            items.map(|(at, value)| (place(&at.to_string()), value)).collect()
        }
        _ => Vec::new(),
    }
}

/// A text that is a workflow's JSON, as that JSON.
fn unpacked(value: Value) -> Value {
    match &value {
        Value::String(text) if text.trim_start().starts_with('{') => {
            json::parse(text).unwrap_or(value)
        }
        _ => value,
    }
}

fn only(found: Vec<(String, Map<String, Value>)>) -> Result<Map<String, Value>, GraphError> {
    let same = found.windows(2).all(|two| two[0].1 == two[1].1);
    match found.first() {
        Some((_, object)) if same => Ok(object.clone()),
        _ => {
            let mut places: Vec<String> =
                found.iter().take(MOST_NAMED).map(|(place, _)| place.clone()).collect();
            if found.len() > MOST_NAMED {
                places.push("…".to_owned());
            }
            Err(GraphError::Several { count: found.len(), places: places.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Graph, open};
    use super::*;
    use serde_json::json;

    fn api() -> Value {
        json!({"1": {"class_type": "A", "inputs": {}}})
    }

    #[test]
    fn requests_as_clients_save_them_are_opened() {
        let text = api().to_string();
        for body in [
            json!({"prompt": api(), "client_id": "me"}),
            json!({"input": {"workflow": api(), "images": []}}),
            json!({"input": {"workflow_json": text}, "webhook": "https://example.org"}),
            json!({"prompt": text}),
            json!({"output": api(), "workflow": {"nodes": [], "links": []}}),
            json!({"0f-1c": {"prompt": [3, "0f-1c", api(), {}, ["1"]], "outputs": {}}}),
            json!({"prompt": api(), "again": api()}),
            json!([api()]),
            json!(text),
            json!([3, "0f-1c", api(), {}, ["1"]]),
            json!({"queue_running": [[3, "0f-1c", api(), {}, ["1"]]], "queue_pending": []}),
        ] {
            let graph = Graph::parse(&body.to_string()).unwrap();
            assert_eq!(graph, Graph::parse(&api().to_string()).unwrap(), "{body}");
        }
    }

    #[test]
    fn the_editors_graph_goes_with_the_request() {
        let editor = json!({"nodes": [{"id": 1, "type": "A"}], "links": []});
        let body = json!({"prompt": api(), "extra_data": {"extra_pnginfo": {"workflow": editor}}});
        let opened = open(&body.to_string()).unwrap();
        assert_eq!((Value::Object(opened.object), opened.inside), (api(), true));
        let alone = open(&json!({"data": {"workflow": editor}}).to_string()).unwrap();
        assert_eq!((Value::Object(alone.object), alone.editor), (editor.clone(), None));
        let text = open(&json!(editor.to_string()).to_string()).unwrap();
        assert_eq!((Value::Object(text.object), text.inside), (editor.clone(), true));
        let plain = open(&api().to_string()).unwrap();
        assert_eq!((Value::Object(plain.object), plain.inside), (api(), false));
    }

    #[test]
    fn what_holds_none_says_what_it_holds() {
        let sentence = |value: Value| open(&value.to_string()).unwrap_err().to_string();
        for body in [
            json!({"prompt": {}, "client_id": "me"}),
            json!({"prompt": "a cat", "client_id": null}),
            json!({"prompt": null, "client_id": {"a": [1, {}]}}),
        ] {
            let said = sentence(body);
            assert!(said.contains("no node"), "{said}");
            assert!(said.contains("it has \"prompt\", \"client_id\""), "{said}");
        }
        assert!(sentence(json!({"x".repeat(1000): 1, "b": 2})).len() < 300);
        assert!(sentence(json!([1, [2]])).contains("is a list"));
        assert!(sentence(json!("a cat")).contains("is a string"));
        assert!(sentence(json!("{not JSON")).contains("is a string"));
        // A malformed node is not nothing.
        assert!(open(&json!({"1": {"inputs": {}}}).to_string()).is_ok());
    }

    #[test]
    fn several_workflows_are_named() {
        let other = json!({"2": {"class_type": "B"}});
        let body = json!({"jobs": [{"prompt": api()}, {"prompt": other}]});
        let sentence = open(&body.to_string()).unwrap_err().to_string();
        assert!(sentence.contains("2 workflows"), "{sentence}");
        assert!(sentence.contains("jobs.0.prompt, jobs.1.prompt"), "{sentence}");
    }
}
