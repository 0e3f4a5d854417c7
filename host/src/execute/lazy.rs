//! Inputs that a node may not need: `{"lazy": True}` and check_lazy_status of ComfyUI.
//!
//! What only such inputs lead to is not computed until the node, when it has the others, says that it wants it. Then that is
//! computed, with all it needs, and the node is asked again, until it wants nothing more; what it never wants is none.

use super::{Executor, Live, Runner, Setting, State, Stop};
use crate::events::Event;
use crate::plan::{Plan, Source, Step};
use crate::plugin::NodeFailure;
use crate::value::Value;
use std::borrow::Cow;

/// The step and the output that each link of `step` leads to, and whether the input is lazy.
pub(crate) fn links(step: &Step) -> impl Iterator<Item = (usize, usize, bool)> {
    let inputs = step.inputs.iter().zip(&step.descriptor.inputs);
    inputs.filter_map(|(source, input)| match source {
        Source::Link { step, slot } => Some((*step, *slot, input.lazy)),
        _ => None,
    })
}

/// Whether what a lazy input leads to was not computed.
fn is_missing(state: State) -> bool {
    !matches!(state, State::Needed)
}

/// The failure that a step cannot do without, if there is one.
pub(super) fn cause(step: &Step, states: &[State]) -> Option<usize> {
    links(step).filter(|(.., lazy)| !lazy).find_map(|(from, ..)| states[from].cause())
}

impl<R: Runner> Executor<R> {
    /// The steps that the node of step `position` wants computed now: nothing where it has what it needs.
    pub(super) fn wanted(
        &self,
        position: usize,
        plan: &Plan,
        live: &[Live],
        states: &[State],
        setting: Setting,
    ) -> Result<Vec<usize>, Stop> {
        let step = &plan.steps()[position];
        if !links(step).any(|(from, _, lazy)| lazy && is_missing(states[from])) {
            return Ok(Vec::new());
        }
        let (calls, hooks) = self.calls(position, plan, live, states, setting)?;
        let mut names: Vec<String> = Vec::new();
        for call in 0..calls.count() {
            let answer = self.runner.lazy(step.library, step.node, &hooks, &calls.inputs_of(call));
            names.extend(answer.map_err(|failure| {
                // Its failure is told as one of its run.
                setting.listener.event(&Event::NodeStarted(Cow::Borrowed(&step.name)));
                match failure {
                    NodeFailure::Cancelled => Stop::Cancelled,
                    NodeFailure::Failed { input, sentence } => Stop::Failed { input, sentence },
                }
            })?);
        }
        let inputs = step.inputs.iter().zip(&step.descriptor.inputs);
        let wanted = inputs.filter_map(|(source, input)| match source {
            Source::Link { step: from, .. }
                if input.lazy && is_missing(states[*from]) && names.contains(&input.name) =>
            {
                Some(*from)
            }
            _ => None,
        });
        Ok(wanted.collect())
    }
}

/// Marks the steps `wanted`, and all that they cannot do without; the first of them in the plan's order.
pub(super) fn wake(plan: &Plan, states: &mut [State], mut wanted: Vec<usize>) -> Option<usize> {
    let mut first = None;
    while let Some(position) = wanted.pop() {
        if states[position] != State::Possible {
            continue;
        }
        states[position] = State::Needed;
        first = Some(first.map_or(position, |first: usize| first.min(position)));
        let needs = links(&plan.steps()[position]).filter(|(.., lazy)| !lazy);
        wanted.extend(needs.map(|(from, ..)| from));
    }
    first
}

/// Step `position` will read nothing more: values that nobody else reads are dropped, and what only it might have wanted will
/// not be computed, which is told.
pub(super) fn release(
    plan: &Plan,
    position: usize,
    states: &mut [State],
    uses: &mut [Vec<usize>],
    live: &mut [Live],
    setting: Setting,
) -> usize {
    let (mut open, mut unneeded) = (vec![position], 0);
    while let Some(position) = open.pop() {
        for (from, slot, _) in links(&plan.steps()[position]) {
            uses[from][slot] -= 1;
            // A step that failed, or did not run, has nothing there.
            if let Some(value) = live[from].get_mut(slot).filter(|_| uses[from][slot] == 0) {
                *value = None;
            }
            let is_unused = uses[from].iter().all(|&uses| uses == 0);
            if states[from] == State::Possible && is_unused && live[from].is_empty() {
                states[from] = State::Unneeded;
                setting.listener.event(&super::unneeded(&plan.steps()[from]));
                unneeded += 1;
                open.push(from);
            }
        }
    }
    unneeded
}

/// What a lazy input has that leads to a step which was not computed.
pub(super) fn missing(state: State) -> Option<Value> {
    is_missing(state).then(Value::none)
}
