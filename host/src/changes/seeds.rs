//! `--seed`: which numbers, and which inputs of a workflow they are given to.

use super::{ChangeError, Place};
use crate::catalogue::{Catalogue, InputDescriptor, InputKind};
use crate::graph::{Graph, Input};
use crate::problem::{Kind, Problem};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// The most nodes between a seed and the number that it comes from.
const FARTHEST: usize = 64;

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

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}..={}", self.first, self.last),
        }
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

/// What `--seed` sets in a workflow, and what it does not reach.
#[derive(Debug, Default)]
pub struct SeedPlaces {
    /// Inputs of the role "seed", written or left out; where one is fed by a link, the number at the link's other end. Each once.
    pub set: Vec<Place>,
    /// Seeds that come from a node which computes them: the seed's node, its input, and the node that gives it, by position.
    stay: Vec<(usize, String, usize)>,
}

impl SeedPlaces {
    pub fn of(graph: &Graph, catalogue: &Catalogue) -> Self {
        let mut this = Self::default();
        for (position, node) in graph.nodes().iter().enumerate() {
            let Some(class) = catalogue.get(&node.class) else { continue };
            for input in class.descriptor.inputs.iter().filter(|input| input.kind.is_seed()) {
                match node.input(&input.name) {
                    Some(Input::Link { id, .. }) => {
                        // A link to nowhere is the plan's to tell.
                        let Some(from) = graph.position(id) else { continue };
                        match source(graph, catalogue, from) {
                            End::Number(place) => this.add(place),
                            // It is among the seeds that are set.
                            End::Seed => (),
                            End::Computed => this.stay.push((position, input.name.clone(), from)),
                        }
                    }
                    _ => this.add(Place { position, input: input.name.clone() }),
                }
            }
        }
        this
    }

    fn add(&mut self, place: Place) {
        // Several seeds may come from one number.
        if !self.set.contains(&place) {
            self.set.push(place);
        }
    }

    /// Says of each seed that is not reached whose it is and what gives it.
    pub fn warnings(&self, graph: &Graph) -> Vec<Problem> {
        let warning = |(position, input, from): &(usize, String, usize)| {
            let from = graph.nodes()[*from].name();
            let message =
                format!("this seed comes from {from} and stays: --seed does not reach it");
            Problem::new(Kind::Unfit, message).at(graph.nodes()[*position].name()).input(input)
        };
        self.stay.iter().map(warning).collect()
    }
}

/// What a seed's link leads to.
enum End {
    /// A number that stands in the workflow.
    Number(Place),
    /// A node that has a seed of its own.
    Seed,
    Computed,
}

/// Follows a link to the node at `from`, through nodes that have no other input than the value they pass on.
fn source(graph: &Graph, catalogue: &Catalogue, from: usize) -> End {
    let mut position = from;
    for _ in 0..FARTHEST {
        let node = &graph.nodes()[position];
        let Some(class) = catalogue.get(&node.class) else { return End::Computed };
        let inputs = &class.descriptor.inputs;
        let is_literal =
            |input: &&InputDescriptor| !matches!(node.input(&input.name), Some(Input::Link { .. }));
        if inputs.iter().filter(is_literal).any(|input| input.kind.is_seed()) {
            return End::Seed;
        }
        let [only] = &inputs[..] else { return End::Computed };
        match node.input(&only.name) {
            Some(Input::Link { id, .. }) => match graph.position(id) {
                Some(next) => position = next,
                None => return End::Computed,
            },
            _ if matches!(only.kind, InputKind::Int { .. }) => {
                return End::Number(Place { position, input: only.name.clone() });
            }
            _ => return End::Computed,
        }
    }
    End::Computed
}

