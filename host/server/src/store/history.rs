//! Finished jobs: how they get there, how they are read, how many are kept.

use super::{Finished, Result, State, Store, deliveries};
use rusqlite::{OptionalExtension, params};
use serde_json::Value as Json;

/// Which part of the history, as `GET /history` is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryRange {
    pub max_items: Option<u64>,
    /// Counted from the oldest; `None` is the newest `max_items`.
    pub offset: Option<u64>,
}

/// One finished job. What is JSON stays the text that it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub id: String,
    pub state: State,
    pub number: f64,
    pub prompt: String,
    pub extra: String,
    pub targets: String,
    pub outputs: String,
    pub messages: String,
}

/// Adds a job as `/queue` and `/history` tell it: number, id, prompt, extra data, outputs. The last three are
/// JSON already.
pub fn push_tuple(to: &mut String, number: f64, id: &str, parts: [&str; 3]) {
    to.push('[');
    to.push_str(&crate::message::number(number).to_string());
    to.push(',');
    to.push_str(&Json::from(id).to_string());
    for part in parts {
        to.push(',');
        to.push_str(part);
    }
    to.push(']');
}

const COLUMNS: &str = "id, state, number, prompt, extra, targets, outputs, messages";

fn entry(row: &rusqlite::Row) -> rusqlite::Result<Entry> {
    Ok(Entry {
        id: row.get(0)?,
        state: State::of_number(row.get(1)?),
        number: row.get(2)?,
        prompt: row.get(3)?,
        extra: row.get(4)?,
        targets: row.get(5)?,
        outputs: row.get::<_, Option<String>>(6)?.unwrap_or_else(|| "{}".into()),
        messages: row.get::<_, Option<String>>(7)?.unwrap_or_else(|| "[]".into()),
    })
}

impl Store {
    /// A job is over: it is in the history, on the disk, when this returns. At most `most` finished jobs
    /// are kept.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn finish(&self, id: &str, how: &Finished, most: u64) -> Result<()> {
        let mut connection = self.lock();
        connection.pragma_update(None, "synchronous", "FULL")?;
        let commit = |connection: &mut rusqlite::Connection| -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction
                .prepare_cached(
                    "UPDATE jobs SET state = ?2, ended = ?3, outputs = ?4, messages = ?5, error = ?6, \
                     finished = (SELECT coalesce(max(finished), 0) + 1 FROM jobs \
                     WHERE finished IS NOT NULL) WHERE id = ?1",
                )?
                .execute(params![
                    id,
                    how.state as i64,
                    how.ended,
                    how.outputs.to_string(),
                    how.messages.to_string(),
                    how.error.as_ref().map(Json::to_string)
                ])?;
            deliveries::add(&transaction, id, how)?;
            transaction
                .prepare_cached(
                    "DELETE FROM jobs WHERE finished <= (SELECT finished FROM jobs \
                     WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT 1 OFFSET ?1)",
                )?
                .execute([i64::try_from(most).unwrap_or(i64::MAX)])?;
            transaction.commit()
        };
        let done = commit(&mut connection);
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(done?)
    }

    /// Finished jobs, the oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn history(&self, range: HistoryRange) -> Result<Vec<Entry>> {
        let connection = self.reader();
        let most = range.max_items.and_then(|most| i64::try_from(most).ok()).unwrap_or(-1);
        let (order, offset) = match range.offset {
            Some(offset) => ("ASC", i64::try_from(offset).unwrap_or(i64::MAX)),
            // The newest are looked for, and turned round below.
            None => ("DESC", 0),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE finished IS NOT NULL ORDER BY finished {order} \
             LIMIT ?1 OFFSET ?2"
        );
        let mut query = connection.prepare_cached(&sql)?;
        let found = query.query_map([most, offset], entry)?;
        let mut found = found.collect::<rusqlite::Result<Vec<_>>>()?;
        if range.offset.is_none() {
            found.reverse();
        }
        Ok(found)
    }

    /// One finished job.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn finished(&self, id: &str) -> Result<Option<Entry>> {
        let connection = self.lock();
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1 AND finished IS NOT NULL");
        Ok(connection.prepare_cached(&sql)?.query_row([id], entry).optional()?)
    }

    /// `GET /queue`: the jobs that run and those that wait, in the order in which they are taken. There may be
    /// ten thousand: each is copied once.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn queue(&self) -> Result<String> {
        let connection = self.reader();
        // One picture of the two lists: a job is in one of them.
        let transaction = connection.unchecked_transaction()?;
        let mut query = transaction.prepare_cached(
            "SELECT number, id, prompt, extra, targets FROM jobs WHERE state = ?1 \
             ORDER BY number, seq",
        )?;
        let mut answer = String::from("{");
        for (state, name) in [(State::Running, "queue_running"), (State::Pending, "queue_pending")]
        {
            answer.push_str(if answer.len() > 1 { "],\"" } else { "\"" });
            answer.push_str(name);
            answer.push_str("\":[");
            let mut rows = query.query([state as i64])?;
            let mut is_first = true;
            while let Some(row) = rows.next()? {
                if !std::mem::take(&mut is_first) {
                    answer.push(',');
                }
                let text = |column: usize| -> rusqlite::Result<&str> {
                    Ok(row.get_ref(column)?.as_str()?)
                };
                let parts = [text(2)?, text(3)?, text(4)?];
                push_tuple(&mut answer, row.get(0)?, text(1)?, parts);
            }
        }
        answer.push_str("]}");
        Ok(answer)
    }

    /// A job by its id, whatever became of it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn job(&self, id: &str) -> Result<Option<Entry>> {
        let connection = self.lock();
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        Ok(connection.prepare_cached(&sql)?.query_row([id], entry).optional()?)
    }

    /// Forgets finished jobs: those of `ids`, or all.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn forget(&self, ids: Option<&[String]>) -> Result<()> {
        match ids {
            Some(ids) => {
                self.delete(ids, "DELETE FROM jobs WHERE id = ?1 AND finished IS NOT NULL")
            }
            None => {
                self.lock().execute("DELETE FROM jobs WHERE finished IS NOT NULL", [])?;
                Ok(())
            }
        }
    }
}
