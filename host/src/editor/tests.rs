use super::*;
use crate::folders::Folders;
use crate::plan::{Plan, Refusal};
use chrono::TimeZone;
use proptest::prelude::*;
use std::path::Path;

mod any;
mod nested;
mod odd;

/// The classes that the workflows of these tests use, as ComfyUI declares them.
fn catalogue() -> Catalogue {
    let path = |name: &str, folder: &str| json!({"name": name, "type": "STRING", "role": "path", "folder": folder, "entry": "any"});
    let socket = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let int = |name: &str, default: i64| json!({"name": name, "type": "INT", "default": default});
    let output = |kind: &str| json!({"name": kind.to_lowercase(), "type": kind});
    let library = json!({"name": "test", "version": "1", "nodes": [
        {"class": "Checkpoint", "inputs": [path("ckpt_name", "checkpoints")],
         "outputs": [output("MODEL"), output("CLIP")]},
        {"class": "Lora", "inputs": [socket("model", "MODEL"), socket("clip", "CLIP"),
            path("lora_name", "loras"),
            {"name": "strength_model", "type": "FLOAT", "default": 1.0},
            {"name": "strength_clip", "type": "FLOAT", "default": 1.0}],
         "outputs": [output("MODEL"), output("CLIP")]},
        {"class": "Text", "inputs": [
            {"name": "text", "type": "STRING", "multiline": true, "mentions": "embeddings"},
            socket("clip", "CLIP")],
         "outputs": [output("CONDITIONING")]},
        {"class": "Sampler", "inputs": [socket("model", "MODEL"),
            {"name": "seed", "type": "INT", "max": u64::MAX, "default": 0, "role": "seed"},
            int("steps", 20), {"name": "cfg", "type": "FLOAT", "default": 8.0},
            {"name": "sampler_name", "type": "COMBO", "choices": ["euler", "ddim"]},
            socket("positive", "CONDITIONING"), socket("negative", "CONDITIONING"),
            socket("image", "IMAGE"),
            {"name": "denoise", "type": "FLOAT", "default": 1.0},
            {"name": "per_item", "type": "BOOLEAN", "default": false, "optional": true}],
         "outputs": [output("IMAGE")]},
        {"class": "Load", "inputs": [path("image", "input"),
            {"name": "channel", "type": "COMBO", "choices": ["alpha", "red"], "default": "alpha"},
            {"name": "turn", "type": "BOOLEAN", "default": true, "optional": true}],
         "outputs": [output("IMAGE"), output("MASK")]},
        {"class": "Save", "inputs": [socket("images", "IMAGE"),
            {"name": "filename_prefix", "type": "STRING", "default": "ComfyUI"}],
         "output_node": true}]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("libtest.so"), &library).unwrap();
    catalogue
}

fn converted(workflow: &Value) -> Converted {
    convert(workflow.as_object().unwrap(), &catalogue())
}

/// A small language for workflows as the editor saves them: nodes, and links `(from, slot, to,
/// input)` by position.
fn saved(nodes: Vec<Value>, links: &[(usize, usize, usize, usize)]) -> Value {
    let mut nodes = nodes;
    let mut lines = Vec::new();
    for (number, &(from, from_slot, to, to_slot)) in links.iter().enumerate() {
        let ids = (nodes[from]["id"].clone(), nodes[to]["id"].clone());
        lines.push(json!([number + 1, ids.0, from_slot, ids.1, to_slot, "?"]));
        nodes[to]["inputs"][to_slot]["link"] = json!(number + 1);
    }
    json!({"last_node_id": 99, "nodes": nodes, "links": lines, "groups": [{"title": "a group"}],
        "config": {}, "extra": {}, "version": 0.4})
}

fn node(id: u64, class: &str, inputs: &[(&str, &str)], values: Value) -> Value {
    let inputs: Vec<Value> = inputs
        .iter()
        .map(|(name, kind)| json!({"name": name, "type": kind, "link": null}))
        .collect();
    json!({"id": id, "type": class, "pos": [0, 0], "mode": 0, "inputs": inputs,
        "outputs": [{"name": "x", "type": "*"}], "widgets_values": values, "properties": {}})
}

const SAMPLER: &[(&str, &str)] = &[
    ("model", "MODEL"),
    ("positive", "CONDITIONING"),
    ("negative", "CONDITIONING"),
    ("image", "IMAGE"),
];

fn sampler(id: u64, values: Value) -> Value {
    node(id, "Sampler", SAMPLER, values)
}

fn api(workflow: &Value) -> Value {
    let converted = converted(workflow);
    assert!(converted.problems.is_empty(), "{:?}", converted.problems);
    serde_json::from_str(&converted.graph.to_json()).unwrap()
}

fn sentences(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

#[test]
fn values_get_their_names() {
    let workflow = saved(vec![sampler(3, json!([7, "randomize", 12, 6.5, "ddim", 0.5]))], &[]);
    let inputs =
        json!({"seed": 7, "steps": 12, "cfg": 6.5, "sampler_name": "ddim", "denoise": 0.5});
    assert_eq!(api(&workflow), json!({"3": {"class_type": "Sampler", "inputs": inputs}}));
    for values in [
        json!([7, true, 12, 6.5, "ddim", 0.5]),
        json!([7, 12, 6.5, "ddim", 0.5]),
        json!([7, "fixed", 12, 6.5, "ddim", 0.5, null, ""]),
        json!({"seed": 7, "steps": 12, "cfg": 6.5, "sampler_name": "ddim", "denoise": 0.5,
            "videopreview": {"hidden": true}}),
    ] {
        let other = api(&saved(vec![sampler(3, values.clone())], &[]));
        assert_eq!(other["3"]["inputs"], inputs, "{values}");
    }
    let optional =
        api(&saved(vec![sampler(3, json!([7, "fixed", 12, 6.5, "ddim", 0.5, true]))], &[]));
    assert_eq!(optional["3"]["inputs"]["per_item"], true);
}

#[test]
fn what_an_old_file_lacks_is_the_default() {
    let lacking = |values| api(&saved(vec![sampler(3, values)], &[]))["3"]["inputs"].clone();
    assert_eq!(
        lacking(json!([7, "fixed", 12])),
        json!({"seed": 7, "steps": 12, "sampler_name": "euler"})
    );
    assert_eq!(lacking(json!(null)), json!({"sampler_name": "euler"}), "the first choice");
    let mut lora = node(1, "Lora", &[("model", "MODEL"), ("clip", "CLIP")], json!(null));
    lora["properties"]["models"] = json!([{"name": "x.vae", "directory": "vae"},
        {"name": "x.safetensors", "directory": "loras", "url": "https://example.org"}]);
    assert_eq!(api(&saved(vec![lora], &[]))["1"]["inputs"], json!({"lora_name": "x.safetensors"}));
}

#[test]
fn an_upload_button_stands_behind_the_required_inputs() {
    let load = |values| api(&saved(vec![node(1, "Load", &[], values)], &[]))["1"]["inputs"].clone();
    let all = json!({"image": "cat.png", "channel": "red", "turn": false});
    assert_eq!(load(json!(["cat.png", "red", "image", false])), all);
    assert_eq!(load(json!(["cat.png", "red", false])), all);
    assert_eq!(load(json!(["cat.png"])), json!({"image": "cat.png"}));
}

#[test]
fn values_without_a_widget_are_told() {
    let workflow = saved(vec![node(9, "Save", &[("images", "IMAGE")], json!(["a", 3, true]))], &[]);
    let warnings = sentences(&converted(&workflow).warnings);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("node 9 (Save): holds 2 values more"), "{warnings:?}");
}

#[test]
fn newer_editors_name_every_widget() {
    // The class as it was then: `cfg` behind `denoise`, and one more.
    let names = ["seed", "steps", "sampler_name", "denoise", "cfg", "sharpness"];
    let mut node = sampler(3, json!([7, "fixed", 12, "ddim", 0.5, 6.5, 3]));
    for name in names {
        let input = json!({"name": name, "type": "*", "link": null, "widget": {"name": name}});
        node["inputs"].as_array_mut().unwrap().push(input);
    }
    let converted = converted(&saved(vec![node], &[]));
    let graph: Value = serde_json::from_str(&converted.graph.to_json()).unwrap();
    assert_eq!(
        graph["3"]["inputs"],
        json!({"seed": 7, "steps": 12, "sampler_name": "ddim", "denoise": 0.5, "cfg": 6.5})
    );
    let warnings = sentences(&converted.warnings);
    assert!(
        warnings[0].contains("input \"sharpness\": the class has no such input"),
        "{warnings:?}"
    );
}

#[test]
fn titles_and_ids_stay() {
    let mut text = node(6, "Text", &[("clip", "CLIP")], json!(["a cat"]));
    text["title"] = json!("Positive");
    let mut other = node(7, "Text", &[("clip", "CLIP")], json!(["a dog"]));
    other["id"] = json!("seven");
    let graph = api(&saved(vec![text, other], &[]));
    assert_eq!(graph["6"]["_meta"]["title"], "Positive");
    assert_eq!(graph["seven"]["inputs"]["text"], "a dog");
    assert_eq!(graph["seven"].get("_meta"), None);
}

#[test]
fn a_widget_that_became_a_socket_keeps_its_place() {
    let mut sampler = sampler(3, json!([7, "fixed", 12, 6.5, "ddim", 0.5]));
    let socket = json!({"name": "steps", "type": "INT", "link": null, "widget": {"name": "steps"}});
    sampler["inputs"].as_array_mut().unwrap().push(socket);
    let primitive = node(4, "PrimitiveNode", &[], json!([33, "fixed"]));
    let linked = api(&saved(vec![sampler.clone(), primitive], &[(1, 0, 0, 4)]));
    assert_eq!(linked["3"]["inputs"]["steps"], 33);
    assert_eq!(linked["3"]["inputs"]["denoise"], 0.5);
    assert_eq!(linked.as_object().unwrap().len(), 1, "the primitive is the page's");
    assert_eq!(api(&saved(vec![sampler], &[]))["3"]["inputs"]["steps"], 12);
}

#[test]
fn reroutes_primitives_and_named_links_are_followed() {
    let reroute = |id| node(id, "Reroute", &[("", "*")], json!(null));
    let checkpoint = node(1, "Checkpoint", &[], json!(["sd.safetensors"]));
    let set = node(20, "SetNode", &[("CLIP", "CLIP")], json!(["the clip"]));
    let get = node(21, "GetNode", &[], json!(["the clip"]));
    let nodes = vec![
        checkpoint,
        reroute(10),
        reroute(11),
        node(6, "Text", &[("clip", "CLIP")], json!(["a cat"])),
        set,
        get,
        node(7, "Text", &[("clip", "CLIP")], json!(["a dog"])),
        node(30, "MarkdownNote", &[], json!(["# A note"])),
    ];
    let links = [(0, 1, 1, 0), (1, 0, 2, 0), (2, 0, 3, 0), (2, 0, 4, 0), (5, 0, 6, 0)];
    let graph = api(&saved(nodes, &links));
    assert_eq!(graph["6"]["inputs"]["clip"], json!(["1", 1]));
    assert_eq!(graph["7"]["inputs"]["clip"], json!(["1", 1]));
    assert_eq!(graph.as_object().unwrap().len(), 3);
}

#[test]
fn a_bypassed_node_passes_on_by_type() {
    let mut lora = node(2, "Lora", &[("clip", "CLIP"), ("model", "MODEL")], json!(["l", 1, 1]));
    lora["mode"] = json!(4);
    let nodes = vec![
        node(1, "Checkpoint", &[], json!(["sd.safetensors"])),
        lora,
        sampler(3, json!([7, "fixed"])),
        node(6, "Text", &[("clip", "CLIP")], json!(["a cat"])),
    ];
    let graph = api(&saved(nodes, &[(0, 1, 1, 0), (0, 0, 1, 1), (1, 0, 2, 0), (1, 1, 3, 0)]));
    assert_eq!(graph["3"]["inputs"]["model"], json!(["1", 0]));
    assert_eq!(graph["6"]["inputs"]["clip"], json!(["1", 1]));
    assert_eq!(graph.get("2"), None);
}

#[test]
fn a_muted_node_is_gone_and_named() {
    let mut checkpoint = node(1, "Checkpoint", &[], json!(["sd.safetensors"]));
    checkpoint["mode"] = json!(2);
    checkpoint["title"] = json!("The model");
    let nodes = vec![checkpoint, node(6, "Text", &[("clip", "CLIP")], json!(["a cat"]))];
    let converted = converted(&saved(nodes, &[(0, 1, 1, 0)]));
    assert_eq!(converted.graph.nodes().len(), 1);
    assert_eq!(
        sentences(&converted.warnings),
        [
            "node 6 (Text), input \"clip\": is linked to node 1 \"The model\" (Checkpoint), which is muted"
        ]
    );
}

#[test]
fn what_depends_on_a_muted_node_is_left_out() {
    let nodes = vec![
        node(1, "Load", &[], json!(["cat.png"])),
        node(2, "Save", &[("images", "IMAGE")], json!(["a"])),
        node(3, "Load", &[], json!(["dog.png"])),
        node(4, "Save", &[("images", "IMAGE")], json!(["b"])),
    ];
    let mut workflow = saved(nodes, &[(0, 0, 1, 0), (2, 0, 3, 0)]);
    workflow["nodes"][2]["mode"] = json!(2);
    let converted = converted(&workflow);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cat.png"), "").unwrap();
    let folders = Folders { input: vec![folder.path().to_owned()], ..Folders::default() };
    let plan = Plan::with_known(
        &converted.graph,
        &catalogue(),
        &folders,
        "cpu",
        converted.problems,
        &Default::default(),
    );
    let plan = plan.unwrap();
    let steps: Vec<&str> = plan.steps().iter().map(|step| step.name.id.as_str()).collect();
    assert_eq!(steps, ["1", "2"]);
    assert_eq!(plan.left_out()[0].name.id, "4");
    assert!(plan.problems()[0].to_string().contains("input \"images\": is missing"));
}

#[test]
fn null_is_no_value_of_a_widget() {
    let inputs = |values| api(&saved(vec![sampler(3, values)], &[]))["3"]["inputs"].clone();
    assert_eq!(inputs(json!([null, "fixed", 12]))["seed"], Value::Null);
    assert_eq!(
        inputs(json!({"steps": null, "sampler_name": "ddim"})).get("steps"),
        Some(&Value::Null)
    );
    let workflow = r#"{"nodes": [{"id": 3, "type": "Sampler", "widgets_values": [NaN, "fixed", 12]}],
        "links": []}"#;
    let object = crate::graph::parse_object(workflow).unwrap();
    let converted = convert(&object, &catalogue());
    let folders = Folders::default();
    let refusal = Plan::new(&converted.graph, &catalogue(), &folders, "cpu").unwrap_err();
    let all = sentences(&refusal.problems).join("\n");
    assert!(all.contains("input \"seed\": NaN is not a whole number"), "{all}");
}

