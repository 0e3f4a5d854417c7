//! What the host itself costs, by node: reading and planning a workflow, running nodes that do
//! nothing, and running a workflow whose results are all there. The last must stay under 10 µs per
//! node.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kosmograph::catalogue::Catalogue;
use kosmograph::events::{Event, Listener};
use kosmograph::execute::{Executor, Keep, Properties, Runner, Setting};
use kosmograph::folders::Folders;
use kosmograph::graph::Graph;
use kosmograph::plan::Plan;
use kosmograph::plugin::{Call, NodeFailure};
use kosmograph::value::Value;
use kosmograph::wire::Earlier;
use serde_json::{Map, Value as Json, json};
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Passes on the sum of its inputs.
struct Sum;

impl Runner for Sum {
    fn run(
        &self,
        _library: usize,
        node: u32,
        _call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        let sum = inputs.iter().filter_map(Value::as_i64).fold(0, i64::wrapping_add);
        Ok(if node == 0 { vec![Value::integer(sum)] } else { vec![] })
    }
}

struct Nobody;

impl Listener for Nobody {
    fn event(&self, event: &Event) {
        black_box(event);
    }
}

fn catalogue() -> Catalogue {
    let library = json!({"name": "bench", "version": "1", "nodes": [
        {"class": "Add", "inputs": [
            {"name": "a", "type": "NUMBER", "optional": true},
            {"name": "b", "type": "NUMBER", "optional": true},
            {"name": "n", "type": "INT", "default": 0},
            {"name": "text", "type": "STRING", "default": "a text of some length"}],
         "outputs": [{"name": "sum", "type": "NUMBER"}]},
        {"class": "Show", "inputs": [{"name": "a", "type": "NUMBER"}], "output_node": true}]});
    let mut catalogue = Catalogue::default();
    if let Err(error) = catalogue.add(Path::new("bench"), &library) {
        panic!("{error}");
    }
    catalogue
}

/// `nodes` nodes, each reading the one before it and one from halfway back.
fn workflow(nodes: usize) -> String {
    let mut graph = Map::new();
    for i in 0..nodes - 1 {
        let mut inputs = json!({"n": i});
        if i > 0 {
            inputs["a"] = json!([(i - 1).to_string(), 0]);
            inputs["b"] = json!([(i / 2).to_string(), 0]);
        }
        graph.insert(i.to_string(), json!({"class_type": "Add", "inputs": inputs}));
    }
    let last = (nodes - 2).to_string();
    graph.insert("show".into(), json!({"class_type": "Show", "inputs": {"a": [last, 0]}}));
    Json::Object(graph).to_string()
}

fn planned(text: &str, catalogue: &Catalogue) -> Plan {
    let folders = Folders {
        models: vec![],
        input: vec![],
        output: "/o".into(),
        temp: "/t".into(),
        ..Folders::default()
    };
    let graph = Graph::parse(text).unwrap_or_else(|error| panic!("{error}"));
    Plan::new(&graph, catalogue, &folders, "cpu").unwrap_or_else(|error| panic!("{error:?}"))
}

fn benches(criterion: &mut Criterion) {
    let catalogue = catalogue();
    let properties = Properties::default();
    let (cancel, earlier) = (AtomicBool::new(false), Earlier::NONE);
    for nodes in [100, 1000] {
        let text = workflow(nodes);
        let plan = planned(&text, &catalogue);
        let mut group = criterion.benchmark_group("host");
        group.throughput(Throughput::Elements(nodes as u64));
        group.bench_function(BenchmarkId::new("read and plan", nodes), |bencher| {
            bencher.iter(|| planned(black_box(&text), &catalogue));
        });
        let setting = |keep| Setting {
            properties: &properties,
            listener: &Nobody,
            cancel: &cancel,
            keep,
            earlier: &earlier,
        };
        group.bench_function(BenchmarkId::new("run", nodes), |bencher| {
            let mut executor = Executor::new(Sum);
            bencher.iter(|| executor.run(&plan, setting(Keep::Nothing)).executed);
        });
        group.bench_function(BenchmarkId::new("cached: read, plan and run", nodes), |bencher| {
            let mut executor = Executor::new(Sum);
            executor.run(&plan, setting(Keep::Everything));
            bencher.iter(|| {
                let plan = planned(black_box(&text), &catalogue);
                executor.run(&plan, setting(Keep::Everything)).cached
            });
        });
        group.finish();
    }
}

criterion_group!(cached_nodes, benches);
criterion_main!(cached_nodes);
