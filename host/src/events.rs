//! What happens during a run, as one type: the terminal shows it, `--json` writes it, a worker sends
//! it to the process that started it.
//!
//! The JSON is documented in `docs/events.md`; a change of meaning there gets a new event. What is
//! written can be read back: borrowed where it is made, owned where it was read.

use crate::handed::Handed;
use crate::plugin::LogLevel;
use crate::preview::Preview;
use crate::problem::{Kind, NodeName, Problem};
use crate::promise::Promise;
use crate::value::Value;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::borrow::Cow;

/// Receives events, from the executor's thread and, during a node's call, from any other.
pub trait Listener: Sync {
    fn event(&self, event: &Event);

    /// The node at work is about to give a file its name: nothing to show, but to remember.
    fn promise(&self, _promise: &Promise) {}

    /// Whether somebody looks at previews.
    fn wants_previews(&self) -> bool {
        false
    }

    /// What a step of the node has made so far, where somebody wants it.
    fn preview(&self, _node: &str, _preview: &Preview) {}

    /// What an output node was given to show, at an input of type IMAGE: for a worker, which hands it over where it was asked to.
    fn shown(&self, _node: &str, _input: &str, _value: &Value) {}

    /// A picture of the node lies in the memory that the job brought.
    fn handed(&self, _node: &str, _handed: &Handed) {}

    /// Why what was told did not arrive, if it did not: a closed or full standard output.
    fn trouble(&self) -> Option<String> {
        None
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// What will be done, in this order. In a sweep there is one for each seed.
    Plan {
        nodes: Vec<Cow<'a, NodeName>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
        /// What `--sweep` gives inputs in this run.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        values: Vec<Swept<'a>>,
    },
    NodeStarted(Cow<'a, NodeName>),
    Progress {
        node: Cow<'a, str>,
        step: u64,
        steps: u64,
    },
    /// The node need not run: its result, or all that would need it, is there.
    Cached(Cow<'a, NodeName>),
    NodeDone {
        node: Cow<'a, str>,
        seconds: f64,
    },
    /// The node needs what a failed node would have made.
    Skipped {
        #[serde(flatten)]
        name: Cow<'a, NodeName>,
        /// The id of the node that failed.
        because_of: Cow<'a, str>,
    },
    /// An output that is not made, because the workflow has a problem.
    LeftOut {
        #[serde(flatten)]
        name: Cow<'a, NodeName>,
        /// The id of a node that has a problem and that the output needs, or its own.
        because_of: Cow<'a, str>,
    },
    /// An output node made something.
    Output {
        node: Cow<'a, str>,
        /// What the node said, ComfyUI's `{"images": [{"filename", "subfolder", "type"}]}`.
        output: Cow<'a, Json>,
        /// The files in it, as absolute paths.
        files: Vec<String>,
    },
    /// What a node has made so far, as a file in the folder of `--previews`.
    Preview {
        node: Cow<'a, str>,
        step: u64,
        steps: u64,
        file: Cow<'a, str>,
    },
    /// To stay under the budget, `models` were let go and `results` dropped before `node` began: they held
    /// `bytes`, and are read or made again when they are used next.
    MadeRoom {
        node: Cow<'a, str>,
        models: u64,
        results: u64,
        bytes: u64,
    },
    /// The contact sheet of a sweep, which is written.
    Sheet {
        file: Cow<'a, str>,
    },
    /// A node failed, or the workflow, its file or the arguments are wrong: one event for each problem.
    Error(Cow<'a, Problem>),
    Warning(Cow<'a, Problem>),
    /// A line from a node, or from the host where there is no node.
    Log {
        level: Level,
        #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
        node: Option<Cow<'a, NodeName>>,
        message: Cow<'a, str>,
    },
    /// The last event of a run that was not interrupted. `failed` nodes and outputs that were
    /// `left_out` make the exit code 3.
    Done {
        seconds: f64,
        executed: usize,
        cached: usize,
        failed: usize,
        left_out: usize,
    },
    /// The last event of one that was.
    Interrupted {
        seconds: f64,
    },
}

/// An input with the value that it has in one run of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Swept<'a> {
    pub node: Cow<'a, str>,
    pub input: Cow<'a, str>,
    pub value: Cow<'a, Json>,
}

impl<'a> Event<'a> {
    /// An error about the workflow's file or the arguments as a whole.
    pub fn refused(kind: Kind, message: impl Into<String>) -> Self {
        Self::Error(Cow::Owned(Problem::new(kind, message)))
    }

    /// A line of the host's own.
    pub fn log(level: Level, message: impl Into<Cow<'a, str>>) -> Self {
        Self::Log { level, node: None, message: message.into() }
    }
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Error,
    Warning,
    Info,
    Debug,
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warning,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_flat_json_that_can_be_read_back() {
        let node = NodeName { id: "3".into(), title: None, class: "KSampler".into() };
        let (name, id) = (|| Cow::Borrowed(&node), || Cow::Borrowed("3"));
        let failure = Problem::failure(node.clone(), Some("steps".into()), "No");
        let event = Event::Error(Cow::Borrowed(&failure));
        assert_eq!(
            serde_json::to_value(event).unwrap(),
            json!({"event": "error", "kind": "node_failed", "node": "3", "class": "KSampler",
                "input": "steps", "message": "No"})
        );
        let log = Event::log(Level::Info, "a");
        assert_eq!(
            serde_json::to_value(&log).unwrap(),
            json!({"event": "log", "level": "info", "message": "a"})
        );
        let titled = NodeName { title: Some("Sampler".into()), ..node.clone() };
        let problem =
            Problem::new(Kind::InvalidPath, "is not there").at(titled.clone()).nearest("a", ["ab"]);
        let output = json!({"images": [{"filename": "a.png"}]});
        let events = [
            Event::Plan {
                nodes: vec![name(), Cow::Borrowed(&titled)],
                seed: Some(u64::MAX),
                values: vec![Swept {
                    node: id(),
                    input: "cfg".into(),
                    value: Cow::Owned(json!(7.5)),
                }],
            },
            Event::Plan { nodes: vec![], seed: None, values: vec![] },
            Event::MadeRoom { node: id(), models: 1, results: 2, bytes: u64::MAX },
            Event::Sheet { file: "/o/sheet.png".into() },
            Event::NodeStarted(name()),
            Event::Progress { node: id(), step: 1, steps: 2 },
            Event::Cached(name()),
            Event::NodeDone { node: id(), seconds: 0.25 },
            Event::Skipped { name: name(), because_of: Cow::Borrowed("2") },
            Event::Output { node: id(), output: Cow::Borrowed(&output), files: vec!["/a".into()] },
            Event::Preview { node: id(), step: 1, steps: 2, file: "/p/3_00001.png".into() },
            Event::Error(Cow::Borrowed(&failure)),
            Event::Warning(Cow::Borrowed(&problem)),
            Event::refused(Kind::Workflow, "it is empty"),
            log,
            Event::Log { level: Level::Debug, node: Some(name()), message: "\n\u{1b}".into() },
            Event::LeftOut { name: name(), because_of: Cow::Borrowed("2") },
            Event::Done { seconds: 0.5, executed: 1, cached: 2, failed: 3, left_out: 4 },
            Event::Interrupted { seconds: 0.125 },
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        }
    }
}
