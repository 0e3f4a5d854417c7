mod lists;

use super::*;
use crate::catalogue::Catalogue;
use crate::folders::Folders;
use crate::graph::Graph;
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};
use std::path::Path;
use std::sync::Mutex;

/// `Add` sums its inputs and its literal; `Show` is an output node; the others misbehave.
fn catalogue() -> Catalogue {
    let inputs: Vec<Json> = (0..4)
        .map(|i| json!({"name": format!("i{i}"), "type": "NUMBER", "optional": true}))
        .chain([json!({"name": "n", "type": "INT", "default": 0})])
        .collect();
    let node = |class: &str| {
        let outputs = json!([{"name": "sum", "type": "NUMBER"}]);
        json!({"class": class, "inputs": inputs, "outputs": outputs})
    };
    let show = json!({"class": "Show", "inputs": inputs, "output_node": true});
    let lists = json!([{"name": "sums", "type": "NUMBER", "is_list": true}]);
    let list = |class: &str| json!({"class": class, "inputs": inputs, "outputs": lists});
    let mut gather = node("Gather");
    gather["input_is_list"] = json!(true);
    let library = json!({"name": "test", "version": "1", "nodes": [
        node("Add"), show, node("Fail"), node("Panic"), node("Few"), node("Cancel"), node("Stop"),
        list("Range"), list("Twice"), gather, node("Odd"), node("Steps")]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("test"), &library).unwrap();
    catalogue
}

/// Counts calls by node id, and how many results are alive at most.
#[derive(Default)]
struct Sums {
    calls: Mutex<Vec<String>>,
}

impl Runner for &Sums {
    fn run(
        &self,
        _library: usize,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        let id = call.property("node").unwrap();
        self.calls.lock().unwrap().push(id);
        let sum = inputs
            .iter()
            .map(|input| input.as_i64().unwrap_or_default())
            .fold(0, i64::wrapping_add);
        match node {
            0 => Ok(vec![Value::integer(sum.wrapping_mul(31).wrapping_add(1))]),
            1 => {
                call.output(json!({"images": [{"filename": sum.to_string()}]}));
                Ok(vec![])
            }
            2 => Err(NodeFailure::Failed { input: Some("n".into()), sentence: "it is odd".into() }),
            3 => panic!("what now"),
            4 => Ok(vec![]),
            5 => Err(NodeFailure::Cancelled),
            // Range: 0 to the sum; Twice: the sum and one more; Gather: all that is in its lists, and a
            // hundred for each of the first.
            7 => Ok(vec![Value::list((0..sum).map(Value::integer).collect())]),
            8 => Ok(vec![Value::list(vec![Value::integer(sum), Value::integer(sum + 1)])]),
            9 => {
                let items = inputs.iter().flat_map(|list| list.items()).filter_map(Value::as_i64);
                let first = inputs[0].items().len() as i64;
                assert!(
                    inputs
                        .iter()
                        .all(|input| input.is_none() || input.kind() == kosmograph_abi::LIST)
                );
                Ok(vec![Value::integer(items.sum::<i64>() + 100 * first)])
            }
            10 if sum == 1 => {
                Err(NodeFailure::Failed { input: Some("i0".into()), sentence: "it is odd".into() })
            }
            10 => Ok(vec![Value::integer(sum)]),
            11 => {
                call.progress(1, 2);
                call.progress(2, 2);
                Ok(vec![Value::integer(sum)])
            }
            _ => {
                assert!(call.progress(1, 2), "the listener of this test cancels");
                Err(NodeFailure::Cancelled)
            }
        }
    }
}

/// Keeps events as JSON; cancels at the first progress.
#[derive(Default)]
struct Heard {
    events: Mutex<Vec<Json>>,
    cancel: AtomicBool,
}

impl Listener for Heard {
    fn event(&self, event: &Event) {
        if let Event::Progress { .. } = event {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.events.lock().unwrap().push(serde_json::to_value(event).unwrap());
    }
}

impl Heard {
    fn of(&self, kind: &str) -> Vec<Json> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event["event"] == kind).cloned().collect()
    }

    fn nodes(&self, kind: &str) -> Vec<String> {
        self.of(kind).iter().map(|event| event["node"].as_str().unwrap().to_owned()).collect()
    }

    fn shown(&self) -> Vec<(String, String)> {
        let text = |json: &Json| json.as_str().unwrap().to_owned();
        let shown =
            |event: &Json| (text(&event["node"]), text(&event["output"]["images"][0]["filename"]));
        self.of("output").iter().map(shown).collect()
    }
}

