//! Graph + Catalogue → [`Plan`]: what was written becomes what it means.
//!
//! Every link is typed, every literal coerced and in its range, every file found, defaults filled,
//! the order and the cache keys fixed. After this nothing about the workflow can fail any more but
//! the computation itself; and what is wrong with a workflow is said all at once.
//!
//! As in ComfyUI, validation walks from the output nodes: what reaches none is not run, so an
//! unknown class there is only a warning. One that takes links and whose results nobody takes is an
//! output that is missing. An output that has a problem, or needs a node that has one, costs itself:
//! it is left out and told, and the others are planned.

mod key;
mod literal;
mod mention;
mod output;
mod source;

pub use key::{Key, KeyMap, KeySet};
pub use literal::Literal;
pub use mention::Mention;
pub(crate) use output::why_not_written;

use crate::ask::Changes;
use crate::catalogue::{Catalogue, Class, InputDescriptor, NodeDescriptor};
use crate::editor::is_the_pages;
use crate::folders::Folders;
use crate::graph::{Graph, Input, Node};
use crate::problem::{Kind, NodeName, Problem};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// What a node is given at one of its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// An optional input that is not there.
    Absent,
    Literal(Literal),
    /// Output `slot` of an earlier step.
    Link {
        step: usize,
        slot: usize,
    },
}

/// One node that will run, unless its result is already there.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: NodeName,
    /// The library's number in the catalogue.
    pub library: usize,
    /// The node's number in its library.
    pub node: u32,
    pub descriptor: Arc<NodeDescriptor>,
    /// One for each input of the descriptor.
    pub inputs: Vec<Source>,
    pub key: Key,
    /// An earlier step that computes the same; links lead to that one, this one does not run.
    pub same_as: Option<usize>,
    /// It runs once for each value of the lists that it is linked to, and each of its outputs is a list.
    pub runs_for_each: bool,
}

impl Step {
    /// Whether output `slot` is a list of values, and not one.
    pub fn gives_list(&self, slot: usize) -> bool {
        let declared = self.descriptor.outputs.get(slot).is_some_and(|output| output.is_list);
        declared || self.runs_for_each
    }
}

/// Whether a node with these `inputs`, which lead to `earlier` steps, runs once for each value of a list.
pub(crate) fn runs_for_each(
    descriptor: &NodeDescriptor,
    inputs: &[Source],
    earlier: &[Step],
) -> bool {
    let is_list = |source: &Source| match source {
        Source::Link { step, slot } => {
            earlier.get(*step).is_some_and(|step| step.gives_list(*slot))
        }
        _ => false,
    };
    !descriptor.input_is_list && inputs.iter().any(is_list)
}

/// What will be done, in which order. Links lead from later steps to earlier ones.
#[derive(Clone, Debug)]
pub struct Plan {
    steps: Vec<Step>,
    problems: Vec<Problem>,
    left_out: Vec<LeftOut>,
    warnings: Vec<Problem>,
}

/// An output that is not planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    #[serde(flatten)]
    pub name: NodeName,
    /// The id of a node that has a problem and that the output needs, or its own.
    pub because_of: String,
}

