//! `--sweep NODE.INPUT=VALUES`: one run for each combination of values.

use crate::catalogue::{Catalogue, InputKind};
use crate::changes::{ChangeError, Place, Seeds, whole as whole_number};
use crate::graph::{Graph, Input};
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use thiserror::Error;

/// The most runs of one sweep.
pub const MOST: u128 = 10_000;

/// The longest file of values, in bytes.
const LONGEST: u64 = 16 << 20;

/// Why a sweep is not begun.
#[derive(Debug, Error, PartialEq)]
pub enum SweepError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("{given}: NODE.INPUT=VALUES was expected: a,b,c or 1..9 or 0:1:0.25 or @FILE")]
    Form { given: String },
    #[error("{given}: there is no value in {what}")]
    Empty { given: String, what: String },
    #[error("{given}: {file} cannot be read: {cause}")]
    File { given: String, file: String, cause: String },
    #[error("{given}: the range {range} {what}")]
    Range { given: String, range: String, what: &'static str },
    #[error("{given}: is swept twice; one list with all of its values is one sweep")]
    Twice { given: String },
    #[error(
        "{}: {} combinations are too many for one sweep, which has {} at most; nothing was begun",
        .given.join(" "), counted(*.count), counted(MOST)
    )]
    Many { given: Vec<String>, count: u128 },
}

/// A number with its thousands apart.
fn counted(number: u128) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An input and the values that it takes.
#[derive(Clone, Debug)]
pub struct Axis {
    pub place: Place,
    /// What events call the node: its id.
    pub node: String,
    /// What a person calls it: its title, or its class.
    pub title: String,
    /// Not empty.
    pub values: Vec<Value>,
    /// The option, as a sentence repeats it.
    pub given: String,
}

impl Axis {
    /// Reads one `--sweep`.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn read(graph: &Graph, catalogue: &Catalogue, text: &str) -> Result<Self, SweepError> {
        let given = format!("--sweep {text}");
        let (place, values) =
            text.split_once('=').ok_or_else(|| SweepError::Form { given: given.clone() })?;
        let place = Place::find(graph, catalogue, place, &given)?;
        let kind = place.descriptor(graph, catalogue).map(|input| &input.kind);
        let texts = match kind {
            Some(InputKind::Int { .. }) => numbers(values, true, &given)?,
            Some(InputKind::Float { .. }) => numbers(values, false, &given)?,
            _ => None,
        };
        let texts = match (texts, values.strip_prefix('@')) {
            (Some(texts), _) => texts,
            (None, Some(file)) => lines(file, &given)?,
            (None, None) if values.trim().is_empty() => {
                let what = "an empty list".to_owned();
                return Err(SweepError::Empty { given, what });
            }
            (None, None) => list(values),
        };
        // Before any of them is looked at.
        if texts.len() as u128 > MOST {
            return Err(SweepError::Many { given: vec![given], count: texts.len() as u128 });
        }
        let values = texts.iter().map(|text| place.read(graph, catalogue, text, &given));
        let values = values.collect::<Result<Vec<Value>, _>>()?;
        let node = &graph.nodes()[place.position()];
        let title = node.title().unwrap_or(&node.class).to_owned();
        Ok(Self { node: node.id.clone(), title, place, values, given })
    }

    /// What a person reads of one of the values.
    pub fn label(&self, value: usize) -> String {
        let value = match &self.values[value] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!("{} = {value}", self.place.input())
    }
}

/// The values between commas, without the white space around them; a comma that belongs to a value stands behind a backslash.
fn list(text: &str) -> Vec<String> {
    let mut values = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(',')) => {
                chars.next();
                if let Some(value) = values.last_mut() {
                    value.push(',');
                }
            }
            (',', _) => values.push(String::new()),
            (c, _) => {
                if let Some(value) = values.last_mut() {
                    value.push(c);
                }
            }
        }
    }
    values.iter().map(|value| value.trim().to_owned()).collect()
}

