//! How long each kernel took and how many operations it had, for benchmarks. Off unless asked for. On a GPU the time is
//! that of asking for the work.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the calls of one kernel came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub count: usize,
    pub time: Duration,
    /// Floating-point operations of the definition: a multiplication and an addition are two.
    pub operations: u64,
}

static ENABLED: AtomicBool = AtomicBool::new(false);
static CALLS: Mutex<BTreeMap<&'static str, Calls>> = Mutex::new(BTreeMap::new());

/// What `run` called, by kernel. For one thread at a time: calls of others meanwhile are counted too.
pub fn profile<T>(run: impl FnOnce() -> T) -> (T, BTreeMap<&'static str, Calls>) {
    calls().clear();
    ENABLED.store(true, Ordering::Relaxed);
    let result = run();
    ENABLED.store(false, Ordering::Relaxed);
    (result, std::mem::take(&mut *calls()))
}

/// Forgets what was called so far, as after a warm-up within a run.
pub fn forget() {
    calls().clear();
}

/// The kernels of a run that took `all`, the longest first: calls, seconds, their share, and GFLOPS by the definition.
pub fn table(calls: &BTreeMap<&str, Calls>, all: Duration) -> String {
    let mut table = format!(
        "{:<30} {:>6} {:>9} {:>6} {:>7}\n",
        "kernel", "calls", "seconds", "share", "GFLOPS"
    );
    let mut row = |name: &str, count: usize, time: Duration, operations: u64| {
        let seconds = time.as_secs_f64();
        let share = 100.0 * seconds / all.as_secs_f64();
        let gflops = match operations {
            0 => "-".to_owned(),
            operations => format!("{:.0}", operations as f64 / seconds / 1e9),
        };
        // A String takes all that it is given.
        let _ = writeln!(table, "{name:<30} {count:>6} {seconds:>9.3} {share:>5.1}% {gflops:>7}");
    };
    let mut sorted: Vec<_> = calls.iter().collect();
    sorted.sort_by_key(|(_, calls)| std::cmp::Reverse(calls.time));
    let mut rest = all;
    for (name, calls) in sorted {
        row(name, calls.count, calls.time, calls.operations);
        rest = rest.saturating_sub(calls.time);
    }
    row("candle's own operations", 0, rest, 0);
    table
}

fn calls() -> std::sync::MutexGuard<'static, BTreeMap<&'static str, Calls>> {
    CALLS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Counts a call from here to the end of its scope.
pub(crate) struct Span {
    name: &'static str,
    operations: u64,
    start: Option<Instant>,
}

impl Span {
    pub(crate) fn new(name: &'static str, operations: usize) -> Span {
        let start = ENABLED.load(Ordering::Relaxed).then(Instant::now);
        Span { name, operations: operations as u64, start }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            let mut calls = calls();
            let entry = calls.entry(self.name).or_default();
            entry.count += 1;
            entry.time += start.elapsed();
            entry.operations += self.operations;
        }
    }
}