/// Why a graph is not run: everything that is wrong with it.
#[derive(Debug)]
pub struct Refusal {
    /// Not empty.
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Plan {
    /// Plans `graph` for `device` ("cpu", "cuda:0"), which is part of the cache keys. What is wrong
    /// with some of the outputs is in [`Plan::problems`], and those are in [`Plan::left_out`].
    ///
    /// # Errors
    /// [`Refusal`], with every problem there is, where no output is left.
    pub fn new(
        graph: &Graph,
        catalogue: &Catalogue,
        folders: &Folders,
        device: &str,
    ) -> Result<Self, Refusal> {
        Self::with_known(graph, catalogue, folders, device, Vec::new(), &Changes::new())
    }

    /// As [`Plan::new`], of a graph about which `known` problems were found before. Each costs the
    /// outputs that need its node, and is a warning where none does; one that is about no node of the
    /// graph costs all of them. `changes` are part of the keys.
    ///
    /// # Errors
    /// As for [`Plan::new`].
    pub fn with_known(
        graph: &Graph,
        catalogue: &Catalogue,
        folders: &Folders,
        device: &str,
        known: Vec<Problem>,
        changes: &Changes,
    ) -> Result<Self, Refusal> {
        let of_node =
            |problem: &Problem| problem.node.as_ref().and_then(|node| graph.position(&node.id));
        let classes: Vec<Option<&Class>> =
            graph.nodes().iter().map(|node| catalogue.get(&node.class)).collect();
        let mut check = Check {
            graph,
            catalogue,
            folders,
            identities: HashMap::new(),
            writable: HashMap::new(),
            missing: missing_outputs(graph, &classes),
            classes,
            known_at: known.iter().filter_map(of_node).collect(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let of_all = known.iter().any(|problem| of_node(problem).is_none());
        let Walked { order, left_out, any_output, reached } = check.walk();
        let Check { mut problems, mut warnings, .. } = check;
        // Of a class that is not there for a reason that is known, the reason is said and no more.
        let same = |problem: &Problem| {
            let is_of =
                |known: &Problem| (known.kind, &known.node) == (problem.kind, &problem.node);
            problem.kind == Kind::MissingNodeType && known.iter().any(is_of)
        };
        problems.retain(|problem| !same(problem));
        warnings.retain(|problem| !same(problem));
        for problem in known {
            match of_node(&problem) {
                Some(at) if !reached[at] => warnings.push(problem),
                _ => problems.push(problem),
            }
        }
        // In the order of the file, as people read it; the walk met them in its own.
        let place = |problem: &Problem| of_node(problem).unwrap_or(usize::MAX);
        warnings.sort_by_key(place);
        problems.sort_by_key(place);
        if of_all || !any_output {
            return Err(Refusal { problems, warnings });
        }
        Ok(Self { steps: steps(graph, order, device, changes), problems, left_out, warnings })
    }

    /// The plan, if nothing had to be left out.
    ///
    /// # Errors
    /// [`Refusal`], with the problems of what was.
    pub fn whole(self) -> Result<Self, Refusal> {
        if self.problems.is_empty() {
            return Ok(self);
        }
        Err(Refusal { problems: self.problems, warnings: self.warnings })
    }

    /// What is wrong with the outputs that were left out.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// In the order of the file.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Steps that were planned before, for instance in another process. Links lead to earlier ones.
    pub(crate) fn of_steps(steps: Vec<Step>) -> Self {
        Self { steps, problems: Vec::new(), left_out: Vec::new(), warnings: Vec::new() }
    }

    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Puts `warnings` before those of the plan.
    pub fn warned(mut self, mut warnings: Vec<Problem>) -> Self {
        warnings.append(&mut self.warnings);
        self.warnings = warnings;
        self
    }

    /// The positions of the steps that are run for what they do outside the graph.
    pub fn outputs(&self) -> impl Iterator<Item = usize> {
        let is_output = |(_, step): &(usize, &Step)| step.descriptor.output_node;
        self.steps.iter().enumerate().filter(is_output).map(|(position, _)| position)
    }
}

/// A node that was checked; its links still lead to positions in the graph.
struct Checked<'a> {
    position: usize,
    class: &'a Class,
    /// The class's, with the inputs that it has in this node alone.
    descriptor: Arc<NodeDescriptor>,
    sources: Vec<Source>,
}

/// Nodes in the order of their steps → steps, with links to steps and keys.
fn steps(graph: &Graph, walked: Vec<Checked>, device: &str, changes: &Changes) -> Vec<Step> {
    // Of a position in the graph. What is linked to stands before, and has its step.
    let mut step_of_position = vec![0; graph.nodes().len()];
    let mut first_of_key = KeyMap::with_capacity_and_hasher(walked.len(), Default::default());
    let mut steps: Vec<Step> = Vec::with_capacity(walked.len());
    let keys = key::Keys::new(device);
    for Checked { position, class, descriptor, mut sources } in walked {
        for source in &mut sources {
            if let Source::Link { step, .. } = source {
                *step = step_of_position[*step];
            }
        }
        let name = graph.nodes()[position].name();
        let key_of_step = |step: usize| steps[step].key;
        let change = changes.get(&name.id).map(String::as_str);
        let key = keys.of(&name.id, class, &descriptor, &sources, change, key_of_step);
        let this = steps.len();
        let first = *first_of_key.entry(key).or_insert(this);
        step_of_position[position] = first;
        let runs_for_each = runs_for_each(&descriptor, &sources, &steps);
        steps.push(Step {
            name,
            library: class.library,
            node: class.node,
            descriptor,
            inputs: sources,
            key,
            same_as: (first != this).then_some(first),
            runs_for_each,
        });
    }
    steps
}

struct Check<'a> {
    graph: &'a Graph,
    catalogue: &'a Catalogue,
    /// Of each node, where a library has it.
    classes: Vec<Option<&'a Class>>,
    folders: &'a Folders,
    identities: HashMap<PathBuf, [u8; 16]>,
    /// Folders that nodes write into, and why they cannot be.
    writable: HashMap<PathBuf, Option<String>>,
    /// Outputs of unknown classes.
    missing: HashSet<usize>,
    /// Nodes that a problem was found with before.
    known_at: HashSet<usize>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// One node on the way from an output to its ancestors.
struct Visit<'a> {
    position: usize,
    checked: Option<Checked<'a>>,
    children: Vec<usize>,
    next: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    OnTheWay,
    Done,
}

/// What the outputs need.
struct Walked<'a> {
    /// The nodes of the outputs that have no problem, ancestors before descendants.
    order: Vec<Checked<'a>>,
    left_out: Vec<LeftOut>,
    any_output: bool,
    /// Of each node, whether an output needs it.
    reached: Vec<bool>,
}

