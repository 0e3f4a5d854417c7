use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// A source of every type, a sink, and nodes with every widget.
fn catalogue() -> Catalogue {
    let widgets = json!([
        {"name": "n", "type": "INT", "default": 20, "min": 1, "max": 100, "step": 1},
        {"name": "size", "type": "INT", "default": 512, "min": 16, "max": 1024, "step": 8},
        {"name": "seed", "type": "INT", "default": 0, "max": u64::MAX, "role": "seed"},
        {"name": "x", "type": "FLOAT", "default": 1.0, "min": 0.0, "max": 2.0, "step": 0.01},
        {"name": "s", "type": "STRING", "default": ""},
        {"name": "b", "type": "BOOLEAN", "default": false},
        {"name": "how", "type": "COMBO", "choices": ["euler", "ddim"], "default": "euler"},
        {"name": "prompt", "type": "STRING", "default": "", "mentions": "embeddings"},
        {"name": "any", "type": "*", "optional": true}]);
    let library = json!({"name": "test", "version": "1", "nodes": [
        {"class": "Load", "inputs": [
            {"name": "image", "type": "STRING", "role": "path", "folder": "input", "entry": "file"}],
         "outputs": [{"name": "image", "type": "IMAGE"}, {"name": "mask", "type": "MASK"}]},
        {"class": "Mix", "inputs": [
            {"name": "a", "type": "IMAGE"}, {"name": "b", "type": "IMAGE,MASK", "optional": true}],
         "outputs": [{"name": "image", "type": "IMAGE"}]},
        {"class": "Widgets", "inputs": widgets, "outputs": [{"name": "image", "type": "IMAGE"}]},
        {"class": "Dice", "pure": false, "outputs": [{"name": "image", "type": "IMAGE"}]},
        {"class": "Need", "inputs": [{"name": "n", "type": "INT"}],
         "outputs": [{"name": "image", "type": "IMAGE"}]},
        {"class": "Keep", "output_node": true, "writes": "output", "inputs": [
            {"name": "image", "type": "IMAGE"},
            {"name": "name", "type": "STRING", "default": "x", "role": "prefix"}]},
        {"class": "Empty", "memory": [4, "n", "side"], "inputs": [
            {"name": "n", "type": "INT"}, {"name": "side", "type": "INT", "default": 512}],
         "outputs": [{"name": "image", "type": "IMAGE"}]},
        {"class": "Count", "outputs": [{"name": "n", "type": "INT"}]},
        {"class": "Save", "inputs": [{"name": "image", "type": "IMAGE"}], "output_node": true}]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("libtest.so"), &library).unwrap();
    catalogue
}

fn folders(input: &Path) -> Folders {
    let (output, temp) = (input.join("output"), input.join("temp"));
    Folders { input: vec![input.to_owned()], output, temp, ..Folders::default() }
}

fn plan(graph: &Value) -> Result<Plan, Refusal> {
    let graph = Graph::parse(&graph.to_string()).unwrap();
    Plan::new(&graph, &catalogue(), &folders(Path::new("/nowhere")), "cpu")
}

/// The problems, as sentences.
fn wrong(graph: &Value) -> Vec<String> {
    let problems = plan(graph).err().map(|refusal| refusal.problems).unwrap_or_default();
    problems.iter().map(Problem::to_string).collect()
}

/// What `Widgets` receives for `value` at `input`, or the sentence.
fn widget(input: &str, value: Value) -> Result<Literal, String> {
    let graph = json!({
        "1": {"class_type": "Widgets", "inputs": {input: value}},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}}});
    let plan = plan(&graph).map_err(|refusal| refusal.problems[0].message.clone())?;
    let step = &plan.steps()[0];
    let at = step.descriptor.inputs.iter().position(|one| one.name == input).unwrap();
    match &step.inputs[at] {
        Source::Literal(literal) => Ok(literal.clone()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn literals_are_coerced_as_comfyui_does() {
    use Literal::*;
    for (input, value, literal) in [
        ("n", json!("12"), Integer(12)),
        ("n", json!(12.9), Integer(12)),
        ("n", json!(true), Integer(1)),
        ("seed", json!(u64::MAX), Natural(u64::MAX)),
        ("x", json!("0.5"), Number(0.5)),
        ("x", json!(2), Number(2.0)),
        ("s", json!(3), Text("3".into())),
        ("s", json!(true), Text("True".into())),
        ("b", json!("false"), Boolean(false)),
        ("b", json!(1), Boolean(true)),
        ("how", json!("ddim"), Text("ddim".into())),
        ("any", json!(7), Integer(7)),
        ("any", json!("seven"), Text("seven".into())),
    ] {
        assert_eq!(widget(input, value.clone()), Ok(literal), "{input} = {value}");
    }
}

#[test]
fn literals_out_of_range_or_type_are_sentences() {
    for (input, value, sentence) in [
        ("n", json!(0), "0 is less than 1, the least it takes"),
        ("n", json!(20_000), "20000 is more than 100, the most it takes"),
        ("n", json!(1e300), "is more than 100"),
        ("n", json!("12.5"), "\"12.5\" is not a whole number"),
        ("n", json!({"a": 1}), "is not a whole number"),
        ("seed", json!(-1), "-1 is less than 0"),
        ("x", json!(2.5), "2.5 is more than 2"),
        ("x", json!("inf"), "is not a number"),
        ("b", json!("perhaps"), "is not true or false"),
        ("s", json!({"__value__": [1]}), "is not a text"),
        ("how", json!("eulr"), "is not one of \"euler\", \"ddim\""),
        ("n", json!([1, 2]), "is not a link"),
        ("n", json!(null), "null is not a whole number"),
        ("s", json!(null), "null is not a text"),
        ("how", json!(null), "null is not one of \"euler\""),
        ("b", json!({"__number__": "-Infinity"}), "-Infinity is not true or false"),
    ] {
        let found = widget(input, value).unwrap_err();
        assert!(found.contains(sentence), "{found:?} has no {sentence:?}");
    }
}

#[test]
fn what_is_no_number_is_not_the_default() {
    let text = |value: &str| {
        format!(
            r#"{{"1": {{"class_type": "Widgets", "inputs": {{"x": {value}}}, "is_changed": [NaN]}},
                "2": {{"class_type": "Save", "inputs": {{"image": ["1", 0]}}}}}}"#
        )
    };
    let plan = |value: &str| {
        let graph = Graph::parse(&text(value)).unwrap();
        Plan::new(&graph, &catalogue(), &folders(Path::new("/nowhere")), "cpu")
    };
    for value in ["NaN", "Infinity", "-Infinity", "null"] {
        let refusal = plan(value).unwrap_err();
        let sentence = format!("node 1 (Widgets), input \"x\": {value} is not a number");
        assert_eq!(refusal.problems[0].to_string(), sentence);
    }
    assert!(plan("1.5").is_ok());
    // A socket that nothing is connected to.
    let unconnected = json!({
        "1": {"class_type": "Dice"},
        "2": {"class_type": "Mix", "inputs": {"a": ["1", 0], "b": null}},
        "3": {"class_type": "Save", "inputs": {"image": ["2", 0]}}});
    assert!(wrong(&unconnected).is_empty());
}

