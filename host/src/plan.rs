//! Graph + Catalogue → [`Plan`]: what was written becomes what it means.
//!
//! Every link is typed, every literal coerced and in its range, every file found, defaults filled,
//! the order and the cache keys fixed. After this nothing about the workflow can fail any more but
//! the computation itself; and what is wrong with a workflow is said all at once.
//!
//! As in ComfyUI, validation walks from the output nodes: what reaches none is not run, so an
//! unknown class there is only a warning.

mod key;
mod literal;
mod mention;

pub use key::Key;
pub use literal::Literal;
pub use mention::Mention;

use crate::catalogue::{Catalogue, Class, InputDescriptor, InputKind, NodeDescriptor, types_fit};
use crate::folders::{self, Entry, Folders, PathError};
use crate::graph::{Graph, Input, Node, Origin};
use crate::problem::{Kind, NodeName, Problem};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
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
}

/// What will be done, in which order. Links lead from later steps to earlier ones.
#[derive(Clone, Debug)]
pub struct Plan {
    steps: Vec<Step>,
    warnings: Vec<Problem>,
}

/// Why a graph is not run: everything that is wrong with it.
#[derive(Debug)]
pub struct Refusal {
    /// Not empty.
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Plan {
    /// Plans `graph` for `device` ("cpu", "cuda:0"), which is part of the cache keys.
    ///
    /// # Errors
    /// [`Refusal`], with every problem there is.
    pub fn new(
        graph: &Graph,
        catalogue: &Catalogue,
        folders: &Folders,
        device: &str,
    ) -> Result<Self, Refusal> {
        let mut check = Check {
            graph,
            catalogue,
            folders,
            identities: HashMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let walked = check.walk();
        let Check { problems, mut warnings, .. } = check;
        // In the order of the file, as people read it; the walk met them in its own.
        let place = |problem: &Problem| {
            problem.node.as_ref().and_then(|node| graph.position(&node.id)).unwrap_or(usize::MAX)
        };
        warnings.sort_by_key(place);
        if !problems.is_empty() {
            let mut problems = problems;
            problems.sort_by_key(place);
            return Err(Refusal { problems, warnings });
        }
        Ok(Self { steps: steps(graph, walked, device), warnings })
    }

    /// Steps that were planned before, for instance in another process. Links lead to earlier ones.
    pub(crate) fn of_steps(steps: Vec<Step>) -> Self {
        Self { steps, warnings: Vec::new() }
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
    sources: Vec<Source>,
}

/// Nodes in the order of their steps → steps, with links to steps and keys.
fn steps(graph: &Graph, walked: Vec<Checked>, device: &str) -> Vec<Step> {
    let mut step_of_position = HashMap::with_capacity(walked.len());
    let mut first_of_key = HashMap::with_capacity(walked.len());
    let mut steps: Vec<Step> = Vec::with_capacity(walked.len());
    let keys = key::Keys::new(device);
    for Checked { position, class, mut sources } in walked {
        for source in &mut sources {
            if let Source::Link { step, .. } = source {
                *step = step_of_position[&*step];
            }
        }
        let name = graph.nodes()[position].name();
        let key_of_step = |step: usize| steps[step].key;
        let key = keys.of(&name.id, class, &sources, key_of_step);
        let this = steps.len();
        let first = *first_of_key.entry(key).or_insert(this);
        step_of_position.insert(position, first);
        steps.push(Step {
            name,
            library: class.library,
            node: class.node,
            descriptor: class.descriptor.clone(),
            inputs: sources,
            key,
            same_as: (first != this).then_some(first),
        });
    }
    steps
}

struct Check<'a> {
    graph: &'a Graph,
    catalogue: &'a Catalogue,
    folders: &'a Folders,
    identities: HashMap<PathBuf, [u8; 16]>,
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

impl<'a> Check<'a> {
    /// Checks what the outputs need, ancestors before descendants. One branch is finished before
    /// the next begins, so that few results wait for each other. The walk keeps its own stack: a
    /// chain of a million nodes is no reason to overflow the thread's.
    fn walk(&mut self) -> Vec<Checked<'a>> {
        let (graph, catalogue) = (self.graph, self.catalogue);
        let is_output = |node: &Node| {
            catalogue.get(&node.class).is_some_and(|class| class.descriptor.output_node)
        };
        let mut roots: Vec<usize> =
            (0..graph.nodes().len()).filter(|&at| is_output(&graph.nodes()[at])).collect();
        if roots.is_empty() {
            let what = "the workflow has no output node, so nothing would come of running it; end \
                        it in a node that saves or shows something";
            let empty = "the workflow has no nodes";
            let message = if graph.nodes().is_empty() { empty } else { what };
            self.problems.push(Problem::new(Kind::PromptNoOutputs, message));
            // What else is wrong is still worth knowing.
            roots = (0..graph.nodes().len()).collect();
        }
        let mut marks = vec![Mark::New; graph.nodes().len()];
        let mut order = Vec::new();
        for root in roots {
            if marks[root] != Mark::New {
                continue;
            }
            marks[root] = Mark::OnTheWay;
            let mut way = vec![self.visit(root)];
            while let Some(visit) = way.last_mut() {
                let Some(&child) = visit.children.get(visit.next) else {
                    marks[visit.position] = Mark::Done;
                    order.extend(visit.checked.take());
                    way.pop();
                    continue;
                };
                visit.next += 1;
                match marks[child] {
                    Mark::New => {
                        marks[child] = Mark::OnTheWay;
                        let visit = self.visit(child);
                        way.push(visit);
                    }
                    Mark::OnTheWay => {
                        let from = way.iter().position(|visit| visit.position == child);
                        let circle = way[from.unwrap_or(0)..].iter().map(|visit| visit.position);
                        let circle: Vec<usize> = circle.collect();
                        self.cycle(&circle);
                    }
                    Mark::Done => (),
                }
            }
        }
        for (node, mark) in graph.nodes().iter().zip(marks) {
            if mark == Mark::New && catalogue.get(&node.class).is_none() {
                let mut warning = self.unknown_class(node);
                warning.message.push_str("; it leads to no output and is not run");
                self.warnings.push(warning);
            }
        }
        order
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
        let Some(class) = self.catalogue.get(&node.class) else {
            let problem = self.unknown_class(node);
            self.problems.push(problem);
            let linked = |(_, input): &(String, Input)| match input {
                Input::Link { id, .. } => self.graph.position(id),
                _ => None,
            };
            let children = node.inputs.iter().filter_map(linked).collect();
            return Visit { position, checked: None, children, next: 0 };
        };
        let inputs = &class.descriptor.inputs;
        for (name, _) in &node.inputs {
            if class.descriptor.input(name).is_none() {
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
        // A link that was refused still leads to nodes that may have problems of their own.
        let linked = |input: &InputDescriptor| match node.input(&input.name) {
            Some(Input::Link { id, .. }) => self.graph.position(id),
            _ => None,
        };
        let children = inputs.iter().filter_map(linked).collect();
        Visit { position, checked: Some(Checked { position, class, sources }), children, next: 0 }
    }

    fn unknown_class(&self, node: &Node) -> Problem {
        let message = format!("no library has the class \"{}\"", node.class);
        Problem::new(Kind::MissingNodeType, message)
            .at(node.name())
            .nearest(&node.class, self.catalogue.class_names())
    }

    /// The source for one input. A link leads to a position in the graph for now.
    fn source(&mut self, node: &Node, input: &InputDescriptor) -> Result<Source, Problem> {
        match node.input(&input.name) {
            None => self.default(input),
            Some(Input::Literal { value, .. }) if value.is_null() => self.default(input),
            Some(Input::Link { id, slot }) => self.link(input, id, *slot),
            Some(Input::BareList(items)) => {
                let items = serde_json::Value::from(items.clone());
                let message = format!(
                    "{} is not a link; a link is [\"node id\", output number], a list of values is \
                     {{\"__value__\": […]}}",
                    literal::shown(&items)
                );
                Err(Problem::new(Kind::BadLinkedInput, message))
            }
            Some(Input::Literal { value, origin }) => match &input.kind {
                InputKind::Path { folder, entry, .. } => match value.as_str() {
                    Some(name) => self
                        .path(folder, *entry, name, *origin)
                        .map_err(|problem| allowed_by_set(problem, node, input, name)),
                    None => {
                        let shown = literal::shown(value);
                        let message = format!("{shown} is not a file's name");
                        Err(Problem::new(Kind::InvalidInputType, message))
                    }
                },
                _ => {
                    let (literal, odd) = literal::coerce(input, value)?;
                    self.warnings.extend(odd.map(|odd| odd.at(node.name()).input(&input.name)));
                    let literal = match (&input.kind, literal) {
                        (InputKind::Text { mentions: Some(folder), .. }, Literal::Text(text)) => {
                            let place =
                                |warning: Problem| warning.at(node.name()).input(&input.name);
                            self.mentioned(folder, text, place)?
                        }
                        (_, literal) => literal,
                    };
                    Ok(Source::Literal(literal))
                }
            },
        }
    }

    fn default(&mut self, input: &InputDescriptor) -> Result<Source, Problem> {
        if let InputKind::Path { default: Some(name), folder, entry } = &input.kind {
            return self.path(folder, *entry, name, Origin::File);
        }
        match literal::default(&input.kind) {
            Some(literal) => Ok(Source::Literal(literal)),
            None if input.optional => Ok(Source::Absent),
            None => {
                let message = format!("is missing; it takes {}", literal::wanted(input));
                Err(Problem::new(Kind::RequiredInputMissing, message))
            }
        }
    }

    fn link(&self, input: &InputDescriptor, id: &str, slot: u64) -> Result<Source, Problem> {
        let Some(position) = self.graph.position(id) else {
            let message = format!("is linked to node {id}, which the workflow does not have");
            return Err(Problem::new(Kind::BadLinkedInput, message));
        };
        let from = &self.graph.nodes()[position];
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        let link = Source::Link { step: position, slot };
        // An unknown class is reported where it stands; what it gives is not known.
        let Some(class) = self.catalogue.get(&from.class) else { return Ok(link) };
        if let InputKind::Path { .. } = input.kind {
            let message = "is a file's name, which must stand in the workflow itself: the file is \
                           looked up before anything runs";
            return Err(Problem::new(Kind::BadLinkedInput, message));
        }
        let outputs = &class.descriptor.outputs;
        let Some(output) = outputs.get(slot) else {
            let names = outputs
                .iter()
                .enumerate()
                .map(|(slot, output)| format!("{slot} {} ({})", output.name, output.kind));
            let has = match outputs.len() {
                0 => "it has none".to_owned(),
                _ => format!("it has {}", names.collect::<Vec<_>>().join(", ")),
            };
            let message = format!("is linked to output {slot} of {}: {has}", from.name());
            return Err(Problem::new(Kind::BadLinkedInput, message));
        };
        if !types_fit(&output.kind, &input.type_name) {
            let message = format!(
                "takes {}, but output {slot} of {} is {} ({})",
                input.type_name,
                from.name(),
                output.kind,
                output.name
            );
            return Err(Problem::new(Kind::ReturnTypeMismatch, message));
        }
        Ok(link)
    }

    fn path(
        &mut self,
        folder: &str,
        entry: Entry,
        name: &str,
        origin: Origin,
    ) -> Result<Source, Problem> {
        let invalid = |error: PathError| Problem::new(Kind::InvalidPath, error.to_string());
        let path = match self.folders.resolve(folder, entry, name, origin) {
            Ok(path) => path,
            Err(error @ (PathError::Missing { .. } | PathError::Empty)) => {
                let names = self.folders.names(folder, entry);
                let mut problem = Problem::new(Kind::ValueNotInList, error.to_string())
                    .nearest(name, names.iter().map(String::as_str));
                if problem.nearest.is_none() && !names.is_empty() {
                    let listed = literal::listed(&names);
                    problem.message.push_str(&format!("; there are: {listed}"));
                }
                return Err(problem);
            }
            Err(error) => return Err(invalid(error)),
        };
        let (path, identity) = self.identified(name, path)?;
        Ok(Source::Literal(Literal::Path { path, identity }))
    }

    /// `path`, which is called `name`, as text, and its identity.
    fn identified(&mut self, name: &str, path: PathBuf) -> Result<(String, [u8; 16]), Problem> {
        let invalid = |error: PathError| Problem::new(Kind::InvalidPath, error.to_string());
        let identity = match self.identities.get(&path) {
            Some(&identity) => identity,
            None => {
                let identity = folders::identity(&path, self.folders.identify).map_err(invalid)?;
                self.identities.insert(path.clone(), identity);
                identity
            }
        };
        let Ok(path) = path.into_os_string().into_string() else {
            let message = format!("\"{name}\" lies in a folder whose name is not UTF-8");
            return Err(Problem::new(Kind::InvalidPath, message));
        };
        Ok((path, identity))
    }

    /// A text and the files of `folder` that it names. One that is not there is a warning, as in
    /// ComfyUI, which draws the picture without it. Wherever the text comes from, the names in it
    /// stay inside their folders: a prompt is not the place for paths.
    fn mentioned(
        &mut self,
        folder: &str,
        text: String,
        place: impl Fn(Problem) -> Problem,
    ) -> Result<Literal, Problem> {
        let mut files: Vec<Mention> = Vec::new();
        for names in mention::names(&text, folder) {
            let before = files.len();
            let mut missing = None;
            for name in &names {
                let path = match self.folders.resolve_mention(folder, name) {
                    Ok(path) => path,
                    Err(error) => {
                        missing = Some((name, error));
                        continue;
                    }
                };
                let (path, identity) = self.identified(name, path)?;
                files.push(Mention { property: format!("file:{folder}/{name}"), path, identity });
            }
            if let Some((name, error)) = missing.filter(|_| files.len() == before) {
                let there = self.folders.names(folder, Entry::File);
                let stems =
                    there.iter().filter_map(|name| name.rsplit_once('.')).map(|(stem, _)| stem);
                let stems: Vec<&str> = stems.collect();
                let keyword = mention::keyword(folder);
                let message = format!("{error}; the text is taken without this {keyword}");
                let warning = Problem::new(Kind::ValueNotInList, message);
                self.warnings.push(place(warning.nearest(name, stems)));
            }
        }
        Ok(match files.is_empty() {
            true => Literal::Text(text),
            false => Literal::TextWithFiles { text, files },
        })
    }
}

/// A path that leads out of its folder, but to a file: a picture drawn with `--set` carries the path
/// that was given there, and says here how to give it again.
fn allowed_by_set(
    mut problem: Problem,
    node: &Node,
    input: &InputDescriptor,
    name: &str,
) -> Problem {
    if problem.kind == Kind::InvalidPath
        && Path::new(name).is_absolute()
        && Path::new(name).exists()
    {
        let set = format!("{}.{}={name}", node.id, input.name);
        // As a shell reads it, whatever stands in the name.
        let plain = |c: char| c.is_alphanumeric() || "-_./=:".contains(c);
        let set = match set.chars().all(plain) {
            true => set,
            false => format!("'{}'", set.replace('\'', r"'\''")),
        };
        problem.message.push_str(&format!("; to read it where it is, say so: --set {set}"));
    }
    problem
}

#[cfg(test)]
mod tests;
