use super::*;
use crate::catalogue::Catalogue;
use crate::events::{Event, Level, Listener};
use crate::execute::kept::MOST_RESULTS;
use crate::execute::{Executor, Keep, Properties, Runner, Setting};
use crate::folders::Folders;
use crate::graph::Graph;
use crate::plan::Plan;
use crate::plugin::NodeFailure;
use crate::wire::Earlier;
use kosmograph_abi as abi;
use serde_json::json;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[test]
fn budgets() {
    let bytes = |text: &str| text.parse::<Budget>();
    assert_eq!(bytes("6G"), Ok(Budget::Bytes(6 << 30)));
    assert_eq!(bytes("6 GiB"), Ok(Budget::Bytes(6 << 30)));
    assert_eq!(bytes("6GB"), Ok(Budget::Bytes(6_000_000_000)));
    assert_eq!(bytes("1.5k"), Ok(Budget::Bytes(1536)));
    assert_eq!(bytes("4096"), Ok(Budget::Bytes(4096)));
    assert_eq!(bytes("75%"), Ok(Budget::Percent(75)));
    for text in
        ["", "G", "6X", "-1G", "0", "0%", "101%", "1e9", "6GG", "6Gi%", "inf", "1.2.3G", "6ß"]
    {
        assert!(bytes(text).is_err(), "{text:?} is a budget");
    }
    let all = Budget::Percent(100).bytes();
    assert!(all > 1 << 20 && Budget::Percent(50).bytes() <= all / 2);
}

#[test]
fn amounts_are_shown_in_their_unit() {
    assert_eq!(shown(10), "10 B");
    assert_eq!(shown(300 << 20), "300 MiB");
    assert_eq!(shown(3 << 29), "1.50 GiB");
}

/// A model as a library would hand it out. Its own memory is never freed: a test has few.
#[repr(C)]
struct Fake {
    object: abi::Object,
    references: AtomicU64,
    held: AtomicU64,
    whole: u64,
    purges: AtomicU64,
    /// It does not let go of anything.
    stubborn: bool,
}

