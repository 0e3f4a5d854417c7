//! The last lines that the server and its workers said, for `/internal/logs`.

use crate::hub::Hub;
use serde_json::{Value as Json, json};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many lines are kept, and how long one may be.
const LINES: usize = 300;
const LONGEST: usize = 4096;

/// See the module.
#[derive(Default)]
pub struct Log(Mutex<VecDeque<(String, String)>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, which those who hear the log are told.
    pub fn line(&self, hub: &Hub, line: &str) {
        let mut end = line.len().min(LONGEST);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let time = chrono::Local::now().format("%Y-%m-%dT%H:%M:%S%.6f").to_string();
        let line = format!("{}\n", line[..end].trim_end());
        hub.log(&[json!({"t": time, "m": line})]);
        let mut lines = self.lock();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back((time, line));
    }

    /// `[{"t": time, "m": line}]`.
    pub fn entries(&self) -> Vec<Json> {
        self.lock().iter().map(|(time, line)| json!({"t": time, "m": line})).collect()
    }

    /// All lines as one text.
    pub fn text(&self) -> String {
        self.lock().iter().map(|(time, line)| format!("{time} - {line}")).collect()
    }
}
