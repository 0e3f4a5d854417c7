//! The rules, one after the other.

use std::path::Path;
use std::time::Duration;

use kosmograph_abi as abi;

use super::call::{CallResult, TestHost, counted};
use super::child::folder;
use super::object;
use super::promise::keeps_promise;
use super::report::{Event, Log, Report};
use super::synthesis::{
    Wrong, elsewhere, out_of_range, strided, synthesise, wrong_kinds, wrong_shapes,
};
use crate::catalogue::{Catalogue, InputDescriptor, InputKind, NodeDescriptor};
use crate::plugin::{Library, NodeFailure, input, used_late};
use crate::process::State;
use crate::value::Value;

/// Checks the library at `path` in this process, which it may take with it; [`check_in_child`] survives
/// that.
///
/// [`check_in_child`]: super::check_in_child
pub fn check(path: &Path) -> Report {
    check_watched(path, &mut |_| ())
}

/// As [`check`]; every event goes to `watch` as it happens.
pub(super) fn check_watched(path: &Path, watch: &mut dyn FnMut(&Event)) -> Report {
    let mut log = Log::new(watch);
    let folder = folder(std::process::id());
    check_library(path, &folder, &mut log);
    log.through();
    // If it stays, it stays in the folder for temporary files.
    let _ = std::fs::remove_dir_all(&folder);
    Report { library: path.display().to_string(), checks: log.checks }
}

fn check_library(path: &Path, folder: &Path, log: &mut Log) {
    let state = State::now();
    let threads = threads();
    let mut library = None;
    log.check("library: it loads", |_| {
        library = Some(Library::load(path).map_err(|error| error.to_string())?);
        Ok(())
    });
    let Some(library) = library else { return };
    let left_alone = |_: &mut Log| unchanged(&state);
    log.check("library: loading it leaves the process as it was", left_alone);
    let mut nodes = Vec::new();
    log.check("library: its descriptor is what node.h says", |_| {
        nodes = described(path, &library)?;
        Ok(())
    });
    let mut host = None;
    log.check("library: there is a folder for its outputs", |_| {
        let picture = folder.join("picture.png");
        write_picture(&picture)
            .map_err(|error| format!("{}: {error}; set TMPDIR", picture.display()))?;
        host = Some(TestHost::new(folder.display().to_string()));
        Ok(())
    });
    let Some(host) = host else { return };
    let picture = folder.join("picture.png").display().to_string();

    log.check("library: a node that does not exist is refused", |log| {
        for node in [nodes.len() as u32, u32::MAX] {
            log.doing(&format!("asked to run node {node} of {}", nodes.len()));
            let result = library.run_unchecked(node, &host, &[], 0);
            refused(&result, None).map_err(|why| format!("node {node} {why}"))?;
        }
        Ok(())
    });
    log.check_or_skip("library: a panic inside is contained", |log| {
        log.doing("asked to panic (\"panic/1\")");
        match library.panic_inside(&host) {
            None => Ok(Some("it does not offer \"panic/1\"".to_owned())),
            Some(result) => refused(&result.map(|_| vec![]), None).map(|()| None),
        }
    });
    log.check_or_skip("library: what it converts is a file of its kind", |log| {
        log.doing("asked to convert a picture (\"convert/1\")");
        let output = folder.join("converted");
        let paths = [Value::string(&picture), Value::string(output.display().to_string())];
        let [from, to] = paths.clone();
        let asked = input([("input", from), ("output", to), ("options", Value::string("{}"))]);
        match library.call_extension("convert/1", &host, &asked) {
            None => return Ok(Some("it does not offer \"convert/1\"".to_owned())),
            Some(Err(failure)) if failure.is_broken_rule() => return Err(failure.to_string()),
            Some(_) => (),
        }
        if output.exists() {
            return Err("it made something of a picture".to_owned());
        }
        log.doing("asked to convert without options");
        let [from, to] = paths;
        let asked = input([("input", from), ("output", to)]);
        let result = library.call_extension("convert/1", &host, &asked);
        let refused = |result: Result<Value, _>| refused(&result.map(|_| vec![]), Some("options"));
        result.map_or(Ok(()), refused).map(|()| None)
    });
    log.check_or_skip("library: a training that says nothing is refused", |log| {
        log.doing("asked to train without a configuration (\"train/1\")");
        let folder = Value::string(folder.display().to_string());
        let asked = input([("config", Value::string("{}")), ("folder", folder)]);
        match library.call_extension("train/1", &host, &asked) {
            None => Ok(Some("it does not offer \"train/1\"".to_owned())),
            Some(result) => refused(&result.map(|_| vec![]), None).map(|()| None),
        }
    });
    log.check_or_skip("library: an evaluation that says nothing is refused", |log| {
        log.doing("asked to evaluate without saying what (\"evaluate/1\")");
        let asked = input([("request", Value::string("{}"))]);
        match library.call_extension("evaluate/1", &host, &asked) {
            None => Ok(Some("it does not offer \"evaluate/1\"".to_owned())),
            Some(result) => refused(&result.map(|_| vec![]), None).map(|()| None),
        }
    });
    for (index, node) in nodes.iter().enumerate() {
        Subject::new(&library, index, node, &host, &picture).check(log);
        let rule = format!("{}: it leaves its process as it was", node.class);
        log.check(&rule, left_alone);
    }
    log.check("library: what a call lends is not used after the call", |log| {
        // A thread of the library may still be about to.
        if self::threads() > threads {
            log.doing("left alone for a second, as it has threads");
            std::thread::sleep(Duration::from_secs(1));
        }
        match used_late() {
            true => Err("a context was used after the call that it was lent for".to_owned()),
            false => Ok(()),
        }
    });
}

