//! Plan → outputs: the loop, the cache, progress, cancelling.
//!
//! Only what an output needs and the cache does not have is run, in the plan's order. Each value of a
//! result is dropped after its own last use, so memory holds the open ends of one branch, and not the
//! text encoder that came with a U-Net; what the next run of a sweep will need is kept instead. A node that fails takes what depends on it with it; other
//! outputs are still made, and nothing that was written is lost.

pub(crate) mod files;
mod hooks;
mod keeping;
mod kept;
mod later;
pub(crate) mod lazy;
mod lists;
mod memory;
mod runner;

pub use later::Later;
pub use memory::Budget;
pub use runner::Runner;

use crate::events::{Event, Listener};
use crate::need;
use crate::plan::{Key, KeyMap, Literal, Plan, Source, Step};
use crate::plugin::{Call, LogLevel, NodeFailure};
use crate::problem::Problem;
use crate::value::Value;
use crate::wire::Earlier;
use files::Files;
use hooks::Hooks;
use keeping::{common, has_all, join, part, used};
use kept::Kept;
use lists::{Calls, Element};
use memory::Memory;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the host tells a node that asks (`kg_context.property`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Properties {
    /// "cpu" or "cuda:0".
    pub device: String,
    pub output_directory: PathBuf,
    pub temp_directory: PathBuf,
    /// The workflow as it is run, API format.
    pub prompt: String,
    /// The editor's own graph, where the file carried one.
    pub workflow: Option<String>,
    /// The files that make better previews of latents, by their names without the extension.
    #[serde(default)]
    pub preview_files: BTreeMap<String, PathBuf>,
}

/// Which results outlive a run.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    Nothing,
    /// What this next plan can begin with.
    For(&'a Plan),
    /// These, and of each the outputs that are true: see [`Later`].
    Results(&'a KeyMap<Wanted>),
    Everything,
}

/// What a run is given besides its plan.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    pub properties: &'a Properties,
    pub listener: &'a dyn Listener,
    /// Set by whoever wants the run to stop: it does at the next step.
    pub cancel: &'a AtomicBool,
    pub keep: Keep<'a>,
    /// What an earlier try at the plan has settled: nothing, where this is the first.
    pub earlier: &'a Earlier,
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Nodes that ran, successfully or not.
    pub executed: usize,
    /// Nodes that did not need to.
    pub cached: usize,
    pub failures: Vec<Problem>,
    pub interrupted: bool,
}

/// Runs plans and keeps results between them.
pub struct Executor<R> {
    runner: R,
    kept: Kept,
    /// How many bytes objects and kept results may hold, where that is bounded.
    budget: Option<u64>,
    memory: Memory,
}

/// For each output of a node its value, or nothing where no run that is known will use it.
type Results = Arc<[Option<Value>]>;

/// Of a result, by output: whether it will be used.
pub type Wanted = Vec<bool>;

/// The values of a step that are still to be used, by output.
type Live = Vec<Option<Value>>;

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// No output needs it, or only through results that are there.
    Unneeded,
    Needed,
    /// Only lazy inputs lead to it, and nobody has said yet that it is wanted.
    Possible,
    /// It failed, or needs what the step at this position would have made.
    Failed(usize),
}

impl State {
    fn cause(self) -> Option<usize> {
        match self {
            Self::Failed(cause) => Some(cause),
            _ => None,
        }
    }
}

impl<R: Runner> Executor<R> {
    pub fn new(runner: R) -> Self {
        Self { runner, kept: Kept::default(), budget: None, memory: Memory::default() }
    }

    /// Before each step lets go of what is kept until `bytes` are enough: results, and what objects that
    /// offer "memory/1" hold and the step does not use, the least recently used first.
    pub fn with_budget(mut self, bytes: Option<u64>) -> Self {
        self.set_budget(bytes);
        self
    }

    /// As [`Self::with_budget`], for the runs from now on.
    pub fn set_budget(&mut self, bytes: Option<u64>) {
        self.budget = bytes;
    }

    /// Lets go of these results, where they are kept.
    pub fn forget(&mut self, keys: &[Key]) {
        for key in keys {
            self.kept.remove(key);
        }
    }

    /// Lets go of every result with a value that `is_gone`.
    pub fn forget_where(&mut self, is_gone: impl Fn(&Value) -> bool) {
        self.kept
            .retain(|_, values| (!values.iter().flatten().any(&is_gone)).then(|| values.clone()));
    }

