//! What the command line changes in a workflow before it is planned: `--set` and `--seed`.

mod seeds;

pub use seeds::{SeedPlaces, Seeds, set_seed};

use crate::catalogue::{Catalogue, InputDescriptor, InputKind};
use crate::graph::{Graph, Input, Origin};
use crate::problem::nearest;
use serde_json::Value;
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
    #[error("--seed: no node of the workflow has a seed that could be set{stay}")]
    NoSeed {
        /// Of seeds that are there, where they come from.
        stay: String,
    },
    #[error("{one} and {other} give node {node}'s \"{input}\" a value, both; say one of them")]
    Twice { one: String, other: String, node: String, input: String },
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

/// Applies one `--set NODE.INPUT=VALUE`, where VALUE is read as the input's declared type: see [`Place`]. Returns what was set.
///
/// # Errors
/// [`ChangeError`].
pub fn set(graph: &mut Graph, catalogue: &Catalogue, given: &str) -> Result<Place, ChangeError> {
    let option = format!("--set {given}");
    let form = || ChangeError::Form { given: option.clone() };
    let (place, value) = given.split_once('=').ok_or_else(form)?;
    let place = Place::find(graph, catalogue, place, &option)?;
    let value = place.read(graph, catalogue, value, &option)?;
    place.put(graph, value);
    Ok(place)
}

/// Refuses two options that give one input values: `set` and `swept` are what `--set` and `--sweep` name, each with the option as it
/// was given; `seed` is that of `--seed`, and `graph` the workflow to which `set` was applied.
///
/// # Errors
/// [`ChangeError::Twice`].
pub fn no_contradiction(
    graph: &Graph,
    catalogue: &Catalogue,
    set: &[(Place, String)],
    swept: &[(Place, String)],
    seed: Option<Seeds>,
) -> Result<(), ChangeError> {
    let seeds = seed.map(|seeds| (SeedPlaces::of(graph, catalogue).set, format!("--seed {seeds}")));
    let seeds =
        seeds.iter().flat_map(|(places, said)| places.iter().map(move |place| (place, said)));
    let seeds: Vec<(&Place, &String)> = seeds.collect();
    for (at, (place, one)) in set.iter().chain(swept).enumerate() {
        let of_swept = swept.iter().filter(|_| at < set.len()).map(|(place, said)| (place, said));
        let other = of_swept.chain(seeds.iter().copied()).find(|(other, _)| *other == place);
        if let Some((_, other)) = other {
            let (node, input) = (graph.nodes()[place.position].id.clone(), place.input.clone());
            return Err(ChangeError::Twice { one: one.clone(), other: other.clone(), node, input });
        }
    }
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

/// The whole number that `text` is: 3, and 3.0 as programs write it.
pub(crate) fn whole(text: &str) -> Option<i128> {
    let text = text.trim();
    text.parse().ok().or_else(|| {
        // Beyond these a fraction's neighbours are farther apart than whole numbers.
        const EXACT: f64 = (1u64 << 53) as f64;
        let number: f64 = text.parse().ok()?;
        (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i128)
    })
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
            let number = whole(text).ok_or_else(|| wrong("a whole number"))?;
            let signed = i64::try_from(number).map(Value::from);
            signed
                .or_else(|_| u64::try_from(number).map(Value::from))
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn two_options_for_one_input_are_refused() {
        let (mut graph, catalogue) = (graph(), catalogue());
        let place = |text: &str| Place::find(&graph, &catalogue, text, "").unwrap();
        let given = |text: &str, option: &str| (place(text), format!("{option} {text}=1"));
        let (steps, seed) = (given("3.steps", "--set"), given("3.seed", "--set"));
        let (swept, other) = (given("3.steps", "--sweep"), given("3.cfg", "--sweep"));
        let range = || "9..11".parse().ok();
        let check = |set: &[_], swept: &[_], seeds| {
            no_contradiction(&graph, &catalogue, set, swept, seeds)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            check(std::slice::from_ref(&steps), &[other.clone(), swept.clone()], None),
            Err("--set 3.steps=1 and --sweep 3.steps=1 give node 3's \"steps\" a value, both; say one of them".into())
        );
        let error = check(std::slice::from_ref(&seed), &[], range()).unwrap_err();
        assert!(
            error.starts_with("--set 3.seed=1 and --seed 9..=10 give node 3's \"seed\""),
            "{error}"
        );
        let swept_seed = given("3.seed", "--sweep");
        assert!(
            check(&[], &[swept_seed], range()).unwrap_err().contains("--sweep 3.seed=1 and --seed")
        );
        assert_eq!(check(&[steps.clone(), steps, seed], &[other], None), Ok(()));
        assert!(set(&mut graph, &catalogue, "3.steps=2").is_ok());
    }

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
        assert_eq!(value("3.steps= -3.0", 0, "steps"), Ok(json!(-3)));
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
            ("3.steps=1e300", "\"1e300\" is not a whole number"),
            ("3.steps=99999999999999999999", "is not a whole number"),
            ("3.cfg=inf", "is not a finite number"),
            ("3.on=maybe", "is not true or false"),
            ("3.model=x", "takes MODEL from another node"),
        ] {
            let error = value(given, 0, "").unwrap_err();
            assert!(error.contains(part), "{error:?} has no {part:?}");
        }
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
