//! `--memory-budget`: what objects hold and what is kept of results is held under a bound.
//!
//! A loader's object may take no memory until it is used, and may give it back and read it again:
//! "memory/1" says how much it holds and lets it go, "describe/1" says as "bytes" what it holds when
//! all of it is there. Before a step the host asks the objects that live results hold, and lets go of
//! those that this step does not use, the least recently used first, until what is held and what the
//! step's own objects still have to read fit. What was let go is read again when it is used next: a
//! model that the page cache still has costs a copy, not a disk.
//!
//! What a step works in beside that, the host cannot know. A node that can do with less asks how much there is ("room:BYTES"
//! of node.h), and for that the host lets go of every model that the step does not use.
//!
//! Results that are kept for later runs count as well, their tensors by their bytes, and are dropped in the
//! same order: what was not used for longest goes first, be it a model or a picture. What the run itself
//! still needs stays.

use super::kept::Kept;
use crate::plan::Key;
use crate::plugin::{Call, call_interface, input, offers};
use crate::value::Value;
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::str::FromStr;

const INTERFACE: &str = "memory/1";

/// How many bytes objects and results may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Bytes(u64),
    /// Of the memory of this machine, or of the container the program runs in.
    Percent(u64),
}

impl Budget {
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                let mut system = sysinfo::System::new();
                system.refresh_memory();
                let limit = system.cgroup_limits().map(|limits| limits.total_memory);
                let all = system.total_memory().min(limit.unwrap_or(u64::MAX));
                all / 100 * percent
            }
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    /// A number and a unit: `B`, `K`, `M`, `G`, `T` and `KiB` … are powers of 1024, `kB`, `MB` … of
    /// 1000, `%` is of all there is.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "a budget is a number and a unit, 6G, 6GiB, 6.5GB (of 1000) or 75% of the memory there is"
                .to_owned()
        };
        let text = text.trim();
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim().to_ascii_lowercase();
        if unit == "%" {
            let percent = number.round();
            return match (1.0..=100.0).contains(&percent) {
                true => Ok(Self::Percent(percent as u64)),
                false => Err(format!("{text} of the memory there is cannot be had")),
            };
        }
        let (letter, rest) = unit.split_at(unit.chars().next().map_or(0, char::len_utf8));
        let power = match letter {
            "" | "b" if rest.is_empty() => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(wrong()),
        };
        let base: f64 = match rest {
            "" | "i" | "ib" => 1024.0,
            "b" => 1000.0,
            _ => return Err(wrong()),
        };
        let bytes = (number * base.powi(power)).round();
        match (1.0..9e18).contains(&bytes) {
            true => Ok(Self::Bytes(bytes as u64)),
            false => Err(format!("{text} is not an amount of memory")),
        }
    }
}

/// What is known of the objects, and was said.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// When each object that is alive was last used, by its identity.
    used: HashMap<usize, u64>,
    /// Sentences that were said already.
    said: HashSet<String>,
}

/// An object that holds memory.
struct Holder<'a> {
    object: &'a Value,
    identity: usize,
    held: u64,
}

/// What can be let go of.
enum Idle<'a> {
    Object(&'a Holder<'a>),
    Result(Key, Vec<usize>),
}

/// What came of making room.
#[derive(Default)]
pub(super) struct Room {
    /// The results to drop.
    pub drop: Vec<Key>,
    /// How many models were let go.
    pub models: u64,
    /// What they and the results held, in bytes.
    pub bytes: u64,
    /// Where not enough room could be made, a sentence; once for each.
    pub warning: Option<String>,
    /// What the step may ask for while it runs.
    pub work: Work,
}

/// The memory that a step works in beside what objects and results hold.
#[derive(Default)]
pub(super) struct Work {
    budget: u64,
    of_step: Vec<Value>,
    idle: Vec<Value>,
    of_results: u64,
}

impl Work {
    /// How many bytes there are for the step. Where it wants some, every idle model is let go first: it is read again from the page
    /// cache, in a small part of the time that such work takes.
    pub fn room(&self, wanted: u64, call: &dyn Call) -> u64 {
        let held = |objects: &[Value], purge| {
            let held = objects.iter().map(|object| bytes(object, purge, call).unwrap_or(0));
            held.fold(0, u64::saturating_add)
        };
        let idle = held(&self.idle, wanted > 0);
        let taken = held(&self.of_step, false).saturating_add(idle).saturating_add(self.of_results);
        self.budget.saturating_sub(taken)
    }
}