#[test]
fn placeholders_are_named_with_what_fills_them() {
    let sentence = |input: &str, value: &str| {
        wrong(&json!({
            "3": {"class_type": "Widgets", "inputs": {input: value}},
            "2": {"class_type": "Save", "inputs": {"image": ["3", 0]}}}))
        .join("; ")
    };
    for (input, value) in [
        ("seed", "%seed%"),
        ("n", "{{ steps }}"),
        ("x", "__RANDOM_FLOAT__"),
        ("how", "<sampler>"),
        ("b", "${ON}"),
    ] {
        let found = sentence(input, value);
        let wanted = format!(
            "; {value} is a placeholder that nothing has filled in: --set 3.{input}=VALUE does"
        );
        assert!(found.ends_with(&wanted), "{found}");
    }
    assert_eq!(sentence("s", "%text%"), "", "a text may be any");
    let link = wrong(&json!({"2": {"class_type": "Save", "inputs": {"image": "{{image}}"}}}));
    assert!(
        link[0].ends_with("; {{image}} is a placeholder that nothing has filled in"),
        "--set gives no links: {link:?}"
    );
    assert!(!sentence("n", "many").contains("placeholder"));
    let file = wrong(&json!({
        "a b": {"class_type": "Load", "inputs": {"image": "{{name}}.png"}},
        "2": {"class_type": "Save", "inputs": {"image": ["a b", 0]}}}));
    assert!(file[0].contains("{{name}} is a placeholder"), "{file:?}");
    assert!(file[0].ends_with("--set 'a b.image=VALUE' does"), "{file:?}");
}

