//! What waits and what runs, in memory: the order in which workers take jobs, and how each is stopped.
//!
//! The store says the same, and says it first.

use crate::engine::{AtWork, Claim, Claimed};
use crate::message::{NodeStates, Preview, Progress};
use crate::store::{Entry, Waiting};
use serde_json::{Map, Value as Json};
use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why a running job was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Somebody asked for it.
    Asked,
    /// It took longer than jobs may.
    TookTooLong,
    /// The server ends; the job is run again when it is back.
    ServerEnds,
    /// Another worker has the job by now, or it is gone.
    Overtaken,
}

/// What those who watch a job were told last.
#[derive(Debug)]
pub struct Live {
    /// The node at work.
    pub node: Option<String>,
    /// What `progress_state` says, and when it was said last.
    pub states: NodeStates,
    pub sent: Instant,
    /// Until when that counts as much.
    pub full_until: Instant,
    /// Whether it says anything new by now.
    pub is_news: bool,
    pub progress: Progress,
    /// The outputs so far, by node.
    pub outputs: Map<String, Json>,
    /// The last picture of what is being made, and the how manieth it is.
    pub preview: Option<(u64, Arc<Preview>)>,
}

/// A job at work.
#[derive(Debug)]
pub struct Running {
    pub id: String,
    pub client: Option<String>,
    pub since: Instant,
    /// What ends it.
    pub claim: Claim,
    /// What it is, where that was read when it was taken.
    entry: Mutex<Option<Entry>>,
    /// Set when it is to stop.
    pub cancel: AtomicBool,
    why: Mutex<Option<Why>>,
    pub live: Mutex<Live>,
}

impl Running {
    fn new(job: Waiting) -> Self {
        let Waiting { id, client, .. } = job;
        let claim = Claim { id, token: String::new() };
        Self::with(claim, client, None)
    }

    fn with(claim: Claim, client: Option<String>, entry: Option<Entry>) -> Self {
        let (id, now) = (claim.id.clone(), Instant::now());
        let live = Mutex::new(Live {
            node: None,
            states: NodeStates::default(),
            sent: now,
            full_until: now,
            is_news: false,
            progress: Progress::default(),
            outputs: Map::new(),
            preview: None,
        });
        let (cancel, why) = (AtomicBool::new(false), Mutex::new(None));
        Self { id, client, since: now, claim, entry: Mutex::new(entry), cancel, why, live }
    }

    /// Has it stop; the first reason stays.
    pub fn stop(&self, why: Why) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.cancel.store(true, Ordering::SeqCst);
    }

    /// What it is, once, where that was read when it was taken.
    pub fn take_entry(&self) -> Option<Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn why(&self) -> Option<Why> {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's place: smaller numbers first, then the older ones.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    number: f64,
    seq: i64,
}