impl Memory {
    /// Makes room for a step with these `inputs` among the values that the run still needs and the results that are `kept`, as far
    /// as it can be made.
    ///
    /// Where all fits, what this takes grows with the step's inputs, the run's values and the objects, and not with what is kept.
    pub fn make_room<'a>(
        &mut self,
        budget: u64,
        inputs: &'a [Value],
        live: impl Iterator<Item = &'a Value> + Clone,
        kept: &'a mut Kept,
        call: &dyn Call,
    ) -> Room {
        let now = kept.tick();
        let kept = &*kept;
        let needed: Vec<Holder> = holders(inputs.iter(), call);
        let of_step: HashSet<usize> = needed.iter().map(|holder| holder.identity).collect();
        let all = holders(inputs.iter().chain(live.clone()).chain(kept.objects()), call);
        let alive: HashSet<usize> = all.iter().map(|holder| holder.identity).collect();
        self.used.retain(|identity, _| alive.contains(identity));
        for holder in &all {
            let used = self.used.entry(holder.identity).or_insert(now);
            if of_step.contains(&holder.identity) {
                *used = now;
            }
        }
        // What the step's objects hold when they are whole, and have not read yet.
        let to_come = |holder: &Holder| whole(holder, call).saturating_sub(holder.held);
        let to_come = needed.iter().map(to_come).fold(0, u64::saturating_add);
        let mut of_objects =
            all.iter().map(|holder| holder.held).fold(to_come, u64::saturating_add);
        let mut of_results = kept.bytes();
        let mut room = Room::default();
        if of_objects.saturating_add(of_results) > budget {
            let of_run: HashSet<usize> =
                tensors(inputs.iter().chain(live)).map(|(identity, _)| identity).collect();
            let is_idle = |holder: &&Holder| holder.held > 0 && !of_step.contains(&holder.identity);
            let objects = all.iter().filter(is_idle).map(|holder| {
                let used = self.used.get(&holder.identity).copied().unwrap_or(0);
                (used, Idle::Object(holder))
            });
            let results = kept.by_result().filter_map(|(key, used, tensors)| {
                let is_idle = |identity: &&usize| !of_run.contains(identity);
                let own: Vec<usize> = tensors.iter().filter(is_idle).copied().collect();
                (!own.is_empty()).then_some((used, Idle::Result(key, own)))
            });
            let mut idle: Vec<(u64, Idle)> = results.chain(objects).collect();
            idle.sort_by_key(|(used, _)| *used);
            // How many of the results that stay hold each tensor, of those that one was dropped of.
            let mut left: HashMap<usize, usize> = HashMap::new();
            for (_, idle) in idle {
                if of_objects.saturating_add(of_results) <= budget {
                    break;
                }
                match idle {
                    Idle::Object(holder) => {
                        // One that does not let go, or fails at it, holds what it held.
                        let left = bytes(holder.object, true, call).unwrap_or(holder.held);
                        of_objects = of_objects.saturating_sub(holder.held).saturating_add(left);
                        room.models += u64::from(left < holder.held);
                        room.bytes += holder.held.saturating_sub(left);
                        tracing::debug!(
                            was = holder.held,
                            left,
                            "let go of an object to make room"
                        );
                    }
                    Idle::Result(key, own) => {
                        for identity in own {
                            let Some(&(count, bytes)) = kept.tensors().get(&identity) else {
                                continue;
                            };
                            let left = left.entry(identity).or_insert(count);
                            *left = left.saturating_sub(1);
                            let freed = if *left == 0 { bytes } else { 0 };
                            of_results = of_results.saturating_sub(freed);
                            room.bytes += freed;
                        }
                        tracing::debug!(?key, "dropped a result to make room");
                        room.drop.push(key);
                    }
                }
            }
        }
        let objects = |of_the_step: bool| {
            let is_wanted = |holder: &&Holder| of_step.contains(&holder.identity) == of_the_step;
            all.iter().filter(is_wanted).map(|holder| holder.object.clone()).collect()
        };
        room.work = Work { budget, of_step: objects(true), idle: objects(false), of_results };
        if of_objects > budget {
            let sentence = format!(
                "the models that this step uses and what cannot be let go take {}, more than the \
                 memory budget of {}; it goes on with more",
                shown(of_objects),
                shown(budget)
            );
            room.warning = self.said.insert(sentence.clone()).then_some(sentence);
        }
        room
    }
}

/// Each value that has an identity in `values`, and in the lists and maps there; each once.
pub(super) fn walk<'a>(
    values: impl Iterator<Item = &'a Value>,
) -> impl Iterator<Item = (usize, &'a Value)> {
    let mut seen = HashSet::new();
    let mut open: Vec<&Value> = values.collect();
    std::iter::from_fn(move || {
        while let Some(value) = open.pop() {
            if let Some(identity) = value.identity().filter(|&identity| seen.insert(identity)) {
                open.extend(value.items());
                open.extend(value.pairs().map(|(_, value)| value));
                return Some((identity, value));
            }
        }
        None
    })
}

/// Each tensor in `values`, and in the lists and maps there, with its bytes; each once.
pub(super) fn tensors<'a>(
    values: impl Iterator<Item = &'a Value>,
) -> impl Iterator<Item = (usize, u64)> {
    walk(values).filter_map(|(identity, value)| Some((identity, value.as_tensor()?.bytes() as u64)))
}

/// Whether `value` is an object that says what it holds.
pub(super) fn offers_memory(value: &Value) -> bool {
    offers(value, INTERFACE)
}

/// Each object in `values`, and in the lists and maps there, that says what it holds.
fn holders<'a>(values: impl Iterator<Item = &'a Value>, call: &dyn Call) -> Vec<Holder<'a>> {
    walk(values)
        .filter(|(_, value)| offers_memory(value))
        .map(|(identity, object)| {
            let held = bytes(object, false, call).unwrap_or(0);
            Holder { object, identity, held }
        })
        .collect()
}

/// The bytes that an object holds, after it let go of what it can have again if `purge`.
fn bytes(object: &Value, purge: bool, call: &dyn Call) -> Option<u64> {
    let asked = input([("purge", Value::boolean(purge))]);
    let answer = call_interface(object, INTERFACE, call, &asked);
    let answer = answer.inspect_err(|error| tracing::warn!("\"{INTERFACE}\": {error}")).ok()?;
    answer.get("bytes")?.as_i64().map(|bytes| u64::try_from(bytes).unwrap_or(0))
}

/// The bytes of an object when all of it is there, as far as it says.
fn whole(holder: &Holder, call: &dyn Call) -> u64 {
    let describe = || {
        let answer = call_interface(holder.object, "describe/1", call, &input([])).ok()?;
        let json: Json = serde_json::from_str(answer.get("description")?.as_str()?).ok()?;
        json.get("bytes")?.as_u64()
    };
    describe().unwrap_or(holder.held)
}

/// An amount of memory, for a sentence.
fn shown(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{bytes} B"),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests;
