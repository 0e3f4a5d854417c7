//! A queue in Redis or Valkey.
//!
//! Sorted sets, and no stream: a stream gives its entries out in the order in which they came, and a queue
//! here has jobs that are put in front, that need what a worker has not, and that are taken back while they wait.
//! What a stream's consumer groups do, to say who has what and since when, a sorted set of leases does as well. Each
//! step that must happen at once is a script ([`scripts`]). Bulletins go by `PUBLISH`, pictures too.
//!
//! What is accepted is kept as well as Redis is told to keep it: with `appendonly yes` and `appendfsync always`
//! it is on the disk before anybody hears of it. docs/fleet.md says what is lost otherwise.

mod deliveries;
mod read;
mod scripts;

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
use read::{fields, ids_of, whole};
use redis::{Client, Connection, RedisError, RedisResult, TlsCertificates};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long one answer may take; then the connection is given up, as after a cut.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(5);

/// How many connections are kept for the next question.
const KEPT: usize = 8;

/// How many idempotency keys are remembered.
const MOST_KEYS: usize = 10_000;

/// How many jobs are looked at at once, and how often one goes on behind those that are unfit.
const SEEN: isize = 64;
const PAGES: isize = 64;

/// Who hears nothing for so long subscribes anew: a connection that is cut silently hears nothing either.
const SILENCE: Duration = Duration::from_secs(10);

fn key(name: &str) -> String {
    format!("kosmograph:{name}")
}

fn wrong(error: &RedisError) -> StoreError {
    StoreError::Engine(format!("Redis: {error}"))
}

/// See the module.
pub struct Redis {
    client: Client,
    idle: Mutex<Vec<Connection>>,
}

impl Redis {
    /// Connects to `address`. `authority` has the certificates, PEM, that the server's is to come from where it speaks
    /// TLS, in the place of the system's.
    ///
    /// # Errors
    /// A sentence: the address is none, or nobody answers there.
    pub fn open(address: &str, authority: Option<&Path>) -> std::result::Result<Self, String> {
        let sentence = |error: RedisError| format!("--queue: {error}");
        let is_tls = address.starts_with("rediss:") || address.starts_with("valkeys:");
        let client = match authority {
            Some(_) if !is_tls => return Err("--queue-ca is for rediss://".into()),
            Some(file) => {
                // The library would take a file without a certificate for one that trusts nobody.
                super::tls::client(Some(file))?;
                let root = std::fs::read(file)
                    .map_err(|error| format!("--queue-ca {}: {error}", file.display()))?;
                let tls = TlsCertificates { client_tls: None, root_cert: Some(root) };
                Client::build_with_tls(address, tls).map_err(sentence)?
            }
            None => Client::open(address).map_err(sentence)?,
        };
        crate::listen::use_ring();
        let this = Self { client, idle: Mutex::default() };
        let said = this.ask(|connection| {
            redis::cmd("PING").query::<String>(connection)?;
            // Not everybody may ask for it.
            let ask = redis::cmd("CONFIG").arg("GET").arg("append*").query(connection);
            Ok(ask.unwrap_or_default())
        });
        let said: HashMap<String, String> = said.map_err(|error| format!("--queue: {error}"))?;
        match (said.get("appendonly").map(String::as_str), said.get("appendfsync")) {
            (Some("no"), _) => tracing::warn!(
                "this Redis keeps no file of what it is told (appendonly no): when it ends, jobs are lost"
            ),
            (Some(_), Some(sync)) if sync != "always" => tracing::warn!(
                "this Redis syncs its file with appendfsync {sync}: when its machine ends, the jobs of the \
                 last moments are lost or run again; always keeps them"
            ),
            _ => (),
        }
        Ok(this)
    }

