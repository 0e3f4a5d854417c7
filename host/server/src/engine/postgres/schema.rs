//! The tables, and which version of them there is.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

pub(super) const UNIQUE: SqlState = SqlState::UNIQUE_VIOLATION;

/// What every connection begins with.
pub(super) const SESSION: &str = "SET search_path TO kosmograph; SET statement_timeout TO '15s'; \
    SET idle_in_transaction_session_timeout TO '30s';";

/// One step for each version; tables of version N have had the first N.
const STEPS: &[&str] = &[
    "\
CREATE FUNCTION now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS
    $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;
CREATE TABLE jobs (
    seq bigserial PRIMARY KEY,
    id text NOT NULL UNIQUE,
    state bigint NOT NULL,
    number double precision NOT NULL,
    client text,
    prompt text NOT NULL,
    extra text NOT NULL,
    targets text NOT NULL,
    workflow_id text,
    created bigint NOT NULL,
    started bigint,
    ended bigint,
    attempts bigint NOT NULL DEFAULT 0,
    finished bigint,
    outputs text,
    messages text,
    error text,
    metadata text,
    priority bigint,
    kind text NOT NULL,
    models text[] NOT NULL,
    due bigint NOT NULL,
    worker text,
    token text,
    lease timestamptz,
    stop boolean NOT NULL DEFAULT false
);
CREATE INDEX jobs_waiting ON jobs (number, seq) WHERE state = 0;
CREATE INDEX jobs_running ON jobs (lease) WHERE state = 1;
CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
CREATE INDEX jobs_created ON jobs (created, seq);
CREATE TABLE kinds (kind text PRIMARY KEY, needs text NOT NULL);
CREATE TABLE settings (seq bigserial, key text PRIMARY KEY, value text NOT NULL);
CREATE TABLE idempotency (seq bigserial UNIQUE, key text PRIMARY KEY, job text NOT NULL);
CREATE TABLE assets (
    id text PRIMARY KEY,
    hash text NOT NULL UNIQUE,
    size bigint NOT NULL,
    content_type text NOT NULL,
    file_path text NOT NULL,
    name text NOT NULL,
    owned boolean NOT NULL,
    created bigint NOT NULL
);
CREATE TABLE counters (name text PRIMARY KEY, value bigint NOT NULL);
INSERT INTO counters VALUES ('finished', 0);
CREATE SEQUENCE numbers MINVALUE 0;
CREATE SEQUENCE claims;
SELECT nextval('claims');
CREATE UNLOGGED TABLE bulletins (
    id bigserial PRIMARY KEY,
    made timestamptz NOT NULL DEFAULT clock_timestamp(),
    body text NOT NULL
);
",
    "\
ALTER TABLE jobs ADD COLUMN webhook text;
CREATE TABLE deliveries (
    id text PRIMARY KEY,
    url text NOT NULL,
    body text NOT NULL,
    metadata text,
    due timestamptz NOT NULL,
    attempts bigint NOT NULL DEFAULT 0
);
CREATE INDEX deliveries_due ON deliveries (due);
CREATE UNLOGGED TABLE workers (
    name text PRIMARY KEY,
    about text NOT NULL,
    seen timestamptz NOT NULL,
    until timestamptz NOT NULL
);
",
];

/// Any number that nobody else takes: two that make the tables at once wait for each other.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7120115051991)";

/// Makes the tables, or brings them up to date. Inside, a sentence where they are of a newer version.
pub(super) async fn make(client: &mut Client) -> Result<Result<(), String>, Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK).await?;
    // Asked first: who may not make schemas may use one that is there.
    let there = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'kosmograph'";
    if transaction.query_opt(there, &[]).await?.is_none() {
        transaction.batch_execute("CREATE SCHEMA kosmograph").await?;
    }
    let there = "SELECT to_regclass('kosmograph.version') IS NOT NULL";
    if !transaction.query_one(there, &[]).await?.get::<_, bool>(0) {
        let sql = "CREATE TABLE version (version integer NOT NULL); INSERT INTO version VALUES (0)";
        transaction.batch_execute(sql).await?;
    }
    let found: i32 = transaction.query_one("SELECT version FROM version", &[]).await?.get(0);
    let found = usize::try_from(found).unwrap_or(0);
    let known = STEPS.len();
    if found > known {
        return Ok(Err(format!(
            "--queue: the tables are of version {found}, made by a newer kosmograph; this one knows up \
             to {known}. They were left as they are"
        )));
    }
    for step in &STEPS[found..] {
        transaction.batch_execute(step).await?;
    }
    if found < known {
        let version = i32::try_from(known).unwrap_or(i32::MAX);
        transaction.execute("UPDATE version SET version = $1", &[&version]).await?;
    }
    transaction.commit().await?;
    Ok(Ok(()))
}
