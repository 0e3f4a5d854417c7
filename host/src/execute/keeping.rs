//! Which results, and which of their values, are kept and used.

use super::{Live, Results, Wanted, links};
use crate::plan::{KeyMap, KeySet, Plan};
use crate::value::Value;

/// Those of the results that will be used.
pub(super) fn used(results: &[Option<Value>], uses: &[usize]) -> Live {
    let one = |(value, &uses): (&Option<Value>, &usize)| value.clone().filter(|_| uses > 0);
    results.iter().zip(uses).map(one).collect()
}

/// Those of the results that are wanted, each in its place.
pub(super) fn part(results: &[Option<Value>], wanted: &[bool]) -> Results {
    let is_wanted = |output: usize| wanted.get(output).is_some_and(|wanted| *wanted);
    let one =
        |(output, value): (usize, &Option<Value>)| value.clone().filter(|_| is_wanted(output));
    results.iter().enumerate().map(one).collect()
}

pub(super) fn has_all(results: &[Option<Value>], wanted: &[bool]) -> bool {
    results.iter().zip(wanted).all(|(value, wanted)| !wanted || value.is_some())
}

/// Adds what `more` wants.
pub(super) fn join(wanted: &mut Wanted, more: &[bool]) {
    wanted.resize(wanted.len().max(more.len()), false);
    wanted.iter_mut().zip(more).for_each(|(wanted, more)| *wanted |= more);
}

/// The results of `plan` that `next` would begin with, and what of them it uses: what it needs before
/// anything new.
pub(super) fn common(plan: &Plan, next: &Plan) -> KeyMap<Wanted> {
    let there: KeySet = plan.steps().iter().map(|step| step.key).collect();
    let mut needed = vec![false; next.steps().len()];
    for position in next.outputs() {
        needed[position] = true;
    }
    let mut uses: Vec<Wanted> =
        next.steps().iter().map(|step| vec![false; step.descriptor.outputs.len()]).collect();
    let mut wanted: KeyMap<Wanted> = KeyMap::default();
    for (position, step) in next.steps().iter().enumerate().rev() {
        if needed[position] && there.contains(&step.key) {
            join(wanted.entry(step.key).or_default(), &uses[position]);
        } else if needed[position] {
            for (from, slot) in links(step) {
                needed[from] = true;
                uses[from][slot] = true;
            }
        }
    }
    wanted
}
