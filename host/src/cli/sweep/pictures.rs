//! Which pictures of a sweep stand in its sheet: in each place what one and the same output made for the values of that place.

use crate::catalogue::{Catalogue, Writes};
use crate::changes::SeedPlaces;
use crate::events::{Event, Listener};
use crate::graph::Graph;
use crate::handed::Handed;
use crate::job::Job;
use crate::plan::{Key, KeyMap, Plan};
use crate::preview::Preview;
use crate::promise::Promise;
use crate::sweep::{Sweep, reached};
use crate::value::Value;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// By node's id the first picture that it told.
pub(super) type Told = HashMap<String, PathBuf>;

/// Passes everything on, and remembers the first picture of each node.
pub(super) struct Pictures<'a> {
    to: &'a dyn Listener,
    told: Mutex<Told>,
}

impl<'a> Pictures<'a> {
    pub fn new(to: &'a dyn Listener) -> Self {
        Self { to, told: Mutex::default() }
    }

    /// What was told since this was last asked.
    pub fn take(&self) -> Told {
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Listener for Pictures<'_> {
    fn event(&self, event: &Event) {
        if let Event::Output { node, files, .. } = event {
            let is_picture = |file: &&String| file.to_ascii_lowercase().ends_with(".png");
            if let Some(file) = files.iter().find(is_picture) {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.entry(node.clone().into_owned()).or_insert_with(|| file.into());
            }
        }
        self.to.event(event);
    }

    fn promise(&self, promise: &Promise) {
        self.to.promise(promise);
    }

    fn wants_previews(&self) -> bool {
        self.to.wants_previews()
    }

    fn preview(&self, node: &str, preview: &Preview) {
        self.to.preview(node, preview);
    }

    fn shown(&self, node: &str, input: &str, value: &Value) {
        self.to.shown(node, input, value);
    }

    fn handed(&self, node: &str, handed: &Handed) {
        self.to.handed(node, handed);
    }

    fn trouble(&self) -> Option<String> {
        self.to.trouble()
    }
}

/// The pictures of the runs so far.
#[derive(Default)]
pub(super) struct Made {
    runs: Vec<Told>,
    /// By what it was made of. An output that a later run has, too, is cached there and tells nothing.
    by_key: KeyMap<PathBuf>,
}

/// The output whose pictures are shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    id: String,
    /// As a sentence calls it.
    pub node: String,
    /// Whether others made pictures, too.
    pub is_one_of_several: bool,
}

impl Made {
    /// Adds the next run, in which nodes told pictures.
    pub fn add(&mut self, plan: &Plan, told: Told) {
        let outputs = plan.outputs().map(|position| {
            let step = &plan.steps()[position];
            (step.name.id.as_str(), step.key)
        });
        self.add_outputs(outputs, told);
    }