fn plan(graph: &Json) -> Plan {
    let folders = Folders {
        models: vec![],
        input: vec![],
        output: "/o".into(),
        temp: "/t".into(),
        ..Folders::default()
    };
    let graph = Graph::parse(&graph.to_string()).unwrap();
    Plan::new(&graph, &catalogue(), &folders, "cpu").unwrap()
}

fn run(executor: &mut Executor<&Sums>, plan: &Plan, keep: Keep) -> (Outcome, Heard) {
    let heard = Heard::default();
    let properties = Properties::default();
    let setting = Setting {
        properties: &properties,
        listener: &heard,
        cancel: &heard.cancel,
        keep,
        earlier: &Earlier::NONE,
    };
    let outcome = executor.run(plan, setting);
    (outcome, heard)
}

fn node(class: &str, n: i64, from: &[&str]) -> Json {
    let links = from.iter().enumerate().map(|(i, id)| (format!("i{i}"), json!([id, 0])));
    let inputs: Map<String, Json> = links.chain([("n".to_owned(), json!(n))]).collect();
    json!({"class_type": class, "inputs": inputs})
}

#[test]
fn each_node_runs_once_in_order_and_outputs_are_told() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "s": node("Show", 0, &["c"]), "a": node("Add", 1, &[]), "b": node("Add", 2, &["a"]),
        "c": node("Add", 3, &["a", "b", "a"])}));
    let mut executor = Executor::new(&sums);
    let (outcome, heard) = run(&mut executor, &plan, Keep::Nothing);
    assert_eq!((outcome.executed, outcome.cached, outcome.failures.len()), (4, 0, 0));
    assert_eq!(*sums.calls.lock().unwrap(), ["a", "b", "c", "s"]);
    // a = 32, b = 34·31 + 1, c = (32 + 1055 + 32 + 3)·31 + 1
    assert_eq!(heard.shown(), [("s".into(), "34783".into())]);
    assert_eq!(heard.of("output")[0]["files"], json!([]), "no such file was made");
    assert_eq!(executor.kept(), 0);
}

#[test]
fn a_node_is_told_where_the_files_are_that_its_text_mentions() {
    use crate::plan::Mention;
    let property = "file:embeddings/moody".to_owned();
    let file = Mention { property, path: "/e/moody.pt".into(), identity: [0; 16] };
    let text = Literal::TextWithFiles { text: "embedding:moody".into(), files: vec![file] };
    let plan = plan(&json!({"1": node("Add", 1, &[]), "2": node("Show", 0, &["1"])}));
    let mut step = plan.steps()[0].clone();
    step.inputs = vec![Source::Literal(text)];
    let (properties, heard) = (Properties::default(), Heard::default());
    let setting = Setting {
        properties: &properties,
        listener: &heard,
        cancel: &heard.cancel,
        keep: Keep::Nothing,
        earlier: &Earlier::NONE,
    };
    let hooks = Hooks { step: &step, setting, work: None, element: None };
    assert_eq!(hooks.property("file:embeddings/moody").as_deref(), Some("/e/moody.pt"));
    assert_eq!(hooks.property("file:embeddings/other"), None);
}

#[test]
fn failures_take_only_what_depends_on_them() {
    for (class, sentence) in [
        ("Fail", "it is odd"),
        ("Panic", "it panicked: what now"),
        ("Few", "it gave 0 results, but declares 1 outputs"),
        ("Cancel", "which it was not"),
    ] {
        let sums = Sums::default();
        let plan = plan(&json!({
            "a": node("Add", 1, &[]), "x": node(class, 0, &["a"]), "y": node("Add", 0, &["x"]),
            "s": node("Show", 0, &["y", "a"]), "t": node("Show", 0, &["a"])}));
        let (outcome, heard) = run(&mut Executor::new(&sums), &plan, Keep::Nothing);
        assert_eq!(outcome.failures.len(), 1);
        assert!(outcome.failures[0].to_string().starts_with(&format!("node x ({class})")));
        assert!(outcome.failures[0].message.contains(sentence), "{}", outcome.failures[0]);
        assert_eq!(heard.nodes("skipped"), ["y", "s"]);
        assert_eq!(heard.of("skipped")[1]["because_of"], "x");
        assert_eq!(heard.shown(), [("t".into(), "32".into())]);
    }
}