impl Eq for Place {}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Order {
        self.number.total_cmp(&other.number).then(self.seq.cmp(&other.seq))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

#[derive(Default)]
struct Inside {
    waiting: BTreeMap<Place, Waiting>,
    places: HashMap<String, Place>,
    running: Vec<Arc<Running>>,
    /// Places that were promised to jobs on their way through the store.
    promised: usize,
    /// The next number of a job that brings none.
    counter: f64,
    /// For each worker, whether it is to let go of what it keeps.
    free: Vec<bool>,
    stopped: bool,
    /// How many wait in a queue that is kept elsewhere.
    elsewhere: usize,
    /// That queue cannot be seen now.
    blind: bool,
    /// How often somebody woke those who wait.
    woken: u64,
}

impl Inside {
    fn remaining(&self) -> usize {
        self.waiting.len() + self.elsewhere + self.running.len()
    }
}

/// What a worker does next.
pub enum Next {
    Job(Arc<Running>),
    /// Let go of models and results.
    Free,
    Stop,
}

/// See the module.
pub struct Queue {
    inside: Mutex<Inside>,
    wake: Condvar,
    limit: usize,
}

impl Queue {
    /// A queue of `limit` jobs at most for `workers` workers; `last` is the largest number given so far.
    pub fn new(limit: usize, workers: usize, last: f64, waiting: Vec<Waiting>) -> Self {
        let (free, counter) = (vec![false; workers], last + 1.0);
        let inside = Mutex::new(Inside { free, counter, ..Inside::default() });
        let this = Self { inside, wake: Condvar::new(), limit };
        this.lock().promised = waiting.len();
        this.push(waiting, |_| ());
        this
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many jobs may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Promises room for `count` jobs; false where there is none.
    pub fn promise(&self, count: usize) -> bool {
        let mut inside = self.lock();
        let there_is = inside.waiting.len() + inside.promised + count <= self.limit;
        inside.promised += if there_is { count } else { 0 };
        there_is
    }

    /// Takes back a promise.
    pub fn release(&self, count: usize) {
        let mut inside = self.lock();
        inside.promised = inside.promised.saturating_sub(count);
    }

    /// The number of a job that brings none; negative with `front`.
    pub fn next_number(&self, front: bool) -> f64 {
        let mut inside = self.lock();
        let number = inside.counter;
        inside.counter += 1.0;
        if front { -number } else { number }
    }

    /// Adds jobs that were promised room. `tell` hears how many there are to do now, before one of them can
    /// begin: clients expect to be told in this order.
    pub fn push(&self, jobs: Vec<Waiting>, tell: impl FnOnce(usize)) {
        let mut inside = self.lock();
        inside.promised = inside.promised.saturating_sub(jobs.len());
        for job in jobs {
            let place = Place { number: job.number, seq: job.seq };
            inside.places.insert(job.id.clone(), place);
            inside.waiting.insert(place, job);
        }
        tell(inside.waiting.len() + inside.running.len());
        self.wake.notify_all();
    }

    /// What `worker` does next; waits until there is something.
    pub fn take(&self, worker: usize) -> Next {
        let mut inside = self.lock();
        loop {
            if inside.stopped {
                return Next::Stop;
            }
            if std::mem::take(&mut inside.free[worker]) {
                return Next::Free;
            }
            if let Some((_, job)) = inside.waiting.pop_first() {
                inside.places.remove(&job.id);
                let running = Arc::new(Running::new(job));
                inside.running.push(running.clone());
                return Next::Job(running);
            }
            inside = self.wake.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job does not run any more.
    pub fn done(&self, job: &Running) {
        // Not by its id: one that was put back may run again by now.
        self.lock().running.retain(|running| !std::ptr::eq(&**running, job));
    }

    /// Takes jobs that wait out of it, those of `ids` or all; returns their ids.
    pub fn remove(&self, ids: Option<&[String]>) -> Vec<String> {
        let mut inside = self.lock();
        match ids {
            None => {
                inside.places.clear();
                std::mem::take(&mut inside.waiting).into_values().map(|job| job.id).collect()
            }
            Some(ids) => {
                let mut removed = Vec::new();
                for id in ids {
                    if let Some(place) = inside.places.remove(id) {
                        inside.waiting.remove(&place);
                        removed.push(id.clone());
                    }
                }
                removed
            }
        }
    }

    pub fn running(&self) -> Vec<Arc<Running>> {
        self.lock().running.clone()
    }

    /// The one of this id that runs.
    pub fn running_job(&self, id: &str) -> Option<Arc<Running>> {
        self.lock().running.iter().find(|running| running.id == id).cloned()
    }

    /// How many jobs there are up to the one of this id, which waits: 1 is next.
    pub fn position(&self, id: &str) -> Option<usize> {
        let inside = self.lock();
        let place = inside.places.get(id)?;
        Some(inside.waiting.range(..=place).count())
    }

    pub fn waiting(&self) -> usize {
        let inside = self.lock();
        inside.waiting.len() + inside.elsewhere
    }

    /// Waiting and running together.
    pub fn remaining(&self) -> usize {
        let inside = self.lock();
        inside.remaining()
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        let inside = self.lock();
        !inside.blind && inside.waiting.len() + inside.elsewhere + inside.promised < self.limit
    }

    /// Has every worker let go of what it keeps, between jobs.
    pub fn free(&self) {
        let mut inside = self.lock();
        inside.free.fill(true);
        inside.woken += 1;
        drop(inside);
        self.wake.notify_all();
    }

    /// What `worker` is to do before it takes a job from a queue that is kept elsewhere.
    pub fn asked(&self, worker: usize) -> Option<Next> {
        let mut inside = self.lock();
        if inside.stopped {
            return Some(Next::Stop);
        }
        std::mem::take(&mut inside.free[worker]).then_some(Next::Free)
    }

    /// A job that was taken from there runs here.
    pub fn begin(&self, claimed: Claimed) -> Arc<Running> {
        let Claimed { claim, client, entry } = claimed;
        let running = Arc::new(Running::with(claim, client, Some(entry)));
        self.lock().running.push(running.clone());
        running
    }

    /// What [`Self::wait`] compares with.
    pub fn seen(&self) -> u64 {
        self.lock().woken
    }

    /// Waits until somebody wakes those who wait, or did since `seen`; not longer than this.
    pub fn wait(&self, seen: u64, most: Duration) {
        let inside = self.lock();
        let is_quiet = |inside: &mut Inside| inside.woken == seen && !inside.stopped;
        drop(self.wake.wait_timeout_while(inside, most, is_quiet));
    }

    /// There may be a job by now.
    pub fn wake(&self) {
        self.lock().woken += 1;
        self.wake.notify_all();
    }

    /// Takes over what a queue that is kept elsewhere has; whether there is more or less to do than before.
    pub fn mirror(&self, waiting: usize, at_work: &[AtWork]) -> bool {
        let mut inside = self.lock();
        let before = inside.remaining();
        inside.elsewhere = waiting;
        inside.running.retain(|job| at_work.iter().any(|other| other.id == job.id));
        for job in at_work {
            let known = inside.running.iter().find(|running| running.id == job.id).cloned();
            let running = known.unwrap_or_else(|| {
                let claim = Claim { id: job.id.clone(), token: String::new() };
                let mut running = Running::with(claim, job.client.clone(), None);
                let since = Duration::from_millis(u64::try_from(job.since).unwrap_or(0));
                running.since = running.since.checked_sub(since).unwrap_or(running.since);
                let running = Arc::new(running);
                inside.running.push(running.clone());
                running
            });
            if job.stop {
                running.stop(Why::Asked);
            }
        }
        inside.remaining() != before
    }

    /// The job of this id that runs elsewhere; it is noted where nobody has told of it yet.
    pub fn at_work_elsewhere(&self, id: &str, client: Option<String>) -> Arc<Running> {
        let mut inside = self.lock();
        if let Some(running) = inside.running.iter().find(|running| running.id == id) {
            return running.clone();
        }
        let claim = Claim { id: id.to_owned(), token: String::new() };
        let running = Arc::new(Running::with(claim, client, None));
        inside.running.push(running.clone());
        running
    }

    /// A job that ran elsewhere ended.
    pub fn forget(&self, id: &str) {
        self.lock().running.retain(|running| running.id != id);
    }

    /// Whether the queue that is kept elsewhere cannot be seen.
    pub fn lost_sight(&self, blind: bool) {
        self.lock().blind = blind;
    }

    /// No worker takes another job.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(seq: i64, number: f64) -> Waiting {
        Waiting { seq, id: seq.to_string(), number, client: None }
    }

    fn next(queue: &Queue) -> String {
        match queue.take(0) {
            Next::Job(job) => job.id.clone(),
            Next::Free => "free".into(),
            Next::Stop => "stop".into(),
        }
    }

    #[test]
    fn small_numbers_first_then_the_older_ones() {
        let queue =
            Queue::new(9, 1, 4.0, vec![job(1, 1.0), job(2, 0.0), job(3, 0.0), job(4, -7.5)]);
        assert_eq!((queue.next_number(false), queue.next_number(true)), (5.0, -6.0));
        let taken = [next(&queue), next(&queue), next(&queue)];
        assert_eq!(taken, ["4", "2", "3"]);
        assert_eq!((queue.waiting(), queue.remaining()), (1, 4));
        assert_eq!((queue.position("1"), queue.position("2")), (Some(1), None));
        assert!(queue.running_job("2").is_some() && queue.running_job("1").is_none());
        let running = queue.running();
        queue.done(&running[0]);
        assert_eq!(queue.remaining(), 3);
        assert_eq!(queue.remove(Some(&["1".into(), "2".into()])), ["1"], "what runs stays");
        queue.free();
        queue.stop();
        assert_eq!(next(&queue), "stop");
    }

    #[test]
    fn room_is_promised_once() {
        let queue = Queue::new(2, 1, -1.0, vec![]);
        assert!(queue.promise(1) && queue.promise(1) && !queue.promise(1));
        queue.push(vec![job(1, 0.0)], |remaining| assert_eq!(remaining, 1));
        assert!(!queue.promise(1));
        queue.release(1);
        assert!(queue.has_room() && queue.promise(1));
        assert_eq!(queue.remove(None), ["1"]);
    }

    #[test]
    fn the_first_reason_to_stop_stays() {
        let running = Running::new(job(1, 0.0));
        running.stop(Why::TookTooLong);
        running.stop(Why::Asked);
        assert_eq!(running.why(), Some(Why::TookTooLong));
    }
}