#[test]
fn a_bad_output_costs_itself() {
    let graph = json!({
        "1": {"class_type": "Dice"},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "Need"},
        "4": {"class_type": "Mix", "inputs": {"a": ["3", 0], "b": ["1", 0]}},
        "5": {"class_type": "Save", "inputs": {"image": ["4", 0]}, "_meta": {"title": "Bad"}},
        "6": {"class_type": "Save"},
        "7": {"class_type": "Widgets", "inputs": {"n": 3}},
        "8": {"class_type": "Mix", "inputs": {"a": ["7", 0], "b": ["9", 0]}},
        "9": {"class_type": "Mix", "inputs": {"a": ["8", 0]}},
        "10": {"class_type": "Save", "inputs": {"image": ["8", 0]}}});
    let partly = plan(&graph).unwrap();
    let steps: Vec<&str> = partly.steps().iter().map(|step| step.name.id.as_str()).collect();
    assert_eq!(steps, ["1", "2"]);
    let left_out: Vec<(&str, &str)> =
        partly.left_out().iter().map(|out| (&*out.name.id, &*out.because_of)).collect();
    assert_eq!(left_out, [("5", "3"), ("6", "6"), ("10", "8")]);
    let problems: Vec<String> = partly.problems().iter().map(Problem::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with("node 3 (Need), input \"n\": is missing"), "{problems:?}");
    assert!(problems[1].starts_with("node 6 (Save), input \"image\": is missing"), "{problems:?}");
    assert!(problems[2].contains("is a circle"), "{problems:?}");
    assert_eq!(partly.whole().unwrap_err().problems.len(), 3);
    assert!(plan(&json!({"1": {"class_type": "Dice"}, "2": {"class_type": "Save"}})).is_err());
}

#[test]
fn what_was_found_before_costs_the_outputs_that_need_it() {
    let graph = json!({
        "1": {"class_type": "Dice"},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "Dice"},
        "4": {"class_type": "Save", "inputs": {"image": ["3", 0]}},
        "5": {"class_type": "Dice"}});
    let graph = Graph::parse(&graph.to_string()).unwrap();
    let plan = |problem: Problem| {
        let folders = folders(Path::new("/nowhere"));
        Plan::with_known(&graph, &catalogue(), &folders, "cpu", vec![problem], &Changes::new())
    };
    let problem = || Problem::new(Kind::BadLinkedInput, "is odd");
    let partly = plan(problem().at(graph.nodes()[0].name())).unwrap();
    assert_eq!((partly.left_out()[0].name.id.as_str(), partly.steps().len()), ("2", 2));
    assert!(plan(problem()).is_err(), "nobody knows whose it is");
    let whole = plan(problem().at(graph.nodes()[4].name())).unwrap();
    assert_eq!((whole.problems(), whole.warnings().len()), (&[][..], 1), "no output needs it");
}

#[test]
fn a_missing_class_whose_reason_is_known_is_said_once() {
    let graph = json!({
        "1": {"class_type": "workflow>Draw", "inputs": {}},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}}});
    let graph = Graph::parse(&graph.to_string()).unwrap();
    let known =
        Problem::new(Kind::MissingNodeType, "cannot be laid out").at(graph.nodes()[0].name());
    let refusal = Plan::with_known(
        &graph,
        &catalogue(),
        &Folders::default(),
        "cpu",
        vec![known],
        &Changes::new(),
    )
    .unwrap_err();
    let said: Vec<String> = refusal.problems.iter().map(Problem::to_string).collect();
    assert_eq!(said, ["node 1 (workflow>Draw): cannot be laid out"]);
}

