//! What a worker and the process that started it say to each other: one JSON object a line.
//!
//! Commands go in, reports come back: the events of `docs/events.md` as they are, and beside them lines
//! that begin with the key "worker". A plan travels whole, so that a worker can be told what to do with
//! a library it has not seen yet.

use crate::ask::{Answer, Question};
use crate::catalogue::{LibraryEntry, NodeDescriptor};
use crate::events::Event;
use crate::execute::{self, Properties};
use crate::handed::{Handed, Memory};
use crate::plan::{Key, Plan, Source, Step, runs_for_each};
use crate::preview::Preview;
use crate::problem::{Kind, NodeName};
use crate::promise::Promise;
use crate::python::PythonPack;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Run(Box<Run>),
    Work(Box<Work>),
    Check(Box<Check>),
    /// Questions to packs in Python, which are answered in turn.
    Ask(Vec<Question>),
    /// Stop what runs at the next step; the worker stays.
    Cancel,
}

/// One run of one plan.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub properties: Properties,
    /// A step's library is a position in this list.
    pub libraries: Vec<Provider>,
    pub plan: BarePlan,
    pub keep: Keep,
    /// Results that are not to be used, though they may be kept: what they stand for is gone.
    #[serde(default)]
    pub forget: Vec<Key>,
    /// How many bytes objects may hold, where that is bounded.
    pub budget: Option<u64>,
    /// Whether somebody looks at what steps make.
    #[serde(default)]
    pub previews: bool,
    pub earlier: Earlier,
    /// Pictures that come and go in memory.
    #[serde(default)]
    pub memory: Memory,
}

/// Work that no plan says: the first library does it that offers the extension for it and knows what it is given.
#[derive(Debug, Serialize, Deserialize)]
pub struct Work {
    pub kind: WorkKind,
    pub libraries: Vec<Provider>,
    /// What the extension takes by node.h, texts by name.
    pub input: Vec<(String, String)>,
}

/// What a library may do beside nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkKind {
    Convert,
    Train,
    Evaluate,
}

impl WorkKind {
    /// The extension of node.h.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Convert => "convert/1",
            Self::Train => "train/1",
            Self::Evaluate => "evaluate/1",
        }
    }

    /// What a library does with it, as sentences say it.
    pub fn does(self) -> &'static str {
        match self {
            Self::Convert => "converts",
            Self::Train => "trains",
            Self::Evaluate => "evaluates",
        }
    }

    /// What a problem of it is.
    pub fn problem(self) -> Kind {
        match self {
            Self::Convert => Kind::Convert,
            Self::Train => Kind::Train,
            Self::Evaluate => Kind::Evaluate,
        }
    }

    /// What events call it.
    pub fn name(self) -> NodeName {
        let id = self.extension().split('/').next().unwrap_or_default();
        NodeName { id: id.into(), title: None, class: id.into() }
    }
}

/// A plan that libraries are asked about before it runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Check {
    /// A step's library is a position in this list.
    pub libraries: Vec<Provider>,
    /// Those of them that are asked, as positions.
    pub asked: Vec<usize>,
    pub plan: BarePlan,
}

/// A library of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Provider {
    /// Absolute.
    pub path: PathBuf,
    /// Of the descriptor that the plan was made with: [`LibraryEntry::digest`].
    pub digest: [u8; 16],
    /// Where it is a pack of nodes in Python.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<PythonPack>,
}

impl From<&LibraryEntry> for Provider {
    fn from(entry: &LibraryEntry) -> Self {
        Self { path: entry.path.clone(), digest: entry.digest, python: entry.python.clone() }
    }
}

/// Which results outlive the run: [`execute::Keep`] as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    Nothing,
    /// What this next plan can begin with.
    For(BarePlan),
    /// Of each of these results the outputs that are true.
    Results(Vec<(Key, Vec<bool>)>),
    Everything,
}

