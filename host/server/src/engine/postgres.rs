//! A queue in PostgreSQL: one table of jobs, `FOR UPDATE SKIP LOCKED` for who takes one, `LISTEN` and
//! `NOTIFY` to wake those who wait.
//!
//! Everything is in a schema of its own, `kosmograph`, so that it can live in a database that is there
//! already. What is accepted and what is done is committed before anybody is told; with the server's usual
//! `synchronous_commit` both are on its disk then. Times are the server's, never the machine's.

mod bulletins;
mod deliveries;
mod keys;
mod read;
mod schema;
mod session;

use super::{
    Abandoned, Announced, AtWork, Bulletin, Claim, Claimed, Counts, Ended, Engine, Hear, Result,
    Standing, Window, Worker,
};
use crate::placement::{Candidate, PASSES};
use crate::store::{
    Asset, Entry, Finished, HistoryRange, JobQuery, JobRow, NewJob, State, StoreError, V2Query,
    V2Row, Waiting,
};
use crate::webhook::{Delivery, told};
use keys::{Refused, use_key};
use serde_json::{Map, Value as Json};
use session::{Connector, Session};
use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, Error, Row};
use uuid::Uuid;

/// How long one answer may take; then the connection is given up, as after a cut.
const PATIENCE: Duration = Duration::from_secs(15);

/// How many connections are kept for the next question.
const KEPT: usize = 8;

/// Old jobs are let go at every so manieth end: counting them at each would cost more than the end itself.
const TRIMMED_EVERY: i64 = 32;

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// See the module.
pub struct Postgres {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Runtime,
    connector: Connector,
    idle: Mutex<Vec<Session>>,
    published: std::sync::atomic::AtomicU64,
}

/// An error and what it came of, as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn wrong(error: &Error) -> StoreError {
    StoreError::Engine(format!("PostgreSQL: {}", sentence(error)))
}

/// PostgreSQL's texts have no NUL; names that clients give themselves may.
fn text(text: &str) -> String {
    text.replace('\0', "")
}

impl Shared {
    fn idle(&self) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|session| !session.client.is_closed())
    }

    /// Asks something, on a connection that nobody else has in this moment.
    fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Session) -> std::result::Result<T, Error>,
    ) -> Result<T> {
        let mut answer = None;
        self.wait(Box::pin(async {
            let mut session = match self.idle() {
                Some(session) => session,
                None => self.connector.connect(None).await?.0,
            };
            // A session over which something failed is not kept: what it is in the middle of is unknown.
            answer = Some(question(&mut session).await?);
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < KEPT {
                idle.push(session);
            }
            Ok(())
        }))?;
        answer.ok_or_else(|| StoreError::Engine("PostgreSQL gave no answer".to_owned()))
    }

    /// Waits for an answer, and not for ever. Boxed: the runtime's side of it is compiled once, and not for each question.
    fn wait(
        &self,
        asked: Pin<Box<dyn Future<Output = std::result::Result<(), Error>> + '_>>,
    ) -> Result<()> {
        match self.runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await }) {
            Ok(answer) => answer.map_err(|error| wrong(&error)),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                let sentence = format!("PostgreSQL did not answer within {seconds} s");
                Err(StoreError::Engine(sentence))
            }
        }
    }
}

impl Postgres {
    /// Connects to `address`, and makes the tables where there are none. `authority` has the certificates, PEM, that the
    /// server's is to come from, in the place of the system's.
    ///
    /// # Errors
    /// A sentence: the address is none, nobody answers there, or the tables are of a newer version.
    pub fn open(address: &str, authority: Option<&Path>) -> std::result::Result<Self, String> {
        let mut config: Config =
            address.parse().map_err(|error: Error| format!("--queue: {}", sentence(&error)))?;
        config
            .application_name("kosmograph")
            .connect_timeout(Duration::from_secs(5))
            .tcp_user_timeout(PATIENCE)
            .keepalives_idle(Duration::from_secs(10));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("queue")
            .enable_all()
            .build()
            .map_err(|error| format!("--queue: no thread can be started: {error}"))?;
        let connector = Connector::new(config, authority)?;
        let (idle, published) = (Mutex::default(), std::sync::atomic::AtomicU64::new(0));
        let shared = Arc::new(Shared { runtime, connector, idle, published });
        let made = shared.ask(async |session| schema::make(&mut session.client).await);
        match made.map_err(|error| format!("--queue: {error}"))? {
            Ok(()) => Ok(Self { shared }),
            Err(newer) => Err(newer),
        }
    }

    fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Session) -> std::result::Result<T, Error>,
    ) -> Result<T> {
        self.shared.ask(question)
    }
}

/// What an end writes; `$1` is the id and `$3` to `$6` what there is to say.
const END: &str = "UPDATE jobs SET state = $3, ended = now_ms(), outputs = $4, messages = $5, \
    error = $6, lease = NULL, finished = $7 WHERE id = $1 AND ";
const COUNT_END: &str =
    "UPDATE counters SET value = value + 1 WHERE name = 'finished' RETURNING value";
const TRIM: &str = "DELETE FROM jobs WHERE finished <= (SELECT finished FROM jobs \
    WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT 1 OFFSET $1)";

impl Postgres {
    /// Ends a job where `condition` on `$2` holds; false where it does not.
    fn end(
        &self,
        id: &str,
        token: &str,
        condition: &str,
        how: &Finished,
        most: u64,
    ) -> Result<bool> {
        let (outputs, messages) = (how.outputs.to_string(), how.messages.to_string());
        let error = how.error.as_ref().map(Json::to_string);
        let state = how.state as i64;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let end = format!("{END}{condition}");
        let (delivery, told) = (format!("msg_{}", Uuid::new_v4().simple()), told(id, how));
        self.ask(async |session| {
            let (transaction, [count, end, trim, deliver]) =
                session.begin([COUNT_END, &end, TRIM, deliveries::ADD]).await?;
            // One after the other from here to the commit: who reads the numbers in their order misses none.
            let number: i64 = transaction.query_one(&count, &[]).await?.get(0);
            let with: Parameters = &[&id, &token, &state, &outputs, &messages, &error, &number];
            let ended = transaction.execute(&end, with).await?;
            if ended == 0 {
                transaction.rollback().await?;
                return Ok(false);
            }
            transaction.execute(&deliver, &[&id, &delivery, &told]).await?;
            if number % TRIMMED_EVERY == 0 {
                transaction.execute(&trim, &[&most]).await?;
            }
            transaction.commit().await?;
            Ok(true)
        })
    }
}

const INSERT: &str = "INSERT INTO jobs (id, state, number, client, prompt, extra, targets, workflow_id, \
    created, metadata, priority, kind, models, webhook, due) VALUES ($1, 0, $2, $3, $4, $5, $6, $7, now_ms(), $8, $9, \
    $10, $11, $12, (SELECT last_value FROM claims) + (SELECT count(*) FROM jobs WHERE state = 0) + $13) RETURNING seq";
const THERE: &str = "SELECT state FROM jobs WHERE id = $1 FOR UPDATE";
const NEEDS: &str = "INSERT INTO kinds (kind, needs) VALUES ($1, $2) ON CONFLICT (kind) DO NOTHING";

const CLAIM: &str = "\
    WITH next AS MATERIALIZED (SELECT seq FROM jobs WHERE id = ANY($1) AND state = 0 \
        ORDER BY array_position($1, id) LIMIT 1 FOR UPDATE SKIP LOCKED) \
    UPDATE jobs SET state = 1, started = now_ms(), attempts = attempts + 1, worker = $2, token = $3, \
        stop = false, lease = clock_timestamp() + $4 * interval '1 millisecond' \
    FROM next WHERE jobs.seq = next.seq \
    RETURNING id, state, number, prompt, extra, targets, outputs, messages, client, nextval('claims')";

impl Engine for Postgres {
    fn is_shared(&self) -> bool {
        true
    }

