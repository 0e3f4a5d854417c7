//! The queue as servers and workers use it, whoever keeps it: SQLite in this process's own folder, or an
//! engine that many machines reach.
//!
//! Three promises make the rest simple. A job that [`Engine::insert`] returned for is not lost as long as
//! the engine keeps its data. A job is *held* by one claim at a time, a token that the engine gives out with a
//! lease: whoever finishes, renews or puts back shows its claim, and one that was overtaken is refused, so
//! nothing is published twice. And every time is the engine's own clock: machines may be minutes apart.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
mod sqlite;
mod tls;

use crate::placement::Candidate;
use crate::store::{
    Asset, Entry, Finished, HistoryRange, JobQuery, JobRow, NewJob, State, StoreError, V2Query,
    V2Row, Waiting,
};
use crate::webhook::Delivery;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::path::Path;
use std::time::Duration;

pub type Result<T> = std::result::Result<T, StoreError>;

/// The right to end a job: as long as nobody overtook it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub id: String,
    /// Empty where there is one process, whose folder nobody else may open.
    pub token: String,
}

/// A job that was taken, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    pub claim: Claim,
    pub client: Option<String>,
    pub entry: Entry,
}

/// How it is with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Held for another lease.
    Held,
    /// Held, and somebody asked the job to stop.
    Stop,
    /// Somebody else has the job, or it is gone.
    Lost,
}

/// What waits, as far as one worker looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// How many jobs were taken since the queue was made: what [`Candidate::due`] is compared with.
    pub claims: i64,
    pub candidates: Vec<Candidate>,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub waiting: usize,
    pub running: usize,
}

/// A job at work somewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct AtWork {
    pub id: String,
    pub client: Option<String>,
    /// Milliseconds since it began.
    pub since: i64,
    /// Whether it was asked to stop.
    pub stop: bool,
}

/// A job that nobody holds any more and that is not tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Abandoned {
    pub claim: Claim,
    /// How many workers it was lost with.
    pub attempts: i64,
    /// It was to stop anyway.
    pub stop: bool,
}

/// A worker that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Announced {
    pub name: String,
    /// What it said of itself, JSON.
    pub about: String,
    /// Milliseconds since it said so.
    pub ago: i64,
}

/// A job that ended, for those who tell its client.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Its place among all that ended; grows.
    pub finished: i64,
    pub id: String,
    pub client: Option<String>,
    pub state: State,
    /// `[[type, data], …]`: the last one is how it ended.
    pub messages: String,
    /// Milliseconds since it ended.
    pub ago: i64,
}

/// What is said across machines. Nothing of it is the truth, which is in the engine: one that is lost makes
/// something seen later, or a step of progress not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Bulletin {
    /// Jobs were added, taken, put back or ended.
    Changed,
    /// Hand this to the sockets of one client, or of all.
    Text {
        to: Option<String>,
        /// The job that it is of: nothing of it is told after its end.
        job: Option<String>,
        text: String,
        /// Only the last of a name matters, where several wait.
        #[serde(skip)]
        fleeting: Option<String>,
    },
    /// A picture of what is being made.
    Picture {
        to: Option<String>,
        job: String,
        node: String,
        is_png: bool,
        /// In Base64.
        picture: String,
    },
    /// How far a job is.
    Live {
        job: String,
        client: Option<String>,
        node: Option<String>,
        done: usize,
        total: usize,
        at: Option<(String, String)>,
        step: u64,
        steps: u64,
        outputs: Map<String, Json>,
    },
    /// Whoever runs one of these is to stop it.
    Stop { ids: Vec<String> },
    /// Workers are to let go of what they keep.
    Free,
}

/// Hears bulletins, one after the other. `None`: some may have been missed.
pub type Hear = Box<dyn FnMut(Option<Bulletin>) + Send>;

/// Who takes a job, and for how long it is lost when nobody hears of it.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its name, for people: host and process.
    pub name: String,
    pub lease: Duration,
}

impl Worker {
    /// This process.
    pub fn here() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = format!("{}:{}", host.trim(), std::process::id());
        Self { name, lease: Duration::from_secs(30) }
    }
}

/// See the module. Everything may wait for a disk or a network: never call it where that holds others up.
///
/// # Errors
/// All functions: the engine cannot be reached, read or written, in a sentence.
pub trait Engine: Send + Sync {
    /// Whether other processes have the same queue.
    fn is_shared(&self) -> bool;

    // Submitting.

    /// Adds jobs, all or none; see [`crate::store::Store::insert`]. Returns their sequence numbers.
    ///
    /// # Errors
    /// [`StoreError::Taken`] and [`StoreError::KeyUsed`], too.
    fn insert(&self, jobs: &[NewJob], key: Option<&str>) -> Result<Vec<i64>>;
    /// The number of a job that brings none, where the queue is shared; negative with `front`.
    fn next_number(&self, front: bool) -> Result<f64>;

    // Working.

    /// The first that wait, but none of the kinds that are `unfit`.
    fn window(&self, unfit: &[String]) -> Result<Window>;
    /// What a kind of job needs, JSON (see [`crate::needs`]).
    fn needs(&self, kind: &str) -> Result<Option<String>>;
    /// Takes the first of `ids` that still waits.
    fn claim(&self, ids: &[String], worker: &Worker) -> Result<Option<Claimed>>;
    /// Holds claims for another lease; how it is with each.
    fn renew(&self, claims: &[Claim], lease: Duration) -> Result<Vec<Standing>>;
    /// A job that had begun waits again, as if it had not.
    fn put_back(&self, claim: &Claim) -> Result<()>;
    /// A job is over: it is in the history, on the engine's disk, when this returns true. False: the claim
    /// was overtaken, and nothing was written. Saying it twice is the same as once. At most `most` finished
    /// jobs are kept.
    fn finish(&self, claim: &Claim, how: &Finished, most: u64) -> Result<bool>;
    /// Jobs whose lease is over wait again; those that were begun `most` times or were to stop are returned, to
    /// be finished by their claims. Also how many wait again.
    fn reap(&self, most: i64) -> Result<(usize, Vec<Abandoned>)>;

