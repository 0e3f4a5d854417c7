//! What happens during a run, as one type: the terminal shows it, `--json` writes it.
//!
//! The JSON is documented in `docs/events.md`; a change of meaning there gets a new event.

use crate::problem::{NodeName, Problem};
use serde::Serialize;
use serde_json::Value as Json;
use std::path::Path;

/// Receives events, from the executor's thread and, during a node's call, from any other.
pub trait Listener: Sync {
    fn event(&self, event: &Event);
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// What will be done, in this order. In a sweep there is one for each seed.
    Plan {
        nodes: Vec<&'a NodeName>,
        #[serde(skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
    },
    NodeStarted(&'a NodeName),
    Progress {
        node: &'a str,
        step: u64,
        steps: u64,
    },
    /// The node need not run: its result, or all that would need it, is there.
    Cached(&'a NodeName),
    NodeDone {
        node: &'a str,
        seconds: f64,
    },
    /// The node needs what a failed node would have made.
    Skipped {
        #[serde(flatten)]
        name: &'a NodeName,
        /// The id of the node that failed.
        because_of: &'a str,
    },
    /// An output node made something.
    Output {
        node: &'a str,
        /// What the node said, ComfyUI's `{"images": [{"filename", "subfolder", "type"}]}`.
        output: &'a Json,
        /// The files in it, as absolute paths.
        files: Vec<String>,
    },
    /// A node failed.
    Error(&'a Failure),
    /// The workflow is wrong: one event for each problem, and nothing runs.
    #[serde(rename = "error")]
    Problem(&'a Problem),
    /// The arguments, or the workflow file as a whole, are wrong.
    #[serde(rename = "error")]
    Refused {
        kind: &'static str,
        message: &'a str,
    },
    Warning(&'a Problem),
    /// A line from a node, or from the host where there is no node.
    Log {
        level: &'static str,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        node: Option<&'a NodeName>,
        message: &'a str,
    },
    /// The last event of a run that was not interrupted. `failed` nodes make the exit code 3.
    Done {
        seconds: f64,
        executed: usize,
        cached: usize,
        failed: usize,
    },
    /// The last event of one that was.
    Interrupted {
        seconds: f64,
    },
}

/// Why a node gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    kind: &'static str,
    #[serde(flatten)]
    pub node: NodeName,
    /// The input at fault, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    pub message: String,
}

impl Failure {
    pub fn new(node: NodeName, input: Option<String>, message: String) -> Self {
        let input = input.filter(|input| !input.is_empty());
        Self { kind: "node_failed", node, input, message }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}", self.node)?;
        if let Some(input) = &self.input {
            write!(f, ", input \"{input}\"")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The paths of the files that an output names, in ComfyUI's convention: lists of objects with
/// "filename", "subfolder" and "type", "output" or "temp".
pub fn files(output: &Json, output_directory: &Path, temp_directory: &Path) -> Vec<String> {
    let lists = output.as_object().into_iter().flat_map(|object| object.values());
    let items = lists.filter_map(Json::as_array).flatten();
    let text = |item: &Json, key: &str| item.get(key).and_then(Json::as_str).map(str::to_owned);
    let path = |item: &Json| {
        let filename = text(item, "filename")?;
        let folder = match text(item, "type").as_deref() {
            Some("temp") => temp_directory,
            _ => output_directory,
        };
        let subfolder = text(item, "subfolder").unwrap_or_default();
        Some(folder.join(subfolder).join(filename).display().to_string())
    };
    items.filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_flat_json() {
        let node = NodeName { id: "3".into(), title: None, class: "KSampler".into() };
        let line = |event: Event| serde_json::to_value(event).unwrap();
        assert_eq!(
            line(Event::NodeStarted(&node)),
            json!({"event": "node_started", "node": "3", "class": "KSampler"})
        );
        let failure = Failure::new(node.clone(), Some("steps".into()), "No.".into());
        assert_eq!(
            line(Event::Error(&failure)),
            json!({"event": "error", "kind": "node_failed", "node": "3", "class": "KSampler",
                "input": "steps", "message": "No."})
        );
        let refused = Event::Refused { kind: "workflow", message: "It is empty" };
        assert_eq!(line(refused)["event"], "error");
        assert_eq!(
            line(Event::Log { level: "info", node: None, message: "a" }),
            json!({"event": "log", "level": "info", "message": "a"})
        );
    }

    #[test]
    fn files_of_an_output() {
        let output = json!({"images": [
            {"filename": "a.png", "subfolder": "", "type": "output"},
            {"filename": "b.png", "subfolder": "x", "type": "temp"}], "text": ["hello"], "n": 3});
        let found = files(&output, Path::new("/out"), Path::new("/temp"));
        assert_eq!(found, ["/out/a.png", "/temp/x/b.png"]);
    }
}