impl From<execute::Keep<'_>> for Keep {
    fn from(keep: execute::Keep) -> Self {
        match keep {
            execute::Keep::Nothing => Self::Nothing,
            execute::Keep::For(plan) => Self::For(plan.into()),
            execute::Keep::Results(wanted) => {
                Self::Results(wanted.iter().map(|(key, wanted)| (*key, wanted.clone())).collect())
            }
            execute::Keep::Everything => Self::Everything,
        }
    }
}

/// Positions in a plan that an earlier try at it has settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Outputs that were made, and need not be made again.
    pub made: Vec<usize>,
    /// Steps that failed: what depends on them cannot be made.
    pub failed: Vec<usize>,
}

impl Earlier {
    /// Nothing: this is the first try.
    pub const NONE: Self = Self { made: Vec::new(), failed: Vec::new() };
}

/// A [`Plan`] with each descriptor once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BarePlan {
    classes: Vec<NodeDescriptor>,
    steps: Vec<BareStep>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct BareStep {
    name: NodeName,
    library: usize,
    node: u32,
    class: usize,
    inputs: Vec<Source>,
    key: Key,
    same_as: Option<usize>,
}

impl From<&Plan> for BarePlan {
    fn from(plan: &Plan) -> Self {
        let (mut classes, mut numbers) = (Vec::new(), HashMap::new());
        let mut steps = Vec::with_capacity(plan.steps().len());
        for step in plan.steps() {
            let Step { name, library, node, descriptor, inputs, key, same_as, .. } = step.clone();
            // A node may have inputs that its class does not have.
            let class = *numbers.entry(Arc::as_ptr(&descriptor)).or_insert(classes.len());
            if class == classes.len() {
                classes.push((*descriptor).clone());
            }
            steps.push(BareStep { name, library, node, class, inputs, key, same_as });
        }
        Self { classes, steps }
    }
}

impl TryFrom<BarePlan> for Plan {
    type Error = Misfit;

    /// # Errors
    /// The first step that the classes, or the other steps, do not fit.
    fn try_from(plan: BarePlan) -> Result<Self, Misfit> {
        let classes: Vec<Arc<NodeDescriptor>> = plan.classes.into_iter().map(Arc::new).collect();
        let mut steps: Vec<Step> = Vec::with_capacity(plan.steps.len());
        for BareStep { name, library, node, class, inputs, key, same_as } in plan.steps {
            let Some(descriptor) = classes.get(class).cloned() else { return Err(Misfit(name)) };
            let earlier = |source: &Source| match source {
                Source::Link { step, slot } => {
                    steps.get(*step).is_some_and(|from| *slot < from.descriptor.outputs.len())
                }
                _ => true,
            };
            let fits = inputs.len() == descriptor.inputs.len()
                && inputs.iter().all(earlier)
                && same_as.is_none_or(|same| same < steps.len());
            if !fits {
                return Err(Misfit(name));
            }
            let runs_for_each = runs_for_each(&descriptor, &inputs, &steps);
            steps.push(Step {
                name,
                library,
                node,
                descriptor,
                inputs,
                key,
                same_as,
                runs_for_each,
            });
        }
        Ok(Self::of_steps(steps))
    }
}

/// A step that does not fit the rest of its plan.
#[derive(Debug, thiserror::Error)]
#[error("the plan is broken at {0}")]
pub struct Misfit(NodeName);

/// What a worker says besides events.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "worker", rename_all = "snake_case")]
pub enum Notice {
    /// It is about to load this library, which may be the last that is heard of it.
    Loading { library: PathBuf },
    /// It did.
    Loaded,
    /// The node at work is about to give a file its name.
    Making { promise: Promise },
    /// What the node at work has made so far.
    Preview { node: String, preview: Preview },
    /// A picture that the node at work was given to show lies in the job's memory.
    Handed { node: String, handed: Handed },
    /// A library did to the process what cannot be set back: the end of a sentence about it. The worker
    /// ends.
    Spoilt { by: String },
    /// The answer to the next question.
    Answer { answer: Answer },
    /// The command is done; another may follow.
    Finished { interrupted: bool },
}

