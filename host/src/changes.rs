//! What the command line changes in a workflow before it is planned: `--set` and `--seed`.

use crate::catalogue::{Catalogue, InputDescriptor, InputKind};
use crate::graph::{Graph, Input, Origin};
use crate::problem::nearest;
use serde_json::Value;
use std::str::FromStr;
use thiserror::Error;

/// Why a change cannot be made.
#[derive(Debug, Error, PartialEq)]
pub enum ChangeError {
    #[error("{given}: NODE.INPUT=VALUE was expected")]
    Form { given: String },
    #[error("{given}: no node has the id, title or class \"{name}\"{}", meant(.nearest))]
    NoNode { given: String, name: String, nearest: Option<String> },
    #[error("{given}: \"{title}\" is the name of the nodes {}; say which by its id, or {title}#1 for the first", .ids.join(", "))]
    Ambiguous { given: String, title: String, ids: Vec<String> },
    #[error(
        "{given}: nodes of the name \"{name}\" are counted from 1 to {count}; there is none with the number {number}"
    )]
    NoNumber { given: String, name: String, number: String, count: usize },
    #[error("{given}: node {id} ({class}) has no input \"{input}\"{}", meant(.nearest))]
    NoInput { given: String, id: String, class: String, input: String, nearest: Option<String> },
    #[error("{given}: input \"{input}\" takes {wanted} from another node and cannot be set")]
    Socket { given: String, input: String, wanted: String },
    #[error("{given}: \"{value}\" is not {wanted}")]
    Value { given: String, value: String, wanted: &'static str },
    #[error("--seed: no node of the workflow has a seed that could be set")]
    NoSeed,
}

fn meant(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or(String::new(), |name| format!("; did you mean \"{name}\"?"))
}

/// An input of a node that the command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    position: usize,
    input: String,
}

impl Place {
    /// The place that NODE.INPUT names: NODE is an id, a title or a class, or one of several of a title or class by its number in the order
    /// of the file, `KSampler#2`. `given` is the option as a sentence repeats it.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn find(
        graph: &Graph,
        catalogue: &Catalogue,
        place: &str,
        given: &str,
    ) -> Result<Self, ChangeError> {
        // Titles may hold dots; the names of inputs hardly do. The longest name of a node wins.
        let mut found = None;
        for (dot, _) in place.rmatch_indices('.') {
            let (node, input) = (&place[..dot], &place[dot + 1..]);
            if let Some(position) = find_node(graph, node, given)? {
                found = Some((position, input));
                break;
            }
        }
        let Some((position, name)) = found else {
            let form = || ChangeError::Form { given: given.to_owned() };
            let (node, _) = place.rsplit_once('.').ok_or_else(form)?;
            let nodes = graph.nodes().iter();
            // A number behind the name is none of it.
            let (bare, number) = match node.rsplit_once('#') {
                Some((bare, number)) if number.parse::<usize>().is_ok() => {
                    (bare, format!("#{number}"))
                }
                _ => (node, String::new()),
            };
            let names = nodes.flat_map(|node| {
                node.title().into_iter().chain([node.class.as_str(), node.id.as_str()])
            });
            let nearest = nearest(bare, names).map(|name| format!("{name}{number}"));
            return Err(ChangeError::NoNode {
                given: given.to_owned(),
                name: node.to_owned(),
                nearest,
            });
        };
        let node = &graph.nodes()[position];
        if let Some(class) = catalogue.get(&node.class)
            && class.descriptor.input(name).is_none()
        {
            let names = class.descriptor.inputs.iter().map(|input| input.name.as_str());
            return Err(ChangeError::NoInput {
                given: given.to_owned(),
                id: node.id.clone(),
                class: node.class.clone(),
                input: name.to_owned(),
                nearest: nearest(name, names).map(str::to_owned),
            });
        }
        Ok(Self { position, input: name.to_owned() })
    }

    /// The node's position in the graph.
    pub fn position(&self) -> usize {
        self.position
    }

    pub fn input(&self) -> &str {
        &self.input
    }

    /// What is said of the input, where the node's class is known.
    pub fn descriptor<'a>(
        &self,
        graph: &Graph,
        catalogue: &'a Catalogue,
    ) -> Option<&'a InputDescriptor> {
        catalogue.get(&graph.nodes()[self.position].class)?.descriptor.input(&self.input)
    }

    /// `text` as the input's declared type. Where the class is unknown it is JSON, or else text: the plan will say what is wrong with the class.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn read(
        &self,
        graph: &Graph,
        catalogue: &Catalogue,
        text: &str,
        given: &str,
    ) -> Result<Value, ChangeError> {
        match self.descriptor(graph, catalogue) {
            Some(input) => typed(input, text, given),
            None => Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))),
        }
    }

    /// Gives the input of `graph` the value.
    pub fn put(&self, graph: &mut Graph, value: Value) {
        let input = Input::Literal { value, origin: Origin::CommandLine };
        graph.inputs_mut(self.position).set(&self.input, input);
    }
}

