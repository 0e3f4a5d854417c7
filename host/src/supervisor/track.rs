//! What is known of a plan while a worker runs it: which node is at work, what was made and told, what
//! failed. What a worker says is held against the plan before it is believed.

use crate::catalogue::Catalogue;
use crate::events::Event;
use crate::execute::files::Files;
use crate::execute::{Outcome, Properties};
use crate::plan::{Plan, Source};
use crate::problem::{Kind, Problem};
use crate::promise::Promise;
use crate::wire::{Earlier, Notice, Report};
use crate::worker::file_name;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// What was told of one step.
#[derive(Clone, Copy, Default)]
struct Told {
    started: bool,
    done: bool,
    cached: bool,
    skipped: bool,
    failed: bool,
}

/// See the module.
pub(super) struct Track<'a> {
    plan: &'a Plan,
    positions: HashMap<&'a str, usize>,
    /// The models, as they were when the run began.
    files: Files,
    told: Vec<Told>,
    /// The step that is at work.
    current: Option<usize>,
    /// The step that was at work last.
    last: Option<usize>,
    /// The library that is being loaded for the step at work.
    loading: Option<PathBuf>,
    /// The file that the step at work is giving its name.
    promise: Option<Promise>,
    /// What the step at work did to its process for good: the end of a sentence.
    spoilt: Option<String>,
    /// The libraries, by number, that have run in the process there is now.
    ran: BTreeSet<usize>,
    failures: Vec<Problem>,
}