/// Whether the process is as it was; what is not is set back, so that it is said once.
fn unchanged(state: &State) -> Result<(), String> {
    let mut changed = state.restore().all();
    changed.extend(state.handlers_changed());
    match changed.is_empty() {
        true => Ok(()),
        false => Err(format!("it {}", changed.join(" and "))),
    }
}

/// How many threads this process has, where the system says it.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// A PNG of 32 × 32 for nodes that read pictures.
fn write_picture(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut encoder = png::Encoder::new(std::fs::File::create(path)?, 32, 32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let pixels: Vec<u8> = (0..32 * 32 * 3).map(|i| (i * 37 % 251) as u8).collect();
    Ok(encoder.write_header()?.write_image_data(&pixels)?)
}

/// The nodes, with everything that node.h says about a descriptor looked at.
fn described(path: &Path, library: &Library) -> Result<Vec<NodeDescriptor>, String> {
    let mut catalogue = Catalogue::default();
    catalogue.add(path, &library.descriptor).map_err(|error| error.to_string())?;
    let nodes: Vec<NodeDescriptor> =
        catalogue.classes().iter().map(|class| (*class.descriptor).clone()).collect();
    if nodes.is_empty() {
        return Err("it has no nodes".to_owned());
    }
    for node in &nodes {
        let mut names = std::collections::HashSet::new();
        for output in &node.outputs {
            if output.name.is_empty() {
                return Err(format!("{}: an output has no name", node.class));
            }
            if !names.insert(&output.name) {
                return Err(format!("{}: output {} stands twice", node.class, output.name));
            }
        }
    }
    Ok(nodes)
}

/// Whether `result` is an error with a sentence of the library's own, at `input` if one is given.
fn refused(result: &CallResult, input: Option<&str>) -> Result<(), String> {
    match result {
        Ok(_) => Err("is no error".to_owned()),
        Err(NodeFailure::Cancelled) => Err("ends as cancelled, not as an error".to_owned()),
        Err(failure) if failure.is_broken_rule() => Err(format!("breaks a rule: {failure}")),
        Err(NodeFailure::Failed { input: named, sentence }) => match input {
            Some(input) if named.as_deref() != Some(input) => Err(format!(
                "is an error that names {}: \"{sentence}\"",
                named.as_ref().map_or("no input".to_owned(), |named| format!("\"{named}\""))
            )),
            _ => Ok(()),
        },
    }
}

/// One node under test.
struct Subject<'a> {
    library: &'a Library,
    index: u32,
    node: &'a NodeDescriptor,
    host: &'a TestHost,
    /// Made up from the descriptor.
    inputs: Vec<Value>,
    /// Why the node cannot work with them, where that is known from the start.
    incomplete: Option<String>,
    /// What was done to references in any call so far.
    references: Vec<String>,
    /// Whether it ran with `inputs`: then what is refused is refused for the reason it was given.
    runs: bool,
}

impl<'a> Subject<'a> {
    fn new(
        library: &'a Library,
        index: usize,
        node: &'a NodeDescriptor,
        host: &'a TestHost,
        picture: &str,
    ) -> Self {
        let made: Vec<_> = node.inputs.iter().map(|input| synthesise(input, picture)).collect();
        let missing = node.inputs.iter().zip(&made).find(|(_, made)| !made.complete);
        let incomplete = missing.map(|(input, _)| {
            format!("a value for \"{}\" ({}) cannot be made up", input.name, input.type_name)
        });
        let inputs = made.into_iter().map(|made| given(node, made.value)).collect();
        let (index, references) = (index as u32, Vec::new());
        Self { library, index, node, host, inputs, incomplete, references, runs: false }
    }

