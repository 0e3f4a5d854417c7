//! What an operator's Prometheus reads.

use crate::app::App;
use crate::store::State;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Counts {
    /// Seconds and runs of each class.
    classes: BTreeMap<String, (f64, u64)>,
    /// What was let go to stay under the budget.
    models_let_go: u64,
    results_dropped: u64,
    bytes_freed: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
    /// Tries to tell a webhook, by what became of them.
    webhooks: BTreeMap<&'static str, u64>,
}

/// What was counted since the start.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ran(&self, class: &str, seconds: f64) {
        let mut counts = self.lock();
        let (sum, runs) = counts.classes.entry(class.to_owned()).or_default();
        *sum += seconds;
        *runs += 1;
    }

    /// Models were let go and results dropped to make room.
    pub fn made_room(&self, models: u64, results: u64, bytes: u64) {
        let mut counts = self.lock();
        // The worker may say what it likes.
        counts.models_let_go = counts.models_let_go.saturating_add(models);
        counts.results_dropped = counts.results_dropped.saturating_add(results);
        counts.bytes_freed = counts.bytes_freed.saturating_add(bytes);
    }

    pub fn finished(&self, state: State) {
        let mut counts = self.lock();
        match state {
            State::Failed => counts.failed += 1,
            State::Cancelled => counts.cancelled += 1,
            _ => counts.completed += 1,
        }
    }

    /// A webhook was told, or was not.
    pub fn webhook(&self, outcome: &'static str) {
        *self.lock().webhooks.entry(outcome).or_default() += 1;
    }

    /// In the text format of Prometheus.
    pub fn text(&self, app: &App) -> String {
        let vitals = app.vitals();
        let restarts: u64 = vitals.iter().map(|vitals| vitals.started().saturating_sub(1)).sum();
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let one = |value: f64| vec![(String::new(), value)];
        let counts = self.lock();
        let (running, waiting) = (app.queue.running().len() as f64, app.queue.waiting() as f64);
        metric("kosmograph_queue_waiting", "gauge", "Jobs that wait.", &one(waiting));
        metric("kosmograph_queue_running", "gauge", "Jobs that run.", &one(running));
        let jobs = [
            ("completed", counts.completed),
            ("failed", counts.failed),
            ("cancelled", counts.cancelled),
        ];
        let jobs = jobs.map(|(state, count)| (format!("{{state=\"{state}\"}}"), count as f64));
        metric("kosmograph_jobs_total", "counter", "Jobs that ended, by how.", &jobs);
        let label = |class: &str| {
            let class = class.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{{class=\"{class}\"}}")
        };
        let classes = counts.classes.iter();
        let seconds: Vec<_> = classes.map(|(class, (sum, _))| (label(class), *sum)).collect();
        let help = "Seconds that the nodes of a class took.";
        metric("kosmograph_node_seconds_total", "counter", help, &seconds);
        let classes = counts.classes.iter();
        let runs: Vec<_> = classes.map(|(class, (_, runs))| (label(class), *runs as f64)).collect();
        metric("kosmograph_node_runs_total", "counter", "Nodes of a class that ran.", &runs);
        let kinds = [("model", counts.models_let_go), ("result", counts.results_dropped)];
        let evicted = kinds.map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), count as f64));
        let help = "Models let go and results dropped to stay under the memory budget.";
        metric("kosmograph_evictions_total", "counter", help, &evicted);
        let help = "Bytes that those held.";
        let freed = counts.bytes_freed as f64;
        metric("kosmograph_evicted_bytes_total", "counter", help, &one(freed));
        let help = "Processes that run nodes and had to be started anew.";
        metric("kosmograph_worker_restarts_total", "counter", help, &one(restarts as f64));
        let mut resident = vec![("{process=\"server\"}".to_owned(), resident(None) as f64)];
        for (number, vitals) in vitals.iter().enumerate() {
            if let Some(process) = vitals.process() {
                let bytes = self::resident(Some(process)) as f64;
                resident.push((format!("{{process=\"worker {number}\"}}"), bytes));
            }
        }
        metric("kosmograph_resident_bytes", "gauge", "Resident memory of a process.", &resident);
        if app.webhooks.is_some() {
            let tries = counts.webhooks.iter();
            let tries: Vec<_> = tries
                .map(|(outcome, count)| (format!("{{outcome=\"{outcome}\"}}"), *count as f64))
                .collect();
            let help = "Tries to tell a webhook, by what became of them.";
            metric("kosmograph_webhooks_total", "counter", help, &tries);
            match app.store.deliveries() {
                Ok(count) => {
                    let help = "Webhooks that are not told yet.";
                    metric("kosmograph_webhooks_waiting", "gauge", help, &one(count as f64));
                }
                Err(error) => tracing::warn!("{error}"),
            }
        }
        let clients = app.hub.count() as f64;
        metric("kosmograph_websockets", "gauge", "Open sockets.", &one(clients));
        text
    }
}

/// The resident memory of a process, or of this one, in bytes; 0 where it cannot be told.
fn resident(process: Option<u32>) -> u64 {
    let name = process.map_or_else(|| "self".to_owned(), |id| id.to_string());
    let status = std::fs::read_to_string(format!("/proc/{name}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
