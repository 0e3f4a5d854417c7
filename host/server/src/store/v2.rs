//! Jobs as API v2 tells of them, and the keys that may be used once.

use super::{NewJob, Result, State, Store, StoreError};
use rusqlite::{OptionalExtension, Row, ToSql, Transaction, params};

/// How many keys are remembered: far more than a client tries again.
const MOST_KEYS: i64 = 10_000;

/// Which jobs are asked for; the newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct V2Query {
    /// Empty is all.
    pub states: Vec<State>,
    /// Labels that the job's metadata has with exactly these values.
    pub labels: Vec<(String, String)>,
    /// Only jobs that were submitted before the one of this sequence number.
    pub before: Option<i64>,
    pub limit: usize,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct V2Row {
    pub seq: i64,
    pub id: String,
    pub state: State,
    /// Milliseconds since 1970, as the next two.
    pub created: i64,
    pub started: Option<i64>,
    pub ended: Option<i64>,
    /// JSON, as the next three.
    pub outputs: Option<String>,
    pub messages: Option<String>,
    pub error: Option<String>,
    pub metadata: Option<String>,
    pub priority: Option<i64>,
}

const COLUMNS: &str =
    "seq, id, state, created, started, ended, outputs, messages, error, metadata, priority";

fn job(row: &Row) -> rusqlite::Result<V2Row> {
    Ok(V2Row {
        seq: row.get(0)?,
        id: row.get(1)?,
        state: State::of_number(row.get(2)?),
        created: row.get(3)?,
        started: row.get(4)?,
        ended: row.get(5)?,
        outputs: row.get(6)?,
        messages: row.get(7)?,
        error: row.get(8)?,
        metadata: row.get(9)?,
        priority: row.get(10)?,
    })
}

/// Uses up a key for `job`, in the transaction that adds it: a key is held exactly if its job is there.
pub(super) fn use_key(transaction: &Transaction, key: &str, job: &NewJob) -> Result<()> {
    let used: Option<String> = transaction
        .prepare_cached("SELECT job FROM idempotency WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    if let Some(job) = used {
        return Err(StoreError::KeyUsed(job));
    }
    transaction
        .prepare_cached("INSERT INTO idempotency (key, job, created) VALUES (?1, ?2, ?3)")?
        .execute(params![key, job.id, job.created])?;
    transaction
        .prepare_cached("DELETE FROM idempotency WHERE rowid <= ?1 - ?2")?
        .execute(params![transaction.last_insert_rowid(), MOST_KEYS])?;
    Ok(())
}

impl Store {
    /// The jobs of a query.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list_v2(&self, query: &V2Query) -> Result<Vec<V2Row>> {
        let states: &[State] = if query.states.is_empty() { &State::ALL } else { &query.states };
        let states: Vec<String> = states.iter().map(|state| (*state as i64).to_string()).collect();
        let label = "AND EXISTS (SELECT 1 FROM json_each(jobs.metadata) \
                     WHERE json_each.key = ? AND json_each.value = ?) ";
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE state IN ({}) AND seq < ? {}ORDER BY seq DESC LIMIT ?",
            states.join(", "),
            label.repeat(query.labels.len())
        );
        let before = query.before.unwrap_or(i64::MAX);
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
        let mut values: Vec<&dyn ToSql> = vec![&before];
        for (key, value) in &query.labels {
            values.extend([key as &dyn ToSql, value]);
        }
        values.push(&limit);
        let connection = self.reader();
        let mut select = connection.prepare_cached(&sql)?;
        let found = select.query_map(values.as_slice(), job)?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    /// One of them, whatever became of it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn job_v2(&self, id: &str) -> Result<Option<V2Row>> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        Ok(self.lock().prepare_cached(&sql)?.query_row([id], job).optional()?)
    }
}