#[test]
fn an_unknown_class_whose_results_nobody_takes_is_an_output() {
    let good = json!({
        "1": {"class_type": "Dice"},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveElsewhere", "inputs": {"image": ["1", 0]}}});
    let partly = plan(&good).unwrap();
    assert_eq!(partly.left_out()[0].name.id, "3");
    let sentence = partly.problems()[0].to_string();
    assert!(sentence.contains("no library has the class \"SaveElsewhere\""), "{sentence}");
    assert!(sentence.contains("so it is an output that is missing"), "{sentence}");
    let alone = wrong(&json!({
        "1": {"class_type": "Dice"},
        "2": {"class_type": "Unknown", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveElsewhere", "inputs": {"image": ["2", 0]}}}));
    assert_eq!(alone.len(), 2, "{alone:?}");
    assert!(alone[0].starts_with("node 2 (Unknown): no library has"), "{alone:?}");
    assert!(!alone[0].contains("an output"), "its results are taken: {alone:?}");
    assert!(alone.iter().all(|problem| !problem.contains("no output node")), "{alone:?}");
}

#[test]
fn every_problem_is_found_at_once_and_named() {
    let found = wrong(&json!({
        "1": {"class_type": "Lod", "inputs": {"image": "a.png"}, "_meta": {"title": "Picture"}},
        "2": {"class_type": "Mix", "inputs": {"a": ["1", 0], "b": ["9", 0]}},
        "3": {"class_type": "Need", "inputs": {}},
        "4": {"class_type": "Mix", "inputs": {"a": ["3", 1], "b": ["2", 0]}},
        "5": {"class_type": "Mix", "inputs": {"a": "abc"}},
        "6": {"class_type": "Load", "inputs": {"image": "../x.png"}},
        "7": {"class_type": "Mix", "inputs": {"a": ["6", 1], "b": ["4", 0]}},
        "8": {"class_type": "Save", "inputs": {"image": ["7", 0]}},
        "10": {"class_type": "Save", "inputs": {"image": ["5", 0]}}}));
    let wanted = [
        "node 1 \"Picture\" (Lod): no library has the class \"Lod\"; did you mean \"Load\"?",
        "node 2 (Mix), input \"b\": is linked to node 9, which the workflow does not have",
        "node 3 (Need), input \"n\": is missing; it takes a whole number",
        "node 4 (Mix), input \"a\": is linked to output 1 of node 3 (Need): it has 0 image (IMAGE)",
        "node 5 (Mix), input \"a\": takes IMAGE from another node, a link [\"node id\", output number], not a string",
        "node 6 (Load), input \"image\": \"../x.png\" leads out",
        "node 7 (Mix), input \"a\": takes IMAGE, but output 1 of node 6 (Load) is MASK (mask)",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "{found:?} is not {wanted:?}");
    }
}

#[test]
fn a_missing_file_has_a_nearest_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("portrait.png"), "x").unwrap();
    let graph = |name: &str| {
        let graph = json!({
            "1": {"class_type": "Load", "inputs": {"image": name}},
            "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}}});
        Graph::parse(&graph.to_string()).unwrap()
    };
    let plan = |name| Plan::new(&graph(name), &catalogue(), &folders(folder.path()), "cpu");
    let problem = &plan("portrai.png").unwrap_err().problems[0];
    assert_eq!(problem.nearest.as_deref(), Some("portrait.png"));
    let problem = &plan("dog.jpg").unwrap_err().problems[0];
    assert!(problem.message.contains("there are: \"portrait.png\""), "{problem}");
    let before = plan("portrait.png").unwrap().steps()[0].key;
    assert_eq!(before, plan("portrait.png").unwrap().steps()[0].key);
    std::fs::write(folder.path().join("portrait.png"), "another").unwrap();
    assert_ne!(before, plan("portrait.png").unwrap().steps()[0].key);
}

#[test]
fn a_sum_that_memory_does_not_hold_is_told_before_anything_runs() {
    let empty = |n: Value| {
        json!({
            "c": {"class_type": "Count", "inputs": {}},
            "e": {"class_type": "Empty", "inputs": {"n": n}},
            "s": {"class_type": "Save", "inputs": {"image": ["e", 0]}}})
    };
    let wrong = wrong(&empty((1i64 << 50).into()));
    let sum = "node e (Empty): its results would take 2.31 EB (4 x n 1125899906842624 x side 512 bytes), there ";
    assert!(wrong.len() == 1 && wrong[0].starts_with(sum), "{wrong:?}");
    assert!(plan(&empty(2.into())).is_ok());
    // What another node will tell is asked for before the node runs.
    assert!(plan(&empty(json!(["c", 0]))).is_ok());
}

#[test]
fn a_circle_is_named() {
    let found = wrong(&json!({
        "1": {"class_type": "Mix", "inputs": {"a": ["2", 0]}},
        "2": {"class_type": "Mix", "inputs": {"a": ["3", 0]}},
        "3": {"class_type": "Mix", "inputs": {"a": ["1", 0]}},
        "4": {"class_type": "Save", "inputs": {"image": ["1", 0]}}}));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("3 → 2 → 1 → 3 is a circle"), "{found:?}");
    let found = wrong(&json!({
        "1": {"class_type": "Mix", "inputs": {"a": ["1", 0]}},
        "4": {"class_type": "Save", "inputs": {"image": ["1", 0]}}}));
    assert!(found[0].contains("1 → 1 is a circle"), "{found:?}");
}

#[test]
fn without_an_output_nothing_runs() {
    assert!(wrong(&json!({}))[0].contains("has no nodes"));
    let found = wrong(&json!({"1": {"class_type": "Dice"}, "2": {"class_type": "Saev"}}));
    assert_eq!(found.len(), 1, "the unknown class may be the output: {found:?}");
    assert!(found[0].contains("did you mean \"Save\""), "{found:?}");
    let found = wrong(&json!({"1": {"class_type": "Dice"}, "2": {"class_type": "Need"}}));
    assert!(found[1].contains("no output node"), "{found:?}");
}

#[test]
fn what_reaches_no_output_only_warns() {
    let plan = plan(&json!({
        "1": {"class_type": "Dice"},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0], "imgae": 3}},
        "3": {"class_type": "Note", "inputs": {"text": "hello"}},
        "4": {"class_type": "Need"}}))
    .unwrap();
    assert_eq!(plan.steps().len(), 2);
    let warnings: Vec<String> = plan.warnings().iter().map(Problem::to_string).collect();
    assert!(
        warnings[0]
            .ends_with("input \"imgae\": the class has no such input; did you mean \"image\"?")
    );
    assert!(warnings[1].contains("\"Note\"; it leads to no output"), "{warnings:?}");
}

#[test]
fn what_the_editor_writes_itself_does_not_warn() {
    let plan = plan(&json!({
        "1": {"class_type": "Widgets", "inputs": {"upload": "image", "choose file to upload": "image",
            "control_after_generate": "fixed", "Two control_after_generate": "fixed", "odd one": 1}},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}}}))
    .unwrap();
    let warnings: Vec<String> = plan.warnings().iter().map(Problem::to_string).collect();
    assert_eq!(warnings, ["node 1 (Widgets), input \"odd one\": the class has no such input"]);
}

