//! What is fuzzed: whatever reads bytes of a stranger.
//!
//! A target takes any bytes and must neither panic nor abort, nor take more than moderate time and memory; what else
//! it promises it asserts. `scripts/fuzz` runs them under libFuzzer, guided by coverage; the test `corpus` replays
//! what lies in `corpus/TARGET`, the seeds and every input that once was a crash.

mod files;
pub mod mutate;
mod values;
mod workflow;

/// A target: any bytes in, and nothing must go wrong.
pub type Target = fn(&[u8]);

/// The targets, by name. Each has a folder of `corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    // JSON in the API's format and in the editor's → graph → plan.
    ("plan", workflow::workflow),
    ("editor", workflow::workflow),
    // What a library says of itself, and what a worker reports.
    ("descriptor", workflow::descriptor),
    ("report", workflow::report),
    // Model files: names and shapes, what kind of model they are, small tensors' numbers.
    ("safetensors", files::safetensors),
    ("gguf", files::gguf),
    ("pickle", files::pickle),
    ("sentencepiece", files::sentencepiece),
    // Pictures as pictures, and as carriers of a workflow.
    ("picture", files::picture),
    // What a library hands out at the boundary.
    ("values", values::values),
];

/// Whether a target's inputs are JSON, which is then mutated as such.
pub fn is_json(target: &str) -> bool {
    ["plan", "editor", "descriptor", "report"].contains(&target)
}

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