unsafe extern "C" fn retain(this: *mut abi::Counted) {
    // SAFETY: the object is a Fake's, and begins it.
    unsafe { &*this.cast::<Fake>() }.references.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn release(this: *mut abi::Counted) {
    // SAFETY: as in `retain`.
    let fake = unsafe { &*this.cast::<Fake>() };
    if fake.references.fetch_sub(1, Ordering::Relaxed) == 1 {
        fake.held.store(0, Ordering::Relaxed);
    }
}

unsafe extern "C" fn query(_: *mut abi::Object, id: abi::Str) -> *const abi::Interface {
    const fn interface(call: Function) -> abi::Interface {
        abi::Interface { size: size_of::<abi::Interface>() as u32, reserved: 0, call, flags: 0 }
    }
    static MEMORY: abi::Interface = interface(memory);
    static DESCRIBE: abi::Interface = interface(describe);
    // SAFETY: borrowed text.
    match unsafe { id.as_bytes() } {
        b"memory/1" => &MEMORY,
        b"describe/1" => &DESCRIBE,
        _ => std::ptr::null(),
    }
}

type Function = unsafe extern "C" fn(
    *mut abi::Object,
    *const abi::Context,
    *const abi::Map,
    *mut *mut abi::Map,
) -> abi::Status;

/// Gives a map of one key.
unsafe fn give(output: *mut *mut abi::Map, key: &str, value: Value) -> abi::Status {
    let map = Value::map(vec![(key.to_owned(), value)]);
    // SAFETY: node.h: where the map is written.
    unsafe { output.write(map.into_raw().payload.map) };
    abi::OK
}

unsafe extern "C" fn memory(
    this: *mut abi::Object,
    _: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: the object is a Fake's; the map has the one key purge (node.h).
    let (fake, purge) = unsafe { (&*this.cast::<Fake>(), (*(*input).values).payload.boolean) };
    if purge != 0 {
        fake.purges.fetch_add(1, Ordering::Relaxed);
        if !fake.stubborn {
            fake.held.store(0, Ordering::Relaxed);
        }
    }
    let held = Value::integer(fake.held.load(Ordering::Relaxed) as i64);
    // SAFETY: node.h, as above.
    unsafe { give(output, "bytes", held) }
}

unsafe extern "C" fn describe(
    this: *mut abi::Object,
    _: *const abi::Context,
    _: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: as in `memory`.
    unsafe {
        let whole = (*this.cast::<Fake>()).whole;
        give(output, "description", Value::string(json!({ "bytes": whole }).to_string()))
    }
}

impl Fake {
    fn new(whole: u64, stubborn: bool) -> &'static Self {
        let size = size_of::<abi::Object>() as u32;
        let base = abi::Counted { size, reserved: 0, retain, release };
        let object = abi::Object { base, type_name: abi::Str::new("MODEL"), query };
        let [references, held, purges] = [0; 3].map(AtomicU64::new);
        Box::leak(Box::new(Self { object, references, held, whole, purges, stubborn }))
    }

    fn value(&'static self) -> Value {
        self.references.fetch_add(1, Ordering::Relaxed);
        let object = (&raw const self.object).cast_mut();
        let raw = abi::Value { kind: abi::OBJECT, reserved: 0, payload: abi::Payload { object } };
        // SAFETY: what node.h says an object is; nothing is written to through the pointer.
        unsafe { Value::adopt(raw) }.unwrap()
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn purges(&self) -> u64 {
        self.purges.load(Ordering::Relaxed)
    }
}

/// `Load` gives fake number `n`, `Use` reads it and notes what all of them hold.
struct Models {
    fakes: Vec<&'static Fake>,
    held: Mutex<Vec<u64>>,
    /// What each use asks for, and what it was told.
    asks: Option<u64>,
    told: Mutex<Vec<Option<String>>>,
}

impl Runner for &Models {
    fn run(
        &self,
        _: usize,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        match node {
            0 => {
                let n = inputs[0].as_i64().unwrap() as usize;
                // As a conditioning holds its controls: in a list of maps.
                let map = Value::map(vec![("control_net".to_owned(), self.fakes[n].value())]);
                Ok(vec![Value::list(vec![map])])
            }
            1 => {
                for item in inputs[0].items() {
                    let model = item.get("control_net").unwrap();
                    let model =
                        self.fakes.iter().find(|fake| fake.value().identity() == model.identity());
                    model.unwrap().held.store(model.unwrap().whole, Ordering::Relaxed);
                }
                if let Some(bytes) = self.asks {
                    let told = call.property(&format!("room:{bytes}"));
                    self.told.lock().unwrap().push(told);
                }
                self.held.lock().unwrap().push(self.fakes.iter().map(|fake| fake.held()).sum());
                Ok(vec![Value::integer(1)])
            }
            _ => Ok(vec![]),
        }
    }
}

/// Uses the models in this order, one after the other; the seed is a widget of each use.
fn plan(order: &[usize], seed: u64) -> Plan {
    let library = json!({"name": "test", "version": "1", "nodes": [
        {"class": "Load", "inputs": [{"name": "n", "type": "INT"}],
         "outputs": [{"name": "models", "type": "MODELS"}]},
        {"class": "Use", "inputs": [{"name": "models", "type": "MODELS"},
            {"name": "after", "type": "DONE", "optional": true}, {"name": "seed", "type": "INT"}],
         "outputs": [{"name": "done", "type": "DONE"}]},
        {"class": "Show", "inputs": [{"name": "done", "type": "DONE"}], "output_node": true}]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("test"), &library).unwrap();
    let mut graph = serde_json::Map::new();
    let mut last = None;
    for (at, model) in order.iter().enumerate() {
        let load = json!({"class_type": "Load", "inputs": {"n": model}});
        graph.insert(format!("load {model}"), load);
        let mut inputs = json!({"models": [format!("load {model}"), 0], "seed": seed});
        if let Some(last) = last {
            inputs["after"] = json!([last, 0]);
        }
        last = Some(format!("use {at}"));
        graph.insert(format!("use {at}"), json!({"class_type": "Use", "inputs": inputs}));
    }
    graph.insert("show".into(), json!({"class_type": "Show", "inputs": {"done": [last, 0]}}));
    let graph = Graph::parse(&Json::Object(graph).to_string()).unwrap();
    Plan::new(&graph, &catalogue, &Folders::default(), "cpu").unwrap()
}

#[derive(Default)]
struct Warnings {
    said: Mutex<Vec<String>>,
    /// Models that were told to be let go, and their bytes.
    let_go: AtomicU64,
    bytes: AtomicU64,
}

impl Listener for Warnings {
    fn event(&self, event: &Event) {
        match event {
            Event::Log { level: Level::Warning, message, .. } => {
                self.said.lock().unwrap().push(message.to_string());
            }
            Event::MadeRoom { models, bytes, .. } => {
                self.let_go.fetch_add(*models, Ordering::Relaxed);
                self.bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            _ => (),
        }
    }
}

/// Runs the uses for each seed; what was held at each use, and the warnings.
fn swept(
    models: &Models,
    order: &[usize],
    seeds: u64,
    budget: Option<u64>,
) -> (Vec<u64>, Vec<String>) {
    let (properties, warnings) = (Properties::default(), Warnings::default());
    let cancel = AtomicBool::new(false);
    let mut executor = Executor::new(models).with_budget(budget);
    for seed in 0..seeds {
        let (plan, next) = (plan(order, seed), plan(order, seed + 1));
        let keep = if seed + 1 < seeds { Keep::For(&next) } else { Keep::Nothing };
        let setting = Setting {
            properties: &properties,
            listener: &warnings,
            cancel: &cancel,
            keep,
            earlier: &Earlier::NONE,
        };
        let outcome = executor.run(&plan, setting);
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    }
    // What is told of making room is what was done.
    let willing = || models.fakes.iter().filter(|fake| !fake.stubborn);
    let purges: u64 = willing().map(|fake| fake.purges()).sum();
    let bytes: u64 = willing().map(|fake| fake.purges() * fake.whole).sum();
    assert_eq!(warnings.let_go.into_inner(), purges);
    assert!(warnings.bytes.into_inner() >= bytes, "results count as well");
    (models.held.lock().unwrap().clone(), warnings.said.into_inner().unwrap())
}

/// One run, of which nothing is counted but what was held.
fn swept_alone(models: &Models, order: &[usize], budget: Option<u64>) -> (Vec<u64>, u64) {
    let (properties, warnings) = (Properties::default(), Warnings::default());
    let setting = Setting {
        properties: &properties,
        listener: &warnings,
        cancel: &AtomicBool::new(false),
        keep: Keep::Nothing,
        earlier: &Earlier::NONE,
    };
    let outcome = Executor::new(models).with_budget(budget).run(&plan(order, 0), setting);
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    (models.held.lock().unwrap().clone(), warnings.let_go.into_inner())
}

fn models(wholes: &[u64]) -> Models {
    let fakes = wholes.iter().map(|&whole| Fake::new(whole, false)).collect();
    Models { fakes, held: Mutex::default(), asks: None, told: Mutex::default() }
}

#[test]
fn without_a_budget_all_stay() {
    let models = models(&[10, 20, 30]);
    let (held, warnings) = swept(&models, &[0, 1, 2], 2, None);
    assert_eq!(held, [10, 30, 60, 60, 50, 30], "in the last run each until it was used");
    assert!(warnings.is_empty() && models.fakes.iter().all(|fake| fake.purges() == 0));
}

#[test]
fn the_least_recently_used_is_let_go() {
    let models = models(&[10, 20, 30]);
    // Both of the first two are used again, so that their results live.
    let (held, warnings) = swept(&models, &[0, 1, 0, 2, 1, 0], 1, Some(50));
    assert_eq!(held, [10, 30, 30, 40, 30, 10], "{warnings:?}");
    let purges: Vec<u64> = models.fakes.iter().map(|fake| fake.purges()).collect();
    // The third model needs room: the second one was used longer ago than the first.
    assert_eq!((purges, warnings), (vec![0, 1, 0], vec![]));
}

#[test]
fn models_stay_across_a_sweep_as_far_as_they_fit() {
    let fit = models(&[10, 20]);
    swept(&fit, &[0, 1], 3, Some(30));
    assert!(fit.fakes.iter().all(|fake| fake.purges() == 0));
    let swapped = models(&[10, 20]);
    let (held, warnings) = swept(&swapped, &[0, 1], 3, Some(25));
    assert_eq!(held, [10, 20, 10, 20, 10, 20]);
    assert_eq!(swapped.fakes.iter().map(|fake| fake.purges()).sum::<u64>(), 4);
    assert!(warnings.is_empty());
}

#[test]
fn what_cannot_fit_is_said_once_and_done() {
    let big = models(&[70, 20]);
    let (held, warnings) = swept(&big, &[0, 1], 2, Some(50));
    assert_eq!(held, [70, 20, 70, 20]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("take 70 B, more than the memory budget of 50 B"), "{warnings:?}");

    let fakes = vec![Fake::new(40, true), Fake::new(20, false)];
    let stubborn = Models { fakes, ..models(&[]) };
    let (held, warnings) = swept(&stubborn, &[0, 1, 0], 1, Some(50));
    assert_eq!(held, [40, 60, 40]);
    assert!(warnings[0].contains("take 60 B"), "{warnings:?}");
}

#[test]
fn what_a_step_may_work_in_is_told_when_it_asks() {
    let told = |asks: u64, budget: Option<u64>| {
        let models = Models { asks: Some(asks), ..models(&[10, 20]) };
        let (held, _) = swept_alone(&models, &[0, 1, 0], budget);
        (held, models.told.into_inner().unwrap())
    };
    let bytes = |list: &[u64]| list.iter().map(|bytes| Some(bytes.to_string())).collect::<Vec<_>>();
    // Only asked for what there is, nothing is let go; for room, the idle one is.
    assert_eq!(told(0, Some(100)), (vec![10, 30, 10], bytes(&[90, 70, 90])));
    assert_eq!(told(5, Some(100)), (vec![10, 20, 10], bytes(&[90, 80, 90])));
    assert_eq!(told(5, Some(15)).1, bytes(&[5, 0, 5]));
    assert_eq!(told(5, None), (vec![10, 30, 10], vec![None; 3]));
}

/// `Paint` gives a picture of 25 numbers, 100 bytes; counts how often.
#[derive(Default)]
struct Painter(AtomicU64);

impl Runner for &Painter {
    fn run(
        &self,
        _: usize,
        node: u32,
        _: &dyn Call,
        _: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        if node > 0 {
            return Ok(vec![]);
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Value::tensor_f32(&[1, 5, 5, 1], &[0.0; 25]).unwrap()])
    }
}

/// Paints in this order with the budget, keeping everything; how often each was really painted.
fn painted(order: &[u64], budget: Option<u64>) -> (Vec<u64>, Vec<String>) {
    let library = json!({"name": "test", "version": "1", "nodes": [
        {"class": "Paint", "inputs": [{"name": "seed", "type": "INT"}],
         "outputs": [{"name": "image", "type": "IMAGE"}]},
        {"class": "Show", "inputs": [{"name": "image", "type": "IMAGE"}], "output_node": true,
         "pure": false}]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("test"), &library).unwrap();
    let (painter, properties, warnings) =
        (Painter::default(), Properties::default(), Warnings::default());
    let mut executor = Executor::new(&painter).with_budget(budget);
    let mut counts = Vec::new();
    for seed in order {
        let before = painter.0.load(Ordering::Relaxed);
        let graph = json!({"p": {"class_type": "Paint", "inputs": {"seed": seed}},
            "s": {"class_type": "Show", "inputs": {"image": ["p", 0]}}});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        let plan = Plan::new(&graph, &catalogue, &Folders::default(), "cpu").unwrap();
        let setting = Setting {
            properties: &properties,
            listener: &warnings,
            cancel: &AtomicBool::new(false),
            keep: Keep::Everything,
            earlier: &Earlier::NONE,
        };
        let outcome = executor.run(&plan, setting);
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        counts.push(painter.0.load(Ordering::Relaxed) - before);
    }
    (counts, warnings.said.into_inner().unwrap())
}

#[test]
fn results_that_are_kept_count() {
    let order = [1, 2, 1, 3, 1, 2];
    assert_eq!(painted(&order, None).0, [1, 1, 0, 1, 0, 0]);
    // Two have room. When the third is there the second was used longest ago.
    assert_eq!(painted(&order, Some(200)), (vec![1, 1, 0, 1, 0, 1], vec![]));
    // One has: what the run itself needs is there in any case, and no warning about it.
    assert_eq!(painted(&order, Some(99)), (vec![1; 6], vec![]));
}

#[test]
fn not_more_results_are_kept_than_a_worker_can_bear() {
    let order: Vec<u64> = (0..MOST_RESULTS as u64 + 10).chain([5, MOST_RESULTS as u64]).collect();
    let (counts, _) = painted(&order, None);
    assert_eq!(counts[order.len() - 2..], [1, 0], "the oldest is gone, a late one is not");
}