    /// How many nodes' results are kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Runs `plan`. Failures are in the outcome and were told to the listener.
    pub fn run(&mut self, plan: &Plan, setting: Setting) -> Outcome {
        let steps = plan.steps();
        let mut uses: Vec<Vec<usize>> =
            steps.iter().map(|step| vec![0; step.descriptor.outputs.len()]).collect();
        let mut states = self.needed(plan, setting.earlier, &mut uses);
        let wanted = match setting.keep {
            Keep::For(next) => common(plan, next),
            Keep::Results(wanted) => wanted.clone(),
            _ => KeyMap::default(),
        };
        // What neither this run nor the next one needs is let go before anything is computed.
        if !matches!(setting.keep, Keep::Everything) && !self.kept.is_empty() {
            let mut needed: KeyMap<Wanted> = KeyMap::default();
            for ((step, state), uses) in steps.iter().zip(&states).zip(&uses) {
                if *state == State::Needed {
                    let uses: Wanted = uses.iter().map(|&uses| uses > 0).collect();
                    join(needed.entry(step.key).or_default(), &uses);
                }
            }
            for (key, wanted) in &wanted {
                join(needed.entry(*key).or_default(), wanted);
            }
            self.kept.retain(|key, results| Some(part(results, needed.get(key)?)));
        }
        let mut live: Vec<Live> = vec![Live::new(); steps.len()];
        let mut outcome = Outcome::default();
        let files = Files::of(plan);
        // What need not run is told first: whoever watches then knows what is left to do. What is used of
        // it lives from here on, so that making room for a step does not drop it.
        let mut is_cached = vec![false; steps.len()];
        for (position, step) in steps.iter().enumerate() {
            if states[position].cause().is_some() {
                continue;
            }
            let there = self.there(step, &uses[position]);
            let unneeded = step.same_as.is_some() || states[position] == State::Unneeded;
            is_cached[position] = unneeded || there.is_some();
            if let Some(results) = there.filter(|_| !unneeded) {
                live[position] = used(results, &uses[position]);
            }
            if is_cached[position] {
                outcome.cached += 1;
                setting.listener.event(&Event::Cached(Cow::Borrowed(&step.name)));
            }
        }
        let (mut next, mut is_settled) = (0, vec![false; steps.len()]);
        while let Some(step) = steps.get(next) {
            let position = next;
            next += 1;
            if is_settled[position] || states[position] == State::Possible {
                continue;
            }
            if setting.cancel.load(Ordering::Relaxed) {
                outcome.interrupted = true;
                break;
            }
            is_settled[position] = true;
            // Settled by an earlier try, and told there unless it hangs on what failed.
            if let Some(cause) = states[position].cause() {
                if cause != position {
                    setting.listener.event(&skipped(step, &steps[cause]));
                }
                continue;
            }
            if step.same_as.is_some() || states[position] == State::Unneeded {
                self.kept.used(&step.key);
                continue;
            }
            // What is kept of its results.
            let kept = |results: &[Option<Value>]| -> Option<Results> {
                match setting.keep {
                    Keep::Nothing => None,
                    // What lacks a value that a later run wants is made anew there, all of it.
                    Keep::For(_) | Keep::Results(_) => {
                        let wanted = wanted.get(&step.key)?;
                        has_all(results, wanted).then(|| part(results, wanted))
                    }
                    Keep::Everything => Some(results.into()),
                }
            };
            if is_cached[position] {
                if let Some(results) = self.kept.get(&step.key).cloned() {
                    self.keep(step.key, kept(&results));
                }
                continue;
            }
            let cause = lazy::cause(step, &states);
            let wanted = match cause {
                Some(_) => Ok(Vec::new()),
                None => self.wanted(position, plan, &live, &states, setting),
            };
            let of_wanted = wanted.iter().flatten().find_map(|&from| states[from].cause());
            if let Some(failed) = cause.or(of_wanted) {
                states[position] = State::Failed(failed);
                setting.listener.event(&skipped(step, &steps[failed]));
            } else {
                let unchanged = || match files.written_to(plan, position) {
                    None => Ok(()),
                    Some(path) => Err(format!(
                        "{} was written to while it was in use, so what came of it cannot be \
                         trusted; a new version of a model is put beside it and renamed",
                        path.display()
                    )),
                };
                let made = match wanted.map(|wanted| lazy::wake(plan, &mut states, wanted)) {
                    // That first, and this one again.
                    Ok(Some(first)) => {
                        (next, is_settled[position]) = (first, false);
                        continue;
                    }
                    Ok(None) => self.step(position, plan, &live, &states, setting, &unchanged),
                    Err(stop) => Err(stop),
                };
                match made {
                    Ok(results) => {
                        let results: Vec<Option<Value>> = results.into_iter().map(Some).collect();
                        live[position] = used(&results, &uses[position]);
                        self.keep(step.key, kept(&results));
                        outcome.executed += 1;
                    }
                    Err(Stop::Cancelled) => {
                        outcome.interrupted = true;
                        break;
                    }
                    Err(Stop::Failed { input, sentence }) => {
                        let failure = Problem::failure(step.name.clone(), input, sentence);
                        setting.listener.event(&Event::Error(Cow::Borrowed(&failure)));
                        outcome.failures.push(failure);
                        outcome.executed += 1;
                        states[position] = State::Failed(position);
                    }
                }
            }
            let unneeded =
                lazy::release(plan, position, &mut states, &mut uses, &mut live, setting);
            outcome.cached += unneeded;
        }
        if let Keep::Nothing = setting.keep {
            self.kept.clear();
        }
        outcome
    }

