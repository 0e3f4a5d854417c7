//! A thousand workers and a hundred thousand jobs in virtual time, with the placement that workers use and without:
//!
//!     cargo run --release -p kosmograph-server --example placement
//!
//! Jobs come as by chance (exponential gaps), each of one of 200 models, of which few are asked for often (by
//! Zipf's law). A worker holds the two models that it used last; a job takes 8 s, and 24 s more where its model
//! must be read. `load` is how much of the workers' time the jobs alone would take. When a job comes, any worker
//! that is idle may be the first to ask, as with real ones. Equal runs give equal figures.

#[path = "../src/placement.rs"]
#[allow(dead_code)]
mod placement;

use placement::{Candidate, PASSES, rank};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};

const WORKERS: usize = 1000;
const JOBS: usize = 100_000;
const MODELS: usize = 200;
const HELD: usize = 2;
/// As an engine gives them.
const WINDOW: usize = 64;
/// In milliseconds.
const WORK: u64 = 8_000;
const READING: u64 = 24_000;

/// A small generator of our own: figures must not change with a library's.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

struct Figures {
    waits: Vec<u64>,
    read: usize,
    /// The most jobs that came later and were taken sooner, of any job.
    overtaken: usize,
}

fn simulate(load: f64, places: bool) -> Figures {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let weights: Vec<f64> = (1..=MODELS).map(|rank| 1.0 / rank as f64).collect();
    let all: f64 = weights.iter().sum();
    let gap = WORK as f64 / WORKERS as f64 / load;
    let mut at = 0.0;
    let jobs: Vec<(u64, usize)> = (0..JOBS)
        .map(|_| {
            at -= gap * (1.0 - chance.next()).ln();
            let mut left = chance.next() * all;
            let model = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            (at as u64, model.unwrap_or(MODELS - 1))
        })
        .collect();
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); WORKERS];
    let mut idle: Vec<usize> = (0..WORKERS).collect();
    let mut busy: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut waiting: BTreeMap<usize, Candidate> = BTreeMap::new();
    let (mut claims, mut next) = (0i64, 0);
    let mut figures = Figures { waits: Vec::with_capacity(JOBS), read: 0, overtaken: 0 };
    let mut taken_by_seq = vec![0usize; JOBS];
    while figures.waits.len() < JOBS {
        let ends = busy.peek().map(|Reverse((time, _))| *time);
        let comes = jobs.get(next).map(|(time, _)| *time);
        let now = match (ends, comes) {
            (Some(ends), Some(comes)) => ends.min(comes),
            (ends, comes) => ends.or(comes).expect("something is left"),
        };
        while busy.peek().is_some_and(|Reverse((time, _))| *time <= now) {
            let Reverse((_, worker)) = busy.pop().expect("one");
            idle.push(worker);
        }
        while jobs.get(next).is_some_and(|(time, _)| *time <= now) {
            let due = claims + waiting.len() as i64 + PASSES;
            let models = vec![jobs[next].1.to_string()];
            let (id, kind, number) = (next.to_string(), String::new(), next as f64);
            waiting.insert(next, Candidate { id, kind, number, models, due });
            next += 1;
        }
        while !idle.is_empty() && !waiting.is_empty() {
            let worker = idle.swap_remove((chance.next() * idle.len() as f64) as usize);
            let window: Vec<Candidate> = waiting.values().take(WINDOW).cloned().collect();
            let mine: HashSet<String> = match places {
                true => held[worker].iter().map(usize::to_string).collect(),
                false => HashSet::new(),
            };
            let first = rank(&window, &mine, claims)[0];
            let seq: usize = window[first].id.parse().expect("a number");
            for older in &window[..first] {
                let older: usize = older.id.parse().expect("a number");
                taken_by_seq[older] += 1;
            }
            waiting.remove(&seq);
            claims += 1;
            figures.overtaken = figures.overtaken.max(taken_by_seq[seq]);
            let (came, model) = jobs[seq];
            figures.waits.push(now - came);
            let is_there = held[worker].contains(&model);
            held[worker].retain(|one| *one != model);
            held[worker].push(model);
            if held[worker].len() > HELD {
                held[worker].remove(0);
            }
            figures.read += usize::from(!is_there);
            let takes = WORK + if is_there { 0 } else { READING };
            busy.push(Reverse((now + takes, worker)));
        }
    }
    figures.waits.sort_unstable();
    figures
}

fn main() {
    println!(
        "| load | placement | models read | wait: median | 95 % | 99 % | longest | overtaken at most |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for load in [0.2, 0.3, 0.5, 0.8] {
        for places in [false, true] {
            let figures = simulate(load, places);
            let part = |part: f64| figures.waits[((JOBS - 1) as f64 * part) as usize] as f64 / 1e3;
            println!(
                "| {load} | {} | {:.0} % | {:.1} s | {:.1} s | {:.1} s | {:.1} s | {} |",
                if places { "with" } else { "without" },
                100.0 * figures.read as f64 / JOBS as f64,
                part(0.5),
                part(0.95),
                part(0.99),
                part(1.0),
                figures.overtaken
            );
        }
    }
}