#[test]
fn the_pages_own_widgets_and_switches_do_not_warn() {
    let mut load = node(1, "Load", &[], json!(["cat.png", "red", "image"]));
    let widget =
        |name: &str| json!({"name": name, "type": "*", "link": null, "widget": {"name": name}});
    load["inputs"] = json!([widget("image"), widget("channel"), widget("choose file to upload")]);
    let switch = node(7, "Fast Muter (rgthree)", &[("Load", "*")], json!([]));
    let nodes = vec![load, node(2, "Save", &[("images", "IMAGE")], json!(["a"])), switch];
    let converted = converted(&saved(nodes, &[(0, 0, 1, 0), (0, 0, 2, 0)]));
    assert!(converted.warnings.is_empty(), "{:?}", converted.warnings);
    assert_eq!(converted.graph.nodes().len(), 2);
}

#[test]
fn what_cannot_be_converted_is_said_all_at_once() {
    let reroute = |id| node(id, "Reroute", &[("", "*")], json!(null));
    let nodes = vec![
        reroute(10),
        reroute(11),
        node(6, "Text", &[("clip", "CLIP")], json!(["a cat"])),
        node(6, "Text", &[("clip", "CLIP")], json!(["again"])),
        node(5, "GetNode", &[], json!(["nobody"])),
        node(7, "Text", &[("clip", "CLIP")], json!(["a dog"])),
        json!({"id": 8}),
        json!(3),
        node(4, "Strange (rgthree)", &[("clip", "CLIP")], json!([1])),
        node(9, "Save", &[("images", "IMAGE")], json!(["a"])),
    ];
    let mut workflow =
        saved(nodes, &[(0, 0, 1, 0), (1, 0, 0, 0), (1, 0, 2, 0), (4, 0, 5, 0), (8, 0, 9, 0)]);
    workflow["nodes"][3]["inputs"][0]["link"] = json!(1234);
    let Converted { graph, problems, warnings, .. } = converted(&workflow);
    let (problems, warnings) = (sentences(&problems).join("\n"), sentences(&warnings).join("\n"));
    for part in [
        "node 8: has no type",
        "node ?: is a number",
        "node 6 (Text), input \"clip\": is linked to nodes that only pass values on, in a circle",
        "node 7 (Text), input \"clip\": is linked to node 5 (GetNode), and no SetNode sets \"nobody\"",
    ] {
        assert!(problems.contains(part), "{part:?} is not in\n{problems}");
    }
    assert!(
        warnings.contains("is linked by link 1234, which the file does not have"),
        "{warnings}"
    );
    // An unknown class is the plan's to name.
    assert_eq!(graph.nodes().iter().filter(|node| node.class.contains("Strange")).count(), 1);
    let folders = Folders {
        models: vec![],
        input: vec![],
        output: "/o".into(),
        temp: "/t".into(),
        ..Folders::default()
    };
    let Err(Refusal { problems, .. }) = Plan::new(&graph, &catalogue(), &folders, "cpu") else {
        panic!("the class is unknown")
    };
    assert!(sentences(&problems).join("\n").contains("node 4 (Strange (rgthree)): no library has"));
}

