//! `/api/v2/jobs/{id}/events`: what becomes of a job, as server-sent events.
//!
//! A stream tells states and not messages: when something changed it looks, and tells what is new since it
//! looked last. So a client that reads slowly makes nothing pile up, and hears less.

use super::super::{Shared, blocking};
use super::jobs::known;
use super::{base, refused, shapes};
use crate::app::App;
use crate::fault::Fault;
use crate::message::Progress;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Silence is broken by a comment.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// One client that follows one job.
struct Follower {
    app: Arc<App>,
    id: String,
    base: String,
    changes: watch::Receiver<()>,
    told: Told,
    waiting: VecDeque<Event>,
    looked: bool,
    ended: bool,
    /// One of so many that may follow.
    _permit: OwnedSemaphorePermit,
}

/// What the client knows.
#[derive(Clone, Default)]
struct Told {
    status: Option<(&'static str, Option<usize>)>,
    progress: Progress,
    preview: u64,
    outputs: HashSet<String>,
}

pub async fn events(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = id.clone();
    blocking(app.clone(), move |app| known(app, &asked)).await?;
    let Ok(permit) = app.streams.clone().try_acquire_owned() else {
        let sentence = "too many clients follow jobs; ask for the job itself";
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut fault = refused(status, "too_many_streams", sentence, Json::Null);
        fault.retry_after = Some(5);
        return Err(fault);
    };
    let (base, changes) = (base(&app, &headers), app.changes());
    let (told, waiting) = (Told::default(), VecDeque::new());
    let (looked, ended) = (false, false);
    let follower =
        Follower { app, id, base, changes, told, waiting, looked, ended, _permit: permit };
    let stream = futures_util::stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let answer = Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("waiting"));
    // A proxy that gathers answers would keep the events.
    Ok(([("x-accel-buffering", "no")], answer).into_response())
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            if std::mem::replace(&mut self.looked, true) {
                self.changes.changed().await.ok()?;
                tokio::time::sleep(PAUSE).await;
            }
            self.changes.mark_unchanged();
            let (id, base, told) = (self.id.clone(), self.base.clone(), self.told.clone());
            let looked = blocking(self.app.clone(), move |app| look(app, &id, &base, told)).await;
            // A store that cannot be read now: the client asks again.
            let (told, events, ended) = looked.ok()?;
            self.told = told;
            self.ended = ended;
            self.waiting.extend(
                events
                    .into_iter()
                    .map(|(name, data)| Event::default().event(name).data(data.to_string())),
            );
        }
    }
}

type Events = Vec<(&'static str, Json)>;

/// What is new, and whether that was all.
fn look(app: &App, id: &str, base: &str, mut told: Told) -> Result<(Told, Events, bool), Fault> {
    let mut events = Events::new();
    let Some(row) = app.store.job_v2(id)? else {
        // Taken out of the queue, or out of the history.
        events.push(("status", json!({"status": "expired"})));
        return Ok((told, events, true));
    };
    let running = app.queue.running_job(id);
    let running = running.as_deref();
    let status = shapes::status(app, &row, running);
    let is_terminal = shapes::is_terminal(status.0);
    let is_new = told.status != Some(status);
    let mut event = json!({"status": status.0});
    if let Some(position) = status.1 {
        event["queue_position"] = position.into();
    }
    if is_new && !is_terminal {
        events.push(("status", event.clone()));
    }
    told.status = Some(status);
    if let Some(running) = running {
        let live = running.live();
        if live.progress != told.progress {
            events.push(("progress", shapes::progress(&live.progress)));
            told.progress = live.progress.clone();
        }
        if let Some((number, preview)) = live.preview.as_ref().filter(|(n, _)| *n != told.preview) {
            told.preview = *number;
            events.push((
                "preview",
                json!({"node_id": preview.node, "content_type": preview.media_type(),
                "data_base64": STANDARD.encode(&preview.picture)}),
            ));
        }
    }
    for item in shapes::items(id, &shapes::made(app, &row, running)) {
        if told.outputs.insert(item.id.clone()) {
            events.push(("output", shapes::output(app, &row, &item, base)));
        }
    }
    // Last: clients leave when they hear it.
    if is_terminal {
        events.push(("status", event));
    }
    Ok((told, events, is_terminal))
}