    fn connect(&self) -> RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(CONNECTING)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// Asks something, on a connection that nobody else has in this moment.
    fn ask<T>(&self, question: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T> {
        let lock = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let answer = kept.map_or_else(|| self.connect(), Ok).and_then(|mut connection| {
            let answer = question(&mut connection)?;
            let mut idle = lock();
            if idle.len() < KEPT {
                idle.push(connection);
            }
            Ok(answer)
        });
        if answer.is_err() {
            // The others are likely to be of before, too.
            lock().clear();
        }
        answer.map_err(|error| wrong(&error))
    }

    fn finish_as(&self, id: &str, token: &str, how: &Finished, most: u64) -> Result<bool> {
        let (outputs, messages) = (how.outputs.to_string(), how.messages.to_string());
        let error = how.error.as_ref().map(Json::to_string).unwrap_or_default();
        let mut ready = scripts::FINISH.prepare_invoke();
        ready.arg(id).arg(token).arg(how.state as i64);
        ready.arg(outputs).arg(messages).arg(error).arg(most);
        ready.arg(format!("msg_{}", Uuid::new_v4().simple())).arg(told(id, how));
        Ok(self.ask(|connection| ready.invoke::<i64>(connection))? == 1)
    }

    /// Redis's own clock, in milliseconds since 1970.
    fn now(connection: &mut Connection) -> RedisResult<i64> {
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query(connection)?;
        Ok(seconds * 1000 + micros / 1000)
    }
}

fn of_asset(id: &str, text: &str) -> Option<Asset> {
    let asset: Json = serde_json::from_str(text).ok()?;
    let part = |name: &str| asset[name].as_str().map(str::to_owned);
    Some(Asset {
        id: id.to_owned(),
        hash: part("hash")?,
        size: asset["size"].as_u64()?,
        content_type: part("content_type")?,
        file_path: part("file_path")?,
        name: part("name")?,
        owned: asset["owned"].as_bool()?,
        created: asset["created"].as_i64()?,
    })
}

impl Engine for Redis {
    fn is_shared(&self) -> bool {
        true
    }

    fn insert(&self, jobs: &[NewJob], key: Option<&str>) -> Result<Vec<i64>> {
        let mut ready = scripts::INSERT.prepare_invoke();
        ready.arg(key.unwrap_or_default()).arg(PASSES).arg(MOST_KEYS);
        for job in jobs {
            let optional = |text: &Option<String>| text.clone().unwrap_or_default();
            let priority = job.priority.map(|priority| priority.to_string()).unwrap_or_default();
            let fields: [String; scripts::FIELDS] = [
                job.id.clone(),
                job.number.to_string(),
                optional(&job.client),
                job.prompt.clone(),
                job.extra.clone(),
                json!(job.targets).to_string(),
                optional(&job.workflow_id),
                optional(&job.metadata),
                priority,
                job.needs.kind.clone(),
                job.needs.text.clone(),
                json!(job.needs.models).to_string(),
                optional(&job.webhook),
            ];
            ready.arg(&fields[..]);
        }
        let answer: Vec<String> = self.ask(|connection| ready.invoke(connection))?;
        match answer.split_first() {
            Some((word, rest)) if word == "added" => {
                Ok(rest.iter().filter_map(|seq| seq.parse().ok()).collect())
            }
            Some((word, rest)) if word == "taken" => Err(StoreError::Taken(rest.concat())),
            Some((_, rest)) => Err(StoreError::KeyUsed(rest.concat())),
            None => Err(StoreError::Engine("Redis: it answers nothing".into())),
        }
    }

    fn next_number(&self, front: bool) -> Result<f64> {
        let number: i64 =
            self.ask(|connection| redis::cmd("INCR").arg(key("number")).query(connection))?;
        let number = (number - 1) as f64;
        Ok(if front { -number } else { number })
    }

    fn window(&self, unfit: &[String]) -> Result<Window> {
        let names = ["id", "number", "kind", "models", "due"];
        let candidate = |job: &read::Fields| {
            Some(Candidate {
                id: job[0].clone()?,
                number: job[1].as_deref()?.parse().ok()?,
                kind: job[2].clone()?,
                models: serde_json::from_str(job[3].as_deref()?).unwrap_or_default(),
                due: whole(&job[4])?,
            })
        };
        self.ask(|connection| {
            let claims: Option<i64> = redis::cmd("GET").arg(key("claims")).query(connection)?;
            let mut candidates = Vec::new();
            for page in 0..PAGES {
                let (first, last) = (page * SEEN, (page + 1) * SEEN - 1);
                let mut command = redis::cmd("ZRANGE");
                let waiting: Vec<String> =
                    command.arg(key("waiting")).arg(first).arg(last).query(connection)?;
                let jobs = fields(connection, &ids_of(&waiting), &names)?;
                candidates.extend(
                    jobs.iter().filter_map(candidate).filter(|job| !unfit.contains(&job.kind)),
                );
                if !candidates.is_empty() || waiting.len() < SEEN as usize {
                    break;
                }
            }
            Ok(Window { claims: claims.unwrap_or(0), candidates })
        })
    }