fn now() -> Now {
    chrono::Local.with_ymd_and_hms(2026, 3, 7, 9, 5, 59).single().unwrap()
}

/// The prompt `text` for a seed.
fn prompt(text: &str, seed: u64) -> String {
    let workflow = saved(vec![node(6, "Text", &[("clip", "CLIP")], json!([text]))], &[]);
    let Converted { mut graph, texts, .. } = converted(&workflow);
    let warnings = texts.apply(&mut graph, &catalogue(), Some(seed), &now());
    assert!(warnings.is_empty());
    match graph.nodes()[0].input("text") {
        Some(Input::Literal { value: Value::String(text), .. }) => text.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn choices_are_made_by_the_seed() {
    let texts: Vec<String> =
        (0..64).map(|seed| prompt("a {red|green|{dark|light} blue} cat", seed)).collect();
    for wanted in ["a red cat", "a green cat", "a dark blue cat", "a light blue cat"] {
        assert!(texts.iter().any(|text| text == wanted), "no seed draws {wanted:?}: {texts:?}");
    }
    assert!(texts.iter().all(|text| !text.contains(['{', '|', '}'])));
    assert_eq!(prompt("{a|b|c|d|e|f|g}", 5), prompt("{a|b|c|d|e|f|g}", 5));
    assert_eq!(prompt("one {choice} alone, {", 1), "one choice alone, ");
    assert_eq!(prompt("\\{a\\|b\\} | } (c\\) \\\\", 1), "{a|b} | } (c\\) \\\\");
    assert_eq!(prompt("a /* b {c */ d // e\nf / g", 1), "a  d \nf / g");
    assert_eq!(prompt("a /* b", 1), "a /* b");
}

#[test]
fn a_text_from_the_command_line_stays() {
    let workflow = saved(vec![node(6, "Text", &[("clip", "CLIP")], json!(["{a|b}"]))], &[]);
    let Converted { mut graph, texts, .. } = converted(&workflow);
    crate::changes::set(&mut graph, &catalogue(), "Text.text={a|b}").unwrap();
    texts.apply(&mut graph, &catalogue(), Some(1), &now());
    assert!(graph.to_json().contains("{a|b}"));
}

#[test]
fn the_prefix_of_a_file_is_completed() {
    let named = |prefix: &str| {
        let mut sampler = sampler(3, json!([7, "fixed", 12, 6.5, "ddim"]));
        sampler["properties"]["Node name for S&R"] = json!("KSampler");
        let mut text = node(6, "Text", &[("clip", "CLIP")], json!(["a/b: \"c\""]));
        text["title"] = json!("Prompt");
        let save = node(9, "Save", &[("images", "IMAGE")], json!([prefix]));
        let workflow = saved(vec![sampler, text, save], &[(0, 0, 2, 0)]);
        let Converted { mut graph, texts, .. } = converted(&workflow);
        crate::changes::set_seed(&mut graph, &catalogue(), 44).unwrap();
        let warnings = texts.apply(&mut graph, &catalogue(), Some(44), &now());
        let Some(Input::Literal { value, .. }) = graph.nodes()[2].input("filename_prefix") else {
            panic!("a prefix")
        };
        (value.as_str().unwrap().to_owned(), sentences(&warnings))
    };
    let complete = |prefix| named(prefix).0;
    assert_eq!(complete("%date:yyyy-MM-dd_hhmmss%/x"), "2026-03-07_090559/x");
    assert_eq!(complete("%date:yy-M-d h:m:s%"), "26-3-7 9:5:59");
    assert_eq!(complete("%KSampler.seed%_%KSampler.sampler_name%"), "44_ddim");
    assert_eq!(complete("%Prompt.text%"), "a_b_ _c_");
    assert_eq!(complete("%width%x%height% 100%"), "%width%x%height% 100%");
    assert_eq!(complete("50% of %KSampler.steps%"), "50% of 12");
    let (text, warnings) = named("%Nobody.seed%%KSampler.nothing%");
    assert_eq!(text, "%Nobody.seed%%KSampler.nothing%");
    assert!(warnings[0].contains("%Nobody.seed% names no node"), "{warnings:?}");
    assert!(warnings[1].contains("node 3 has no \"nothing\""), "{warnings:?}");
}
