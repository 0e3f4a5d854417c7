//! Calls whose inputs are counted before and after.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value as Json;

use crate::plugin::{Call, LogLevel, NodeFailure};
use crate::value::{Value, alive};

/// The host of a checked call: knows a device and a folder, and counts reports of progress.
pub(super) struct TestHost {
    folder: String,
    stop: AtomicBool,
    reports: AtomicU64,
}

impl TestHost {
    pub fn new(folder: String) -> Self {
        Self { folder, stop: AtomicBool::new(false), reports: AtomicU64::new(0) }
    }

    /// From now on every report of progress is answered with the wish to stop, or not.
    pub fn stop(&self, stop: bool) {
        self.stop.store(stop, Ordering::Relaxed);
        self.reports.store(0, Ordering::Relaxed);
    }

    /// How often progress was reported since [`Self::stop`].
    pub fn reports(&self) -> u64 {
        self.reports.load(Ordering::Relaxed)
    }
}

impl Call for TestHost {
    fn log(&self, _: LogLevel, _: &str) {}

    fn progress(&self, _: u64, _: u64) -> bool {
        self.reports.fetch_add(1, Ordering::Relaxed);
        self.stop.load(Ordering::Relaxed)
    }

    fn property(&self, name: &str) -> Option<String> {
        match name {
            "device" => Some("cpu".to_owned()),
            "node" => Some("1".to_owned()),
            "output_directory" | "temp_directory" => Some(self.folder.clone()),
            "prompt" => Some("{}".to_owned()),
            _ => None,
        }
    }

    fn output(&self, _: Json) {}
}

pub(super) type CallResult = Result<Vec<Value>, NodeFailure>;

/// How many spare references each input has, so that one that is released too often still lives when
/// that is found out.
const SPARE: usize = 64;

/// Calls `function` with `inputs`, lets `look` have what came of it, and finds references that were kept
/// or given away too often. `look` returns no values of the host.
///
/// A library may keep an input (node.h: who wants to keep one retains it), so one reference more says
/// nothing. One more with every call is a leak; where there is one, the call is repeated to see.
pub(super) fn counted<T>(
    inputs: &[Value],
    function: &dyn Fn(&[Value]) -> CallResult,
    look: impl FnOnce(CallResult) -> T,
) -> (T, Result<(), String>) {
    let mut parts = Vec::new();
    inputs.iter().enumerate().for_each(|(i, value)| collect(value, &i.to_string(), &mut parts));
    let spare: Vec<Value> =
        parts.iter().flat_map(|(_, value)| vec![value.clone(); SPARE]).collect();
    let counts = || -> Vec<i64> {
        let inputs = parts.iter().map(|(_, part)| part.references().unwrap_or_default() as i64);
        inputs.chain([alive() as i64]).collect()
    };
    let since = |before: Vec<i64>| -> Vec<i64> {
        counts().into_iter().zip(before).map(|(now, before)| now - before).collect()
    };
    let before = counts();
    let seen = look(function(inputs));
    let mut growth = since(before);
    // The last count is of all things the host allocated, the others of inputs.
    let (last, lent) = (growth.len() - 1, parts.len());
    if let Some(part) = growth[..lent].iter().position(|&more| more < 0) {
        let (place, times) = (&parts[part].0, -growth[part]);
        let fault = format!("input {place} was released {times} times more often than retained");
        // What was given away stays alive for whoever still holds it, here and in the library.
        std::mem::forget(spare);
        return (seen, Err(fault));
    }
    for _ in 0..2 {
        if growth.iter().all(|&more| more <= 0) {
            break;
        }
        let before = counts();
        drop(function(inputs));
        let again = since(before);
        growth.iter_mut().zip(again).for_each(|(so_far, more)| *so_far = (*so_far).min(more));
    }
    let leak = growth.iter().position(|&more| more > 0).map(|i| match i == last {
        true => format!("{} things that the host allocated are never released", growth[i]),
        false => {
            let place = &parts[i].0;
            format!("input {place} has {} references more after every call", growth[i])
        }
    });
    drop(spare);
    (seen, leak.map_or(Ok(()), Err))
}

/// `value` and everything of the host's inside of it, each with where it is.
fn collect(value: &Value, place: &str, parts: &mut Vec<(String, Value)>) {
    if value.references().is_none() {
        return;
    }
    parts.push((place.to_owned(), value.clone()));
    for (i, item) in value.items().iter().enumerate() {
        collect(item, &format!("{place}[{i}]"), parts);
    }
    for (key, item) in value.pairs() {
        collect(item, &format!("{place}[\"{key}\"]"), parts);
    }
}
