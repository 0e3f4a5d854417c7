//! The results that are kept for later runs, and what they hold.
//!
//! What each result holds is looked up once, when it comes to be kept. Who makes room for a step asks at every step whether what
//! is kept fits, and thousands may be.

use super::Results;
use super::memory::{offers_memory, tensors, walk};
use crate::plan::{Key, KeyMap};
use crate::value::Value;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

/// How many results are kept at most. Most are small, but a worker may live for weeks.
pub(super) const MOST_RESULTS: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Kept {
    results: KeyMap<Entry>,
    /// Each tensor in the results, by its identity: how many of them hold it, and its bytes.
    tensors: HashMap<usize, (usize, u64)>,
    /// Likewise each object that says what it holds.
    objects: HashMap<usize, (usize, Value)>,
    /// Those of all tensors, each once.
    bytes: u64,
    /// Steps and uses so far.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    results: Results,
    /// The identities of the tensors in it, each once.
    tensors: Vec<usize>,
    /// Likewise of the objects that say what they hold.
    objects: Vec<usize>,
    /// When it was last used.
    used: u64,
}

impl Kept {
    pub fn len(&self) -> usize {
        self.results.len()
    }

    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    pub fn get(&self, key: &Key) -> Option<&Results> {
        self.results.get(key).map(|entry| &entry.results)
    }

    /// Keeps `results` of `key`, which are used now, and lets go of what was not used for longest where there are too many.
    pub fn insert(&mut self, key: Key, results: Results) {
        self.remove(&key);
        self.clock += 1;
        let entry = self.entry(results, self.clock);
        self.results.insert(key, entry);
        let more = self.results.len().saturating_sub(MOST_RESULTS);
        if more > 0 {
            let mut keys: Vec<(u64, Key)> =
                self.results.iter().map(|(key, entry)| (entry.used, *key)).collect();
            keys.sort_by_key(|(used, _)| *used);
            // Some at once, so that not every step sorts.
            for (_, key) in keys.into_iter().take(more + MOST_RESULTS / 16) {
                self.remove(&key);
            }
        }
    }

    /// The result of `key` is used, where it is kept.
    pub fn used(&mut self, key: &Key) {
        self.clock += 1;
        if let Some(entry) = self.results.get_mut(key) {
            entry.used = self.clock;
        }
    }

    /// Another step begins; when that is.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.results.remove(key) {
            self.forget(&entry);
        }
    }

    pub fn clear(&mut self) {
        *self = Self { clock: self.clock, ..Self::default() };
    }

    /// Keeps of each result what `part` says, or nothing of it.
    pub fn retain(&mut self, part: impl Fn(&Key, &Results) -> Option<Results>) {
        for (key, entry) in std::mem::take(&mut self.results) {
            let rest = part(&key, &entry.results);
            // What stays is entered first: an object in it is not to be let go of in between.
            if let Some(rest) = rest {
                let rest = self.entry(rest, entry.used);
                self.results.insert(key, rest);
            }
            self.forget(&entry);
        }
    }

    /// The bytes of all tensors in the results, each once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many results hold each tensor, and its bytes, by its identity.
    pub fn tensors(&self) -> &HashMap<usize, (usize, u64)> {
        &self.tensors
    }

    /// The objects in the results that say what they hold, each once.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values().map(|(_, object)| object)
    }

    /// Of each result its key, when it was last used, and the identities of its tensors.
    pub fn by_result(&self) -> impl Iterator<Item = (Key, u64, &[usize])> {
        self.results.iter().map(|(key, entry)| (*key, entry.used, entry.tensors.as_slice()))
    }

    /// Counts what `results` hold.
    fn entry(&mut self, results: Results, used: u64) -> Entry {
        let of_tensors: Vec<(usize, u64)> = tensors(results.iter().flatten()).collect();
        for &(identity, bytes) in &of_tensors {
            let (count, _) = self.tensors.entry(identity).or_insert((0, bytes));
            if *count == 0 {
                self.bytes = self.bytes.saturating_add(bytes);
            }
            *count += 1;
        }
        let mut objects = Vec::new();
        for (identity, value) in walk(results.iter().flatten()) {
            if offers_memory(value) {
                objects.push(identity);
                self.objects.entry(identity).or_insert_with(|| (0, value.clone())).0 += 1;
            }
        }
        let tensors = of_tensors.into_iter().map(|(identity, _)| identity).collect();
        Entry { results, tensors, objects, used }
    }

    /// What `entry` holds is held by one result less.
    fn forget(&mut self, entry: &Entry) {
        for identity in &entry.tensors {
            if let Place::Occupied(mut place) = self.tensors.entry(*identity) {
                place.get_mut().0 -= 1;
                if place.get().0 == 0 {
                    self.bytes = self.bytes.saturating_sub(place.remove().1);
                }
            }
        }
        for identity in &entry.objects {
            if let Place::Occupied(mut place) = self.objects.entry(*identity) {
                place.get_mut().0 -= 1;
                if place.get().0 == 0 {
                    place.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
