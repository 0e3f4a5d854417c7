//! The store in this process's own folder, as an engine.
//!
//! Nobody else may open the folder, so a claim needs no token and no lease: it ends when the process does, and
//! [`Store::running_at_start`] gives its job back. Nobody listens elsewhere either: this process's hub
//! hears everything directly.

use super::{
    Abandoned, Announced, AtWork, Bulletin, Claim, Claimed, Counts, Ended, Engine, Hear, Result,
    Standing, Window, Worker,
};
use crate::message::now;
use crate::placement::Candidate;
use crate::store::{
    Asset, Entry, Finished, HistoryRange, JobQuery, JobRow, NewJob, State, Store, StoreError,
    V2Query, V2Row, Waiting,
};
use crate::webhook::Delivery;
use rusqlite::{OptionalExtension, params};
use serde_json::{Map, Value as Json};
use std::time::Duration;

impl Engine for Store {
    fn is_shared(&self) -> bool {
        false
    }

    fn insert(&self, jobs: &[NewJob], key: Option<&str>) -> Result<Vec<i64>> {
        Self::insert(self, jobs, key)
    }

    fn next_number(&self, front: bool) -> Result<f64> {
        let number = self.last_number()? + 1.0;
        Ok(if front { -number } else { number })
    }

    fn window(&self, _unfit: &[String]) -> Result<Window> {
        let connection = self.lock();
        let mut first = connection.prepare_cached(
            "SELECT seq, id, number FROM jobs WHERE state = 0 ORDER BY number, seq LIMIT 64",
        )?;
        let candidate = |row: &rusqlite::Row| {
            let seq: i64 = row.get(0)?;
            let (id, number) = (row.get(1)?, row.get(2)?);
            // In their order: there is one place where models are.
            Ok(Candidate { id, number, due: seq, ..Candidate::default() })
        };
        let candidates = first.query_map([], candidate)?.collect::<rusqlite::Result<_>>()?;
        Ok(Window { claims: i64::MAX, candidates })
    }

    fn needs(&self, _kind: &str) -> Result<Option<String>> {
        Ok(None)
    }

    fn claim(&self, ids: &[String], _worker: &Worker) -> Result<Option<Claimed>> {
        for id in ids {
            let changed = {
                let sql = "UPDATE jobs SET state = 1, started = ?2, attempts = attempts + 1 \
                           WHERE id = ?1 AND state = 0";
                self.lock().prepare_cached(sql)?.execute(params![id, now()])?
            };
            if changed == 0 {
                continue;
            }
            let client: Option<Option<String>> = {
                let sql = "SELECT client FROM jobs WHERE id = ?1";
                self.lock().prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?
            };
            if let (Some(client), Some(entry)) = (client, Self::job(self, id)?) {
                let claim = Claim { id: id.clone(), token: String::new() };
                return Ok(Some(Claimed { claim, client, entry }));
            }
        }
        Ok(None)
    }

    fn renew(&self, claims: &[Claim], _lease: Duration) -> Result<Vec<Standing>> {
        Ok(vec![Standing::Held; claims.len()])
    }

    fn put_back(&self, claim: &Claim) -> Result<()> {
        Self::put_back(self, &claim.id)
    }

    fn finish(&self, claim: &Claim, how: &Finished, most: u64) -> Result<bool> {
        Self::finish(self, &claim.id, how, most).map(|()| true)
    }

    fn reap(&self, _most: i64) -> Result<(usize, Vec<Abandoned>)> {
        Ok((0, Vec::new()))
    }

    fn delete_waiting(&self, ids: Option<&[String]>) -> Result<Vec<String>> {
        let all: Vec<String>;
        let ids = match ids {
            Some(ids) => ids,
            None => {
                all = Self::waiting(self)?.into_iter().map(|waiting| waiting.id).collect();
                &all
            }
        };
        Self::delete_waiting(self, ids)?;
        Ok(ids.to_vec())
    }

    fn end_waiting(&self, id: &str, how: &Finished, most: u64) -> Result<bool> {
        Self::finish(self, id, how, most).map(|()| true)
    }

    fn ask_to_stop(&self, _ids: &[String]) -> Result<()> {
        Ok(())
    }

    fn counts(&self) -> Result<Counts> {
        let sql = "SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1) \
                   FROM jobs WHERE state IN (0, 1)";
        let pair: (i64, i64) =
            self.lock().prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let count = |number: i64| usize::try_from(number).unwrap_or(0);
        Ok(Counts { waiting: count(pair.0), running: count(pair.1) })
    }

    fn waiting(&self) -> Result<Vec<Waiting>> {
        Self::waiting(self)
    }