    /// Runs the node on `inputs`, with as many outputs as it declares, and lets `look` see the result.
    fn call<T>(
        &mut self,
        log: &mut Log,
        what: &str,
        inputs: &[Value],
        look: impl FnOnce(CallResult, &mut Log) -> T,
    ) -> T {
        log.doing(what);
        let (library, index, host) = (self.library, self.index, self.host);
        let function = |inputs: &[Value]| library.run(index as usize, host, inputs);
        let (seen, references) = counted(inputs, &function, |result| look(result, log));
        if let Err(fault) = references {
            self.references.push(format!("{what}, {fault}"));
        }
        seen
    }

    fn check(mut self, log: &mut Log) {
        let class = &self.node.class;
        let named = |rule: &str| format!("{class}: {rule}");
        self.check_valid(&named("it does what its descriptor says"), log);
        log.check(&named("a wrong number of inputs or outputs is refused"), |log| {
            self.check_counts(log)
        });
        self.check_wrong(&named("a missing input is refused"), log, |input| {
            let required = !input.optional;
            let wrong = Wrong { what: "nothing".to_owned(), value: Value::NONE };
            required.then_some(wrong).into_iter().collect()
        });
        self.check_wrong(&named("an input of a wrong kind is refused"), log, wrong_kinds);
        if self.node.input_is_list {
            self.check_no_list(&named("what is no list, or an empty one, is refused"), log);
        }
        self.check_wrong(&named("a value out of range is refused"), log, out_of_range);
        self.check_wrong(&named("a tensor of a wrong shape or type is refused"), log, wrong_shapes);
        log.check_or_skip(&named("equal inputs give equal outputs"), |log| self.check_pure(log));
        log.check_or_skip(&named("the layout of a tensor does not matter"), |log| {
            self.check_strides(log)
        });
        log.check_or_skip(&named("the place of a tensor does not matter"), |log| {
            self.check_places(log)
        });
        log.check_or_skip(&named("it stops when it is asked to"), |log| self.check_cancel(log));
        log.check(&named("references are given back"), |_| match self.references.first() {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        });
    }

    /// Valid inputs give the declared outputs, and objects among them keep their own rules.
    fn check_valid(&mut self, name: &str, log: &mut Log) {
        let incomplete = self.incomplete.clone();
        let inputs = self.inputs.clone();
        let passed = log.check_or_skip(name, |log| {
            let (node, host) = (self.node, self.host);
            let what = "called with inputs made up from its descriptor";
            self.call(log, what, &inputs, |result, log| match result {
                Ok(values) => {
                    for (value, output) in values.iter().zip(&node.outputs) {
                        let items = match output.is_list {
                            true => value.items(),
                            false => std::slice::from_ref(value),
                        };
                        for value in items {
                            keeps_promise(value, &output.kind)
                                .map_err(|why| format!("output \"{}\" {why}", output.name))?;
                            if value.kind() == abi::OBJECT {
                                object::check(value, host, &mut |what| log.doing(what))
                                    .map_err(|why| format!("output \"{}\": {why}", output.name))?;
                            }
                        }
                    }
                    Ok(None)
                }
                Err(failure) => {
                    refused(&Err(failure.clone()), None)?;
                    let why = incomplete.unwrap_or_else(|| "it refuses made-up inputs".to_owned());
                    Ok(Some(format!("{why}; it says: {failure}")))
                }
            })
        });
        self.runs = passed;
    }

    fn check_counts(&mut self, log: &mut Log) -> Result<(), String> {
        let (n_inputs, n_outputs) = (self.inputs.len(), self.node.outputs.len());
        let mut more = self.inputs.clone();
        more.push(Value::NONE);
        let mut cases = vec![(more, n_outputs), (self.inputs.clone(), n_outputs + 1)];
        if n_inputs > 0 {
            cases.push((self.inputs[..n_inputs - 1].to_vec(), n_outputs));
        }
        if n_outputs > 0 {
            cases.push((self.inputs.clone(), n_outputs - 1));
        }
        for (inputs, n_outputs) in cases {
            let what = format!("called with {} inputs and {n_outputs} outputs", inputs.len());
            log.doing(&what);
            let (library, index, host) = (self.library, self.index, self.host);
            let function = |inputs: &[Value]| library.run_unchecked(index, host, inputs, n_outputs);
            let (seen, references) = counted(&inputs, &function, |result| refused(&result, None));
            seen.map_err(|why| format!("{what} {why}"))?;
            references.map_err(|fault| format!("{what}: {fault}"))?;
        }
        Ok(())
    }

