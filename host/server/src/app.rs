//! What every request and every worker shares.

use crate::access::Access;
use crate::bucket::Bucket;
use crate::engine::{Engine, Worker};
use crate::fleet::presence::Presence;
use crate::hub::Hub;
use crate::keep::Keeper;
use crate::log::Log;
use crate::message::status;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::routes::{self, Existing};
use crate::webhook::Webhooks;
use kosmograph::args::Computing;
use kosmograph::job::Surroundings;
use kosmograph::plan::{Key, KeyMap};
use kosmograph::supervisor::{Supervisor, Vitals};
use serde_json::Value as Json;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// What the command line says, in the units in which it is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many bytes the models of a worker may hold.
    pub budget: u64,
    /// The most private memory of a worker, in bytes.
    pub memory_limit: Option<u64>,
    /// How node libraries compute, as far as it was said.
    pub computing: Computing,
    /// Whether jobs that do not say it want pictures of what is being made.
    pub previews: bool,
    /// Whether workers are confined.
    pub sandbox: bool,
    pub job_timeout: Option<Duration>,
    pub history_limit: u64,
    /// The largest body of a request, in bytes.
    pub upload_limit: usize,
    /// The official frontend.
    pub frontend: Option<PathBuf>,
    /// The workflows of the own page.
    pub workflows: PathBuf,
    /// The editor's own files, one folder for each user; there is one.
    pub userdata: PathBuf,
    /// Whether the server itself speaks TLS.
    pub tls: bool,
    /// The arguments, for `/system_stats`.
    pub arguments: Vec<String>,
}

/// What an output node made, for jobs that find its result kept.
#[derive(Clone, Debug)]
pub struct Made {
    pub output: Json,
    pub files: Vec<PathBuf>,
}

/// How many outputs are remembered: far more than workers keep results.
const MOST_MADE: usize = 65_536;

/// How many clients may follow jobs of API v2.
const MOST_STREAMS: usize = 1024;

/// See the module.
pub struct App {
    pub options: Options,
    pub surroundings: Surroundings,
    /// What the folders of pictures and of the editor's files are copies of, where they are.
    pub bucket: Option<Arc<Bucket>>,
    pub store: Box<dyn Engine>,
    /// Whom the ends of jobs may be told, where that is allowed.
    pub webhooks: Option<Arc<Webhooks>>,
    /// Who takes jobs here.
    pub worker: Worker,
    /// What it says of itself.
    pub presence: Presence,
    pub queue: Queue,
    pub hub: Hub,
    pub log: Log,
    pub metrics: Metrics,
    pub access: Access,
    made: Mutex<KeyMap<Made>>,
    pub vitals: Mutex<Vec<Arc<Vitals>>>,
    /// Wakes those who follow a job, whenever there is something new of any.
    changes: watch::Sender<()>,
    /// Room for clients that follow jobs of API v2.
    pub streams: Arc<Semaphore>,
    /// Bounds the output folder, where it is to be.
    pub keeper: OnceLock<Keeper>,
    /// The process that packs in Python are asked in about what is sent.
    pub asker: Mutex<Option<Supervisor>>,
    stopping: AtomicBool,
}

impl App {
    pub fn new(
        options: Options,
        surroundings: Surroundings,
        bucket: Option<Arc<Bucket>>,
        store: Box<dyn Engine>,
        queue: Queue,
        access: Access,
    ) -> Self {
        Self {
            options,
            surroundings,
            bucket,
            store,
            webhooks: None,
            worker: Worker::here(),
            presence: Presence::default(),
            queue,
            hub: Hub::default(),
            log: Log::default(),
            metrics: Metrics::default(),
            access,
            made: Mutex::default(),
            vitals: Mutex::default(),
            changes: watch::channel(()).0,
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            keeper: OnceLock::new(),
            asker: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Makes a file of a folder that is a copy what it is elsewhere.
    ///
    /// # Errors
    /// The object store cannot be asked.
    pub fn bring(&self, path: &Path) -> io::Result<()> {
        self.surroundings.folders.elsewhere.as_ref().map_or(Ok(()), |bucket| bucket.bring(path))
    }

    /// Writes a file where all servers and workers see it; `false` where there is one that is to be kept.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, bytes: &[u8], existing: Existing) -> io::Result<bool> {
        match &self.bucket {
            Some(bucket) => bucket.write(path, bytes, existing),
            None => routes::write(path, bytes, existing),
        }
    }

    /// Deletes a file for all servers and workers.
    ///
    /// # Errors
    /// It cannot be deleted, or is not there.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match &self.bucket {
            Some(bucket) => bucket.remove(path),
            None => std::fs::remove_file(path),
        }
    }

    /// Tells everybody how much there is to do.
    pub fn tell_status(&self) {
        self.tell_remaining(self.queue.remaining());
    }

    /// Tells everybody that so much is to do.
    pub fn tell_remaining(&self, remaining: usize) {
        if self.hub.elsewhere().is_none() {
            self.hub.send(None, &status(remaining));
        }
        self.changed();
    }

    /// Has a job wait again that the store knows as one that waits.
    pub fn put_back(&self, id: &str) {
        match self.store.waiting() {
            Ok(waiting) => {
                let this = waiting.into_iter().filter(|waiting| waiting.id == id);
                self.queue.push(this.collect(), |_| ());
            }
            Err(error) => {
                tracing::error!(job = id, "{error}; it runs when the server starts again");
            }
        }
    }

    /// There is something new of a job.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Hears of it whenever there is something new of a job.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn made(&self) -> MutexGuard<'_, KeyMap<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the output of `key` was, if all of its files are still there.
    pub fn made_before(&self, key: Key) -> Option<Json> {
        let made = self.made().get(&key).cloned()?;
        made.files.iter().all(|file| file.is_file()).then_some(made.output)
    }

    pub fn remember(&self, key: Key, made: Made) {
        let mut all = self.made();
        if all.len() >= MOST_MADE {
            // Then those outputs are made again.
            all.clear();
        }
        all.insert(key, made);
    }

    pub fn vitals(&self) -> Vec<Arc<Vitals>> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No worker takes another job from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.queue.stop();
        self.changed();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
