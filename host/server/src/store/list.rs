//! Jobs of every state, as `/api/jobs` lists them.

use super::{Result, State, Store};
use rusqlite::{OptionalExtension, Row, ToSql};

/// What jobs are listed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortBy {
    #[default]
    Created,
    Duration,
}

/// Which jobs are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobQuery {
    /// Empty is all.
    pub states: Vec<State>,
    pub workflow_id: Option<String>,
    pub sort_by: SortBy,
    pub ascending: bool,
    pub limit: Option<u64>,
    pub offset: u64,
}

/// A job in a list; the large texts are left out where nobody asked for them.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    pub id: String,
    pub state: State,
    pub number: f64,
    pub created: i64,
    pub started: Option<i64>,
    pub ended: Option<i64>,
    pub workflow_id: Option<String>,
    /// JSON.
    pub outputs: Option<String>,
    /// JSON.
    pub error: Option<String>,
}

const COLUMNS: &str = "id, state, number, created, started, ended, workflow_id, outputs, error";

fn job(row: &Row) -> rusqlite::Result<JobRow> {
    Ok(JobRow {
        id: row.get(0)?,
        state: State::of_number(row.get(1)?),
        number: row.get(2)?,
        created: row.get(3)?,
        started: row.get(4)?,
        ended: row.get(5)?,
        workflow_id: row.get(6)?,
        outputs: row.get(7)?,
        error: row.get(8)?,
    })
}

impl Store {
    /// The jobs of a query, and how many there are without its limit.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self, query: &JobQuery) -> Result<(Vec<JobRow>, u64)> {
        let states: Vec<String> = match query.states.as_slice() {
            [] => State::ALL.iter().map(|state| (*state as i64).to_string()).collect(),
            states => states.iter().map(|state| (*state as i64).to_string()).collect(),
        };
        let condition =
            format!("state IN ({}) AND (?1 IS NULL OR workflow_id = ?1)", states.join(", "));
        let (way, by) = match (query.ascending, query.sort_by) {
            (true, SortBy::Created) => ("ASC", "created"),
            (false, SortBy::Created) => ("DESC", "created"),
            (true, SortBy::Duration) => ("ASC", "ended - started"),
            (false, SortBy::Duration) => ("DESC", "ended - started"),
        };
        let connection = self.reader();
        let total: i64 = connection
            .prepare_cached(&format!("SELECT count(*) FROM jobs WHERE {condition}"))?
            .query_row([&query.workflow_id], |row| row.get(0))?;
        let limit = query.limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(-1);
        let offset = i64::try_from(query.offset).unwrap_or(i64::MAX);
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE {condition} ORDER BY {by} {way}, seq {way} LIMIT ?2 OFFSET ?3"
        );
        let mut select = connection.prepare_cached(&sql)?;
        let parameters: [&dyn ToSql; 3] = [&query.workflow_id, &limit, &offset];
        let found = select.query_map(parameters, job)?;
        Ok((found.collect::<rusqlite::Result<_>>()?, u64::try_from(total).unwrap_or(0)))
    }

    /// One of them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn row(&self, id: &str) -> Result<Option<JobRow>> {
        let connection = self.lock();
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        Ok(connection.prepare_cached(&sql)?.query_row([id], job).optional()?)
    }
}