/// Sets every seed: see [`SeedPlaces`]. What is returned says which it does not reach.
///
/// # Errors
/// [`ChangeError::NoSeed`].
pub fn set_seed(
    graph: &mut Graph,
    catalogue: &Catalogue,
    seed: u64,
) -> Result<Vec<Problem>, ChangeError> {
    let places = SeedPlaces::of(graph, catalogue);
    let warnings = places.warnings(graph);
    if places.set.is_empty() {
        let stay = warnings.iter().map(|warning| format!("; {warning}")).collect();
        return Err(ChangeError::NoSeed { stay });
    }
    for place in &places.set {
        place.put(graph, Value::from(seed));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Origin;
    use serde_json::json;
    use std::path::Path;

    fn catalogue() -> Catalogue {
        let seed = json!({"name": "seed", "type": "INT", "max": u64::MAX, "role": "seed"});
        let int = json!([{"name": "INT", "type": "INT"}]);
        let library = json!({"name": "l", "version": "1", "nodes": [
            {"class": "K", "inputs": [seed, {"name": "steps", "type": "INT"}]},
            {"class": "Number", "inputs": [{"name": "value", "type": "INT"}], "outputs": int},
            {"class": "Pass", "inputs": [{"name": "any", "type": "*"}], "outputs": int},
            {"class": "Roll", "inputs": [seed, {"name": "most", "type": "INT"}], "outputs": int},
            {"class": "Sum", "inputs": [{"name": "a", "type": "INT"}, {"name": "b", "type": "INT"}],
             "outputs": int}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("l"), &library).unwrap();
        catalogue
    }

    fn graph(json: &Value) -> Graph {
        Graph::parse(&json.to_string()).unwrap()
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
    }

    #[test]
    fn the_number_at_the_other_end_of_a_link_is_set() {
        let mut graph = graph(&json!({
            "1": {"class_type": "K", "inputs": {"seed": ["2", 0]}},
            "2": {"class_type": "Number", "inputs": {"value": 5}},
            "3": {"class_type": "K", "inputs": {"seed": ["4", 0]}},
            "4": {"class_type": "Pass", "inputs": {"any": ["2", 0]}},
            "5": {"class_type": "K", "inputs": {"seed": ["6", 0]}},
            "6": {"class_type": "Roll", "inputs": {"seed": 1, "most": 9}},
            "7": {"class_type": "K", "inputs": {"seed": ["8", 0]}, "_meta": {"title": "Last"}},
            "8": {"class_type": "Sum", "inputs": {"a": 1, "b": 2}},
            "9": {"class_type": "K", "inputs": {}}}));
        let warnings = set_seed(&mut graph, &catalogue(), 9).unwrap();
        let nine = Input::Literal { value: json!(9), origin: Origin::CommandLine };
        let at = |id: &str, input: &str| {
            graph.nodes()[graph.position(id).unwrap()].input(input).cloned()
        };
        for (id, input) in [("2", "value"), ("6", "seed"), ("9", "seed")] {
            assert_eq!(at(id, input), Some(nine.clone()), "{id}");
        }
        for id in ["1", "3", "5", "7"] {
            assert!(matches!(at(id, "seed"), Some(Input::Link { .. })), "{id}");
        }
        let warnings: Vec<String> = warnings.iter().map(Problem::to_string).collect();
        assert_eq!(
            warnings,
            [
                "node 7 \"Last\" (K), input \"seed\": this seed comes from node 8 (Sum) and stays: --seed does not reach it"
            ]
        );
    }

    #[test]
    fn what_has_no_seed_to_set_says_where_its_seeds_come_from() {
        let none = set_seed(&mut Graph::default(), &catalogue(), 9).unwrap_err().to_string();
        assert_eq!(none, "--seed: no node of the workflow has a seed that could be set");
        let mut circle = graph(&json!({
            "1": {"class_type": "K", "inputs": {"seed": ["2", 0]}},
            "2": {"class_type": "Pass", "inputs": {"any": ["2", 0]}}}));
        let error = set_seed(&mut circle, &catalogue(), 9).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "this seed comes from node 2 (Pass) and stays: --seed does not reach it"
            ),
            "{error}"
        );
        assert!(error.contains("that could be set; node 1 (K), input \"seed\": "), "{error}");
    }
}