    fn needs(&self, kind: &str) -> Result<Option<String>> {
        self.ask(|connection| redis::cmd("HGET").arg(key("kinds")).arg(kind).query(connection))
    }

    fn claim(&self, ids: &[String], worker: &Worker) -> Result<Option<Claimed>> {
        if ids.is_empty() {
            return Ok(None);
        }
        let token = Uuid::new_v4().simple().to_string();
        let lease = u64::try_from(worker.lease.as_millis()).unwrap_or(u64::MAX);
        let mut ready = scripts::CLAIM.prepare_invoke();
        ready.arg(&worker.name).arg(&token).arg(lease).arg(ids);
        let taken = self.ask(|connection| {
            let Some(id) = ready.invoke::<Option<String>>(connection)? else { return Ok(None) };
            Ok(fields(connection, &[id], &read::ENTRY)?.pop())
        })?;
        Ok(taken.and_then(|job| {
            let entry = read::entry(&job)?;
            let claim = Claim { id: entry.id.clone(), token };
            Some(Claimed { claim, client: job[8].clone(), entry })
        }))
    }

    fn renew(&self, claims: &[Claim], lease: Duration) -> Result<Vec<Standing>> {
        let mut ready = scripts::RENEW.prepare_invoke();
        ready.arg(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        for claim in claims {
            ready.arg(&claim.id).arg(&claim.token);
        }
        let standings: Vec<i64> = self.ask(|connection| ready.invoke(connection))?;
        let standing = |number: i64| match number {
            2 => Standing::Stop,
            1 => Standing::Held,
            _ => Standing::Lost,
        };
        Ok(standings.into_iter().map(standing).collect())
    }

    fn put_back(&self, claim: &Claim) -> Result<()> {
        let mut ready = scripts::PUT_BACK.prepare_invoke();
        ready.arg(&claim.id).arg(&claim.token);
        self.ask(|connection| ready.invoke(connection))
    }

    fn finish(&self, claim: &Claim, how: &Finished, most: u64) -> Result<bool> {
        self.finish_as(&claim.id, &claim.token, how, most)
    }

    fn reap(&self, most: i64) -> Result<(usize, Vec<Abandoned>)> {
        let token = Uuid::new_v4().simple().to_string();
        let mut ready = scripts::REAP.prepare_invoke();
        ready.arg(most).arg(&token);
        let answer: Vec<String> = self.ask(|connection| ready.invoke(connection))?;
        let again = answer.first().and_then(|count| count.parse().ok()).unwrap_or(0);
        let left = answer.get(1..).unwrap_or_default().chunks_exact(3);
        let abandoned = left.map(|job| Abandoned {
            claim: Claim { id: job[0].clone(), token: token.clone() },
            attempts: job[1].parse().unwrap_or(0),
            stop: job[2] == "1",
        });
        Ok((again, abandoned.collect()))
    }

    fn delete_waiting(&self, ids: Option<&[String]>) -> Result<Vec<String>> {
        if ids.is_some_and(<[String]>::is_empty) {
            return Ok(Vec::new());
        }
        let mut ready = scripts::DELETE_WAITING.prepare_invoke();
        match ids {
            Some(ids) => ready.arg(ids),
            None => ready.arg("*"),
        };
        self.ask(|connection| ready.invoke(connection))
    }

    fn end_waiting(&self, id: &str, how: &Finished, most: u64) -> Result<bool> {
        self.finish_as(id, "", how, most)
    }

    fn ask_to_stop(&self, ids: &[String]) -> Result<()> {
        let mut ready = scripts::STOP.prepare_invoke();
        ready.arg(ids);
        self.ask(|connection| ready.invoke(connection))
    }

    fn counts(&self) -> Result<Counts> {
        let (waiting, running) = self.ask(|connection| {
            redis::pipe().zcard(key("waiting")).zcard(key("running")).query(connection)
        })?;
        Ok(Counts { waiting, running })
    }

    fn waiting(&self) -> Result<Vec<Waiting>> {
        let names = ["seq", "id", "number", "client"];
        let jobs = self.ask(|connection| {
            let mut command = redis::cmd("ZRANGE");
            let all: Vec<String> = command.arg(key("waiting")).arg(0).arg(-1).query(connection)?;
            fields(connection, &ids_of(&all), &names)
        })?;
        let waiting = |job: &read::Fields| {
            let (id, client) = (job[1].clone()?, job[3].clone());
            Some(Waiting {
                seq: whole(&job[0])?,
                id,
                number: job[2].as_deref()?.parse().ok()?,
                client,
            })
        };
        Ok(jobs.iter().filter_map(waiting).collect())
    }

    fn at_work(&self) -> Result<Vec<AtWork>> {
        let (now, jobs) = self.ask(|connection| {
            let mut command = redis::cmd("ZRANGE");
            let ids: Vec<String> = command.arg(key("running")).arg(0).arg(-1).query(connection)?;
            let jobs = fields(connection, &ids, &["id", "client", "started", "stop"])?;
            Ok((Self::now(connection)?, jobs))
        })?;
        let at_work = |job: &read::Fields| {
            let since = whole(&job[2]).map_or(0, |started| now - started);
            Some(AtWork {
                id: job[0].clone()?,
                client: job[1].clone(),
                since,
                stop: job[3].is_some(),
            })
        };
        Ok(jobs.iter().filter_map(at_work).collect())
    }

    fn position(&self, id: &str) -> Result<Option<usize>> {
        self.ask(|connection| {
            let job = fields(connection, &[id.to_owned()], &["seq"])?;
            let Some(seq) = job.first().and_then(|job| whole(&job[0])) else { return Ok(None) };
            let name = format!("{seq:016}:{id}");
            let rank: Option<usize> =
                redis::cmd("ZRANK").arg(key("waiting")).arg(name).query(connection)?;
            Ok(rank.map(|rank| rank + 1))
        })
    }

    fn ended(&self, after: Option<i64>) -> Result<Vec<Ended>> {
        let names = ["finished", "id", "client", "state", "messages", "ended"];
        let mut command = redis::cmd("ZRANGE");
        match after {
            Some(after) => {
                let after = format!("({after}");
                command.arg(key("done")).arg(after).arg("+inf").arg("BYSCORE");
                command.arg("LIMIT").arg(0).arg(1000)
            }
            None => command.arg(key("done")).arg(-1).arg(-1),
        };
        let (now, jobs) = self.ask(|connection| {
            let ids: Vec<String> = command.query(connection)?;
            let jobs = fields(connection, &ids, &names)?;
            let now = if jobs.is_empty() { 0 } else { Self::now(connection)? };
            Ok((now, jobs))
        })?;
        let ended = |job: &read::Fields| {
            Some(Ended {
                finished: whole(&job[0])?,
                id: job[1].clone()?,
                client: job[2].clone(),
                state: State::of_number(whole(&job[3])?),
                messages: job[4].clone().unwrap_or_else(|| "[]".into()),
                ago: now - whole(&job[5])?,
            })
        };
        Ok(jobs.iter().filter_map(ended).collect())
    }

    fn queue(&self) -> Result<String> {
        read::queue(self)
    }

    fn history(&self, range: HistoryRange) -> Result<Vec<Entry>> {
        read::history(self, range)
    }

    fn finished(&self, id: &str) -> Result<Option<Entry>> {
        Ok(read::job(self, id)?.filter(|job| job.state >= State::Completed))
    }

    fn job(&self, id: &str) -> Result<Option<Entry>> {
        read::job(self, id)
    }

    fn forget(&self, ids: Option<&[String]>) -> Result<()> {
        let mut ready = scripts::FORGET.prepare_invoke();
        match ids {
            Some(ids) => ready.arg(ids),
            None => ready.arg("*"),
        };
        self.ask(|connection| ready.invoke(connection))
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

    fn setting(&self, name: &str) -> Result<Option<Json>> {
        let text: Option<String> = self.ask(|connection| {
            redis::cmd("HGET").arg(key("settings")).arg(name).query(connection)
        })?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn settings(&self) -> Result<Map<String, Json>> {
        let all: Vec<(String, String)> =
            self.ask(|connection| redis::cmd("HGETALL").arg(key("settings")).query(connection))?;
        let value = |text: String| serde_json::from_str(&text).unwrap_or_default();
        Ok(all.into_iter().map(|(name, text)| (name, value(text))).collect())
    }

    fn set(&self, settings: &Map<String, Json>) -> Result<()> {
        if settings.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("HSET");
        command.arg(key("settings"));
        for (name, value) in settings {
            command.arg(name).arg(value.to_string());
        }
        self.ask(|connection| command.query::<i64>(connection)).map(drop)
    }

    fn asset(&self, id: &str) -> Result<Option<Asset>> {
        let text: Option<String> =
            self.ask(|connection| redis::cmd("HGET").arg(key("assets")).arg(id).query(connection))?;
        Ok(text.and_then(|text| of_asset(id, &text)))
    }

    fn asset_of_hash(&self, hash: &str) -> Result<Option<Asset>> {
        let id: Option<String> = self
            .ask(|connection| redis::cmd("HGET").arg(key("hashes")).arg(hash).query(connection))?;
        id.map_or(Ok(None), |id| self.asset(&id))
    }

    fn add_asset(&self, new: Asset) -> Result<Asset> {
        let text = json!({"hash": new.hash, "size": new.size, "content_type": new.content_type,
            "file_path": new.file_path, "name": new.name, "owned": new.owned, "created": new.created});
        let mut ready = scripts::ADD_ASSET.prepare_invoke();
        ready.arg(&new.id).arg(&new.hash).arg(text.to_string());
        let id: String = self.ask(|connection| ready.invoke(connection))?;
        Ok(Asset { id, ..new })
    }

    fn remove_asset(&self, id: &str) -> Result<()> {
        let mut ready = scripts::REMOVE_ASSET.prepare_invoke();
        ready.arg(id);
        self.ask(|connection| ready.invoke(connection))
    }

    fn take_deliveries(&self, most: usize, hold: Duration) -> Result<Vec<Delivery>> {
        deliveries::take(self, most, hold)
    }

    fn settle_delivery(&self, id: &str, again: Option<Duration>) -> Result<()> {
        deliveries::settle(self, id, again)
    }

    fn deliveries(&self) -> Result<usize> {
        self.ask(|connection| redis::cmd("ZCARD").arg(key("deliveries")).query(connection))
    }

    fn announce(&self, worker: &str, about: &str, stays: Duration) -> Result<()> {
        deliveries::announce(self, worker, about, stays)
    }

    fn retire(&self, worker: &str) -> Result<()> {
        let mut ready = scripts::RETIRE.prepare_invoke();
        ready.arg(worker);
        self.ask(|connection| ready.invoke(connection))
    }

    fn workers(&self) -> Result<Vec<Announced>> {
        deliveries::workers(self)
    }

    fn publish(&self, bulletins: &[Bulletin]) -> Result<()> {
        if bulletins.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for bulletin in bulletins {
            // Plain data always has a text.
            let text = serde_json::to_string(bulletin).unwrap_or_default();
            pipe.cmd("PUBLISH").arg(key("bulletins")).arg(text).ignore();
        }
        self.ask(|connection| pipe.query(connection))
    }

    fn listen(&self, mut hear: Hear) -> Result<()> {
        let client = self.client.clone();
        let listen = move || {
            loop {
                if let Err(error) = hear_until_silent(&client, &mut hear) {
                    tracing::warn!("the queue is not heard: {error}");
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
        };
        let spawned = std::thread::Builder::new().name("listener".into()).spawn(listen);
        let sentence = |error| StoreError::Engine(format!("no thread can be started: {error}"));
        spawned.map(drop).map_err(sentence)
    }
}

fn hear_until_silent(client: &Client, hear: &mut Hear) -> RedisResult<()> {
    let mut connection = client.get_connection_with_timeout(CONNECTING)?;
    let mut listener = connection.as_pubsub();
    listener.set_read_timeout(Some(SILENCE))?;
    listener.subscribe(key("bulletins"))?;
    // From here on nothing is missed; what was told before is looked for.
    hear(None);
    loop {
        let message = match listener.get_message() {
            Ok(message) => message,
            Err(error) if error.is_timeout() => return Ok(()),
            Err(error) => return Err(error),
        };
        // One of a newer version that this one does not know is passed over.
        let payload: Vec<u8> = message.get_payload()?;
        if let Ok(bulletin) = serde_json::from_slice(&payload) {
            hear(Some(bulletin));
        }
    }
}
