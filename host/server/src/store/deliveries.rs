//! What is to be told to webhooks.

use super::{Finished, Result, Store};
use crate::message::now;
use crate::webhook::{Delivery, told};
use rusqlite::{Connection, params};
use std::time::Duration;

/// Writes down that the end of a job is to be told, where the job asks for it.
pub(super) fn add(connection: &Connection, job: &str, how: &Finished) -> rusqlite::Result<()> {
    let sql = "INSERT INTO deliveries (id, url, body, metadata, due) \
               SELECT ?2, webhook, ?3, metadata, ?4 FROM jobs WHERE id = ?1 AND webhook IS NOT NULL";
    let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
    connection.prepare_cached(sql)?.execute(params![job, id, told(job, how), now()])?;
    Ok(())
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}

impl Store {
    /// Takes deliveries that are due, `most` at most, the oldest first; they are due again after `hold`.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn take_deliveries(&self, most: usize, hold: Duration) -> Result<Vec<Delivery>> {
        let connection = self.lock();
        let sql = "UPDATE deliveries SET due = ?1 + ?2, attempts = attempts + 1 WHERE id IN \
                   (SELECT id FROM deliveries WHERE due <= ?1 ORDER BY due LIMIT ?3) \
                   RETURNING id, url, body, metadata, attempts";
        let mut take = connection.prepare_cached(sql)?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let row = |row: &rusqlite::Row| {
            Ok(Delivery {
                id: row.get(0)?,
                url: row.get(1)?,
                body: row.get(2)?,
                metadata: row.get(3)?,
                attempts: row.get(4)?,
            })
        };
        let taken = take.query_map(params![now(), milliseconds(hold), most], row)?;
        Ok(taken.collect::<rusqlite::Result<_>>()?)
    }

    /// A delivery is due again after so long, or never.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn settle_delivery(&self, id: &str, again: Option<Duration>) -> Result<()> {
        let connection = self.lock();
        match again {
            Some(again) => connection
                .prepare_cached("UPDATE deliveries SET due = ?2 WHERE id = ?1")?
                .execute(params![id, now().saturating_add(milliseconds(again))])?,
            None => {
                connection.prepare_cached("DELETE FROM deliveries WHERE id = ?1")?.execute([id])?
            }
        };
        Ok(())
    }

    /// How many deliveries there are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn deliveries(&self) -> Result<usize> {
        let sql = "SELECT count(*) FROM deliveries";
        let count: i64 = self.lock().prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}
