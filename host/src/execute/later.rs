//! Which results the later runs of a sweep will read, known before the first one begins.

use super::{Wanted, join, links};
use crate::plan::{KeyMap, KeySet, Plan};

/// The runs of a sweep in their order, and of every result when it is there first and read last.
///
/// What any run made is taken to be kept for those behind it, so a result is computed once; and what none of them reads is let go as soon as
/// that is so: the text encoder when the last text is encoded, a U-Net when its last picture is sampled.
#[derive(Debug, Default)]
pub struct Later {
    runs: usize,
    made: KeySet,
    /// By result: the first run that has it, and for each output the last run that reads it from what is kept.
    reads: KeyMap<(usize, Vec<Option<usize>>)>,
    first: KeyMap<usize>,
    /// Results that stand for outputs which need not be made again, and the last run of which that is so.
    there: KeyMap<usize>,
}

impl Later {
    /// Adds the next run.
    pub fn add(&mut self, plan: &Plan) {
        let steps = plan.steps();
        let mut needed = vec![false; steps.len()];
        for position in plan.outputs() {
            needed[position] = true;
        }
        let mut uses: Vec<Wanted> =
            steps.iter().map(|step| vec![false; step.descriptor.outputs.len()]).collect();
        let mut new = Vec::new();
        for (position, step) in steps.iter().enumerate().rev() {
            if !needed[position] {
                continue;
            }
            if self.made.contains(&step.key) {
                let first = self.first.get(&step.key).copied().unwrap_or(0);
                let (_, reads) = self.reads.entry(step.key).or_insert((first, Vec::new()));
                reads.resize(reads.len().max(uses[position].len()), None);
                for (last, used) in reads.iter_mut().zip(&uses[position]) {
                    if *used {
                        *last = Some(self.runs);
                    }
                }
                self.there.insert(step.key, self.runs);
                continue;
            }
            new.push(step.key);
            for (from, slot) in links(step) {
                needed[from] = true;
                uses[from][slot] = true;
            }
        }
        for key in new {
            self.first.entry(key).or_insert(self.runs);
            self.made.insert(key);
        }
        self.runs += 1;
    }

    /// How many runs there are.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// How many results are computed in all of them.
    pub fn computed(&self) -> usize {
        self.made.len()
    }

    /// The results that runs behind `run` read and that are there by then, and what of them.
    pub fn after(&self, run: usize) -> KeyMap<Wanted> {
        let mut wanted: KeyMap<Wanted> = KeyMap::default();
        for (key, (first, reads)) in &self.reads {
            if *first > run || self.there.get(key).is_none_or(|last| *last <= run) {
                continue;
            }
            let later: Wanted =
                reads.iter().map(|last| last.is_some_and(|last| last > run)).collect();
            join(wanted.entry(*key).or_default(), &later);
        }
        wanted
    }
}