/// One value a line; empty lines are none.
fn lines(file: &str, given: &str) -> Result<Vec<String>, SweepError> {
    let failed =
        |cause: String| SweepError::File { given: given.to_owned(), file: file.to_owned(), cause };
    if file.trim().is_empty() {
        return Err(SweepError::Empty {
            given: given.to_owned(),
            what: "a file without a name".into(),
        });
    }
    let metadata = fs::metadata(file).map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() {
        return Err(failed("it is no file".to_owned()));
    }
    if metadata.len() > LONGEST {
        return Err(failed(format!("it has more than {} MB", LONGEST >> 20)));
    }
    let text = fs::read(file).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| failed("it is no text in UTF-8".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let values: Vec<String> =
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    match values.is_empty() {
        true => Err(SweepError::Empty { given: given.to_owned(), what: file.to_owned() }),
        false => Ok(values),
    }
}

/// The numbers of a range, FIRST..END, FIRST..=LAST or FIRST:LAST:STEP; none where the text is none.
fn numbers(text: &str, whole: bool, given: &str) -> Result<Option<Vec<String>>, SweepError> {
    let text = text.trim();
    let wrong = |what| SweepError::Range { given: given.to_owned(), range: text.to_owned(), what };
    let many = |count: u128| SweepError::Many { given: vec![given.to_owned()], count };
    let steps = |first: i128, last: i128, step: i128| {
        let count = (last - first) / step;
        if count < 0 || (last - first).signum() * step.signum() < 0 {
            return Err(wrong("is empty: its end is not behind its beginning"));
        }
        let count = count.unsigned_abs() + 1;
        if count > MOST {
            return Err(many(count));
        }
        Ok(Some((0..count as i128).map(|i| (first + i * step).to_string()).collect()))
    };
    // Seeds are the largest numbers there are: any difference of two fits.
    let fits = |number: &i128| number.unsigned_abs() <= u128::from(u64::MAX);
    if let Some((first, end)) = text.split_once("..") {
        let (end, more) = match end.strip_prefix('=') {
            Some(end) => (end, 0),
            None => (end, 1),
        };
        let (Some(first), Some(end)) = (whole_number(first), whole_number(end)) else {
            return Err(wrong("is none: two whole numbers were expected, as in 1..9"));
        };
        if !fits(&first) || !fits(&end) {
            return Err(wrong("goes beyond what an input holds"));
        }
        if end - more < first {
            return Err(wrong("is empty: its end is not behind its beginning"));
        }
        return steps(first, end - more, 1);
    }
    let parts: Vec<&str> = text.split(':').collect();
    let [first, last, step] = parts[..] else { return Ok(None) };
    if whole {
        let (Some(first), Some(last), Some(step)) =
            (whole_number(first), whole_number(last), whole_number(step))
        else {
            return Err(wrong("is none: three whole numbers were expected, as in 10:30:5"));
        };
        if step == 0 {
            return Err(wrong("has the step 0"));
        }
        if ![first, last, step].iter().all(fits) {
            return Err(wrong("goes beyond what an input holds"));
        }
        return steps(first, last, step);
    }
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    let (Some(first), Some(last), Some(step)) = (number(first), number(last), number(step)) else {
        return Err(wrong("is none: three numbers were expected, as in 0:1:0.25"));
    };
    if step == 0.0 {
        return Err(wrong("has the step 0"));
    }
    // A sum of steps that is off by rounding still reaches the last one.
    let count = (last - first) / step + 1e-9;
    if count < 0.0 {
        return Err(wrong("is empty: its end is not behind its beginning"));
    }
    if count >= MOST as f64 {
        return Err(many(count as u128 + 1));
    }
    // Three tenths, and not 0.30000000000000004: digits far behind those of the step are rounding.
    let digits = (11.0 - step.abs().log10().floor()).max(12.0) as usize;
    let value = |i: u32| {
        let exact = first + f64::from(i) * step;
        format!("{exact:.digits$}").parse::<f64>().unwrap_or(exact).to_string()
    };
    Ok(Some((0..=count as u32).map(value).collect()))
}

/// One combination: of each axis which value, and the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Combination {
    pub seed: Option<u64>,
    pub values: Vec<usize>,
}

