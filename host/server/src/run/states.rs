//! How far the nodes of a job are, told to its clients: all nodes that have begun, in one message. A job of a
//! few nodes tells each change at once. Of one of a thousand these messages would be more than the job itself:
//! there what comes quickly is told together, a moment later, and the last of it always.

use crate::app::App;
use crate::engine::Bulletin;
use crate::message::Progress;
use crate::queue::{Live, Running};
use std::time::{Duration, Instant};

/// How long a byte counts, which makes a megabyte a second; a thousand nodes are 200 KB.
const PER_BYTE: Duration = Duration::from_micros(1);

/// How far ahead of that a job may be, which makes 256 KB at once.
const AHEAD: Duration = Duration::from_millis(256);

/// While a job runs its clients hear something at least this often: some give a silent server up.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How often to look for what came too quickly to be told at once.
pub const LOOK: Duration = Duration::from_millis(100);

/// Tells what is new of `job`, unless much was told just now; then, too, where it `is_last`.
pub fn tell(app: &App, job: &Running, is_last: bool) {
    let mut live = job.live();
    if !live.is_news {
        return;
    }
    let now = Instant::now();
    if !is_last && live.full_until.saturating_duration_since(now) > AHEAD {
        return;
    }
    (live.is_news, live.sent) = (false, now);
    if let Some(outlet) = app.hub.elsewhere() {
        let Progress { done, total, node: at, step, steps } = live.progress.clone();
        let (job, client) = (job.id.clone(), job.client.clone());
        let (node, outputs) = (live.node.clone(), live.outputs.clone());
        outlet.push(Bulletin::Live { job, client, node, done, total, at, step, steps, outputs });
    }
    send(app, job, &mut live);
}

/// Tells again what was told long ago.
pub fn repeat(app: &App, job: &Running) {
    let mut live = job.live();
    if !live.states.is_empty() && live.sent.elapsed() >= HEARTBEAT {
        live.sent = Instant::now();
        send(app, job, &mut live);
    }
}

/// Under the lock: an older one must not come after a newer one. The text is made for those who hear it alone.
fn send(app: &App, job: &Running, live: &mut Live) {
    let client = job.client.as_deref();
    if app.hub.hears(client) {
        let message = live.states.message(&job.id);
        let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
        live.full_until = live.full_until.max(Instant::now()) + PER_BYTE * size;
        let name = format!("state {}", job.id);
        app.hub.send_newest(client, &message, Some(&job.id), name);
    }
}