impl<'a> Check<'a> {
    /// Checks what the outputs need, ancestors before descendants. One branch is finished before
    /// the next begins, so that few results wait for each other. The walk keeps its own stack: a
    /// chain of a million nodes is no reason to overflow the thread's.
    fn walk(&mut self) -> Walked<'a> {
        let graph = self.graph;
        let classes = self.classes.clone();
        let is_output = |at: usize| classes[at].is_some_and(|class| class.descriptor.output_node);
        let all = || 0..graph.nodes().len();
        let missing = self.missing.clone();
        let mut roots: Vec<usize> =
            all().filter(|&at| is_output(at) || missing.contains(&at)).collect();
        if roots.is_empty() {
            let what = "the workflow has no output node, so nothing would come of running it; end \
                        it in a node that saves or shows something";
            let empty = "the workflow has no nodes";
            let message = if graph.nodes().is_empty() { empty } else { what };
            // An unknown class may be the output.
            if classes.iter().all(Option::is_some) {
                self.problems.push(Problem::new(Kind::PromptNoOutputs, message));
            }
            // What else is wrong is still worth knowing.
            roots = all().collect();
        }
        let mut marks = vec![Mark::New; graph.nodes().len()];
        // For each node that cannot be run, one that has a problem and that it needs.
        let mut cause: Vec<Option<usize>> = vec![None; graph.nodes().len()];
        let mut order = Vec::new();
        for &root in &roots {
            if marks[root] != Mark::New {
                continue;
            }
            marks[root] = Mark::OnTheWay;
            let mut way = vec![self.visit_noting(root, &mut cause)];
            while let Some(visit) = way.last_mut() {
                let Some(&child) = visit.children.get(visit.next) else {
                    let position = visit.position;
                    marks[position] = Mark::Done;
                    let of_child = |child: &usize| cause[*child];
                    cause[position] =
                        cause[position].or_else(|| visit.children.iter().find_map(of_child));
                    order.extend(visit.checked.take());
                    way.pop();
                    continue;
                };
                visit.next += 1;
                match marks[child] {
                    Mark::New => {
                        marks[child] = Mark::OnTheWay;
                        let visit = self.visit_noting(child, &mut cause);
                        way.push(visit);
                    }
                    Mark::OnTheWay => {
                        let from = way.iter().position(|visit| visit.position == child);
                        let circle = way[from.unwrap_or(0)..].iter().map(|visit| visit.position);
                        let circle: Vec<usize> = circle.collect();
                        self.cycle(&circle);
                        for &position in &circle {
                            cause[position].get_or_insert(circle[0]);
                        }
                    }
                    Mark::Done => (),
                }
            }
        }
        let reached: Vec<bool> = marks.iter().map(|mark| *mark != Mark::New).collect();
        for (at, node) in graph.nodes().iter().enumerate() {
            if !reached[at] && classes[at].is_none() {
                let mut warning = self.unknown_class(node);
                warning.message.push_str("; it leads to no output and is not run");
                self.warnings.push(warning);
            }
        }
        let outputs = || roots.iter().copied().filter(|&at| is_output(at) || missing.contains(&at));
        let left_out = outputs().filter_map(|at| {
            let because_of = graph.nodes()[cause[at]?].id.clone();
            Some(LeftOut { name: graph.nodes()[at].name(), because_of })
        });
        let mut needed = vec![false; graph.nodes().len()];
        outputs().filter(|&at| cause[at].is_none()).for_each(|at| needed[at] = true);
        let any_output = needed.contains(&true);
        for checked in order.iter().rev() {
            if needed[checked.position] {
                for source in &checked.sources {
                    if let Source::Link { step, .. } = source {
                        needed[*step] = true;
                    }
                }
            }
        }
        let left_out = left_out.collect();
        order.retain(|checked| needed[checked.position]);
        Walked { order, left_out, any_output, reached }
    }

    /// As [`Check::visit`]; a node with a problem is its own cause.
    fn visit_noting(&mut self, position: usize, cause: &mut [Option<usize>]) -> Visit<'a> {
        let before = self.problems.len();
        let visit = self.visit(position);
        if self.problems.len() > before || self.known_at.contains(&position) {
            cause[position] = Some(position);
        }
        visit
    }

    fn cycle(&mut self, circle: &[usize]) {
        let ids: Vec<&str> =
            circle.iter().map(|&position| self.graph.nodes()[position].id.as_str()).collect();
        // Each is fed by the next; people read it in the direction of the data.
        let around = ids.iter().rev().chain(ids.last());
        let around = around.copied().collect::<Vec<_>>().join(" → ");
        let message = format!("its result is needed to compute it: {around} is a circle");
        let at = self.graph.nodes()[circle[0]].name();
        self.problems.push(Problem::new(Kind::DependencyCycle, message).at(at));
    }

    fn visit(&mut self, position: usize) -> Visit<'a> {
        let node = &self.graph.nodes()[position];
        let Some(class) = self.classes[position] else {
            let mut problem = self.unknown_class(node);
            if self.missing.contains(&position) {
                problem.message.push_str(
                    "; it takes links and nobody takes its results, so it is an output that is missing",
                );
            }
            self.problems.push(problem);
            let linked = |(_, input): &(String, Input)| match input {
                Input::Link { id, .. } => self.graph.position(id),
                _ => None,
            };
            let children = node.inputs.iter().filter_map(linked).collect();
            return Visit { position, checked: None, children, next: 0 };
        };
        let descriptor = of_node(class, node);
        let inputs = &descriptor.inputs;
        for (name, _) in &node.inputs {
            if descriptor.input(name).is_none() && !is_the_pages(name) {
                let warning = Problem::new(Kind::UnknownInput, "the class has no such input")
                    .at(node.name())
                    .input(name)
                    .nearest(name, inputs.iter().map(|input| input.name.as_str()));
                self.warnings.push(warning);
            }
        }
        let mut sources = Vec::with_capacity(inputs.len());
        for input in inputs {
            let source = self.source(node, input).unwrap_or_else(|problem| {
                self.problems.push(problem.at(node.name()).input(&input.name));
                Source::Absent
            });
            sources.push(source);
        }
        self.writes(node, class, &sources);
        self.problems.extend(self.shortage(node, class, &sources));
        // A link that was refused still leads to nodes that may have problems of their own.
        let linked = |input: &InputDescriptor| match node.input(&input.name) {
            Some(Input::Link { id, .. }) => self.graph.position(id),
            _ => None,
        };
        let children = inputs.iter().filter_map(linked).collect();
        let checked = Some(Checked { position, class, descriptor, sources });
        Visit { position, checked, children, next: 0 }
    }

    /// The problem that there is not the memory which the numbers in the workflow ask for.
    fn shortage(&self, node: &Node, class: &Class, sources: &[Source]) -> Option<Problem> {
        let numbers = |at: usize| match sources.get(at)? {
            Source::Literal(literal) => literal.number(),
            _ => None,
        };
        let shortage = class.descriptor.memory.as_ref()?.ask(&class.descriptor, numbers).err()?;
        let problem = Problem::new(Kind::TooMuchMemory, shortage.to_string()).at(node.name());
        Some(problem)
    }

    fn unknown_class(&self, node: &Node) -> Problem {
        if let Some((pack, reason)) = self.catalogue.left_out(&node.class) {
            let class = &node.class;
            let message = format!(
                "the pack {pack} has the class \"{class}\", which cannot be used: {reason}"
            );
            return Problem::new(Kind::MissingNodeType, message).at(node.name());
        }
        let message = format!("no library has the class \"{}\"", node.class);
        Problem::new(Kind::MissingNodeType, message)
            .at(node.name())
            .nearest(&node.class, self.catalogue.class_names())
    }
}

