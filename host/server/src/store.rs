//! What must not be lost: jobs, their order and what became of them, settings, idempotency keys.
//!
//! SQLite in WAL mode. What is accepted survives the end of this process as soon as it is committed
//! (`synchronous = NORMAL`); a finished job is also synced to the disk before anybody hears of it
//! (`FULL`). A job is one row from its submission to its place in the history, so it is never in two
//! places, and in none.

mod assets;
mod deliveries;
mod history;
mod list;
mod schema;
mod v2;

pub use assets::Asset;
pub use history::{Entry, HistoryRange, push_tuple};
pub use list::{JobQuery, JobRow, SortBy};
pub use schema::OpenError;
pub use v2::{V2Query, V2Row};

use crate::needs::Needs;
use nix::fcntl::Flock;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value as Json;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What became of a job so far; the numbers stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i64)]
pub enum State {
    Pending = 0,
    Running = 1,
    Completed = 2,
    Failed = 3,
    Cancelled = 4,
}

impl State {
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The name in `/api/jobs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    pub fn of_number(number: i64) -> Self {
        Self::ALL.into_iter().find(|state| *state as i64 == number).unwrap_or(Self::Failed)
    }
}

/// A job as it is submitted. The JSON of `prompt` and `extra` is compact and was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    pub id: String,
    /// Smaller is sooner.
    pub number: f64,
    pub client: Option<String>,
    pub prompt: String,
    /// `extra_data`, without secrets.
    pub extra: String,
    /// The ids of the output nodes that are made.
    pub targets: Vec<String>,
    pub workflow_id: Option<String>,
    /// Milliseconds since 1970.
    pub created: i64,
    /// JSON: what API v2's client wrote beside it, which it reads again.
    pub metadata: Option<String>,
    /// As API v2's client said it; the order of jobs is `number`'s.
    pub priority: Option<i64>,
    /// Where its end is told.
    pub webhook: Option<String>,
    /// What whoever runs it must have; this store has one server, and does not keep it.
    pub needs: Needs,
}

/// A job that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub seq: i64,
    pub id: String,
    pub number: f64,
    pub client: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub state: State,
    /// Milliseconds since 1970.
    pub ended: i64,
    /// `{node: output}`.
    pub outputs: Json,
    /// `[[type, data], …]`, as `/history` has them.
    pub messages: Json,
    /// The data of `execution_error`, where there was one.
    pub error: Option<Json>,
}

/// See the module.
pub struct Store {
    connection: Mutex<Connection>,
    /// For long lists: who reads them holds up nobody who writes.
    reader: Mutex<Connection>,
    /// Nobody else writes into this folder as long as this is held.
    _lock: Option<Flock<File>>,
}

/// Why the store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the job store cannot be written or read: {0}; nothing was lost of what it has")]
    Sqlite(#[from] rusqlite::Error),
    /// A queue that is kept elsewhere.
    #[error("the queue cannot be written or read: {0}; what it accepted is not lost by that")]
    Engine(String),
    #[error("a job with the id {0} is waiting or running already")]
    Taken(String),
    /// A second request with a key that may be used once.
    #[error("this Idempotency-Key has been used; the job that was made with it is {0}")]
    KeyUsed(String),
}

type Result<T> = std::result::Result<T, StoreError>;

impl Store {
    /// Opens the store in `folder`, which is made where it is not there.
    ///
    /// # Errors
    /// [`OpenError`]: another server has it, it is of a newer version, damaged, or cannot be written.
    pub fn open(folder: &Path) -> std::result::Result<Self, OpenError> {
        std::fs::create_dir_all(folder)
            .map_err(|error| OpenError::Folder(folder.to_owned(), error))?;
        let lock = schema::lock(folder)?;
        let path = folder.join("kosmograph.db");
        let connection = schema::open(&path)?;
        let reader = Mutex::new(schema::open_reader(&path)?);
        Ok(Self { connection: Mutex::new(connection), reader, _lock: Some(lock) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds jobs, all or none; returns their sequence numbers. A finished job of the same id makes room. With
    /// `key` only if no job was added with it before, and none will be.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::KeyUsed`], or the store cannot be written.
    pub fn insert(&self, jobs: &[NewJob], key: Option<&str>) -> Result<Vec<i64>> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        if let (Some(key), Some(job)) = (key, jobs.first()) {
            v2::use_key(&transaction, key, job)?;
        }
        let mut numbers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let there: Option<i64> = transaction
                .prepare_cached("SELECT state FROM jobs WHERE id = ?1")?
                .query_row([&job.id], |row| row.get(0))
                .optional()?;
            match there.map(State::of_number) {
                Some(State::Pending | State::Running) => {
                    return Err(StoreError::Taken(job.id.clone()));
                }
                Some(_) => {
                    transaction.execute("DELETE FROM jobs WHERE id = ?1", [&job.id])?;
                }
                None => (),
            }
            let targets = Json::from(job.targets.clone()).to_string();
            transaction
                .prepare_cached(
                    "INSERT INTO jobs (id, state, number, client, prompt, extra, targets, workflow_id, \
                     created, metadata, priority, webhook) \
                     VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                )?
                .execute(params![
                    job.id,
                    job.number,
                    job.client,
                    job.prompt,
                    job.extra,
                    targets,
                    job.workflow_id,
                    job.created,
                    job.metadata,
                    job.priority,
                    job.webhook
                ])?;
            numbers.push(transaction.last_insert_rowid());
        }
        transaction.commit()?;
        Ok(numbers)
    }

    /// Jobs that ran when an earlier server ended wait again, once; those that ended two servers fail.
    /// Returns the ids of the latter.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn running_at_start(&self) -> Result<(usize, Vec<String>)> {
        let connection = self.lock();
        let again =
            connection.execute("UPDATE jobs SET state = 0 WHERE state = 1 AND attempts < 2", [])?;
        let mut lost = connection.prepare("SELECT id FROM jobs WHERE state = 1")?;
        let lost = lost.query_map([], |row| row.get(0))?;
        Ok((again, lost.collect::<rusqlite::Result<_>>()?))
    }

    /// What waits, the next one first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn waiting(&self) -> Result<Vec<Waiting>> {
        let connection = self.lock();
        let mut all = connection.prepare(
            "SELECT seq, id, number, client FROM jobs WHERE state = 0 ORDER BY number, seq",
        )?;
        let row = |row: &rusqlite::Row| {
            Ok(Waiting {
                seq: row.get(0)?,
                id: row.get(1)?,
                number: row.get(2)?,
                client: row.get(3)?,
            })
        };
        let all = all.query_map([], row)?;
        Ok(all.collect::<rusqlite::Result<_>>()?)
    }

    /// The largest whole number that a job has; the counter goes on behind it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn last_number(&self) -> Result<f64> {
        let last: Option<f64> =
            self.lock().query_row("SELECT max(abs(number)) FROM jobs", [], |row| row.get(0))?;
        Ok(last.filter(|last| *last < 1e15).unwrap_or(-1.0).floor())
    }

    /// A job begins.
    ///
    /// # Errors
    /// The store cannot be written.
    #[cfg(test)]
    pub fn start(&self, id: &str, now: i64) -> Result<()> {
        let sql = "UPDATE jobs SET state = 1, started = ?2, attempts = attempts + 1 WHERE id = ?1";
        self.lock().prepare_cached(sql)?.execute(params![id, now])?;
        Ok(())
    }

    /// A job that had begun waits again, as if it had not.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn put_back(&self, id: &str) -> Result<()> {
        let sql = "UPDATE jobs SET state = 0, started = NULL, attempts = max(attempts - 1, 0) \
                   WHERE id = ?1 AND state = 1";
        self.lock().prepare_cached(sql)?.execute([id])?;
        Ok(())
    }

    /// Deletes jobs that wait.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn delete_waiting(&self, ids: &[String]) -> Result<()> {
        self.delete(ids, "DELETE FROM jobs WHERE id = ?1 AND state = 0")
    }

    fn delete(&self, ids: &[String], sql: &str) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for id in ids {
            transaction.prepare_cached(sql)?.execute([id])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// A setting, as JSON.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn setting(&self, key: &str) -> Result<Option<Json>> {
        let connection = self.lock();
        let value: Option<String> = connection
            .query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0))
            .optional()?;
        Ok(value.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// All settings.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn settings(&self) -> Result<serde_json::Map<String, Json>> {
        let connection = self.lock();
        let mut all = connection.prepare("SELECT key, value FROM settings ORDER BY rowid")?;
        let pairs = all.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let mut settings = serde_json::Map::new();
        for pair in pairs {
            let (key, text): (String, String) = pair?;
            settings.insert(key, serde_json::from_str(&text).unwrap_or_default());
        }
        Ok(settings)
    }

    /// Sets some, and leaves the others.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set(&self, settings: &serde_json::Map<String, Json>) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for (key, value) in settings {
            transaction.execute(
                "INSERT INTO settings (key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = ?2",
                params![key, value.to_string()],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
