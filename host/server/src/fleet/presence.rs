//! What a worker says of itself, so that whoever looks after a fleet sees who is there and what each does.

use crate::app::App;
use crate::engine::Result;
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The models that each of a worker's processes used last, which are likely to be in its memory.
#[derive(Debug, Default)]
pub struct Presence(Mutex<BTreeMap<usize, BTreeSet<String>>>);

impl Presence {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the processes has these models by now.
    pub fn holds(&self, number: usize, models: &HashSet<String>) {
        self.lock().insert(number, models.iter().cloned().collect());
    }

    /// Those of all of them.
    fn models(&self) -> BTreeSet<String> {
        self.lock().values().flatten().cloned().collect()
    }
}

/// This process as a worker, JSON.
pub fn about(app: &App) -> Json {
    let running = app.queue.running();
    let running: Vec<Json> = running
        .iter()
        .map(|job| json!({"job_id": job.id, "seconds": job.since.elapsed().as_secs()}))
        .collect();
    json!({"version": env!("CARGO_PKG_VERSION"), "instruction_set": kosmograph::lock::isa(),
        "device": app.surroundings.device, "processes": app.vitals().len(), "models": app.presence.models(),
        "running": running, "lease_seconds": app.worker.lease.as_secs(),
        "is_ending": app.is_stopping()})
}

/// `GET /workers`: those of a shared queue, or this process, which is the only one.
///
/// # Errors
/// The engine cannot be asked.
pub fn all(app: &App) -> Result<Json> {
    if !app.store.is_shared() {
        let mut own = about(app);
        own["name"] = app.worker.name.clone().into();
        own["heard_of_ms_ago"] = 0.into();
        return Ok(json!({"workers": [own]}));
    }
    let told = app.store.workers()?.into_iter().map(|worker| {
        let about: Map<String, Json> = serde_json::from_str(&worker.about).unwrap_or_default();
        let mut told = Json::Object(about);
        told["name"] = worker.name.into();
        told["heard_of_ms_ago"] = worker.ago.into();
        told
    });
    Ok(json!({"workers": told.collect::<Json>()}))
}