/// Applies one `--set NODE.INPUT=VALUE`, where VALUE is read as the input's declared type: see [`Place`].
///
/// # Errors
/// [`ChangeError`].
pub fn set(graph: &mut Graph, catalogue: &Catalogue, given: &str) -> Result<(), ChangeError> {
    let option = format!("--set {given}");
    let form = || ChangeError::Form { given: option.clone() };
    let (place, value) = given.split_once('=').ok_or_else(form)?;
    let place = Place::find(graph, catalogue, place, &option)?;
    let value = place.read(graph, catalogue, value, &option)?;
    place.put(graph, value);
    Ok(())
}

/// The position of the node that `name` says, as [`Place::find`] takes it, if there is one.
///
/// # Errors
/// [`ChangeError`]: several have the name.
pub(crate) fn find_node(
    graph: &Graph,
    name: &str,
    given: &str,
) -> Result<Option<usize>, ChangeError> {
    if let Some(position) = graph.position(name) {
        return Ok(Some(position));
    }
    match named(graph, name).as_slice() {
        [] => numbered(graph, name, given),
        [position] => Ok(Some(*position)),
        several => Err(ChangeError::Ambiguous {
            given: given.to_owned(),
            title: name.to_owned(),
            ids: several.iter().map(|&at| graph.nodes()[at].id.clone()).collect(),
        }),
    }
}

/// The nodes of this title, or else of this class, in the order of the file.
fn named(graph: &Graph, name: &str) -> Vec<usize> {
    let nodes = graph.nodes().iter().enumerate();
    let titled: Vec<usize> =
        nodes.filter(|(_, node)| node.title() == Some(name)).map(|(at, _)| at).collect();
    match titled.is_empty() {
        // Files of the editor have titles only where somebody gave one.
        true => (0..graph.nodes().len()).filter(|&at| graph.nodes()[at].class == name).collect(),
        false => titled,
    }
}

/// The node that `NAME#2` says, counted from 1.
fn numbered(graph: &Graph, name: &str, given: &str) -> Result<Option<usize>, ChangeError> {
    let Some((name, number)) = name.rsplit_once('#') else { return Ok(None) };
    let several = named(graph, name);
    if several.is_empty() {
        return Ok(None);
    }
    let at = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    match at.and_then(|at| several.get(at)) {
        Some(position) => Ok(Some(*position)),
        None => Err(ChangeError::NoNumber {
            given: given.to_owned(),
            name: name.to_owned(),
            number: number.to_owned(),
            count: several.len(),
        }),
    }
}

