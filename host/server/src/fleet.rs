//! A queue that many processes share: what a server does to know it, and a worker to take from it.
//!
//! A server keeps a picture of the queue in memory, so that requests that many clients make need no engine: it is
//! renewed when somebody tells of a change, and every second. How jobs ended it reads from the engine,
//! in their order, and tells its sockets: a bulletin that was lost loses no end.

pub mod holder;
mod mirror;
mod outlet;
pub mod presence;

pub use outlet::Outlet;

use crate::app::App;
use crate::engine::{Bulletin, Result};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// After how many workers a job that ended them is not tried again.
pub const ATTEMPTS: i64 = 3;

/// The server's part: hears what workers tell, looks at the queue, ends what no worker holds.
///
/// # Errors
/// The engine cannot be reached, or no thread can be started.
pub fn serve(app: &Arc<App>) -> Result<()> {
    let (sender, bulletins) = channel();
    app.store.listen(Box::new(move |bulletin| {
        // The mirror ends with the process.
        let _ = sender.send(bulletin);
    }))?;
    let mirror = mirror::Mirror::new(app)?;
    let shared = app.clone();
    spawn("mirror", move || mirror.keep(&shared, &bulletins))?;
    let shared = app.clone();
    spawn("reaper", move || holder::reap(&shared))
}

/// The worker's part: hears what it is to stop, holds what it runs, ends what no worker holds.
///
/// # Errors
/// The engine cannot be reached, or no thread can be started.
pub fn work(app: &Arc<App>) -> Result<()> {
    let hearer = Arc::downgrade(app);
    app.store.listen(Box::new(move |bulletin| {
        let Some(app) = hearer.upgrade() else { return };
        match bulletin {
            Some(Bulletin::Stop { ids }) => holder::stop(&app, &ids),
            Some(Bulletin::Free) => app.queue.free(),
            Some(Bulletin::Changed) | None => app.queue.wake(),
            Some(_) => (),
        }
    }))?;
    let shared = app.clone();
    spawn("leases", move || holder::hold(&shared))?;
    let shared = app.clone();
    spawn("reaper", move || holder::reap(&shared))?;
    let outlet = Arc::new(Outlet::default());
    app.hub.tell_elsewhere(outlet.clone());
    let shared = app.clone();
    spawn("bulletins", move || outlet.publish(&shared))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(|error| {
        crate::store::StoreError::Engine(format!("no thread can be started: {error}"))
    })
}

/// How long to wait before an engine that failed is asked again.
const PATIENCE: Duration = Duration::from_secs(1);