    /// Keeps `results` for later runs, or nothing.
    fn keep(&mut self, key: Key, results: Option<Results>) {
        match results {
            Some(results) => self.kept.insert(key, results),
            None => self.kept.remove(&key),
        }
    }

    /// The results of `step`, where all that is used of them is there.
    fn there(&self, step: &Step, uses: &[usize]) -> Option<&Results> {
        let results = self.kept.get(&step.key)?;
        let is_there = |(value, &uses): (&Option<Value>, &usize)| uses == 0 || value.is_some();
        results.iter().zip(uses).all(is_there).then_some(results)
    }

    /// Which steps have to be there for the outputs, and how often each of their results will be read.
    fn needed(&self, plan: &Plan, earlier: &Earlier, uses: &mut [Vec<usize>]) -> Vec<State> {
        let steps = plan.steps();
        let mut states = vec![State::Unneeded; steps.len()];
        for &position in earlier.failed.iter().filter(|&&position| position < steps.len()) {
            states[position] = State::Failed(position);
        }
        if !earlier.failed.is_empty() {
            for position in 0..steps.len() {
                let cause = lazy::cause(&steps[position], &states);
                if let (State::Unneeded, Some(cause)) = (states[position], cause) {
                    states[position] = State::Failed(cause);
                }
            }
        }
        let is_open = |position: &usize| !earlier.made.contains(position);
        for position in plan.outputs().filter(is_open) {
            if states[position] == State::Unneeded {
                states[position] = State::Needed;
            }
        }
        for (position, step) in steps.iter().enumerate().rev() {
            // Whoever uses it stands behind it, and was counted.
            let state = states[position];
            if !matches!(state, State::Needed | State::Possible) {
                continue;
            }
            if self.there(step, &uses[position]).is_some() {
                states[position] = State::Needed;
                continue;
            }
            for (from, slot, is_lazy) in lazy::links(step) {
                uses[from][slot] += 1;
                if state == State::Needed && !is_lazy {
                    states[from] = State::Needed;
                } else if states[from] == State::Unneeded {
                    states[from] = State::Possible;
                }
            }
        }
        // An output that is there need not be made again.
        for position in plan.outputs() {
            let unused = uses[position].iter().all(|&uses| uses == 0);
            if unused && self.kept.get(&steps[position].key).is_some() {
                states[position] = State::Unneeded;
            }
        }
        states
    }