#[test]
fn cancelling_stops_at_the_next_step() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "a": node("Stop", 1, &[]), "b": node("Add", 1, &["a"]), "s": node("Show", 0, &["b"])}));
    let (outcome, heard) = run(&mut Executor::new(&sums), &plan, Keep::Everything);
    assert!(outcome.interrupted && outcome.failures.is_empty());
    assert_eq!(*sums.calls.lock().unwrap(), ["a"]);
    assert_eq!(
        heard.of("progress")[0],
        json!({"event": "progress", "node": "a", "step": 1, "steps": 2})
    );
}

#[test]
fn a_sweep_computes_only_what_changes() {
    let graph = |seed: i64| {
        plan(&json!({
            "load": node("Add", 1, &[]), "tokens": node("Add", 2, &["load"]),
            "text": node("Add", 3, &["tokens"]), "sample": node("Add", seed, &["load", "text"]),
            "save": node("Show", 0, &["sample"]), "fixed": node("Show", 1, &["text"])}))
    };
    let sums = Sums::default();
    let mut executor = Executor::new(&sums);
    let plans: Vec<Plan> = (10..13).map(graph).collect();
    let (_, first) = run(&mut executor, &plans[0], Keep::For(&plans[1]));
    assert_eq!(first.shown().len(), 2);
    // The loader's and the text's results, and that "fixed" was made; not the tokens.
    assert_eq!(executor.kept(), 3);
    sums.calls.lock().unwrap().clear();
    let (second, heard) = run(&mut executor, &plans[1], Keep::For(&plans[2]));
    assert_eq!((second.executed, second.cached), (2, 4));
    assert_eq!(heard.nodes("cached"), ["load", "tokens", "text", "fixed"]);
    let (_, heard) = run(&mut executor, &plans[2], Keep::Nothing);
    assert_eq!(*sums.calls.lock().unwrap(), ["sample", "save", "sample", "save"]);
    assert_eq!(executor.kept(), 0);
    let (_, alone) = run(&mut Executor::new(&Sums::default()), &graph(12), Keep::Nothing);
    let saved = |heard: &Heard| heard.shown().into_iter().find(|(node, _)| node == "save");
    assert_eq!(saved(&heard), saved(&alone), "kept results are as good as new ones");
}

#[test]
fn results_are_dropped_after_their_last_use() {
    /// Watches how many of the objects it handed out are still referred to.
    struct Watch {
        made: Mutex<Vec<Value>>,
        most: Mutex<usize>,
    }
    impl Runner for &Watch {
        fn run(
            &self,
            _: usize,
            node: u32,
            _: &dyn Call,
            _: &[Value],
        ) -> Result<Vec<Value>, NodeFailure> {
            let mut made = self.made.lock().unwrap();
            // Its own reference is one; another one is the executor's.
            let alive = made.iter().filter(|value| value.references() != Some(1)).count();
            let mut most = self.most.lock().unwrap();
            *most = alive.max(*most);
            if node == 1 {
                return Ok(vec![]);
            }
            let value = Value::string("a result");
            made.push(value.clone());
            Ok(vec![value])
        }
    }
    let mut nodes = Map::new();
    nodes.insert("0".into(), node("Add", 0, &[]));
    for i in 1..50 {
        nodes.insert(i.to_string(), node("Add", i, &[&(i - 1).to_string()]));
    }
    nodes.insert("s".into(), node("Show", 0, &["49"]));
    let watch = Watch { made: Mutex::default(), most: Mutex::default() };
    let properties = Properties::default();
    let heard = Heard::default();
    let cancel = AtomicBool::new(false);
    let setting = Setting {
        properties: &properties,
        listener: &heard,
        cancel: &cancel,
        keep: Keep::Nothing,
        earlier: &Earlier::NONE,
    };
    Executor::new(&watch).run(&plan(&Json::Object(nodes)), setting);
    assert_eq!(watch.made.lock().unwrap().len(), 50);
    assert_eq!(*watch.most.lock().unwrap(), 1, "a chain needs one result at a time");
}