impl<'a> Track<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        let steps = plan.steps();
        let positions = steps.iter().enumerate().map(|(at, step)| (step.name.id.as_str(), at));
        Self {
            plan,
            positions: positions.collect(),
            files: Files::of(plan),
            told: vec![Told::default(); steps.len()],
            current: None,
            last: None,
            loading: None,
            promise: None,
            spoilt: None,
            ran: BTreeSet::new(),
            failures: Vec::new(),
        }
    }

    /// What the next worker need not do.
    pub fn earlier(&self) -> Earlier {
        let told = |what: fn(&Told) -> bool| {
            let told = self.told.iter().enumerate();
            told.filter(|(_, told)| what(told)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        let mut made = told(|told| told.done || told.cached);
        made.retain(|&at| self.plan.steps()[at].descriptor.output_node);
        Earlier { made, failed: told(|told| told.failed) }
    }

    /// The event of a report, if there is something new in it that can be true.
    pub fn believe(&mut self, report: Report) -> Option<Event<'static>> {
        let event = match report {
            Report::Event(event) => event,
            Report::Notice(Notice::Loading { library }) => {
                self.loading = Some(library);
                return None;
            }
            Report::Notice(Notice::Loaded) => {
                self.loading = None;
                return None;
            }
            Report::Notice(Notice::Making { promise }) => {
                self.promise = Some(promise);
                return None;
            }
            Report::Notice(Notice::Spoilt { by }) => {
                self.spoilt = Some(by);
                return None;
            }
            Report::Notice(
                Notice::Finished { .. }
                | Notice::Preview { .. }
                | Notice::Handed { .. }
                | Notice::Answer { .. },
            ) => return None,
        };
        if let Event::Output { .. }
        | Event::NodeStarted(_)
        | Event::NodeDone { .. }
        | Event::Error(_) = event
        {
            self.promise = None;
        }
        let believed = match &event {
            Event::NodeStarted(name) => match self.positions.get(name.id.as_str()) {
                Some(&at) if self.current.is_none() && !self.told[at].failed => {
                    self.told[at].started = true;
                    (self.current, self.last) = (Some(at), Some(at));
                    self.ran.insert(self.plan.steps()[at].library);
                    true
                }
                _ => false,
            },
            Event::Progress { node, .. }
            | Event::Output { node, .. }
            | Event::MadeRoom { node, .. } => self.is_at_work(node),
            Event::NodeDone { node, .. } => {
                let believed = self.is_at_work(node);
                if believed && let Some(at) = self.current.take() {
                    self.told[at].done = true;
                }
                believed
            }
            Event::Error(problem) => {
                let node = problem.node.as_ref();
                let believed = problem.kind == Kind::NodeFailed
                    && node.is_some_and(|node| self.is_at_work(&node.id));
                if believed && let Some(at) = self.current.take() {
                    self.told[at].failed = true;
                    self.failures.push(problem.clone().into_owned());
                }
                believed
            }
            Event::Cached(name) => {
                let at = self.positions.get(name.id.as_str());
                // A step that was told of before another worker began again is not told of again.
                let new = at.map(|&at| &mut self.told[at]).filter(|told| told.is_new());
                new.map(|told| told.cached = true).is_some()
            }
            Event::Skipped { name, because_of } => {
                let at = self.positions.get(name.id.as_str());
                let cause = self.positions.contains_key(&**because_of);
                let new = at.map(|&at| &mut self.told[at]).filter(|told| cause && !told.skipped);
                new.map(|told| told.skipped = true).is_some()
            }
            Event::Log { node, .. } => {
                let known = |id: &str| self.positions.contains_key(id);
                node.as_ref().is_none_or(|node| known(&node.id))
            }
            // These are the supervisor's own to say.
            Event::Plan { .. }
            | Event::LeftOut { .. }
            | Event::Preview { .. }
            | Event::Sheet { .. }
            | Event::Warning(_)
            | Event::Done { .. }
            | Event::Interrupted { .. } => false,
        };
        if !believed {
            tracing::debug!(?event, "not believed");
        }
        believed.then_some(event)
    }

    /// Whether this is the id of the node that is at work.
    pub fn is_at_work(&self, node: &str) -> bool {
        self.current.is_some_and(|at| self.plan.steps()[at].name.id == node)
    }

    /// Of a worker that is no more: the file that it gave its name and did not come to tell.
    pub fn untold(&mut self, properties: &Properties) -> Option<Event<'static>> {
        let promise = self.promise.take()?;
        let node = self.plan.steps()[self.current?].name.id.clone().into();
        let Properties { output_directory, temp_directory, .. } = properties;
        let (output, file) = promise.kept(output_directory, temp_directory)?;
        Some(Event::Output { node, output: Cow::Owned(output), files: vec![file] })
    }

    /// Whose failure it is that the worker `ended` as it did.
    ///
    /// # Errors
    /// A sentence, where no node had begun.
    pub fn blame(&mut self, ended: &str, catalogue: &Catalogue) -> Result<Problem, String> {
        let loading = self.loading.take();
        let (at, after) = match (self.current.take(), self.last.take()) {
            (Some(at), _) => (at, ""),
            (None, Some(at)) => (at, "after it had run, "),
            (None, None) => return Err(format!("the process that runs nodes {ended}")),
        };
        let step = &self.plan.steps()[at];
        let path = |number: usize| catalogue.libraries().get(number).map(|entry| &*entry.path);
        let own = path(step.library);
        let name = own.map_or("unknown".into(), file_name);
        let ran = std::mem::take(&mut self.ran);
        if let Some(by) = self.spoilt.take() {
            let message = format!("its library {name} {by}, which breaks the boundary's rules");
            return Ok(Problem::failure(step.name.clone(), None, message));
        }
        let mut message = match loading {
            Some(_) => format!("while it was loaded, its library {name} {ended}"),
            None => format!("{after}its library {name} {ended}"),
        };
        if let Some(path) = self.files.written_to(self.plan, at) {
            // Whoever maps a file that shrinks reads past its end.
            message = format!("{} was written to while it was in use; {message}", path.display());
        }
        // Whoever writes over memory may be long gone when somebody stumbles over it.
        let beside = own.and_then(Path::parent);
        let others = ran.into_iter().filter_map(path);
        let others: Vec<_> = others.filter(|path| path.parent() != beside).map(file_name).collect();
        if !others.is_empty() {
            let others = others.join(", ");
            message.push_str(&format!("; {others} had run in the same process before"));
        }
        Ok(Problem::failure(step.name.clone(), None, message))
    }

    /// Counts a failure that [`Self::blame`] gave, and that was told.
    pub fn failed(&mut self, failure: Problem) {
        let at = failure.node.as_ref().and_then(|node| self.positions.get(node.id.as_str()));
        if let Some(&at) = at {
            self.told[at].failed = true;
        }
        self.failures.push(failure);
    }

    /// Whether no output is left that could still be made.
    pub fn is_through(&self) -> bool {
        let (lost, perhaps_lost) = (self.lost(false), self.lost(true));
        let settled = |at: usize| {
            let Told { done, cached, skipped, .. } = self.told[at];
            done || cached || lost[at].is_some() || skipped && perhaps_lost[at].is_some()
        };
        self.plan.outputs().all(settled)
    }

    /// Of each step the failed step that it hangs on, if there is one; also by inputs that it may do without, if `lazy`.
    fn lost(&self, lazy: bool) -> Vec<Option<usize>> {
        let mut lost: Vec<Option<usize>> = Vec::with_capacity(self.told.len());
        for (at, step) in self.plan.steps().iter().enumerate() {
            let inputs = step.inputs.iter().zip(&step.descriptor.inputs);
            let from =
                inputs.filter(|(_, input)| lazy || !input.lazy).find_map(
                    |(source, _)| match source {
                        Source::Link { step, .. } => lost[*step],
                        _ => None,
                    },
                );
            lost.push(if self.told[at].failed { Some(at) } else { from });
        }
        lost
    }

    /// Tells of every step that nothing was told of: the failed step that it hangs on, or, where only
    /// what failed would have used it, the last one.
    pub fn skip_the_rest(&mut self, tell: &mut dyn FnMut(Event)) {
        let lost = self.lost(true);
        let steps = self.plan.steps();
        for (at, cause) in lost.into_iter().enumerate() {
            let Told { started, cached, skipped, .. } = self.told[at];
            if started || cached || skipped {
                continue;
            }
            let last = self.told.iter().rposition(|told| told.failed);
            let Some(cause) = cause.or(last) else { continue };
            self.told[at].skipped = true;
            let (name, because_of) = (Cow::Borrowed(&steps[at].name), &steps[cause].name.id);
            tell(Event::Skipped { name, because_of: because_of.into() });
        }
    }

    pub fn outcome(self, interrupted: bool) -> Outcome {
        let count = |what: fn(&Told) -> bool| self.told.iter().filter(|told| what(told)).count();
        Outcome {
            executed: count(|told| told.started),
            cached: count(|told| told.cached),
            failures: self.failures,
            interrupted,
        }
    }
}