#[test]
fn sizes_off_their_step_warn() {
    let graph = |size: i64| {
        json!({
        "1": {"class_type": "Widgets", "inputs": {"size": size}},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}}})
    };
    assert_eq!(plan(&graph(513)).unwrap().warnings()[0].kind, Kind::ValueOffStep);
    assert!(plan(&graph(520)).unwrap().warnings().is_empty());
}

#[test]
fn keys_say_what_a_result_depends_on() {
    let graph = |id: &str, n: i64| {
        json!({
        id: {"class_type": "Widgets", "inputs": {"n": n}},
        "m": {"class_type": "Mix", "inputs": {"a": [id, 0]}},
        "s": {"class_type": "Save", "inputs": {"image": ["m", 0]}}})
    };
    let keys = |id, n| {
        let plan = plan(&graph(id, n)).unwrap();
        plan.steps().iter().map(|step| step.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("1", 3), keys("2", 3), "ids do not matter");
    let (one, other) = (keys("1", 3), keys("1", 4));
    assert!(one.iter().zip(&other).all(|(one, other)| one != other), "ancestors do");

    let dice = json!({
        "1": {"class_type": "Dice"}, "2": {"class_type": "Dice"},
        "3": {"class_type": "Mix", "inputs": {"a": ["1", 0], "b": ["2", 0]}},
        "4": {"class_type": "Save", "inputs": {"image": ["3", 0]}},
        "5": {"class_type": "Save", "inputs": {"image": ["3", 0]}}});
    let (one, other) = (plan(&dice).unwrap(), plan(&dice).unwrap());
    assert!(one.steps().iter().all(|step| step.same_as.is_none()), "dice and files are themselves");
    assert!(one.steps().iter().zip(other.steps()).all(|(one, other)| one.key != other.key));

    let twice = json!({
        "1": {"class_type": "Widgets"}, "2": {"class_type": "Widgets"},
        "3": {"class_type": "Mix", "inputs": {"a": ["1", 0], "b": ["2", 0]}},
        "4": {"class_type": "Save", "inputs": {"image": ["3", 0]}}});
    let plan = plan(&twice).unwrap();
    assert_eq!(plan.steps()[1].same_as, Some(0), "the same work is done once");
    assert_eq!(plan.steps()[2].inputs[1], Source::Link { step: 0, slot: 0 });
}

#[test]
fn files_that_a_text_mentions_are_found_and_part_of_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let embeddings = folder.path().join("embeddings");
    std::fs::create_dir(&embeddings).unwrap();
    std::fs::write(embeddings.join("moody.pt"), "1").unwrap();
    let folders = Folders { models: vec![folder.path().into()], ..folders(Path::new("/nowhere")) };
    let plan = |prompt: &str| {
        let graph = json!({
            "1": {"class_type": "Widgets", "inputs": {"prompt": prompt}},
            "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}}});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        Plan::new(&graph, &catalogue(), &folders, "cpu").unwrap()
    };
    let files = |plan: &Plan| {
        let files = plan.steps()[0].inputs.iter().find_map(|source| match source {
            Source::Literal(Literal::TextWithFiles { files, .. }) => Some(files.clone()),
            _ => None,
        });
        files.unwrap_or_default()
    };
    let one = plan("a cat, (embedding:moody:1.2), embedding:moody.pt");
    let found = files(&one);
    let names: Vec<&str> = found.iter().map(|file| file.property.as_str()).collect();
    assert_eq!(names, ["file:embeddings/moody", "file:embeddings/moody.pt"]);
    assert!(found.iter().all(|file| Path::new(&file.path) == embeddings.join("moody.pt")));
    assert!(one.warnings().is_empty());

    std::fs::write(embeddings.join("moody.pt"), "another one").unwrap();
    let other = plan("a cat, (embedding:moody:1.2), embedding:moody.pt");
    assert_ne!(one.steps()[0].key, other.steps()[0].key, "a replaced file is another text");

    let missing = plan("embedding:mody, embedding:../moody");
    assert!(files(&missing).is_empty());
    let warnings: Vec<String> = missing.warnings().iter().map(Problem::to_string).collect();
    assert!(warnings[0].contains("input \"prompt\": there is no \"mody\" in"), "{warnings:?}");
    assert!(warnings[0].ends_with("did you mean \"moody\"?"), "{warnings:?}");
    assert!(warnings[1].contains("leads out of the folders"), "{warnings:?}");
}

#[test]
fn a_path_from_the_command_line_says_how_to_be_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, odd) = (folder.path().join("a.png"), folder.path().join("it's b.png"));
    std::fs::write(&plain, "").unwrap();
    std::fs::write(&odd, "").unwrap();
    let sentence = |path: &Path| {
        wrong(&json!({
            "3:1": {"class_type": "Load", "inputs": {"image": path}},
            "2": {"class_type": "Save", "inputs": {"image": ["3:1", 0]}}}))
        .remove(0)
    };
    let set = format!("; to read it where it is, say so: --set 3:1.image={}", plain.display());
    assert!(sentence(&plain).ends_with(&set), "{}", sentence(&plain));
    let set = format!("--set '3:1.image={}/it'\\''s b.png'", folder.path().display());
    assert!(sentence(&odd).ends_with(&set), "{}", sentence(&odd));
    assert!(!sentence(Path::new("/there/is/none.png")).contains("--set"));
}

