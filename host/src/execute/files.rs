//! Model files that are mapped while a run uses them.
//!
//! A loader maps a file and reads numbers when they are needed. If somebody writes into that file in the
//! meantime the numbers are another model's, or there are none; nothing in the process notices the first,
//! and the second ends it. So after each step the files that it, or a step before it, was given are looked
//! at again. A file that was replaced under its name is no matter: the mapped one is still whole.

use crate::catalogue::InputKind;
use crate::plan::{Literal, Plan, Source, Step};
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep, and how many, files of a model's folder are looked at.
const DEEPEST: usize = 4;
const MOST: usize = 1000;

/// The model files of a plan, as they were when the run began.
#[derive(Debug, Default)]
pub(crate) struct Files(HashMap<String, Vec<(PathBuf, State)>>);

/// One state of one file.
#[derive(Debug, PartialEq, Eq)]
struct State {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl From<&Metadata> for State {
    fn from(of: &Metadata) -> Self {
        let (file, changed) = ((of.dev(), of.ino()), (of.mtime(), of.mtime_nsec()));
        Self { file, size: of.size(), changed }
    }
}

impl Files {
    pub fn of(plan: &Plan) -> Self {
        let mut files = HashMap::new();
        for path in plan.steps().iter().flat_map(mapped) {
            if !files.contains_key(path) {
                let mut found = Vec::new();
                list(Path::new(path), 0, &mut found);
                files.insert(path.to_owned(), found);
            }
        }
        Self(files)
    }

    /// A file that the step at `at`, or one that it hangs on, was given and that was written to since the
    /// run began.
    pub fn written_to(&self, plan: &Plan, at: usize) -> Option<&Path> {
        if self.0.is_empty() {
            return None;
        }
        let steps = plan.steps();
        let (mut open, mut seen) = (vec![at], vec![false; steps.len()]);
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            open.extend(super::links(&steps[at]).map(|(step, _)| step));
            for path in mapped(&steps[at]) {
                let files = self.0.get(path).into_iter().flatten();
                let written = files.into_iter().find(|(path, before)| {
                    let now = fs::metadata(path).ok().map(|now| State::from(&now));
                    now.is_some_and(|now| now.file == before.file && now != *before)
                });
                if let Some((path, _)) = written {
                    return Some(path);
                }
            }
        }
        None
    }
}

/// The files that the step is given by name, pictures apart: those are read whole.
fn mapped(step: &Step) -> impl Iterator<Item = &str> {
    let inputs = step.inputs.iter().zip(&step.descriptor.inputs);
    inputs.filter_map(|(source, input)| match (source, &input.kind) {
        (Source::Literal(Literal::Path { path, .. }), InputKind::Path { folder, .. })
            if folder != "input" =>
        {
            Some(path.as_str())
        }
        _ => None,
    })
}

fn list(path: &Path, depth: usize, found: &mut Vec<(PathBuf, State)>) {
    // What is not there, the loader tells.
    let Ok(metadata) = fs::metadata(path) else { return };
    if !metadata.is_dir() {
        found.push((path.to_owned(), State::from(&metadata)));
        return;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries.take(MOST) {
        if depth < DEEPEST && found.len() < MOST {
            list(&entry.path(), depth + 1, found);
        }
    }
}
