//! Lists between nodes, as ComfyUI has them: what each call of a node gets, and what becomes of its results.
//!
//! Which outputs are lists is known from the plan ([`Step::gives_list`]). A node that takes lists runs once and gets every
//! input as one; any other runs once for each value of the longest list that it is linked to.

use crate::plan::{Source, Step};
use crate::value::Value;

/// The calls that one step comes to.
pub(super) struct Calls {
    /// As they are linked, in the descriptor's order.
    inputs: Vec<Value>,
    /// Of each input, whether every call gets another of its values.
    is_spread: Vec<bool>,
    count: usize,
    runs_for_each: bool,
}

/// An input whose list is empty, by its place among the inputs.
#[derive(Debug, PartialEq)]
pub(super) struct Empty(pub usize);

impl Calls {
    /// `inputs` are what the links of `step` lead to among `steps`, and its literals.
    pub fn of(step: &Step, steps: &[Step], inputs: Vec<Value>) -> Result<Self, Empty> {
        let is_list = |source: &Source| match source {
            Source::Link { step, slot } => {
                steps.get(*step).is_some_and(|from| from.gives_list(*slot))
            }
            _ => false,
        };
        // What was not computed, of a lazy input, is none and no list.
        let is_list = step
            .inputs
            .iter()
            .zip(&inputs)
            .map(|(source, value)| is_list(source) && !value.is_none());
        let is_list: Vec<bool> = is_list.collect();
        if step.descriptor.input_is_list {
            let listed = |(value, is_list): (Value, bool)| match is_list || value.is_none() {
                true => value,
                false => Value::list(vec![value]),
            };
            let inputs: Vec<Value> = inputs.into_iter().zip(is_list).map(listed).collect();
            let is_spread = vec![false; inputs.len()];
            return Ok(Self { inputs, is_spread, count: 1, runs_for_each: false });
        }
        let mut count = 1;
        for (at, value) in inputs.iter().enumerate().filter(|(at, _)| is_list[*at]) {
            match value.items().len() {
                0 => return Err(Empty(at)),
                length => count = count.max(length),
            }
        }
        Ok(Self { inputs, is_spread: is_list, count, runs_for_each: step.runs_for_each })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// All that the calls get, lists whole.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// What call number `at` gets: of a list that has fewer values, the last.
    pub fn inputs_of(&self, at: usize) -> Vec<Value> {
        let of_call = |(value, is_spread): (&Value, &bool)| match value.items() {
            [.., last] if *is_spread => value.items().get(at).unwrap_or(last).clone(),
            _ => value.clone(),
        };
        self.inputs.iter().zip(&self.is_spread).map(of_call).collect()
    }

    /// The number of call `at` among all of them, where the step runs for each value of a list.
    pub fn element(&self, at: usize) -> Option<Element> {
        self.runs_for_each.then_some(Element { at: at as u64, of: self.count as u64 })
    }

    /// What the step gives, of what each of its calls gave.
    pub fn joined(&self, step: &Step, mut results: Vec<Vec<Value>>) -> Vec<Value> {
        if !self.runs_for_each {
            return results.pop().unwrap_or_default();
        }
        let outputs = step.descriptor.outputs.iter().enumerate();
        let joined = outputs.map(|(slot, output)| {
            let of_calls = results.iter().filter_map(|values| values.get(slot));
            Value::list(match output.is_list {
                true => of_calls.flat_map(|list| list.items().iter().cloned()).collect(),
                false => of_calls.cloned().collect(),
            })
        });
        joined.collect()
    }
}

/// Which value of a list a call is for.
#[derive(Clone, Copy)]
pub(super) struct Element {
    at: u64,
    of: u64,
}

impl Element {
    /// `sentence`, said of this element.
    pub fn named(self, sentence: &str) -> String {
        format!("element {} of {}: {sentence}", self.at + 1, self.of)
    }

    /// The progress of the whole step, when this call has done `step` of `steps`.
    pub fn progress(self, step: u64, steps: u64) -> (u64, u64) {
        (self.at.saturating_mul(steps).saturating_add(step), self.of.saturating_mul(steps))
    }
}