    fn add_outputs<'a>(&mut self, outputs: impl Iterator<Item = (&'a str, Key)>, told: Told) {
        let mut run = Told::new();
        for (id, key) in outputs {
            let picture = match told.get(id) {
                Some(picture) => {
                    self.by_key.insert(key, picture.clone());
                    Some(picture)
                }
                None => self.by_key.get(&key),
            };
            if let Some(picture) = picture {
                run.insert(id.to_owned(), picture.clone());
            }
        }
        self.runs.push(run);
    }

    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    pub fn any(&self) -> bool {
        self.runs.iter().any(|run| !run.is_empty())
    }

    /// Of each run the picture of the output that was chosen.
    pub fn of(&self, chosen: Option<&Chosen>) -> Vec<Option<PathBuf>> {
        let picture = |run: &Told| chosen.and_then(|chosen| run.get(&chosen.id)).cloned();
        self.runs.iter().map(picture).collect()
    }

    /// See [`Self::best`].
    pub fn chosen(&self, job: &Job) -> Option<Chosen> {
        self.best(&job.graph, &job.libraries.catalogue, &job.sweep)
    }

    /// Of the outputs that made pictures the one that most of what is swept reaches; among those one that saves before one whose files
    /// are temporary, then the first of the file.
    fn best(&self, graph: &Graph, catalogue: &Catalogue, sweep: &Sweep) -> Option<Chosen> {
        let made: HashSet<&str> =
            self.runs.iter().flat_map(|run| run.keys().map(String::as_str)).collect();
        let mut axes: Vec<HashSet<&str>> = Vec::new();
        for axis in sweep.axes.iter().filter(|axis| axis.values.len() > 1) {
            axes.push(reached(graph, [axis.place.position()]));
        }
        if sweep.runs.windows(2).any(|two| two[0].seed != two[1].seed) {
            let seeds = SeedPlaces::of(graph, catalogue).set;
            axes.push(reached(graph, seeds.iter().map(|place| place.position())));
        }
        let candidates = graph.nodes().iter().filter(|node| made.contains(node.id.as_str()));
        let best = candidates.min_by_key(|node| {
            let reach = axes.iter().filter(|axis| axis.contains(node.id.as_str())).count();
            let class = catalogue.get(&node.class);
            let saves = class.is_some_and(|class| class.descriptor.writes != Some(Writes::Temp));
            (Reverse(reach), !saves)
        })?;
        let (id, node) = (best.id.clone(), best.name().to_string());
        Some(Chosen { id, node, is_one_of_several: made.len() > 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn catalogue() -> Catalogue {
        let library = json!({"name": "l", "version": "1", "nodes": [
            {"class": "Draw", "inputs": [{"name": "cfg", "type": "FLOAT"},
                {"name": "seed", "type": "INT", "max": u64::MAX, "role": "seed"}],
             "outputs": [{"name": "i", "type": "IMAGE"}]},
            {"class": "Load", "inputs": [], "outputs": [{"name": "i", "type": "IMAGE"}]},
            {"class": "Preview", "output_node": true, "writes": "temp",
             "inputs": [{"name": "i", "type": "IMAGE"}]},
            {"class": "Save", "output_node": true, "writes": "output",
             "inputs": [{"name": "i", "type": "IMAGE"}]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("l"), &library).unwrap();
        catalogue
    }

    /// A preview of a picture that nothing swept reaches, one of what is drawn, and what is saved of two.
    fn graph() -> Graph {
        let to = |class: &str, from: &str| json!({"class_type": class, "inputs": {"i": [from, 0]}});
        let json = json!({"load": {"class_type": "Load"}, "hint": to("Preview", "load"),
            "draw": {"class_type": "Draw", "inputs": {"cfg": 1.0, "seed": 1}},
            "other": {"class_type": "Draw", "inputs": {"cfg": 1.0, "seed": 1}},
            "look": to("Preview", "draw"), "second": to("Save", "other"), "save": to("Save", "draw")});
        Graph::parse(&json.to_string()).unwrap()
    }

    fn key(number: u8) -> Key {
        serde_json::from_value(json!(vec![number; 16])).unwrap()
    }

    fn told(nodes: &[&str]) -> Told {
        nodes.iter().map(|node| ((*node).to_owned(), format!("/{node}.png").into())).collect()
    }

    fn chosen(sweeps: &[&str], seeds: Option<&str>, nodes: &[&str]) -> Option<String> {
        let texts: Vec<String> = sweeps.iter().map(|text| (*text).to_owned()).collect();
        let seeds = seeds.map(|seeds| seeds.parse().unwrap());
        let sweep = Sweep::read(&graph(), &catalogue(), &texts, seeds).unwrap();
        let mut made = Made::default();
        let outputs = nodes.iter().enumerate().map(|(at, node)| (*node, key(at as u8)));
        made.add_outputs(outputs, told(nodes));
        made.best(&graph(), &catalogue(), &sweep).map(|chosen| chosen.id)
    }

    #[test]
    fn the_output_is_one_that_the_sweep_reaches() {
        let all = ["hint", "look", "second", "save"];
        let is = |id: &str| Some(id.to_owned());
        assert_eq!(chosen(&["draw.cfg=1,2"], None, &all), is("save"));
        assert_eq!(chosen(&["other.cfg=1,2"], None, &all), is("second"));
        assert_eq!(chosen(&["draw.cfg=1,2"], None, &["hint", "look", "second"]), is("look"));
        // The seed reaches both, and one value is no axis.
        assert_eq!(chosen(&["draw.cfg=1"], Some("1..3"), &all), is("second"));
        assert_eq!(chosen(&["draw.cfg=1,2"], Some("1..3"), &all), is("save"));
        assert_eq!(chosen(&["draw.cfg=1,2"], None, &["hint"]), is("hint"));
        assert_eq!(chosen(&["draw.cfg=1,2"], None, &[]), None);
    }

    #[test]
    fn a_run_that_is_cached_has_the_picture_it_had() {
        let mut made = Made::default();
        made.add_outputs([("a", key(1)), ("b", key(2))].into_iter(), told(&["a", "b"]));
        made.add_outputs([("a", key(1)), ("b", key(3))].into_iter(), told(&["b"]));
        made.add_outputs([("a", key(4)), ("b", key(2))].into_iter(), Told::new());
        let of = |id: &str| {
            let chosen = Chosen { id: id.into(), node: id.into(), is_one_of_several: true };
            let pictures = made.of(Some(&chosen));
            pictures.into_iter().map(|picture| picture.is_some()).collect::<Vec<_>>()
        };
        assert_eq!((of("a"), of("b")), (vec![true, true, false], vec![true; 3]));
        assert_eq!((made.runs(), made.any()), (3, true));
    }
}