/// The axes, the dearest first, and their combinations: the first axis changes least.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    pub axes: Vec<Axis>,
    pub runs: Vec<Combination>,
}

impl Sweep {
    /// Reads all `--sweep`s. No runs where there are none.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn read(
        graph: &Graph,
        catalogue: &Catalogue,
        texts: &[String],
        seeds: Option<Seeds>,
    ) -> Result<Self, SweepError> {
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let mut axes: Vec<Axis> = Vec::new();
        for text in texts {
            let axis = Axis::read(graph, catalogue, text)?;
            if axes.iter().any(|other| other.place == axis.place) {
                return Err(SweepError::Twice { given: axis.given });
            }
            axes.push(axis);
        }
        let counts = axes.iter().map(|axis| axis.values.len() as u128);
        let count = counts.fold(seeds.map_or(1, Seeds::count), u128::saturating_mul);
        if count > MOST {
            let seeds = seeds.map(|seeds| format!("--seed {}..={}", seeds.first(), seeds.last()));
            let given = texts.iter().map(|text| format!("--sweep {text}")).chain(seeds).collect();
            return Err(SweepError::Many { given, count });
        }
        axes.sort_by_key(|axis| std::cmp::Reverse(dearness(graph, catalogue, &axis.place)));
        let mut runs = vec![Combination { seed: None, values: Vec::new() }];
        for axis in &axes {
            let with = |run: Combination, value| {
                let values = run.values.iter().copied().chain([value]).collect();
                Combination { values, ..run }
            };
            let each = runs
                .into_iter()
                .flat_map(|run| (0..axis.values.len()).map(move |value| with(run.clone(), value)));
            runs = each.collect();
        }
        if let Some(seeds) = seeds {
            let with = |run: Combination| {
                seeds.iter().map(move |seed| Combination { seed: Some(seed), ..run.clone() })
            };
            runs = runs.into_iter().flat_map(with).collect();
        }
        Ok(Self { axes, runs })
    }

    /// The values of one run, as a sentence names them.
    pub fn said(&self, run: &Combination) -> String {
        let values = self.axes.iter().zip(&run.values);
        let values = values.map(|(axis, value)| format!("{}.{}", axis.node, axis.label(*value)));
        let seed = run.seed.map(|seed| format!("seed = {seed}"));
        values.chain(seed).collect::<Vec<_>>().join(", ")
    }

    /// Gives the inputs of `graph` the values of one run.
    pub fn apply(&self, run: &Combination, graph: &mut Graph) {
        for (axis, value) in self.axes.iter().zip(&run.values) {
            axis.place.put(graph, axis.values[*value].clone());
        }
    }
}

/// How much a change of this input costs: whether its node reads a file, which loaders do, and how many nodes depend on it.
fn dearness(graph: &Graph, catalogue: &Catalogue, place: &Place) -> (bool, usize) {
    let node = &graph.nodes()[place.position()];
    let reads = catalogue.get(&node.class).is_some_and(|class| {
        let mut inputs = class.descriptor.inputs.iter();
        inputs.any(|input| matches!(input.kind, InputKind::Path { .. }))
    });
    (reads, reached(graph, [place.position()]).len())
}