#[test]
fn where_files_are_written_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "in the way").unwrap();
    let wrong = |output: &str, name: &str| {
        let graph = json!({
            "1": {"class_type": "Dice"},
            "2": {"class_type": "Keep", "inputs": {"image": ["1", 0], "name": name}}});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        let folders = Folders { output: folder.path().join(output), ..Folders::default() };
        match Plan::new(&graph, &catalogue(), &folders, "cpu") {
            Ok(_) => String::new(),
            Err(refusal) => refusal.problems[0].to_string(),
        }
    };
    assert_eq!(wrong("out", "sub/a"), "");
    let outside = wrong("out", "../a");
    assert!(
        outside.starts_with("node 2 (Keep), input \"name\": \"../a\" leads out of"),
        "{outside}"
    );
    assert!(wrong("out", &"x".repeat(5000)).contains("too long"));
    for (output, name) in [("file", "a"), ("file/below", "a"), (".", "file/a")] {
        let sentence = wrong(output, name);
        assert!(sentence.starts_with("node 2 (Keep): the folder "), "{sentence}");
        assert!(sentence.ends_with("file is not a folder"), "{sentence}");
    }
    assert!(!folder.path().join("out").exists(), "it is only looked at");
}

#[test]
fn one_branch_is_finished_before_the_next() {
    let plan = plan(&json!({
        "a": {"class_type": "Widgets", "inputs": {"n": 1}},
        "b": {"class_type": "Widgets", "inputs": {"n": 2}},
        "a2": {"class_type": "Mix", "inputs": {"a": ["a", 0]}},
        "b2": {"class_type": "Mix", "inputs": {"a": ["b", 0]}},
        "m": {"class_type": "Mix", "inputs": {"b": ["a2", 0], "a": ["b2", 0]}},
        "s": {"class_type": "Save", "inputs": {"image": ["m", 0]}}}))
    .unwrap();
    let order: Vec<&str> = plan.steps().iter().map(|step| step.name.id.as_str()).collect();
    assert_eq!(order, ["b", "b2", "a", "a2", "m", "s"]);
}

