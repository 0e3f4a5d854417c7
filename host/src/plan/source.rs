//! What a node is given at each input: literals coerced, links typed, files found.

use super::{Check, Literal, Mention, Source, literal, mention};
use crate::catalogue::{InputDescriptor, InputKind, types_fit};
use crate::folders::{self, Entry, PathError};
use crate::graph::{Input, Node, Origin, not_finite, placeholder};
use crate::problem::{Kind, Problem, nearest_file};
use serde_json::Value;
use std::path::{Path, PathBuf};

impl Check<'_> {
    /// The source for one input. A link leads to a position in the graph for now.
    pub(super) fn source(
        &mut self,
        node: &Node,
        input: &InputDescriptor,
    ) -> Result<Source, Problem> {
        match node.input(&input.name) {
            None => self.default(input),
            // A socket that nothing is connected to. A widget holds a value, and null is none.
            Some(Input::Literal { value, .. })
                if value.is_null() && input.optional && input.kind == InputKind::Socket =>
            {
                Ok(Source::Absent)
            }
            Some(Input::Literal { value, .. })
                if value.is_null() || not_finite(value).is_some() =>
            {
                let message =
                    format!("{} is not {}", literal::shown(value), literal::wanted(input));
                Err(Problem::new(Kind::InvalidInputType, message))
            }
            Some(Input::Link { id, slot }) => self.link(node, input, id, *slot),
            Some(Input::BareList(items)) => {
                let items = serde_json::Value::from(items.clone());
                let message = format!(
                    "{} is not a link; a link is [\"node id\", output number], a list of values is \
                     {{\"__value__\": […]}}",
                    literal::shown(&items)
                );
                Err(Problem::new(Kind::BadLinkedInput, message))
            }
            Some(Input::Literal { value, origin }) => self
                .literal(node, input, value, *origin)
                .map_err(|problem| self.called_placeholder(problem, node, input, value)),
        }
    }

    fn literal(
        &mut self,
        node: &Node,
        input: &InputDescriptor,
        value: &Value,
        origin: Origin,
    ) -> Result<Source, Problem> {
        if let InputKind::Path { folder, entry, none, .. } = &input.kind {
            let Some(name) = value.as_str() else {
                let message = format!("{} is not a file's name", literal::shown(value));
                return Err(Problem::new(Kind::InvalidInputType, message));
            };
            if none.as_deref() == Some(name) {
                return Ok(Source::Absent);
            }
            let path = self.path(input, folder, *entry, name, origin);
            // The command line is not a client's, nor is it to learn which files there are.
            return match self.folders.of_clients {
                true => path,
                false => path.map_err(|problem| allowed_by_set(problem, node, input, name)),
            };
        }
        let (literal, odd) = literal::coerce(input, value)?;
        let place = |warning: Problem| warning.at(node.name()).input(&input.name);
        self.warnings.extend(odd.map(place));
        let literal = match (&input.kind, literal) {
            (InputKind::Text { mentions: Some(folder), .. }, Literal::Text(text)) => {
                self.mentioned(folder, text, place)?
            }
            (InputKind::Combo { files, .. }, Literal::Text(choice)) => {
                self.needed(files.get(&choice).map_or(&[], Vec::as_slice), choice)?
            }
            (_, literal) => literal,
        };
        Ok(Source::Literal(literal))
    }

    fn default(&mut self, input: &InputDescriptor) -> Result<Source, Problem> {
        if let InputKind::Path { default: Some(name), folder, entry, none } = &input.kind {
            if none.as_ref() == Some(name) {
                return Ok(Source::Absent);
            }
            return self.path(input, folder, *entry, name, Origin::File);
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

    fn link(
        &self,
        node: &Node,
        input: &InputDescriptor,
        id: &str,
        slot: u64,
    ) -> Result<Source, Problem> {
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
        let looks_itself =
            self.catalogue.get(&node.class).is_some_and(|class| class.descriptor.asks.types);
        if !looks_itself && !types_fit(&output.kind, &input.type_name) {
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
        input: &InputDescriptor,
        folder: &str,
        entry: Entry,
        name: &str,
        origin: Origin,
    ) -> Result<Source, Problem> {
        let invalid = |error: PathError| Problem::new(Kind::InvalidPath, error.to_string());
        let path = match self.folders.resolve(folder, entry, name, origin) {
            Ok(path) => path,
            Err(error @ (PathError::Missing { .. } | PathError::Empty)) => {
                let names = self.folders.names_of(folder, entry, &input.extensions);
                let mut problem = Problem::new(Kind::ValueNotInList, error.to_string());
                problem.nearest = nearest_file(name, &names).map(str::to_owned);
                if problem.nearest.is_none() && !names.is_empty() {
                    let listed = literal::listed(&names);
                    problem.message.push_str(&format!("; there are: {listed}"));
                }
                return Err(problem);
            }
            Err(error) => return Err(invalid(error)),
        };
        let set = self.folders.set(folder, name);
        // A name that stands for several files is recognised by all of them; a file of that name comes first.
        let others = if set.first() == Some(&path) { &set[1..] } else { &[] };
        let (path, mut identity) = self.identified(name, path)?;
        for other in others.iter().cloned() {
            let (_, of_other) = self.identified(name, other)?;
            let mut hasher = blake3::Hasher::new();
            hasher.update(&identity).update(&of_other);
            hasher.finalize_xof().fill(&mut identity);
        }
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

    /// A choice and those of the files that it may need that are there. Which of them it does need, the node knows.
    fn needed(&mut self, names: &[String], choice: String) -> Result<Literal, Problem> {
        let mut files: Vec<Mention> = Vec::new();
        for name in names {
            let Some((folder, file)) = name.split_once('/') else { continue };
            if let Ok(path) = self.folders.resolve_mention(folder, file) {
                let (path, identity) = self.identified(file, path)?;
                files.push(Mention { property: format!("file:{name}"), path, identity });
            }
        }
        Ok(match files.is_empty() {
            true => Literal::Text(choice),
            false => Literal::TextWithFiles { text: choice, files },
        })
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

    /// A text that was refused and holds a placeholder: said so, with the way to fill it.
    fn called_placeholder(
        &self,
        mut problem: Problem,
        node: &Node,
        input: &InputDescriptor,
        value: &Value,
    ) -> Problem {
        if let Some(found) = value.as_str().and_then(placeholder) {
            let mut sentence = format!("; {found} is a placeholder that nothing has filled in");
            // A link is not given on the command line, and a client has none.
            let is_value = input.kind != InputKind::Socket || input.type_name == "*";
            if is_value && !self.folders.of_clients {
                let set = set(node, input, "VALUE");
                sentence.push_str(&format!(": --set {set} does"));
            }
            problem.message.push_str(&sentence);
            problem.nearest = None;
        }
        problem
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
        let set = set(node, input, name);
        problem.message.push_str(&format!("; to read it where it is, say so: --set {set}"));
    }
    problem
}

/// What `--set` takes to put `value` at an input, as a shell reads it, whatever stands in it.
fn set(node: &Node, input: &InputDescriptor, value: &str) -> String {
    let set = format!("{}.{}={value}", node.id, input.name);
    let plain = |c: char| c.is_alphanumeric() || "-_./=:".contains(c);
    match set.chars().all(plain) {
        true => set,
        false => format!("'{}'", set.replace('\'', r"'\''")),
    }
}
