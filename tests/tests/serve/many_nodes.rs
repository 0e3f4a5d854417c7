//! Jobs of very many nodes: what is told of them grows no faster than they do.

use super::node;
use kosmograph_tests::server::Server;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NODES: usize = 1500;

/// A picture that is inverted again and again.
fn chain(color: u32) -> Value {
    let size = json!({"width": 8, "height": 8, "batch_size": 1, "color": color});
    let mut graph = json!({"0": node("EmptyImage", size)});
    for number in 1..=NODES {
        let from = (number - 1).to_string();
        graph[number.to_string()] = node("ImageInvert", json!({"image": [from, 0]}));
    }
    let save = json!({"images": [NODES.to_string(), 0], "filename_prefix": "chain"});
    graph["save"] = node("SaveImage", save);
    graph
}

#[test]
fn a_long_chain_is_told_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut socket = server.socket("reads");
    let _deaf: Vec<_> = (0..3).map(|number| server.socket(&format!("deaf{number}"))).collect();
    for (color, client) in [(1, Some("reads")), (2, None)] {
        let begin = Instant::now();
        let id = server.submit(&chain(color), client);
        assert_eq!(server.finished(&id)["status"]["status_str"], "success");
        // It took half a minute without a listener and two with one.
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
        if client.is_none() {
            continue;
        }
        let heard = socket.until_done(&id);
        let states: Vec<&Value> =
            heard.iter().filter(|message| message["type"] == "progress_state").collect();
        let last = states.last().unwrap()["data"]["nodes"].as_object().unwrap();
        assert_eq!(last.len(), NODES + 2);
        assert!(last.values().all(|node| node["state"] == "finished"), "the last is always told");
        let bytes: usize = states.iter().map(|state| state.to_string().len()).sum();
        assert!(bytes < 24 << 20, "{bytes} bytes in {} messages", states.len());
        // Each node is told to begin all the same.
        let begun = heard
            .iter()
            .filter(|message| message["type"] == "executing" && !message["data"]["node"].is_null());
        assert_eq!(begun.count(), NODES + 2);
    }
}