#[test]
fn each_output_is_dropped_after_its_own_last_use() {
    /// `Load` gives three things, as a checkpoint does; the others note which of them are alive.
    #[derive(Default)]
    struct Watch {
        made: Mutex<Vec<Value>>,
        alive: Mutex<Vec<Vec<usize>>>,
    }
    impl Runner for &Watch {
        fn run(
            &self,
            _: usize,
            node: u32,
            _: &dyn Call,
            _: &[Value],
        ) -> Result<Vec<Value>, NodeFailure> {
            let mut made = self.made.lock().unwrap();
            let in_use =
                |(at, value): (usize, &Value)| (value.references() != Some(1)).then_some(at);
            self.alive.lock().unwrap().push(made.iter().enumerate().filter_map(in_use).collect());
            if node != 0 {
                return Ok(vec![Value::integer(1)]);
            }
            let values: Vec<Value> = ["model", "clip", "vae"].map(Value::string).into();
            made.extend(values.iter().cloned());
            Ok(values)
        }
    }
    let output = |name: &str| json!({"name": name, "type": name});
    let input = |name: &str| json!({"name": name, "type": name});
    let library = json!({"name": "test", "version": "1", "nodes": [
        {"class": "Load", "outputs": [output("MODEL"), output("CLIP"), output("VAE")]},
        {"class": "Text", "inputs": [input("CLIP"), {"name": "text", "type": "STRING"}], "outputs": [output("CONDITIONING")]},
        {"class": "Sample", "inputs": [input("MODEL"), input("CONDITIONING"),
             {"name": "seed", "type": "INT", "default": 0}],
         "outputs": [output("LATENT")]},
        {"class": "Decode", "inputs": [input("VAE"), input("LATENT")], "outputs": [output("IMAGE")]},
        {"class": "Save", "inputs": [input("IMAGE")], "outputs": [output("X")], "output_node": true}]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("test"), &library).unwrap();
    let plan = |text: &str, seed: i64| {
        let graph = json!({
            "1": {"class_type": "Load"},
            "2": {"class_type": "Text", "inputs": {"CLIP": ["1", 1], "text": text}},
            "3": {"class_type": "Sample",
                "inputs": {"MODEL": ["1", 0], "CONDITIONING": ["2", 0], "seed": seed}},
            "4": {"class_type": "Decode", "inputs": {"VAE": ["1", 2], "LATENT": ["3", 0]}},
            "5": {"class_type": "Save", "inputs": {"IMAGE": ["4", 0]}}});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        Plan::new(&graph, &catalogue, &Folders::default(), "cpu").unwrap()
    };
    let (first, second, third) = (plan("a cat", 1), plan("a cat", 2), plan("a dog", 2));
    let alive = |keep: Keep| {
        let (watch, heard, properties) =
            (Watch::default(), Heard::default(), Properties::default());
        let setting = Setting {
            properties: &properties,
            listener: &heard,
            cancel: &heard.cancel,
            keep,
            earlier: &Earlier::NONE,
        };
        let mut executor = Executor::new(&watch);
        let mut plans = vec![(&first, keep)];
        if let Keep::For(next) = keep {
            plans.extend([(next, Keep::For(&third)), (&third, Keep::Nothing)]);
        }
        for (plan, keep) in plans {
            let outcome = executor.run(plan, Setting { keep, ..setting });
            assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        }
        watch.alive.into_inner().unwrap()
    };
    assert_eq!(alive(Keep::Nothing), [vec![], vec![0, 1, 2], vec![0, 2], vec![2], vec![]]);
    assert_eq!(alive(Keep::Everything)[4], [0, 1, 2]);
    // In a sweep over seeds CLIP goes when its conditioning is there. Where another text comes, the file is opened
    // again (3, 4 and 5), and nothing of the first time stays.
    let (model, clip, vae) = (0, 1, 2);
    let again = |at: usize| at + 3;
    assert_eq!(
        alive(Keep::For(&second)),
        [
            vec![],
            vec![model, clip, vae],
            vec![model, vae],
            vec![model, vae],
            vec![model, vae],
            // The second seed: sampled, decoded, saved. The next text wants CLIP too, so none of it is of use then.
            vec![model, vae],
            vec![vae],
            vec![],
            // The third: loaded, and as at first.
            vec![],
            vec![again(model), again(clip), again(vae)],
            vec![again(model), again(vae)],
            vec![again(vae)],
            vec![],
        ]
    );
}

proptest! {
    /// Random DAGs: every node that reaches an output runs once, after what it needs; and with
    /// any part of the results in the cache, the outputs are the same.
    #[test]
    fn random_graphs(
        nodes in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 1..25),
        changed in any::<prop::sample::Index>(),
    ) {
        let graph = |salt: i64| {
            let mut graph = Map::new();
            let mut sources: Vec<String> = Vec::new();
            for (i, (output, from)) in nodes.iter().enumerate() {
                let from: Vec<&str> = match sources.is_empty() {
                    true => vec![],
                    false => from.iter().map(|at| at.get(&sources).as_str()).collect(),
                };
                let n = i as i64 * 1000 + if changed.index(nodes.len()) == i { salt } else { 0 };
                graph.insert(i.to_string(), node(if *output { "Show" } else { "Add" }, n, &from));
                if !*output {
                    sources.push(i.to_string());
                }
            }
            graph.insert("end".into(), node("Show", -1, &[]));
            Json::Object(graph)
        };
        let (before, after) = (plan(&graph(1)), plan(&graph(2)));
        let sums = Sums::default();
        let mut executor = Executor::new(&sums);
        let (outcome, heard) = run(&mut executor, &before, Keep::Everything);
        let calls = std::mem::take(&mut *sums.calls.lock().unwrap());
        let ids: Vec<String> = before.steps().iter().map(|step| step.name.id.clone()).collect();
        prop_assert_eq!(&calls, &ids);
        prop_assert_eq!(outcome.executed, ids.len());
        prop_assert_eq!(heard.shown().len(), before.outputs().count());

        let (again, _) = run(&mut executor, &before, Keep::For(&after));
        prop_assert_eq!((again.executed, again.cached), (0, ids.len()));

        let (_, with_cache) = run(&mut executor, &after, Keep::Nothing);
        let fresh = Sums::default();
        let (_, without) = run(&mut Executor::new(&fresh), &after, Keep::Nothing);
        let without = without.shown();
        for shown in with_cache.shown() {
            prop_assert!(without.contains(&shown));
        }
        prop_assert!(sums.calls.lock().unwrap().len() <= fresh.calls.lock().unwrap().len());
    }
}