    fn insert(&self, jobs: &[NewJob], key: Option<&str>) -> Result<Vec<i64>> {
        let added = self.ask(async |session| {
            let (transaction, [there, needs, insert]) =
                session.begin([THERE, NEEDS, INSERT]).await?;
            if let (Some(key), Some(job)) = (key, jobs.first())
                && let Some(refused) = use_key(&transaction, key, job).await?
            {
                return Ok(Err(refused));
            }
            let mut numbers = Vec::with_capacity(jobs.len());
            for job in jobs {
                if let Some(row) = transaction.query_opt(&there, &[&job.id]).await? {
                    if row.get::<_, i64>(0) < State::Completed as i64 {
                        return Ok(Err(Refused::Taken(job.id.clone())));
                    }
                    transaction.execute("DELETE FROM jobs WHERE id = $1", &[&job.id]).await?;
                }
                transaction.execute(&needs, &[&job.needs.kind, &job.needs.text]).await?;
                let targets = Json::from(job.targets.clone()).to_string();
                let client = job.client.as_deref().map(text);
                let workflow = job.workflow_id.as_deref().map(text);
                let models: Vec<String> = job.needs.models.iter().map(|name| text(name)).collect();
                let with: Parameters = &[
                    &job.id,
                    &job.number,
                    &client,
                    &job.prompt,
                    &job.extra,
                    &targets,
                    &workflow,
                    &job.metadata,
                    &job.priority,
                    &job.needs.kind,
                    &models,
                    &job.webhook,
                    &PASSES,
                ];
                let added = transaction.query_one(&insert, with).await;
                match added {
                    Ok(row) => numbers.push(row.get(0)),
                    // Another one with this id was added in this moment.
                    Err(error) if error.code() == Some(&schema::UNIQUE) => {
                        return Ok(Err(Refused::Taken(job.id.clone())));
                    }
                    Err(error) => return Err(error),
                }
            }
            transaction.commit().await?;
            Ok(Ok(numbers))
        })?;
        added.map_err(|refused| match refused {
            Refused::Taken(id) => StoreError::Taken(id),
            Refused::KeyUsed(id) => StoreError::KeyUsed(id),
        })
    }

    fn next_number(&self, front: bool) -> Result<f64> {
        let sql = "SELECT nextval('numbers')";
        let number: i64 = self.ask(async |session| Ok(session.query(sql, &[]).await?[0].get(0)))?;
        Ok(if front { -(number as f64) } else { number as f64 })
    }

    fn window(&self, unfit: &[String]) -> Result<Window> {
        let sql = "SELECT id, number, kind, models, due, (SELECT last_value FROM claims) FROM jobs \
                   WHERE state = 0 AND NOT kind = ANY($1) ORDER BY number, seq LIMIT 64";
        let rows = self.ask(async |session| session.query(sql, &[&unfit]).await)?;
        let claims = rows.first().map_or(0, |row| row.get(5));
        let candidate = |row: &Row| Candidate {
            id: row.get(0),
            number: row.get(1),
            kind: row.get(2),
            models: row.get(3),
            due: row.get(4),
        };
        Ok(Window { claims, candidates: rows.iter().map(candidate).collect() })
    }