    /// The calls that a step comes to, and what they are lent.
    fn calls<'a>(
        &self,
        position: usize,
        plan: &'a Plan,
        live: &[Live],
        states: &[State],
        setting: Setting<'a>,
    ) -> Result<(Calls, Hooks<'a>), Stop> {
        let step = &plan.steps()[position];
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for (source, input) in step.inputs.iter().zip(&step.descriptor.inputs) {
            inputs.push(match source {
                Source::Absent => Value::none(),
                Source::Literal(literal) => value(literal),
                Source::Link { step: from, slot } => {
                    let value = live[*from].get(*slot).and_then(Option::as_ref).cloned();
                    let missing = || lazy::missing(states[*from]).filter(|_| input.lazy);
                    value.or_else(missing).ok_or_else(|| Stop::Failed {
                        input: Some(input.name.clone()),
                        sentence: "the result it is linked to is gone; this is a mistake of the \
                                   host, please report it"
                            .into(),
                    })?
                }
            });
        }
        let calls = Calls::of(step, plan.steps(), inputs).map_err(|lists::Empty(at)| {
            let input = step.descriptor.inputs.get(at).map(|input| input.name.clone());
            // Whose failure it is, is believed of a node that has begun.
            setting.listener.event(&Event::NodeStarted(Cow::Borrowed(&step.name)));
            let sentence = "the list it is linked to is empty, so there is nothing to do; at least \
                            one value is wanted";
            Stop::Failed { input, sentence: sentence.into() }
        })?;
        let hooks = Hooks { step, setting, work: None, element: None };
        Ok((calls, hooks))
    }

    /// Runs one step; what it made is taken if `unchanged` says so then.
    fn step(
        &mut self,
        position: usize,
        plan: &Plan,
        live: &[Live],
        states: &[State],
        setting: Setting,
        unchanged: &dyn Fn() -> Result<(), String>,
    ) -> Result<Vec<Value>, Stop> {
        let step = &plan.steps()[position];
        let (calls, mut hooks) = self.calls(position, plan, live, states, setting)?;
        setting.listener.event(&Event::NodeStarted(Cow::Borrowed(&step.name)));
        if let Some(budget) = self.budget {
            let live = live.iter().flatten().flatten();
            let room = self.memory.make_room(budget, calls.inputs(), live, &mut self.kept, &hooks);
            let (models, results, bytes) = (room.models, room.drop.len() as u64, room.bytes);
            self.forget(&room.drop);
            if models + results > 0 {
                let node = step.name.id.as_str().into();
                setting.listener.event(&Event::MadeRoom { node, models, results, bytes });
            }
            if let Some(warning) = room.warning {
                hooks.log(LogLevel::Warn, &warning);
            }
            hooks.work = Some(room.work);
        }
        let start = Instant::now();
        let mut results = Vec::with_capacity(calls.count());
        for call in 0..calls.count() {
            if call > 0 && setting.cancel.load(Ordering::Relaxed) {
                return Err(Stop::Cancelled);
            }
            hooks.element = calls.element(call);
            let made = self.call(step, &hooks, &calls.inputs_of(call));
            results.push(made.map_err(|stop| stop.of(hooks.element))?);
        }
        let failed = |sentence| Stop::Failed { input: None, sentence };
        unchanged().map_err(failed)?;
        let seconds = start.elapsed().as_secs_f64();
        let node = step.name.id.as_str().into();
        setting.listener.event(&Event::NodeDone { node, seconds });
        Ok(calls.joined(step, results))
    }

    /// One call of a step's node.
    fn call(&self, step: &Step, hooks: &Hooks, inputs: &[Value]) -> Result<Vec<Value>, Stop> {
        if let Err(shortage) = need::ask(&step.descriptor, inputs) {
            return Err(Stop::Failed { input: None, sentence: shortage.to_string() });
        }
        let run = || self.runner.run(step.library, step.node, hooks, inputs);
        let failed = |sentence: String| Stop::Failed { input: None, sentence };
        let results = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(results)) => results,
            Ok(Err(NodeFailure::Cancelled)) if hooks.setting.cancel.load(Ordering::Relaxed) => {
                return Err(Stop::Cancelled);
            }
            Ok(Err(NodeFailure::Cancelled)) => {
                return Err(failed(
                    "it stopped as if it had been cancelled, which it was not".into(),
                ));
            }
            Ok(Err(NodeFailure::Failed { input, sentence })) => {
                return Err(Stop::Failed { input, sentence });
            }
            Err(panic) => return Err(failed(format!("it panicked: {}", panic_text(&*panic)))),
        };
        if step.descriptor.output_node {
            for (input, value) in step.descriptor.inputs.iter().zip(inputs) {
                if input.type_name == "IMAGE" {
                    hooks.setting.listener.shown(&step.name.id, &input.name, value);
                }
            }
        }
        let wanted = step.descriptor.outputs.len();
        if results.len() != wanted {
            let given = results.len();
            return Err(failed(format!("it gave {given} results, but declares {wanted} outputs")));
        }
        Ok(results)
    }
}

enum Stop {
    Cancelled,
    Failed { input: Option<String>, sentence: String },
}

impl Stop {
    /// The same, which came of this element of a list.
    fn of(self, element: Option<Element>) -> Self {
        match (self, element) {
            (Self::Failed { input, sentence }, Some(element)) => {
                Self::Failed { input, sentence: element.named(&sentence) }
            }
            (stop, _) => stop,
        }
    }
}

fn unneeded(step: &Step) -> Event<'_> {
    Event::Cached(Cow::Borrowed(&step.name))
}

fn skipped<'a>(step: &'a Step, cause: &'a Step) -> Event<'a> {
    let because_of = cause.name.id.as_str().into();
    Event::Skipped { name: Cow::Borrowed(&step.name), because_of }
}

/// The step and the output that each link of `step` leads to.
fn links(step: &Step) -> impl Iterator<Item = (usize, usize)> {
    step.inputs.iter().filter_map(|source| match source {
        Source::Link { step, slot } => Some((*step, *slot)),
        _ => None,
    })
}

/// A number, text or path of the workflow as a node is given it.
pub(crate) fn value(literal: &Literal) -> Value {
    match literal {
        Literal::Boolean(value) => Value::boolean(*value),
        Literal::Integer(value) => Value::integer(*value),
        Literal::Natural(value) => Value::natural(*value),
        Literal::Number(value) => Value::number(*value),
        Literal::Text(text)
        | Literal::Path { path: text, .. }
        | Literal::TextWithFiles { text, .. } => Value::string(text),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

#[cfg(test)]
mod tests;
