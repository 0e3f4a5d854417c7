//! `kosmograph serve`, with the real program on a free port: what its clients see, what it keeps, what it
//! refuses.
#![cfg(target_os = "linux")]

mod connections;
mod contract;
mod crashes;
mod malformed;
mod many_nodes;
mod places;
mod refused;
mod requests;
mod sandbox;
mod v2;
mod webhooks;

use serde_json::{Value, json};
use std::path::Path;

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

/// A picture of one colour that is saved: two nodes and a moment.
fn plain(color: u32, prefix: &str) -> Value {
    let size = json!({"width": 32, "height": 32, "batch_size": 1, "color": color});
    json!({"1": node("EmptyImage", size),
        "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": prefix}))})
}

/// The bundled model's picture of a text, in so many steps.
fn drawn(steps: u32, seed: u64) -> Value {
    let path = kosmograph_tests::repository().join("workflows/text.json");
    let text = std::fs::read_to_string(path).expect("the workflow is there");
    let mut workflow: Value = serde_json::from_str(&text).expect("it is JSON");
    workflow["21"]["inputs"]["steps"] = steps.into();
    workflow["21"]["inputs"]["seed"] = seed.into();
    workflow
}

/// The names of the pictures in the output folder; sorted.
fn pictures(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("out")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".png")).collect();
    names.sort();
    names
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("a copy")),
        }
    }
}