/// One line of a worker.
#[derive(Debug, PartialEq)]
pub enum Report {
    Event(Event<'static>),
    Notice(Notice),
}

impl Report {
    /// Reads a line; `None` for one that is no report.
    pub fn read(line: &[u8]) -> Option<Self> {
        match line.starts_with(br#"{"worker":"#) {
            true => serde_json::from_slice(line).ok().map(Self::Notice),
            false => serde_json::from_slice(line).ok().map(Self::Event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::folders::Folders;
    use crate::graph::Graph;
    use proptest::prelude::*;
    use serde_json::json;
    use std::path::Path;

    fn catalogue() -> Catalogue {
        let library = json!({"name": "a", "version": "1", "nodes": [
            {"class": "Make", "inputs": [{"name": "x", "type": "FLOAT", "default": 0.1},
                {"name": "n", "type": "INT", "default": 0, "min": 0, "max": u64::MAX}],
             "outputs": [{"name": "y", "type": "FLOAT"}]},
            {"class": "Show", "inputs": [{"name": "y", "type": "FLOAT"},
                {"name": "text", "type": "STRING", "default": "\n{\"worker\":"}],
             "output_node": true}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("a"), &library).unwrap();
        catalogue
    }

    fn plan(x: f64, n: u64) -> Plan {
        let graph = json!({"1": {"class_type": "Make", "inputs": {"x": x, "n": n}},
            "2": {"class_type": "Show", "inputs": {"y": ["1", 0]}}});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        Plan::new(&graph, &catalogue(), &Folders::default(), "cpu").unwrap()
    }

    proptest! {
        #[test]
        fn a_plan_travels_unchanged(x in any::<f64>().prop_filter("finite", |x| x.is_finite()), n: u64) {
            let plan = plan(x, n);
            let line = serde_json::to_string(&BarePlan::from(&plan)).unwrap();
            prop_assert!(!line.contains('\n'));
            let read: BarePlan = serde_json::from_str(&line).unwrap();
            let again = Plan::try_from(read).unwrap();
            for (step, again) in plan.steps().iter().zip(again.steps()) {
                prop_assert_eq!(&step.inputs, &again.inputs);
                prop_assert_eq!((&step.name, step.key), (&again.name, again.key));
                prop_assert_eq!(&step.descriptor, &again.descriptor);
            }
        }

        #[test]
        fn any_line_can_be_read(line: Vec<u8>) {
            let _ = Report::read(&line);
            let _ = Report::read(&[br#"{"worker":"#.to_vec(), line].concat());
        }
    }

    #[test]
    fn steps_that_do_not_fit_are_refused() {
        let plan = BarePlan::from(&plan(0.5, 1));
        let with = |change: &dyn Fn(&mut Vec<BareStep>)| {
            let mut plan = plan.clone();
            change(&mut plan.steps);
            Plan::try_from(plan).is_err()
        };
        assert!(!with(&|_| ()));
        assert!(with(&|steps| steps[0].class = 7));
        assert!(with(&|steps| steps[1].inputs.truncate(1)));
        assert!(with(&|steps| steps[1].inputs[0] = Source::Link { step: 1, slot: 0 }));
        assert!(with(&|steps| steps[1].inputs[0] = Source::Link { step: 0, slot: 1 }));
        assert!(with(&|steps| steps[0].same_as = Some(0)));
    }

    #[test]
    fn notices_are_told_from_events() {
        let notice = Notice::Loading { library: "/a.so".into() };
        let line = serde_json::to_vec(&notice).unwrap();
        assert_eq!(Report::read(&line), Some(Report::Notice(notice)));
        let event = Event::Interrupted { seconds: 1.0 };
        let line = serde_json::to_vec(&event).unwrap();
        assert_eq!(Report::read(&line), Some(Report::Event(event)));
        assert_eq!(Report::read(b"{\"event\":\"node_sta"), None);
    }
}