impl Told {
    fn is_new(&self) -> bool {
        !(self.started || self.cached || self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folders::Folders;
    use crate::graph::Graph;
    use crate::problem::NodeName;
    use serde_json::{Value as Json, json};

    /// a → bad → show; a → save; b → other.
    fn plan(catalogue: &Catalogue) -> Plan {
        let node = |class: &str, from: Json| json!({"class_type": class, "inputs": from});
        let graph = json!({"a": node("Make", json!({})), "bad": node("Pass", json!({"x": ["a", 0]})),
            "show": node("Show", json!({"x": ["bad", 0]})), "save": node("Show", json!({"x": ["a", 0]})),
            "b": node("Pass", json!({"x": ["a", 0]})), "other": node("Show", json!({"x": ["b", 0]}))});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        Plan::new(&graph, catalogue, &Folders::default(), "cpu").unwrap()
    }

    fn catalogue() -> Catalogue {
        let input = json!([{"name": "x", "type": "X"}]);
        let output = json!([{"name": "x", "type": "X"}]);
        let library = json!({"name": "a", "version": "1", "nodes": [
            {"class": "Make", "inputs": [], "outputs": output, "pure": false},
            {"class": "Pass", "inputs": input, "outputs": output, "pure": false},
            {"class": "Show", "inputs": input, "output_node": true}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("/p/liba.so"), &library).unwrap();
        catalogue
    }

    fn started(id: &str) -> Report {
        let name = NodeName { id: id.into(), title: None, class: "Make".into() };
        Report::Event(Event::NodeStarted(Cow::Owned(name)))
    }

    fn done(id: &str) -> Report {
        Report::Event(Event::NodeDone { node: Cow::Owned(id.into()), seconds: 0.1 })
    }

    fn progress(id: &str) -> Report {
        Report::Event(Event::Progress { node: Cow::Owned(id.into()), step: 1, steps: 2 })
    }

    #[test]
    fn what_the_plan_does_not_have_is_not_believed() {
        let catalogue = catalogue();
        let plan = plan(&catalogue);
        let mut track = Track::new(&plan);
        assert!(track.believe(started("zzz")).is_none());
        assert!(track.believe(progress("a")).is_none(), "it has not begun");
        assert!(track.believe(started("a")).is_some());
        assert!(track.believe(started("bad")).is_none(), "another is at work");
        assert!(track.believe(progress("bad")).is_none());
        assert!(track.believe(progress("a")).is_some());
        assert!(track.believe(done("bad")).is_none());
        assert!(track.believe(done("a")).is_some());
        assert!(track.believe(done("a")).is_none(), "it is through");
        for said in [
            Event::Done { seconds: 0.0, executed: 9, cached: 0, failed: 0, left_out: 0 },
            Event::Interrupted { seconds: 0.0 },
            Event::refused(Kind::Workflow, "no"),
            Event::refused(Kind::NodeFailed, "no"),
        ] {
            assert!(track.believe(Report::Event(said.clone())).is_none(), "{said:?}");
        }
    }

    #[test]
    fn a_lost_worker_costs_the_node_at_work() {
        let catalogue = catalogue();
        let plan = plan(&catalogue);
        let position = |id: &str| plan.steps().iter().position(|step| step.name.id == id).unwrap();
        let mut track = Track::new(&plan);
        let nobody = track.blame("ended", &catalogue);
        assert_eq!(nobody.unwrap_err(), "the process that runs nodes ended");
        for report in [started("a"), done("a"), started("save"), done("save"), started("bad")] {
            assert!(track.believe(report).is_some());
        }
        let failure = track.blame("ended with 7", &catalogue).unwrap();
        assert_eq!(failure.message, "its library liba.so ended with 7");
        track.failed(failure);
        let wanted = Earlier { made: vec![position("save")], failed: vec![position("bad")] };
        assert_eq!(track.earlier(), wanted);
        assert!(!track.is_through(), "the other branch can still be made");
        // The next worker makes the lost result again, and may not try what failed.
        assert!(track.believe(started("bad")).is_none());
        for report in [started("a"), done("a"), started("b"), done("b"), started("other")] {
            assert!(track.believe(report).is_some());
        }
        assert!(track.believe(done("other")).is_some());
        assert!(track.is_through());
        let mut told = Vec::new();
        track.skip_the_rest(&mut |event| told.push(serde_json::to_value(event).unwrap()));
        assert_eq!(
            told,
            [json!({"event": "skipped", "node": "show", "class": "Show", "because_of": "bad"})]
        );
        let outcome = track.outcome(false);
        assert_eq!((outcome.executed, outcome.failures.len()), (5, 1));
    }

    #[test]
    fn an_end_between_two_nodes_is_the_last_ones() {
        let catalogue = catalogue();
        let plan = plan(&catalogue);
        let mut track = Track::new(&plan);
        track.believe(started("a"));
        track.believe(done("a"));
        let failure = track.blame("ended", &catalogue).unwrap();
        assert_eq!(failure.message, "after it had run, its library liba.so ended");
        track.believe(started("a"));
        track.believe(Report::Notice(Notice::Loading { library: "/p/liba.so".into() }));
        let failure = track.blame("ended", &catalogue).unwrap();
        assert_eq!(failure.message, "while it was loaded, its library liba.so ended");
        track.believe(started("a"));
        track.believe(Report::Notice(Notice::Spoilt { by: "lowered a limit for good".into() }));
        let failure = track.blame("ended", &catalogue).unwrap();
        assert!(failure.message.starts_with("its library liba.so lowered a limit for good,"));
    }
}
