//! What a worker tells the servers: gathered, and published a few times in a tenth of a second, so that a node
//! that reports each of a thousand steps does not keep the engine busy. Of what is fleeting only the last is
//! told.

use crate::app::App;
use crate::engine::Bulletin;
use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two batches.
const PAUSE: Duration = Duration::from_millis(25);

/// More than so many wait only where the engine is away: then nobody is told of progress.
const MOST: usize = 2048;

/// How long the end of a job waits for what was told of it before.
const FLUSH: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Inside {
    waiting: VecDeque<Bulletin>,
    /// How many were added, and how many of them were published or given up.
    added: u64,
    done: u64,
    /// Somebody waits for what waits.
    is_urgent: bool,
}

/// See the module.
#[derive(Default)]
pub struct Outlet {
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl Outlet {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, bulletin: Bulletin) {
        let mut inside = self.lock();
        inside.added += 1;
        if inside.waiting.len() >= MOST {
            inside.waiting.pop_front();
        }
        inside.waiting.push_back(bulletin);
        self.changed.notify_all();
    }

    /// Waits until what was pushed before is published, for two seconds at most.
    pub fn flush(&self) {
        let mut inside = self.lock();
        let (until, end) = (inside.added, Instant::now() + FLUSH);
        inside.is_urgent = inside.done < until;
        self.changed.notify_all();
        while inside.done < until {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(inside, left);
            inside = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Publishes, as long as the process lives.
    pub fn publish(&self, app: &App) {
        loop {
            let (batch, until) = {
                let mut inside = self.lock();
                while inside.waiting.is_empty() {
                    inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
                }
                inside.is_urgent = false;
                (std::mem::take(&mut inside.waiting), inside.added)
            };
            if let Err(error) = app.store.publish(&last_of_each(batch)) {
                tracing::warn!("clients are not told of progress: {error}");
                std::thread::sleep(PAUSE * 8);
            }
            let mut inside = self.lock();
            inside.done = until;
            self.changed.notify_all();
            let end = Instant::now() + PAUSE;
            while !inside.is_urgent {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.changed.wait_timeout(inside, left);
                inside = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// A batch in its order, without what a later one of the same name takes back.
fn last_of_each(batch: VecDeque<Bulletin>) -> Vec<Bulletin> {
    let mut seen = HashSet::new();
    let mut kept: Vec<Bulletin> = Vec::with_capacity(batch.len());
    for bulletin in batch.into_iter().rev() {
        let name = match &bulletin {
            Bulletin::Text { fleeting, .. } => fleeting.clone(),
            Bulletin::Picture { job, is_png: false, .. } => Some(format!("picture {job}")),
            Bulletin::Live { job, .. } => Some(format!("live {job}")),
            Bulletin::Changed => Some("changed".into()),
            _ => None,
        };
        if name.is_none_or(|name| seen.insert(name)) {
            kept.push(bulletin);
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_fleeting_the_last_is_told_in_its_place() {
        let text = |text: &str, fleeting: Option<&str>| Bulletin::Text {
            to: None,
            job: None,
            text: text.into(),
            fleeting: fleeting.map(str::to_owned),
        };
        let batch = [
            text("executing", None),
            text("1/3", Some("progress j")),
            text("2/3", Some("progress j")),
            Bulletin::Changed,
            text("3/3", Some("progress j")),
            text("executed", None),
            Bulletin::Changed,
        ];
        let told = last_of_each(batch.into());
        let expected = [
            text("executing", None),
            text("3/3", Some("progress j")),
            text("executed", None),
            Bulletin::Changed,
        ];
        assert_eq!(told, expected);
    }
}