#[test]
fn a_long_chain_does_not_overflow_the_stack() {
    let mut nodes = serde_json::Map::new();
    nodes.insert("0".into(), json!({"class_type": "Dice"}));
    for i in 1..100_000 {
        let link = json!({"class_type": "Mix", "inputs": {"a": [(i - 1).to_string(), 0]}});
        nodes.insert(i.to_string(), link);
    }
    nodes.insert("s".into(), json!({"class_type": "Save", "inputs": {"image": ["99999", 0]}}));
    assert_eq!(plan(&Value::Object(nodes)).unwrap().steps().len(), 100_001);
}

proptest! {
    /// Any graph of these classes with any links and literals is a valid plan or a list of
    /// sentences; a valid plan's links lead back, each node once.
    #[test]
    fn any_graph_is_a_plan_or_sentences(
        nodes in prop::collection::vec(
            (
                prop::sample::select(vec!["Load", "Mix", "Widgets", "Dice", "Need", "Save", "Zip"]),
                prop::collection::vec(
                    (
                        prop::sample::select(vec![
                            "a", "b", "n", "x", "s", "how", "any", "image", "seed", "odd"]),
                        prop_oneof![
                            (0usize..9, 0u64..3).prop_map(|(id, slot)| json!([id.to_string(), slot])),
                            any::<i64>().prop_map(Value::from),
                            any::<f64>().prop_map(Value::from),
                            "\\PC{0,6}".prop_map(Value::from),
                            Just(Value::Null),
                            Just(json!({"__value__": [1]})),
                            Just(json!([[], {}])),
                        ],
                    ),
                    0..5,
                ),
            ),
            0..8,
        )
    ) {
        let nodes = nodes.into_iter().enumerate().map(|(id, (class, inputs))| {
            let inputs: serde_json::Map<String, Value> =
                inputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            (id.to_string(), json!({"class_type": class, "inputs": inputs}))
        });
        match plan(&Value::Object(nodes.collect())) {
            Err(refusal) => prop_assert!(!refusal.problems.is_empty()),
            Ok(plan) => {
                let mut ids: Vec<&str> =
                    plan.steps().iter().map(|step| step.name.id.as_str()).collect();
                for (at, step) in plan.steps().iter().enumerate() {
                    for source in &step.inputs {
                        if let Source::Link { step: from, .. } = source {
                            prop_assert!(*from < at);
                            prop_assert!(plan.steps()[*from].same_as.is_none());
                        }
                    }
                }
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), plan.steps().len());
            }
        }
    }
}