fn typed(input: &InputDescriptor, text: &str, given: &str) -> Result<Value, ChangeError> {
    let wrong =
        |wanted| ChangeError::Value { given: given.to_owned(), value: text.to_owned(), wanted };
    Ok(match &input.kind {
        InputKind::Socket if input.type_name == "*" => {
            serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
        }
        InputKind::Socket => {
            return Err(ChangeError::Socket {
                given: given.to_owned(),
                input: input.name.clone(),
                wanted: input.type_name.clone(),
            });
        }
        InputKind::Int { .. } => {
            let text = text.trim();
            let signed = text.parse::<i64>().map(Value::from);
            signed
                .or_else(|_| text.parse::<u64>().map(Value::from))
                .map_err(|_| wrong("a whole number"))?
        }
        InputKind::Float { .. } => {
            let number: f64 = text.trim().parse().map_err(|_| wrong("a number"))?;
            if !number.is_finite() {
                return Err(wrong("a finite number"));
            }
            Value::from(number)
        }
        InputKind::Boolean { .. } => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Value::Bool(true),
            "false" | "no" | "off" | "0" => Value::Bool(false),
            _ => return Err(wrong("true or false")),
        },
        InputKind::Text { .. } | InputKind::Combo { .. } | InputKind::Path { .. } => text.into(),
    })
}

/// The seeds of `--seed`: one, or as Rust writes a range: `3..6` is 3, 4, 5; `3..=6` has 6, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl Seeds {
    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }

    pub fn first(self) -> u64 {
        self.first
    }

    pub fn last(self) -> u64 {
        self.last
    }

    /// How many there are.
    pub fn count(self) -> u128 {
        u128::from(self.last - self.first) + 1
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let seed = text.trim().parse::<u64>();
            seed.map_err(|_| format!("\"{text}\" is not a seed, a whole number from 0 to 2^64 - 1"))
        };
        let Some((first, last)) = text.split_once("..") else {
            let seed = number(text)?;
            return Ok(Self { first: seed, last: seed });
        };
        let first = number(first)?;
        let last = match last.strip_prefix('=') {
            Some(last) => Some(number(last)?),
            None => number(last)?.checked_sub(1),
        };
        match last {
            Some(last) if last >= first => Ok(Self { first, last }),
            _ => Err(format!("{text} is an empty range: its end is not above its beginning")),
        }
    }
}

