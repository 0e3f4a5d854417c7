//! What is to be told to webhooks, and which workers there are.

use super::{Parameters, Postgres, text};
use crate::engine::{Announced, Result};
use crate::webhook::Delivery;
use std::time::Duration;
use tokio_postgres::Row;

/// Writes down that the end of job `$1` is to be told, where it asks for it: `$2` is the delivery's id, `$3` its body.
pub(super) const ADD: &str = "INSERT INTO deliveries (id, url, body, metadata, due) \
    SELECT $2, webhook, $3, metadata, clock_timestamp() FROM jobs WHERE id = $1 AND webhook IS NOT NULL";

const TAKE: &str = "UPDATE deliveries SET attempts = attempts + 1, \
        due = clock_timestamp() + $2 * interval '1 millisecond' \
    WHERE id IN (SELECT id FROM deliveries WHERE due <= clock_timestamp() ORDER BY due LIMIT $1 FOR UPDATE SKIP LOCKED) \
    RETURNING id, url, body, metadata, attempts";

fn milliseconds(time: Duration) -> f64 {
    time.as_millis() as f64
}

pub(super) fn take(this: &Postgres, most: usize, hold: Duration) -> Result<Vec<Delivery>> {
    let (most, hold) = (i64::try_from(most).unwrap_or(i64::MAX), milliseconds(hold));
    let rows = this.ask(async |session| session.query(TAKE, &[&most, &hold]).await)?;
    let delivery = |row: &Row| Delivery {
        id: row.get(0),
        url: row.get(1),
        body: row.get(2),
        metadata: row.get(3),
        attempts: row.get(4),
    };
    Ok(rows.iter().map(delivery).collect())
}

pub(super) fn settle(this: &Postgres, id: &str, again: Option<Duration>) -> Result<()> {
    match again {
        Some(again) => {
            let sql = "UPDATE deliveries SET due = clock_timestamp() + $2 * interval '1 millisecond' WHERE id = $1";
            let with: Parameters = &[&id, &milliseconds(again)];
            this.ask(async |session| session.execute(sql, with).await).map(drop)
        }
        None => {
            let sql = "DELETE FROM deliveries WHERE id = $1";
            this.ask(async |session| session.execute(sql, &[&id]).await).map(drop)
        }
    }
}

pub(super) fn count(this: &Postgres) -> Result<usize> {
    let sql = "SELECT count(*) FROM deliveries";
    let rows = this.ask(async |session| session.query(sql, &[]).await)?;
    Ok(rows.first().and_then(|row| usize::try_from(row.get::<_, i64>(0)).ok()).unwrap_or(0))
}

pub(super) fn announce(this: &Postgres, worker: &str, about: &str, stays: Duration) -> Result<()> {
    let sql = "INSERT INTO workers (name, about, seen, until) \
               VALUES ($1, $2, clock_timestamp(), clock_timestamp() + $3 * interval '1 millisecond') \
               ON CONFLICT (name) DO UPDATE SET about = $2, seen = excluded.seen, until = excluded.until";
    let gone = "DELETE FROM workers WHERE until < clock_timestamp()";
    let (worker, about, stays) = (text(worker), text(about), milliseconds(stays));
    this.ask(async |session| {
        session.execute(sql, &[&worker, &about, &stays]).await?;
        session.execute(gone, &[]).await
    })
    .map(drop)
}

pub(super) fn retire(this: &Postgres, worker: &str) -> Result<()> {
    let worker = text(worker);
    let sql = "DELETE FROM workers WHERE name = $1";
    this.ask(async |session| session.execute(sql, &[&worker]).await).map(drop)
}

pub(super) fn workers(this: &Postgres) -> Result<Vec<Announced>> {
    let sql = "SELECT name, about, (extract(epoch FROM clock_timestamp() - seen) * 1000)::bigint FROM workers \
               WHERE until >= clock_timestamp() ORDER BY name";
    let rows = this.ask(async |session| session.query(sql, &[]).await)?;
    let worker = |row: &Row| Announced { name: row.get(0), about: row.get(1), ago: row.get(2) };
    Ok(rows.iter().map(worker).collect())
}