    fn needs(&self, kind: &str) -> Result<Option<String>> {
        let sql = "SELECT needs FROM kinds WHERE kind = $1";
        let rows = self.ask(async |session| session.query(sql, &[&kind]).await)?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    fn claim(&self, ids: &[String], worker: &Worker) -> Result<Option<Claimed>> {
        let token = Uuid::new_v4().simple().to_string();
        let lease = worker.lease.as_millis() as f64;
        let with: Parameters = &[&ids, &worker.name, &token, &lease];
        let rows = self.ask(async |session| session.query(CLAIM, with).await)?;
        Ok(rows.first().map(|row| {
            let entry = read::entry(row);
            let claim = Claim { id: entry.id.clone(), token: token.clone() };
            Claimed { claim, client: row.get(8), entry }
        }))
    }

    fn renew(&self, claims: &[Claim], lease: Duration) -> Result<Vec<Standing>> {
        let sql = "UPDATE jobs SET lease = clock_timestamp() + $3 * interval '1 millisecond' \
                   FROM unnest($1::text[], $2::text[]) AS held (id, token) \
                   WHERE jobs.id = held.id AND jobs.token = held.token AND jobs.state = 1 \
                   RETURNING jobs.id, jobs.stop";
        let ids: Vec<&str> = claims.iter().map(|claim| claim.id.as_str()).collect();
        let tokens: Vec<&str> = claims.iter().map(|claim| claim.token.as_str()).collect();
        let lease = lease.as_millis() as f64;
        let rows = self.ask(async |session| session.query(sql, &[&ids, &tokens, &lease]).await)?;
        let held: HashMap<String, bool> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let standing = |claim: &Claim| match held.get(&claim.id) {
            Some(true) => Standing::Stop,
            Some(false) => Standing::Held,
            None => Standing::Lost,
        };
        Ok(claims.iter().map(standing).collect())
    }

    fn put_back(&self, claim: &Claim) -> Result<()> {
        let sql = "UPDATE jobs SET state = 0, started = NULL, attempts = greatest(attempts - 1, 0), \
                   token = NULL, worker = NULL, lease = NULL WHERE id = $1 AND token = $2 AND state = 1";
        let with: Parameters = &[&claim.id, &claim.token];
        self.ask(async |session| session.execute(sql, with).await).map(drop)
    }

    fn finish(&self, claim: &Claim, how: &Finished, most: u64) -> Result<bool> {
        if self.end(&claim.id, &claim.token, "token = $2 AND state = 1", how, most)? {
            return Ok(true);
        }
        // The answer to the first time may have been lost on its way.
        let sql = "SELECT 1 FROM jobs WHERE id = $1 AND token = $2 AND state >= 2";
        let with: Parameters = &[&claim.id, &claim.token];
        Ok(!self.ask(async |session| session.query(sql, with).await)?.is_empty())
    }

    fn reap(&self, most: i64) -> Result<(usize, Vec<Abandoned>)> {
        let again = "UPDATE jobs SET state = 0, started = NULL, token = NULL, worker = NULL, lease = NULL \
                     WHERE state = 1 AND lease < clock_timestamp() AND attempts < $1 AND NOT stop";
        // A claim of our own: a worker that comes back now is too late.
        let taken = "UPDATE jobs SET token = $2, lease = clock_timestamp() + interval '30 seconds' \
                     WHERE state = 1 AND lease < clock_timestamp() AND (attempts >= $1 OR stop) \
                     RETURNING id, attempts, stop";
        let token = Uuid::new_v4().simple().to_string();
        self.ask(async |session| {
            let again = session.execute(again, &[&most]).await?;
            let taken = session.query(taken, &[&most, &token]).await?;
            let abandoned = |row: &Row| Abandoned {
                claim: Claim { id: row.get(0), token: token.clone() },
                attempts: row.get(1),
                stop: row.get(2),
            };
            Ok((again as usize, taken.iter().map(abandoned).collect()))
        })
    }

    fn delete_waiting(&self, ids: Option<&[String]>) -> Result<Vec<String>> {
        let sql = "DELETE FROM jobs WHERE state = 0 AND ($1::text[] IS NULL OR id = ANY($1)) RETURNING id";
        let rows = self.ask(async |session| session.query(sql, &[&ids]).await)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn end_waiting(&self, id: &str, how: &Finished, most: u64) -> Result<bool> {
        self.end(id, "", "$2 = '' AND state = 0", how, most)
    }

    fn ask_to_stop(&self, ids: &[String]) -> Result<()> {
        let sql = "UPDATE jobs SET stop = true WHERE id = ANY($1) AND state = 1";
        self.ask(async |session| session.execute(sql, &[&ids]).await).map(drop)
    }

    fn counts(&self) -> Result<Counts> {
        let sql = "SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1) \
                   FROM jobs WHERE state < 2";
        self.ask(async |session| {
            let rows = session.query(sql, &[]).await?;
            let count =
                |column: usize| usize::try_from(rows[0].get::<_, i64>(column)).unwrap_or_default();
            Ok(Counts { waiting: count(0), running: count(1) })
        })
    }

    fn waiting(&self) -> Result<Vec<Waiting>> {
        let sql = "SELECT seq, id, number, client FROM jobs WHERE state = 0 ORDER BY number, seq";
        let rows = self.ask(async |session| session.query(sql, &[]).await)?;
        let waiting = |row: &Row| Waiting {
            seq: row.get(0),
            id: row.get(1),
            number: row.get(2),
            client: row.get(3),
        };
        Ok(rows.iter().map(waiting).collect())
    }

    fn at_work(&self) -> Result<Vec<AtWork>> {
        let sql =
            "SELECT id, client, now_ms() - started, stop FROM jobs WHERE state = 1 ORDER BY seq";
        let rows = self.ask(async |session| session.query(sql, &[]).await)?;
        let at_work = |row: &Row| AtWork {
            id: row.get(0),
            client: row.get(1),
            since: row.get::<_, Option<i64>>(2).unwrap_or(0),
            stop: row.get(3),
        };
        Ok(rows.iter().map(at_work).collect())
    }

    fn position(&self, id: &str) -> Result<Option<usize>> {
        let sql = "SELECT (SELECT count(*) FROM jobs AS other WHERE other.state = 0 AND \
                   (other.number, other.seq) <= (jobs.number, jobs.seq)) FROM jobs \
                   WHERE id = $1 AND state = 0";
        let rows = self.ask(async |session| session.query(sql, &[&id]).await)?;
        Ok(rows.first().and_then(|row| usize::try_from(row.get::<_, i64>(0)).ok()))
    }

    fn ended(&self, after: Option<i64>) -> Result<Vec<Ended>> {
        let order = if after.is_some() { "ASC LIMIT 1000" } else { "DESC LIMIT 1" };
        let sql = format!(
            "SELECT finished, id, client, state, messages, now_ms() - ended FROM jobs \
             WHERE finished > $1 ORDER BY finished {order}"
        );
        let after = after.unwrap_or(0);
        let rows = self.ask(async |session| session.query(&sql, &[&after]).await)?;
        let ended = |row: &Row| Ended {
            finished: row.get(0),
            id: row.get(1),
            client: row.get(2),
            state: State::of_number(row.get(3)),
            messages: row.get::<_, Option<String>>(4).unwrap_or_else(|| "[]".into()),
            ago: row.get(5),
        };
        Ok(rows.iter().map(ended).collect())
    }

    fn queue(&self) -> Result<String> {
        read::queue(self)
    }

    fn history(&self, range: HistoryRange) -> Result<Vec<Entry>> {
        read::history(self, range)
    }

    fn finished(&self, id: &str) -> Result<Option<Entry>> {
        read::one(self, id, "AND finished IS NOT NULL")
    }

    fn job(&self, id: &str) -> Result<Option<Entry>> {
        read::one(self, id, "")
    }

    fn forget(&self, ids: Option<&[String]>) -> Result<()> {
        let sql =
            "DELETE FROM jobs WHERE finished IS NOT NULL AND ($1::text[] IS NULL OR id = ANY($1))";
        self.ask(async |session| session.execute(sql, &[&ids]).await).map(drop)
    }

    fn list(&self, query: &JobQuery) -> Result<(Vec<JobRow>, u64)> {
        read::list(self, query)
    }

    fn row(&self, id: &str) -> Result<Option<JobRow>> {
        read::row(self, id)
    }

    fn list_v2(&self, query: &V2Query) -> Result<Vec<V2Row>> {
        read::list_v2(self, query)
    }

    fn job_v2(&self, id: &str) -> Result<Option<V2Row>> {
        read::job_v2(self, id)
    }

    fn setting(&self, key: &str) -> Result<Option<Json>> {
        Ok(self.settings()?.remove(key))
    }

    fn settings(&self) -> Result<Map<String, Json>> {
        read::settings(self)
    }

    fn set(&self, settings: &Map<String, Json>) -> Result<()> {
        read::set(self, settings)
    }

    fn asset(&self, id: &str) -> Result<Option<Asset>> {
        read::asset(self, "id", id)
    }

    fn asset_of_hash(&self, hash: &str) -> Result<Option<Asset>> {
        read::asset(self, "hash", hash)
    }

    fn add_asset(&self, new: Asset) -> Result<Asset> {
        read::add_asset(self, &new)
    }

    fn remove_asset(&self, id: &str) -> Result<()> {
        let sql = "DELETE FROM assets WHERE id = $1";
        self.ask(async |session| session.execute(sql, &[&id]).await).map(drop)
    }

    fn take_deliveries(&self, most: usize, hold: Duration) -> Result<Vec<Delivery>> {
        deliveries::take(self, most, hold)
    }

    fn settle_delivery(&self, id: &str, again: Option<Duration>) -> Result<()> {
        deliveries::settle(self, id, again)
    }

    fn deliveries(&self) -> Result<usize> {
        deliveries::count(self)
    }

    fn announce(&self, worker: &str, about: &str, stays: Duration) -> Result<()> {
        deliveries::announce(self, worker, about, stays)
    }

    fn retire(&self, worker: &str) -> Result<()> {
        deliveries::retire(self, worker)
    }

    fn workers(&self) -> Result<Vec<Announced>> {
        deliveries::workers(self)
    }

    fn publish(&self, bulletins: &[Bulletin]) -> Result<()> {
        bulletins::publish(&self.shared, bulletins)
    }

    fn listen(&self, hear: Hear) -> Result<()> {
        bulletins::listen(&self.shared, hear);
        Ok(())
    }
}