/// The descriptor of a node: its class's, and an input for whatever else is linked to it where the class takes that.
fn of_node(class: &Class, node: &Node) -> Arc<NodeDescriptor> {
    let descriptor = &class.descriptor;
    if !descriptor.any_inputs {
        return descriptor.clone();
    }
    let is_more = |(name, input): &&(String, Input)| {
        matches!(input, Input::Link { .. }) && descriptor.input(name).is_none()
    };
    let mut more = node.inputs.iter().filter(is_more).map(|(name, _)| name.clone()).peekable();
    match more.peek() {
        None => descriptor.clone(),
        Some(_) => Arc::new(descriptor.with_inputs(more)),
    }
}

/// Nodes of unknown classes that must be outputs: they take links, and nobody takes their results.
fn missing_outputs(graph: &Graph, classes: &[Option<&Class>]) -> HashSet<usize> {
    if classes.iter().all(Option::is_some) {
        return HashSet::new();
    }
    let links = |node: &'_ Node| {
        let links = node.inputs.iter().filter_map(|(_, input)| match input {
            Input::Link { id, .. } => graph.position(id),
            _ => None,
        });
        links.collect::<Vec<_>>()
    };
    let taken: HashSet<usize> = graph.nodes().iter().flat_map(links).collect();
    let is_missing = |&at: &usize| {
        let node = &graph.nodes()[at];
        classes[at].is_none() && !taken.contains(&at) && !links(node).is_empty()
    };
    (0..graph.nodes().len()).filter(is_missing).collect()
}

#[cfg(test)]
mod tests;