/// The ids of the nodes at these positions and of all that depend on them.
pub fn reached(graph: &Graph, from: impl IntoIterator<Item = usize>) -> HashSet<&str> {
    let mut reached: HashSet<&str> =
        from.into_iter().map(|position| graph.nodes()[position].id.as_str()).collect();
    loop {
        let before = reached.len();
        for node in graph.nodes() {
            let depends = node.inputs.iter().any(|(_, input)| match input {
                Input::Link { id, .. } => reached.contains(id.as_str()),
                _ => false,
            });
            if depends {
                reached.insert(&node.id);
            }
        }
        if reached.len() == before {
            return reached;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::path::Path;

    fn catalogue() -> Catalogue {
        let library = json!({"name": "l", "version": "1", "nodes": [
            {"class": "Load", "inputs": [
                {"name": "file", "type": "STRING", "role": "path", "folder": "loras", "entry": "file"},
                {"name": "strength", "type": "FLOAT"}],
             "outputs": [{"name": "m", "type": "MODEL"}]},
            {"class": "Text", "inputs": [{"name": "text", "type": "STRING"}],
             "outputs": [{"name": "c", "type": "CONDITIONING"}]},
            {"class": "Sample", "inputs": [{"name": "model", "type": "MODEL"}, {"name": "text", "type": "CONDITIONING"},
                {"name": "steps", "type": "INT"}, {"name": "cfg", "type": "FLOAT"}],
             "outputs": [{"name": "l", "type": "LATENT"}]},
            {"class": "Save", "output_node": true, "inputs": [{"name": "latent", "type": "LATENT"},
                {"name": "prefix", "type": "STRING"}]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("l"), &library).unwrap();
        catalogue
    }

    fn graph() -> Graph {
        let json = json!({
            "1": {"class_type": "Load", "inputs": {"file": "a", "strength": 1.0}},
            "2": {"class_type": "Text", "inputs": {"text": "a"}, "_meta": {"title": "Prompt"}},
            "3": {"class_type": "Sample", "inputs": {"model": ["1", 0], "text": ["2", 0], "steps": 3, "cfg": 1.0}},
            "4": {"class_type": "Save", "inputs": {"latent": ["3", 0], "prefix": "a"}}});
        Graph::parse(&json.to_string()).unwrap()
    }

    fn values(text: &str) -> Result<Vec<Value>, String> {
        let axis = Axis::read(&graph(), &catalogue(), text);
        axis.map(|axis| axis.values).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_lists_ranges_and_lines() {
        assert_eq!(values("3.steps=3, 5,8"), Ok(vec![json!(3), json!(5), json!(8)]));
        assert_eq!(values("3.steps=1..4"), Ok(vec![json!(1), json!(2), json!(3)]));
        assert_eq!(values("3.steps=1..=2"), Ok(vec![json!(1), json!(2)]));
        assert_eq!(values("3.steps=30:10:-10"), Ok(vec![json!(30), json!(20), json!(10)]));
        assert_eq!(values("3.steps=4:4:1"), Ok(vec![json!(4)]));
        let quarters: Vec<Value> = [0.0, 0.25, 0.5, 0.75, 1.0].map(Value::from).to_vec();
        assert_eq!(values("3.cfg=0:1:0.25"), Ok(quarters));
        let tenths: Vec<Value> = [0.1, 0.2, 0.3].map(Value::from).to_vec();
        assert_eq!(values("3.cfg=0.1:0.3:0.1"), Ok(tenths));
        let tiny: Vec<Value> = [0.0, 1e-13, 2e-13, 3e-13].map(Value::from).to_vec();
        assert_eq!(values("3.cfg=0:0.0000000000003:0.0000000000001"), Ok(tiny));
        let around: Vec<Value> = [-0.1, 0.0, 0.1, 0.2].map(Value::from).to_vec();
        assert_eq!(values("3.cfg=-0.1:0.2:0.1"), Ok(around));
        assert_eq!(values("3.steps=3.0,4"), Ok(vec![json!(3), json!(4)]));
        assert_eq!(values("3.cfg=2..4"), Ok(vec![json!(2.0), json!(3.0)]));
        assert_eq!(
            values("Prompt.text=a cat\\, black, a dog"),
            Ok(vec![json!("a cat, black"), json!("a dog")])
        );
        assert_eq!(values("2.text=1..3"), Ok(vec![json!("1..3")]), "a text is no range");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prompts.txt");
        fs::write(&file, "\u{feff}a cat, black\r\n\n a dog\n").unwrap();
        let given = format!("2.text=@{}", file.display());
        assert_eq!(values(&given), Ok(vec![json!("a cat, black"), json!(" a dog")]));
        fs::write(&file, "\n\n").unwrap();
        assert!(values(&given).unwrap_err().contains("there is no value in"));
    }

    #[test]
    fn mistakes_are_named() {
        for (given, part) in [
            ("3.steps", "NODE.INPUT=VALUES was expected"),
            (
                "3.stepps=1",
                "--sweep 3.stepps=1: node 3 (Sample) has no input \"stepps\"; did you mean \"steps\"?",
            ),
            ("Promt.text=a", "did you mean \"Prompt\"?"),
            ("3.steps=", "there is no value in an empty list"),
            ("3.steps=1,,2", "\"\" is not a whole number"),
            ("3.steps=1,x", "\"x\" is not a whole number"),
            ("3.steps=3..3", "the range 3..3 is empty"),
            ("3.steps=1..x", "two whole numbers were expected"),
            ("3.steps=1:9:0", "has the step 0"),
            ("3.steps=9:1:1", "is empty"),
            ("3.cfg=1:0:0.1", "is empty"),
            ("3.cfg=0:1:nan", "three numbers were expected"),
            ("3.cfg=0:1:0", "has the step 0"),
            ("3.steps=0..10000000", "10,000,000 combinations are too many"),
            ("3.cfg=0:1:0.0000001", "10,000,001 combinations are too many"),
            ("3.cfg=0:1e300:1e-300", "combinations are too many"),
            ("3.steps=0..99999999999999999999999999999999999999999", "two whole numbers"),
            ("3.steps=-170141183460469231731687303715884105728..5", "goes beyond"),
            ("3.model=x", "takes MODEL from another node"),
            ("2.text=@/nowhere/at/all", "cannot be read"),
        ] {
            let error = values(given).unwrap_err();
            assert!(error.contains(part), "{given}: {error}");
        }
    }

    fn sweep(texts: &[&str], seeds: Option<&str>) -> Result<Sweep, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let seeds = seeds.map(|seeds| seeds.parse().unwrap());
        Sweep::read(&graph(), &catalogue(), &texts, seeds).map_err(|error| error.to_string())
    }

    #[test]
    fn what_costs_most_changes_least() {
        let given = ["4.prefix=a,b", "3.cfg=1,2", "2.text=x,y", "1.strength=0.5,1"];
        let made = sweep(&given, Some("5..7")).unwrap();
        let order: Vec<&str> = made.axes.iter().map(|axis| axis.place.input()).collect();
        assert_eq!(order, ["strength", "text", "cfg", "prefix"]);
        assert_eq!(made.runs.len(), 32);
        assert_eq!(made.runs[0], Combination { seed: Some(5), values: vec![0, 0, 0, 0] });
        assert_eq!(made.runs[1], Combination { seed: Some(6), values: vec![0, 0, 0, 0] });
        assert_eq!(made.runs[2], Combination { seed: Some(5), values: vec![0, 0, 0, 1] });
        assert_eq!(made.runs[31], Combination { seed: Some(6), values: vec![1, 1, 1, 1] });
        let mut graph = graph();
        made.apply(&made.runs[31], &mut graph);
        let strength = graph.nodes()[0].input("strength").cloned();
        assert!(matches!(strength, Some(Input::Literal { value, .. }) if value == json!(1.0)));
        assert!(sweep(&[], Some("5..7")).unwrap().runs.is_empty());
    }

    #[test]
    fn too_many_and_twice_are_told() {
        let error =
            sweep(&["3.steps=0..1000", "3.cfg=0:99:1", "1.strength=0:99:1"], None).unwrap_err();
        assert!(
            error.contains("10,000,000 combinations") && error.contains("--sweep 3.cfg=0:99:1"),
            "{error}"
        );
        let error = sweep(&["3.steps=0..1000"], Some("0..=18446744073709551615")).unwrap_err();
        assert!(error.contains("18,446,744,073,709,551,616,000"), "{error}");
        assert!(sweep(&["3.steps=1", "Sample.steps=2"], None).unwrap_err().contains("swept twice"));
    }

    proptest! {
        #[test]
        fn any_argument_is_a_sweep_or_a_sentence(given in "\\PC{0,20}|[1-4]\\.(steps|cfg|text)=[-0-9.:=,e]{0,14}") {
            match Axis::read(&graph(), &catalogue(), &given) {
                Ok(axis) => prop_assert!(!axis.values.is_empty() && axis.values.len() as u128 <= MOST),
                Err(error) => prop_assert!(error.to_string().starts_with("--sweep")),
            }
        }
    }
}
