//! What goes over a socket: the messages of ComfyUI's server, their shapes and their binary frames.

use axum::body::Bytes;
use axum::extract::ws::Utf8Bytes;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `{"type": kind, "data": data}`.
pub fn text(kind: &str, data: &Json) -> Utf8Bytes {
    Utf8Bytes::from(json!({"type": kind, "data": data}).to_string())
}

pub fn status(remaining: usize) -> Utf8Bytes {
    text("status", &json!({"status": {"exec_info": {"queue_remaining": remaining}}}))
}

/// The first message of a connection.
pub fn welcome(remaining: usize, sid: &str) -> Utf8Bytes {
    let status = json!({"exec_info": {"queue_remaining": remaining}});
    text("status", &json!({"status": status, "sid": sid}))
}

pub fn logs(entries: &[Json]) -> Utf8Bytes {
    text("logs", &json!({"entries": entries}))
}

/// A number as clients want it: whole where it is.
pub fn number(number: f64) -> Json {
    match number.fract() == 0.0 && number.abs() < 9e15 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// The `nodes` of `progress_state`, each ready to be sent: of a job of a thousand nodes one is another one a
/// thousand times.
#[derive(Debug, Default)]
pub struct NodeStates {
    places: HashMap<String, usize>,
    nodes: Vec<NodeState>,
    bytes: usize,
}

#[derive(Debug)]
struct NodeState {
    value: u64,
    max: u64,
    text: String,
}

impl NodeStates {
    /// Notes how far `node` of `job` is.
    pub fn set(&mut self, job: &str, node: &str, state: &str, value: u64, max: u64) {
        let of_node = json!({"value": value, "max": max, "state": state, "node_id": node,
            "prompt_id": job, "display_node_id": node, "parent_node_id": null,
            "real_node_id": node});
        let text = format!("{}:{of_node}", Json::from(node));
        self.bytes += text.len();
        let state = NodeState { value, max, text };
        match self.places.get(node) {
            Some(&at) => self.bytes -= std::mem::replace(&mut self.nodes[at], state).text.len(),
            None => {
                self.places.insert(node.to_owned(), self.nodes.len());
                self.nodes.push(state);
            }
        }
    }

    /// The steps of `node`, those done and all.
    pub fn of(&self, node: &str) -> Option<(u64, u64)> {
        let state = &self.nodes[*self.places.get(node)?];
        Some((state.value, state.max))
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many bytes they have as a message, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The message.
    pub fn message(&self, job: &str) -> Utf8Bytes {
        let mut text = String::with_capacity(self.bytes + self.nodes.len() + 128);
        text.push_str("{\"type\":\"progress_state\",\"data\":{\"prompt_id\":");
        text.push_str(&Json::from(job).to_string());
        text.push_str(",\"nodes\":{");
        for (number, node) in self.nodes.iter().enumerate() {
            if number > 0 {
                text.push(',');
            }
            text.push_str(&node.text);
        }
        text.push_str("}}}");
        Utf8Bytes::from(text)
    }
}

/// How pictures in binary frames are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Jpeg = 1,
    Png = 2,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Nodes that ran or need not, and all of them.
    pub done: usize,
    pub total: usize,
    /// The node at work and its class.
    pub node: Option<(String, String)>,
    /// Its steps, those done and all.
    pub step: u64,
    pub steps: u64,
}

impl Progress {
    /// The part that is done, 0 to 1: nodes count alike, and a step is a part of its node.
    pub fn value(&self) -> f64 {
        let of_node = match &self.node {
            Some(_) if self.steps > 0 => self.step as f64 / self.steps as f64,
            _ => 0.0,
        };
        ((self.done as f64 + of_node.min(1.0)) / self.total.max(1) as f64).min(1.0)
    }
}

/// A picture that a node shows while it works.
#[derive(Clone, Debug)]
pub struct Preview {
    pub job: String,
    pub node: String,
    pub encoding: Encoding,
    pub picture: Vec<u8>,
}

impl Preview {
    pub fn media_type(&self) -> &'static str {
        match self.encoding {
            Encoding::Jpeg => "image/jpeg",
            Encoding::Png => "image/png",
        }
    }

    pub fn jpeg(job: &str, node: &str, picture: Vec<u8>) -> Self {
        let (job, node) = (job.to_owned(), node.to_owned());
        Self { job, node, encoding: Encoding::Jpeg, picture }
    }

    pub fn png(job: &str, node: &str, picture: Vec<u8>) -> Self {
        Self { encoding: Encoding::Png, ..Self::jpeg(job, node, picture) }
    }

    /// Frame 1: the picture and how it is encoded.
    pub fn plain(&self) -> Bytes {
        let mut frame = Vec::with_capacity(8 + self.picture.len());
        frame.extend(1u32.to_be_bytes());
        frame.extend((self.encoding as u32).to_be_bytes());
        frame.extend(&self.picture);
        frame.into()
    }

    /// Frame 4: the picture, and in front of it which node of which job it is of.
    pub fn with_metadata(&self) -> Bytes {
        let metadata = json!({"node_id": self.node, "prompt_id": self.job,
            "display_node_id": self.node, "parent_node_id": null, "real_node_id": self.node,
            "image_type": self.media_type()})
        .to_string();
        let mut frame = Vec::with_capacity(8 + metadata.len() + self.picture.len());
        frame.extend(4u32.to_be_bytes());
        // A sentence of names: far from 4 GB.
        frame.extend(u32::try_from(metadata.len()).unwrap_or(0).to_be_bytes());
        frame.extend(metadata.as_bytes());
        frame.extend(&self.picture);
        frame.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_laid_out_as_clients_read_them() {
        let preview = Preview::jpeg("p", "12:3", vec![1, 2, 3]);
        assert_eq!(&preview.plain()[..], [0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3]);
        let frame = preview.with_metadata();
        assert_eq!(frame[..4], [0, 0, 0, 4]);
        let length = u32::from_be_bytes(frame[4..8].try_into().unwrap()) as usize;
        let metadata: Json = serde_json::from_slice(&frame[8..8 + length]).unwrap();
        assert_eq!(metadata["node_id"], "12:3");
        assert_eq!(metadata["image_type"], "image/jpeg");
        assert_eq!(frame[8 + length..], [1, 2, 3]);
    }

    #[test]
    fn the_states_of_nodes_are_one_message() {
        let mut states = NodeStates::default();
        states.set("p", "1", "running", 0, 1);
        states.set("p", "a \"b\"", "running", 2, 20);
        states.set("p", "1", "finished", 1, 1);
        assert_eq!((states.of("a \"b\""), states.of("2")), (Some((2, 20)), None));
        let message = states.message("p");
        let said: Json = serde_json::from_str(&message).unwrap();
        assert_eq!(
            (&said["type"], &said["data"]["prompt_id"]),
            (&json!("progress_state"), &json!("p"))
        );
        let nodes = said["data"]["nodes"].as_object().unwrap();
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["1", "a \"b\""]);
        let expected = json!({"value": 1, "max": 1, "state": "finished", "node_id": "1",
            "prompt_id": "p", "display_node_id": "1", "parent_node_id": null, "real_node_id": "1"});
        assert_eq!(nodes["1"], expected);
        assert_eq!(states.bytes(), states.nodes.iter().map(|node| node.text.len()).sum::<usize>());
    }

    #[test]
    fn steps_are_parts_of_their_node() {
        let mut progress = Progress { done: 1, total: 4, ..Progress::default() };
        assert_eq!(progress.value(), 0.25);
        progress.node = Some(("3".into(), "KSampler".into()));
        (progress.step, progress.steps) = (5, 10);
        assert_eq!(progress.value(), 0.375);
        assert_eq!(Progress::default().value(), 0.0);
    }

    #[test]
    fn whole_numbers_are_whole() {
        assert_eq!(number(-3.0).to_string(), "-3");
        assert_eq!(number(0.5).to_string(), "0.5");
    }
}