#[test]
fn a_sweep_computes_each_thing_once_and_keeps_what_is_read_later() {
    // A model under six changes and two texts: "l" changes least.
    let sums = Sums::default();
    let plans: Vec<Plan> = (0..12)
        .map(|run| {
            plan(&json!({
                "l": node("Add", 100 + run / 2, &["m"]), "m": node("Add", 1, &[]),
                "p": node("Add", 200 + run % 2, &["e"]), "e": node("Add", 2, &[]),
                "s": node("Add", 3, &["l", "p"]), "o": node("Show", 0, &["s"])}))
        })
        .collect();
    let mut later = Later::default();
    plans.iter().for_each(|plan| later.add(plan));
    assert_eq!((later.runs(), later.computed()), (12, 1 + 6 + 1 + 2 + 12 + 12));
    let mut executor = Executor::new(&sums);
    let mut most = 0;
    for (number, plan) in plans.iter().enumerate() {
        let wanted = later.after(number);
        let (outcome, _) = run(&mut executor, plan, Keep::Results(&wanted));
        assert!(outcome.failures.is_empty());
        most = most.max(executor.kept());
    }
    let calls = sums.calls.lock().unwrap();
    let of = |id: &str| calls.iter().filter(|call| *call == id).count();
    assert_eq!(["m", "l", "e", "p", "s", "o"].map(of), [1, 6, 1, 2, 12, 12]);
    // The model, its present change, both texts: "e" is let go when both are made.
    assert!(most <= 4, "{most}");
    assert!(later.after(11).is_empty());

    // The same value twice is one run, and its output is made once.
    let sums = Sums::default();
    let twice = json!({"a": node("Add", 1, &[]), "o": node("Show", 0, &["a"])});
    let plans = [plan(&twice), plan(&twice)];
    let mut later = Later::default();
    plans.iter().for_each(|plan| later.add(plan));
    let mut executor = Executor::new(&sums);
    for (number, plan) in plans.iter().enumerate() {
        run(&mut executor, plan, Keep::Results(&later.after(number)));
    }
    assert_eq!(*sums.calls.lock().unwrap(), ["a", "o"]);
}
