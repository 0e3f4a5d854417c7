//! Keys that may be used once, in the transaction that adds their jobs: a key is held exactly if its job is there.

use crate::store::NewJob;
use tokio_postgres::{Error, Transaction};

/// How many idempotency keys are remembered.
const MOST_KEYS: i64 = 10_000;

/// What an insertion found in its way.
pub(super) enum Refused {
    Taken(String),
    KeyUsed(String),
}

/// Uses up a key for a job, or says whose it is.
pub(super) async fn use_key(
    transaction: &Transaction<'_>,
    key: &str,
    job: &NewJob,
) -> std::result::Result<Option<Refused>, Error> {
    let sql = "INSERT INTO idempotency (key, job) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
    if transaction.execute(sql, &[&key, &job.id]).await? == 0 {
        let sql = "SELECT job FROM idempotency WHERE key = $1";
        let used = transaction.query_opt(sql, &[&key]).await?;
        return Ok(used.map(|row| Refused::KeyUsed(row.get(0))));
    }
    let sql = "DELETE FROM idempotency WHERE seq <= currval('idempotency_seq_seq') - $1";
    transaction.execute(sql, &[&MOST_KEYS]).await?;
    Ok(None)
}
