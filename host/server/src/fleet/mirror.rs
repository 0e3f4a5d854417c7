//! A server's picture of a queue that others fill and empty, and what it tells its sockets of it.

use super::PATIENCE;
use crate::app::App;
use crate::engine::{Bulletin, Ended, Result};
use crate::message::{Encoding, Preview, Progress, text};
use crate::queue::Why;
use crate::store::State;
use axum::extract::ws::Utf8Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often to look where nobody tells.
const LOOK: Duration = Duration::from_secs(1);

/// The least time between two looks at the queue, when many tell.
const PAUSE: Duration = Duration::from_millis(20);

/// An end that nobody told of is told when it is so old: what its worker told before it is here then. In
/// milliseconds.
const LATE: i64 = 1500;

/// How many jobs that are over are remembered.
const REMEMBERED: usize = 1024;

/// See the module.
pub struct Mirror {
    /// The end that was told last.
    last: i64,
    looked: Instant,
    /// Whether somebody told of a change since then.
    is_stale: bool,
    /// Jobs that ended lately, the oldest first: a worker that was overtaken may still tell of them.
    over: VecDeque<String>,
}

impl Mirror {
    /// # Errors
    /// The engine cannot be read.
    pub fn new(app: &App) -> Result<Self> {
        // Who connects asks for the history; only what ends from now on is told.
        let last = app.store.ended(None)?.first().map_or(0, |ended| ended.finished);
        look(app)?;
        Ok(Self { last, looked: Instant::now(), is_stale: false, over: VecDeque::new() })
    }

    /// Hears and looks, as long as the process lives.
    pub fn keep(mut self, app: &Arc<App>, bulletins: &Receiver<Option<Bulletin>>) {
        loop {
            let wait = if self.is_stale { PAUSE } else { LOOK };
            match bulletins.recv_timeout(wait.saturating_sub(self.looked.elapsed())) {
                Ok(Some(Bulletin::Changed) | None) => self.is_stale = true,
                Ok(Some(bulletin)) => self.hear(app, bulletin),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let wait = if self.is_stale { PAUSE } else { LOOK };
            if self.looked.elapsed() < wait {
                continue;
            }
            let late = if std::mem::take(&mut self.is_stale) { 0 } else { LATE };
            let looked = self.look(app, late, bulletins);
            app.queue.lost_sight(looked.is_err());
            if let Err(error) = looked {
                tracing::warn!("{error}");
                std::thread::sleep(PATIENCE);
            }
            self.looked = Instant::now();
        }
    }

    fn look(&mut self, app: &App, late: i64, bulletins: &Receiver<Option<Bulletin>>) -> Result<()> {
        loop {
            let ended = app.store.ended(Some(self.last))?;
            if !ended.is_empty() {
                // What a worker told of its job before it ended is on its way, and is told before the end.
                std::thread::sleep(PAUSE);
                while let Ok(bulletin) = bulletins.try_recv() {
                    match bulletin {
                        Some(Bulletin::Changed) | None => self.is_stale = true,
                        Some(bulletin) => self.hear(app, bulletin),
                    }
                }
            }
            let mut is_all = true;
            for end in &ended {
                if end.ago < late {
                    break;
                }
                self.last = end.finished;
                is_all = false;
                tell(app, end);
                if self.over.len() == REMEMBERED {
                    self.over.pop_front();
                }
                self.over.push_back(end.id.clone());
            }
            if is_all || ended.len() < 1000 {
                break;
            }
        }
        look(app)?;
        // A client may give the id of a job that is done to another one.
        self.over.retain(|id| app.queue.running_job(id).is_none());
        Ok(())
    }

    /// Does here what happened elsewhere, unless it is of a job that is over.
    fn hear(&self, app: &App, bulletin: Bulletin) {
        let job = match &bulletin {
            Bulletin::Text { job, .. } => job.as_ref(),
            Bulletin::Picture { job, .. } | Bulletin::Live { job, .. } => Some(job),
            _ => None,
        };
        if job.is_none_or(|job| !self.over.contains(job)) {
            hear(app, bulletin);
        }
    }
}

/// Takes over what the engine says, and tells everybody how much there is to do if that changed.
fn look(app: &App) -> Result<()> {
    let (counts, at_work) = (app.store.counts()?, app.store.at_work()?);
    if app.queue.mirror(counts.waiting, &at_work) {
        app.tell_status();
    }
    Ok(())
}

/// Tells a job's client how it ended, as the worker would if it were this process.
fn tell(app: &App, ended: &Ended) {
    app.metrics.finished(ended.state);
    let messages: Vec<Json> = serde_json::from_str(&ended.messages).unwrap_or_default();
    let client = ended.client.as_deref();
    app.queue.forget(&ended.id);
    if let Some([kind, data]) = messages.last().and_then(|last| last.as_array()).map(Vec::as_slice)
        && (client.is_some() || ended.state == State::Cancelled)
    {
        app.hub.send(client, &text(kind.as_str().unwrap_or_default(), data));
    }
    app.tell_status();
    if client.is_some() {
        app.hub.send(client, &text("executing", &json!({"node": null, "prompt_id": ended.id})));
    }
}

/// Does here what happened elsewhere.
fn hear(app: &App, bulletin: Bulletin) {
    match bulletin {
        Bulletin::Text { to, text, job, fleeting } => {
            let (to, text) = (to.as_deref(), Utf8Bytes::from(text));
            match fleeting {
                Some(name) => app.hub.send_newest(to, &text, job.as_deref(), name),
                None => app.hub.send(to, &text),
            }
        }
        Bulletin::Picture { to, job, node, is_png, picture } => {
            let Ok(picture) = STANDARD.decode(picture) else { return };
            let encoding = if is_png { Encoding::Png } else { Encoding::Jpeg };
            let shown = Preview { job, node, encoding, picture };
            app.hub.preview(to.as_deref(), &shown);
            if let Some(running) = app.queue.running_job(&shown.job).filter(|_| !is_png) {
                let mut live = running.live();
                let number = live.preview.as_ref().map_or(0, |(number, _)| *number);
                live.preview = Some((number + 1, Arc::new(shown)));
            }
            app.changed();
        }
        Bulletin::Live { job, client, node, done, total, at, step, steps, outputs } => {
            let running = app.queue.at_work_elsewhere(&job, client);
            let mut live = running.live();
            live.node = node;
            live.progress = Progress { done, total, node: at, step, steps };
            live.outputs = outputs;
            drop(live);
            app.changed();
        }
        Bulletin::Stop { ids } => {
            for job in app.queue.running().iter().filter(|job| ids.contains(&job.id)) {
                // So that whoever asks about it hears that it is about to.
                job.stop(Why::Asked);
            }
            app.changed();
        }
        Bulletin::Changed | Bulletin::Free => (),
    }
}