    /// Each value that `wrongs` gives for an input must be refused, and the input be named.
    fn check_wrong(
        &mut self,
        name: &str,
        log: &mut Log,
        wrongs: impl Fn(&InputDescriptor) -> Vec<Wrong>,
    ) {
        let node = self.node;
        let wrongs = |i: usize| {
            let wrongs = wrongs(&node.inputs[i]).into_iter();
            wrongs.map(move |Wrong { what, value }| (i, Wrong { what, value: given(node, value) }))
        };
        let cases: Vec<(usize, Wrong)> = (0..node.inputs.len()).flat_map(wrongs).collect();
        if cases.is_empty() {
            return;
        }
        log.check(name, |log| {
            let mut faults = Vec::new();
            for (i, Wrong { what, value }) in cases {
                let input = &node.inputs[i];
                let mut inputs = self.inputs.clone();
                inputs[i] = value;
                let what = format!("called with {} = {what}", input.name);
                // A node that cannot work with the other inputs either may say so first. And whether
                // a file is there, it may learn late.
                let is_path = matches!(input.kind, InputKind::Path { .. });
                let at = (self.runs && !is_path).then_some(input.name.as_str());
                let seen = self.call(log, &what, &inputs, |result, _| refused(&result, at));
                faults.extend(seen.err().map(|why| format!("{what} {why}")));
            }
            match faults.is_empty() {
                true => Ok(()),
                false => Err(faults.join("; ")),
            }
        });
    }

    /// Where lists are taken, their values alone must be refused, and so must empty lists.
    fn check_no_list(&mut self, name: &str, log: &mut Log) {
        log.check(name, |log| {
            for i in 0..self.inputs.len() {
                let Some(first) = self.inputs[i].items().first().cloned() else { continue };
                let input = self.node.inputs[i].name.clone();
                for (what, value) in [("no list", first), ("an empty list", Value::list(vec![]))] {
                    // A value that is itself a list of such values would be one.
                    if what == "no list" && value.kind() == abi::LIST {
                        continue;
                    }
                    let mut inputs = self.inputs.clone();
                    inputs[i] = value;
                    let what = format!("called with {input} = {what}");
                    let at = self.runs.then_some(input.as_str());
                    self.call(log, &what, &inputs, |result, _| refused(&result, at))
                        .map_err(|why| format!("{what} {why}"))?;
                }
            }
            Ok(())
        });
    }

    fn check_pure(&mut self, log: &mut Log) -> Result<Option<String>, String> {
        if !self.node.pure {
            return Ok(Some("it does not say that it is pure".to_owned()));
        }
        if !self.runs {
            return Ok(Some("it did not run".to_owned()));
        }
        let inputs = self.inputs.clone();
        let [first, second] = ["called", "called once more with the same inputs"]
            .map(|what| self.call(log, what, &inputs, |result, _| result.map(|v| contents(&v))));
        match (first, second) {
            (Ok(first), Ok(second)) if first == second => Ok(None),
            (Ok(_), Ok(_)) => Err("the second call gave other outputs than the first".to_owned()),
            (Err(failure), _) | (_, Err(failure)) => {
                Err(format!("it ran once, but then failed: {failure}"))
            }
        }
    }

    fn check_strides(&mut self, log: &mut Log) -> Result<Option<String>, String> {
        if !self.runs || !self.node.pure {
            return Ok(Some("it did not run, or is not pure".to_owned()));
        }
        let compact = self.inputs.clone();
        let mut tensors = 0;
        let spaced: Vec<Value> = compact
            .iter()
            .map(|value| strided(value).inspect(|_| tensors += 1).unwrap_or_else(|| value.clone()))
            .collect();
        if tensors == 0 {
            return Ok(Some("it takes no tensors".to_owned()));
        }
        let wanted = self.call(log, "called", &compact, |result, _| result.map(|v| contents(&v)));
        let what = "called with tensors whose elements do not follow each other";
        let found = self.call(log, what, &spaced, |result, _| match result {
            Ok(values) => Ok(Ok(contents(&values))),
            Err(failure) => refused(&Err(failure.clone()), None).map(|()| Err(failure)),
        })?;
        match (wanted, found) {
            (Ok(wanted), Ok(found)) if wanted == found => Ok(None),
            (_, Ok(_)) => Err(format!("{what} it gives other outputs; it ignores the strides")),
            (_, Err(failure)) => Ok(Some(format!("it takes compact tensors only: {failure}"))),
        }
    }