    fn at_work(&self) -> Result<Vec<AtWork>> {
        let connection = self.lock();
        let mut all = connection
            .prepare_cached("SELECT id, client, started FROM jobs WHERE state = 1 ORDER BY seq")?;
        let row = |row: &rusqlite::Row| {
            let started: Option<i64> = row.get(2)?;
            let since = started.map_or(0, |started| now() - started);
            Ok(AtWork { id: row.get(0)?, client: row.get(1)?, since, stop: false })
        };
        let all = all.query_map([], row)?;
        Ok(all.collect::<rusqlite::Result<_>>()?)
    }

    fn position(&self, id: &str) -> Result<Option<usize>> {
        let sql = "SELECT (SELECT count(*) FROM jobs AS other WHERE other.state = 0 AND \
                   (other.number, other.seq) <= (jobs.number, jobs.seq)) FROM jobs \
                   WHERE id = ?1 AND state = 0";
        let found: Option<i64> =
            self.lock().prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
        Ok(found.and_then(|position| usize::try_from(position).ok()))
    }

    fn ended(&self, after: Option<i64>) -> Result<Vec<Ended>> {
        let connection = self.lock();
        let order = if after.is_some() { "ASC LIMIT 1000" } else { "DESC LIMIT 1" };
        let sql = format!(
            "SELECT finished, id, client, state, messages, ended FROM jobs WHERE finished > ?1 \
             ORDER BY finished {order}"
        );
        let mut found = connection.prepare_cached(&sql)?;
        let row = |row: &rusqlite::Row| {
            let ended: i64 = row.get(5)?;
            Ok(Ended {
                finished: row.get(0)?,
                id: row.get(1)?,
                client: row.get(2)?,
                state: State::of_number(row.get(3)?),
                messages: row.get(4)?,
                ago: now() - ended,
            })
        };
        let found = found.query_map([after.unwrap_or(0)], row)?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    fn queue(&self) -> Result<String> {
        Self::queue(self)
    }

    fn history(&self, range: HistoryRange) -> Result<Vec<Entry>> {
        Self::history(self, range)
    }

    fn finished(&self, id: &str) -> Result<Option<Entry>> {
        Self::finished(self, id)
    }

    fn job(&self, id: &str) -> Result<Option<Entry>> {
        Self::job(self, id)
    }

    fn forget(&self, ids: Option<&[String]>) -> Result<()> {
        Self::forget(self, ids)
    }

    fn list(&self, query: &JobQuery) -> Result<(Vec<JobRow>, u64)> {
        Self::list(self, query)
    }

    fn row(&self, id: &str) -> Result<Option<JobRow>> {
        Self::row(self, id)
    }

    fn list_v2(&self, query: &V2Query) -> Result<Vec<V2Row>> {
        Self::list_v2(self, query)
    }

    fn job_v2(&self, id: &str) -> Result<Option<V2Row>> {
        Self::job_v2(self, id)
    }

    fn setting(&self, key: &str) -> Result<Option<Json>> {
        Self::setting(self, key)
    }

    fn settings(&self) -> Result<Map<String, Json>> {
        Self::settings(self)
    }

    fn set(&self, settings: &Map<String, Json>) -> Result<()> {
        Self::set(self, settings)
    }

    fn asset(&self, id: &str) -> Result<Option<Asset>> {
        Self::asset(self, id)
    }

    fn asset_of_hash(&self, hash: &str) -> Result<Option<Asset>> {
        Self::asset_of_hash(self, hash)
    }

    fn add_asset(&self, new: Asset) -> Result<Asset> {
        Self::add_asset(self, new)
    }

    fn remove_asset(&self, id: &str) -> Result<()> {
        Self::remove_asset(self, id)
    }

    fn take_deliveries(&self, most: usize, hold: Duration) -> Result<Vec<Delivery>> {
        Self::take_deliveries(self, most, hold)
    }

    fn settle_delivery(&self, id: &str, again: Option<Duration>) -> Result<()> {
        Self::settle_delivery(self, id, again)
    }

    fn deliveries(&self) -> Result<usize> {
        Self::deliveries(self)
    }

    // There is one worker, which is this process.

    fn announce(&self, _worker: &str, _about: &str, _stays: Duration) -> Result<()> {
        Ok(())
    }

    fn retire(&self, _worker: &str) -> Result<()> {
        Ok(())
    }

    fn workers(&self) -> Result<Vec<Announced>> {
        Ok(Vec::new())
    }

    fn publish(&self, _bulletins: &[Bulletin]) -> Result<()> {
        Ok(())
    }

    fn listen(&self, _hear: Hear) -> Result<()> {
        Err(StoreError::Engine("this queue is no other process's".into()))
    }
}