    // Stopping.

    /// Deletes jobs that wait, those of `ids` or all; returns the ids of those that were deleted.
    fn delete_waiting(&self, ids: Option<&[String]>) -> Result<Vec<String>>;
    /// Ends a job that waits; false where it does not.
    fn end_waiting(&self, id: &str, how: &Finished, most: u64) -> Result<bool>;
    /// Asks jobs that run to stop; a worker hears it when it renews, or sooner by [`Bulletin::Stop`].
    fn ask_to_stop(&self, ids: &[String]) -> Result<()>;

    // Reading.

    fn counts(&self) -> Result<Counts>;
    /// What waits, the next one first.
    fn waiting(&self) -> Result<Vec<Waiting>>;
    fn at_work(&self) -> Result<Vec<AtWork>>;
    /// How many jobs wait up to the one of this id: 1 is next; `None` if it does not wait.
    fn position(&self, id: &str) -> Result<Option<usize>>;
    /// Jobs that ended after the one of this number, the oldest first, a thousand at most; with `None` the
    /// last one alone.
    fn ended(&self, after: Option<i64>) -> Result<Vec<Ended>>;
    /// `GET /queue`.
    fn queue(&self) -> Result<String>;
    /// Finished jobs, the oldest first.
    fn history(&self, range: HistoryRange) -> Result<Vec<Entry>>;
    /// One finished job.
    fn finished(&self, id: &str) -> Result<Option<Entry>>;
    /// A job by its id, whatever became of it.
    fn job(&self, id: &str) -> Result<Option<Entry>>;
    /// Forgets finished jobs: those of `ids`, or all.
    fn forget(&self, ids: Option<&[String]>) -> Result<()>;
    /// The jobs of a query, and how many there are without its limit.
    fn list(&self, query: &JobQuery) -> Result<(Vec<JobRow>, u64)>;
    fn row(&self, id: &str) -> Result<Option<JobRow>>;
    fn list_v2(&self, query: &V2Query) -> Result<Vec<V2Row>>;
    fn job_v2(&self, id: &str) -> Result<Option<V2Row>>;

    // Settings and assets, which servers share with the jobs.

    fn setting(&self, key: &str) -> Result<Option<Json>>;
    fn settings(&self) -> Result<Map<String, Json>>;
    fn set(&self, settings: &Map<String, Json>) -> Result<()>;
    fn asset(&self, id: &str) -> Result<Option<Asset>>;
    fn asset_of_hash(&self, hash: &str) -> Result<Option<Asset>>;
    /// Adds one; an older one with the same bytes makes room and gives it its id.
    fn add_asset(&self, new: Asset) -> Result<Asset>;
    fn remove_asset(&self, id: &str) -> Result<()>;

    // Webhooks: [`Engine::finish`] and [`Engine::end_waiting`] write down what is to be told of a job that asks for it.

    /// Takes deliveries that are due, `most` at most. Nobody else takes them for as long as `hold`.
    fn take_deliveries(&self, most: usize, hold: Duration) -> Result<Vec<Delivery>>;
    /// A delivery is due again after so long, or never: then it is forgotten.
    fn settle_delivery(&self, id: &str, again: Option<Duration>) -> Result<()>;
    /// How many deliveries there are that nobody took yet.
    fn deliveries(&self) -> Result<usize>;

    // Who works.

    /// A worker says that it is there, and what it is, JSON; it is taken for gone after `stays`.
    fn announce(&self, worker: &str, about: &str, stays: Duration) -> Result<()>;
    /// A worker ends.
    fn retire(&self, worker: &str) -> Result<()>;
    /// The workers that are there, by their names.
    fn workers(&self) -> Result<Vec<Announced>>;

    // Telling.

    /// Tells all who listen, this process too.
    fn publish(&self, bulletins: &[Bulletin]) -> Result<()>;
    /// Hears what is told from now on, as long as this process lives.
    fn listen(&self, hear: Hear) -> Result<()>;
}

/// Opens the queue that an address names. `authority` has the certificates, PEM, that the engine's is to come from.
///
/// # Errors
/// A sentence: the address is none, this program was built without its engine, or it cannot be reached.
pub fn open(
    address: &str,
    authority: Option<&Path>,
) -> std::result::Result<Box<dyn Engine>, String> {
    let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
    match scheme {
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(Box::new(postgres::Postgres::open(address, authority)?)),
        #[cfg(not(feature = "postgres"))]
        "postgres" | "postgresql" => Err(left_out("PostgreSQL", "postgres")),
        #[cfg(feature = "redis")]
        "redis" | "valkey" | "rediss" | "valkeys" => {
            Ok(Box::new(redis::Redis::open(address, authority)?))
        }
        #[cfg(not(feature = "redis"))]
        "redis" | "valkey" | "rediss" | "valkeys" => Err(left_out("Redis", "redis")),
        _ => Err("--queue: this is no address of a queue; postgres://user@host/database and \
             redis://host:6379/ are, and rediss:// is the latter with TLS"
            .into()),
    }
}

#[cfg(not(all(feature = "postgres", feature = "redis")))]
fn left_out(engine: &str, feature: &str) -> String {
    format!(
        "--queue: this kosmograph was built without {engine}; build it with --features {feature}"
    )
}

#[cfg(all(test, feature = "postgres", feature = "redis"))]
mod tests;