    fn check_places(&mut self, log: &mut Log) -> Result<Option<String>, String> {
        if !self.runs || !self.node.pure {
            return Ok(Some("it did not run, or is not pure".to_owned()));
        }
        if !self.library.looks_where_tensors_lie() {
            return Ok(Some("it was built when all tensors lay on the CPU".to_owned()));
        }
        let here = self.inputs.clone();
        let mut tensors = 0;
        let there: Vec<Value> = here
            .iter()
            .map(|value| {
                elsewhere(value).inspect(|_| tensors += 1).unwrap_or_else(|| value.clone())
            })
            .collect();
        if tensors == 0 {
            return Ok(Some("it takes no tensors".to_owned()));
        }
        let wanted = self.call(log, "called", &here, |result, _| result.map(|v| contents(&v)));
        let what = "called with tensors that lie on a device it does not know";
        let found = self.call(log, what, &there, |result, _| result.map(|v| contents(&v)));
        match (wanted, found) {
            (Ok(wanted), Ok(found)) if wanted == found => Ok(None),
            (_, Ok(_)) => Err(format!("{what} it gives other outputs; {LOOK}")),
            (_, Err(failure)) => Err(format!("{what} it fails: {failure}; {LOOK}")),
        }
    }

    fn check_cancel(&mut self, log: &mut Log) -> Result<Option<String>, String> {
        if !self.runs {
            return Ok(Some("it did not run".to_owned()));
        }
        // Some libraries have worker threads that each report once more before they see it.
        const SOON: u64 = 64;
        let inputs = self.inputs.clone();
        self.host.stop(true);
        let what = "called and asked to stop at its first report of progress";
        let result = self.call(log, what, &inputs, |result, _| result.map(drop));
        let reports = self.host.reports();
        self.host.stop(false);
        match (result, reports) {
            (Ok(()), 0) => Ok(Some("it reports no progress".to_owned())),
            (Err(NodeFailure::Cancelled), ..=SOON) => Ok(None),
            (Err(NodeFailure::Cancelled), _) => {
                Err(format!("it reported progress {reports} times more before it stopped"))
            }
            (Ok(()), _) => Err("it reports progress, but does not stop when asked to".to_owned()),
            (Err(NodeFailure::Failed { sentence, .. }), _) => {
                Err(format!("it ends with an error instead of KG_CANCELLED: {sentence}"))
            }
        }
    }
}

/// `value` as `node` gets it: where it takes lists, a list of it.
fn given(node: &NodeDescriptor, value: Value) -> Value {
    match node.input_is_list && !value.is_none() {
        true => Value::list(vec![value]),
        false => value,
    }
}

/// What whoever ignores a tensor's place should do.
pub(super) const LOOK: &str = "kg_tensor_cpu gives the view in the CPU's memory";

/// What a value holds, to be compared with another's; objects have no contents that could be.
pub(super) fn contents(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        add_contents(value, &mut bytes);
    }
    bytes
}

fn add_contents(value: &Value, bytes: &mut Vec<u8>) {
    bytes.extend(value.kind().to_ne_bytes());
    match value.kind() {
        abi::LIST => {
            bytes.extend(value.items().len().to_ne_bytes());
            value.items().iter().for_each(|item| add_contents(item, bytes));
        }
        abi::MAP => {
            bytes.extend(value.pairs().count().to_ne_bytes());
            for (key, item) in value.pairs() {
                bytes.extend(key.len().to_ne_bytes());
                bytes.extend(key.as_bytes());
                add_contents(item, bytes);
            }
        }
        abi::TENSOR => {
            let Some(tensor) = value.as_tensor() else { return };
            bytes.extend([tensor.dtype().code, tensor.dtype().bits]);
            bytes.extend(tensor.shape().len().to_ne_bytes());
            bytes.extend(tensor.shape().iter().flat_map(|n| n.to_ne_bytes()));
            bytes.extend(tensor.to_bytes().unwrap_or_default());
        }
        abi::OBJECT => bytes.extend(value.object_type().unwrap_or_default().as_bytes()),
        abi::STRING => {
            let text = value.as_str().unwrap_or_default();
            bytes.extend(text.len().to_ne_bytes());
            bytes.extend(text.as_bytes());
        }
        abi::FLOAT => bytes.extend(value.as_f64().unwrap_or_default().to_ne_bytes()),
        abi::BOOL => bytes.push(value.as_bool().unwrap_or_default().into()),
        _ => bytes.extend(value.as_i64().unwrap_or_default().to_ne_bytes()),
    }
}