/// Sets every seed that is not fed by a link: inputs of the role "seed", written or left out.
///
/// # Errors
/// [`ChangeError::NoSeed`].
pub fn set_seed(graph: &mut Graph, catalogue: &Catalogue, seed: u64) -> Result<(), ChangeError> {
    let mut any = false;
    for position in 0..graph.nodes().len() {
        let Some(class) = catalogue.get(&graph.nodes()[position].class) else { continue };
        for input in class.descriptor.inputs.iter().filter(|input| input.kind.is_seed()) {
            let node = graph.inputs_mut(position);
            if !matches!(node.input(&input.name), Some(Input::Link { .. })) {
                let value = Value::from(seed);
                node.set(&input.name, Input::Literal { value, origin: Origin::CommandLine });
                any = true;
            }
        }
    }
    if any { Ok(()) } else { Err(ChangeError::NoSeed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::path::Path;

    fn catalogue() -> Catalogue {
        let library = json!({"name": "l", "version": "1", "nodes": [{"class": "K", "inputs": [
            {"name": "steps", "type": "INT"}, {"name": "cfg", "type": "FLOAT"},
            {"name": "seed", "type": "INT", "max": u64::MAX, "role": "seed"},
            {"name": "text", "type": "STRING"}, {"name": "on", "type": "BOOLEAN"},
            {"name": "model", "type": "MODEL"}]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("l"), &library).unwrap();
        catalogue
    }

    fn graph() -> Graph {
        let titled = |title| json!({"class_type": "K", "inputs": {}, "_meta": {"title": title}});
        let json = json!({"3": titled("Sampler v1.5"), "4": titled("Twice"), "5": titled("Twice"),
            "6": {"class_type": "K", "inputs": {"seed": ["3", 0]}}});
        Graph::parse(&json.to_string()).unwrap()
    }

    fn value(given: &str, position: usize, name: &str) -> Result<Value, String> {
        let mut graph = graph();
        set(&mut graph, &catalogue(), given).map_err(|error| error.to_string())?;
        match graph.nodes()[position].input(name) {
            Some(Input::Literal { value, origin: Origin::CommandLine }) => Ok(value.clone()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn values_are_read_by_their_type() {
        assert_eq!(value("3.steps=12", 0, "steps"), Ok(json!(12)));
        assert_eq!(value("Sampler v1.5.cfg=2.5", 0, "cfg"), Ok(json!(2.5)));
        assert_eq!(value("3.seed=18446744073709551615", 0, "seed"), Ok(json!(u64::MAX)));
        assert_eq!(value("3.text=a=b.c", 0, "text"), Ok(json!("a=b.c")));
        assert_eq!(value("3.text=", 0, "text"), Ok(json!("")));
        assert_eq!(value("3.on=yes", 0, "on"), Ok(json!(true)));
    }

    #[test]
    fn one_of_several_is_said_by_its_number() {
        assert_eq!(value("K#4.steps=12", 3, "steps"), Ok(json!(12)));
        assert_eq!(value("K#1.steps=12", 0, "steps"), Ok(json!(12)));
        assert_eq!(value("Twice#2.cfg=3", 2, "cfg"), Ok(json!(3.0)));
        // A title that looks like one is a title.
        let json =
            json!({"1": {"class_type": "K"}, "2": {"class_type": "K", "_meta": {"title": "K#1"}}});
        let mut graph = Graph::parse(&json.to_string()).unwrap();
        set(&mut graph, &catalogue(), "K#1.steps=3").unwrap();
        assert!(graph.nodes()[0].inputs.is_empty() && !graph.nodes()[1].inputs.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (given, part) in [
            ("3.steps", "NODE.INPUT=VALUE was expected"),
            ("steps=3", "NODE.INPUT=VALUE was expected"),
            ("Sampler v15.steps=3", "did you mean \"Sampler v1.5\"?"),
            ("3.stepps=3", "node 3 (K) has no input \"stepps\"; did you mean \"steps\"?"),
            ("Twice.steps=3", "is the name of the nodes 4, 5; say which by its id, or Twice#1"),
            (
                "K#5.steps=3",
                "nodes of the name \"K\" are counted from 1 to 4; there is none with the number 5",
            ),
            ("K#0.steps=3", "there is none with the number 0"),
            ("k#1.steps=3", "did you mean \"K#1\"?"),
            ("Twce#2.steps=3", "did you mean \"Twice#2\"?"),
            ("Q#1.steps=3", "no node has the id, title or class \"Q#1\""),
            ("3.steps=2.5", "\"2.5\" is not a whole number"),
            ("3.cfg=inf", "is not a finite number"),
            ("3.on=maybe", "is not true or false"),
            ("3.model=x", "takes MODEL from another node"),
        ] {
            let error = value(given, 0, "").unwrap_err();
            assert!(error.contains(part), "{error:?} has no {part:?}");
        }
    }

    #[test]
    fn seeds() {
        let seeds =
            |text: &str| text.parse::<Seeds>().map(|seeds| seeds.iter().collect::<Vec<_>>());
        assert_eq!(seeds("7"), Ok(vec![7]));
        assert_eq!(seeds("3..6"), Ok(vec![3, 4, 5]));
        assert_eq!(seeds("3..=6"), Ok(vec![3, 4, 5, 6]));
        assert_eq!("0..=18446744073709551615".parse::<Seeds>().unwrap().last(), u64::MAX);
        assert!(seeds("3..3").unwrap_err().contains("empty range"));
        assert!(seeds("0..0").is_err() && seeds("-1").is_err() && seeds("..").is_err());
        let mut graph = graph();
        set_seed(&mut graph, &catalogue(), 9).unwrap();
        let at = |position: usize| graph.nodes()[position].input("seed").cloned();
        let nine = Input::Literal { value: json!(9), origin: Origin::CommandLine };
        assert_eq!(at(0), Some(nine));
        assert!(matches!(at(3), Some(Input::Link { .. })));
        assert_eq!(set_seed(&mut Graph::default(), &catalogue(), 9), Err(ChangeError::NoSeed));
    }

    proptest! {
        #[test]
        fn any_argument_is_a_change_or_a_sentence(given in "\\PC{0,20}|[3-6.=a-z]{0,12}") {
            if let Err(error) = set(&mut graph(), &catalogue(), &given) {
                prop_assert!(error.to_string().starts_with("--set"));
            }
            let _ = given.parse::<Seeds>();
        }
    }
}
