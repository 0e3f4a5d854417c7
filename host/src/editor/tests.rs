use super::*;
use crate::folders::Folders;
use crate::plan::{Plan, Refusal};
use chrono::TimeZone;
use proptest::prelude::*;
use std::path::Path;

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

/// A subgraph: a text and a sampler; the clip, the model and the text come from outside.
fn subgraph() -> Value {
    let link = |id: i64, from: i64, from_slot: i64, to: i64, to_slot: i64| {
        json!({"id": id, "origin_id": from, "origin_slot": from_slot, "target_id": to,
            "target_slot": to_slot, "type": "*"})
    };
    let linked = |mut node: Value, links: &[(usize, i64)]| {
        links.iter().for_each(|(input, link)| node["inputs"][input]["link"] = json!(link));
        node
    };
    let mut text = linked(
        node(6, "Text", &[("clip", "CLIP"), ("text", "STRING")], json!(["inside"])),
        &[(0, 1), (1, 2)],
    );
    text["inputs"][1]["widget"] = json!({"name": "text"});
    let sampler = linked(sampler(3, json!([7, "fixed", 12])), &[(0, 3), (1, 4)]);
    json!({"id": "5e1f-uuid", "name": "Draw", "nodes": [text, sampler],
        "inputNode": {"id": -10}, "outputNode": {"id": -20},
        "inputs": [{"name": "clip"}, {"name": "text"}, {"name": "model"}], "outputs": [{"name": "IMAGE"}],
        "links": [link(1, -10, 0, 6, 0), link(2, -10, 1, 6, 1), link(3, -10, 2, 3, 0),
            link(4, 6, 0, 3, 1), link(5, 3, 0, -20, 0)]})
}

#[test]
fn subgraphs_are_laid_flat() {
    let copy = |id, values: Value| {
        let mut copy = node(
            id,
            "5e1f-uuid",
            &[("clip", "CLIP"), ("text", "STRING"), ("model", "MODEL")],
            values,
        );
        copy["inputs"][1]["widget"] = json!({"name": "text"});
        copy
    };
    let nodes = vec![
        node(1, "Checkpoint", &[], json!(["sd.safetensors"])),
        copy(12, json!(["from outside"])),
        copy(13, json!([])),
        node(9, "Save", &[("images", "IMAGE")], json!(["a"])),
        node(8, "Save", &[("images", "IMAGE")], json!(["b"])),
    ];
    let links =
        [(0, 1, 1, 0), (0, 0, 1, 2), (0, 1, 2, 0), (0, 0, 2, 2), (1, 0, 3, 0), (2, 0, 4, 0)];
    let mut workflow = saved(nodes, &links);
    workflow["definitions"] = json!({"subgraphs": [subgraph()]});
    let graph = api(&workflow);
    assert_eq!(graph["9"]["inputs"]["images"], json!(["12:3", 0]));
    assert_eq!(graph["8"]["inputs"]["images"], json!(["13:3", 0]));
    assert_eq!(graph["12:3"]["inputs"]["model"], json!(["1", 0]));
    assert_eq!(graph["12:3"]["inputs"]["positive"], json!(["12:6", 0]));
    assert_eq!(graph["12:6"]["inputs"], json!({"text": "from outside", "clip": ["1", 1]}));
    assert_eq!(graph["13:6"]["inputs"]["text"], "inside");

    // Newer editors list what a copy shows of the widgets inside.
    workflow["nodes"][1]["properties"]["proxyWidgets"] = json!([["-1", "text"], ["3", "steps"]]);
    workflow["nodes"][1]["widgets_values"] = json!(["shown", 44]);
    let graph = api(&workflow);
    assert_eq!(
        (&graph["12:6"]["inputs"]["text"], &graph["12:3"]["inputs"]["steps"]),
        (&json!("shown"), &json!(44))
    );
    assert_eq!(graph["13:3"]["inputs"]["steps"], 12);
}

/// A workflow with one copy of a subgraph of a sampler: its model, seed, steps and text come from outside.
fn widget_slots(copy_inputs: &[(&str, Option<i64>, bool)], values: Value) -> Value {
    let input = |name: &str, link: Option<i64>, is_widget: bool| {
        let mut input = json!({"name": name, "type": "*", "link": link});
        if is_widget {
            input["widget"] = json!({"name": name});
        }
        input
    };
    let link = |id: i64, from: i64, from_slot: i64, to: i64, to_slot: i64| {
        json!({"id": id, "origin_id": from, "origin_slot": from_slot, "target_id": to,
            "target_slot": to_slot, "type": "*"})
    };
    let mut sampler = sampler(3, json!([1, "fixed", 2]));
    sampler["inputs"] = json!([
        input("model", Some(1), false),
        input("positive", Some(4), false),
        input("seed", Some(2), true),
        input("steps", Some(3), true)
    ]);
    let mut text = node(6, "Text", &[], json!(["inside"]));
    text["inputs"] = json!([input("text", Some(5), true)]);
    let definition = json!({"id": "5e1f", "name": "Draw", "nodes": [sampler, text],
        "inputNode": {"id": -10}, "outputNode": {"id": -20}, "outputs": [{"name": "IMAGE"}],
        "inputs": [{"name": "text"}, {"name": "model"}, {"name": "seed"}, {"name": "steps"}],
        "links": [link(1, -10, 1, 3, 0), link(2, -10, 2, 3, 2), link(3, -10, 3, 3, 3),
            link(4, 6, 0, 3, 1), link(5, -10, 0, 6, 0), link(6, 3, 0, -20, 0)]});
    let mut copy = node(12, "5e1f", &[], values);
    let inputs = copy_inputs.iter().map(|(name, link, is_widget)| input(name, *link, *is_widget));
    copy["inputs"] = inputs.collect();
    let nodes = vec![
        node(1, "Checkpoint", &[], json!(["sd.safetensors"])),
        copy,
        node(9, "Save", &[("images", "IMAGE")], json!(["a"])),
        node(4, "PrimitiveNode", &[], json!([33, "fixed"])),
    ];
    let mut workflow = saved(nodes, &[]);
    workflow["links"] =
        json!([[1, 1, 0, 12, 0, "MODEL"], [2, 12, 0, 9, 0, "IMAGE"], [3, 4, 0, 12, 1, "INT"]]);
    workflow["nodes"][2]["inputs"][0]["link"] = json!(2);
    workflow["definitions"] = json!({"subgraphs": [definition]});
    workflow
}

#[test]
fn slots_of_a_subgraph_are_matched_by_name() {
    let drawn = |workflow: &Value| {
        let graph = api(workflow);
        let inputs = &graph["12:3"]["inputs"];
        (graph["12:6"]["inputs"]["text"].clone(), inputs["seed"].clone(), inputs["steps"].clone())
    };
    let model = ("model", Some(1), false);
    let all = (json!("outside"), json!(7), json!(12));
    let values = json!(["outside", 7, 12]);
    // Slots that are only widgets are not in the file; one of them is, as it is linked.
    let workflow = widget_slots(&[model], values.clone());
    assert_eq!(drawn(&workflow), all);
    assert_eq!(api(&workflow)["12:3"]["inputs"]["model"], json!(["1", 0]));
    let linked = widget_slots(&[model, ("steps", Some(3), true)], values.clone());
    assert_eq!(drawn(&linked), (json!("outside"), json!(7), json!(33)));
    // All are, in an order of their own.
    let order = [("steps", None, true), model, ("seed", None, true), ("text", None, true)];
    assert_eq!(drawn(&widget_slots(&order, json!([12, 7, "outside"]))), all);
    // They have their names.
    let mut named = widget_slots(&[model], json!([1, 2, 3]));
    named["nodes"][1]["widgets_values_named"] = json!({"seed": 7, "steps": 12, "text": "outside"});
    assert_eq!(drawn(&named), all);
    // Without values: those inside.
    let inside = (json!("inside"), json!(1), json!(2));
    assert_eq!(drawn(&widget_slots(&[model], json!([]))), inside);
    // A list of what is shown, as it is and as a text.
    let shown = json!([["-1", "steps"], [3, "cfg"], ["-1", "text"], ["-1", "seed"]]);
    for list in [shown.clone(), json!(shown.to_string())] {
        let mut workflow = widget_slots(&[model], json!([12, 4.5, "outside", 7]));
        workflow["nodes"][1]["properties"]["proxyWidgets"] = list;
        assert_eq!(drawn(&workflow), all);
        assert_eq!(api(&workflow)["12:3"]["inputs"]["cfg"], 4.5);
    }
}

#[test]
fn two_nodes_of_one_id_are_two_nodes() {
    let mut nodes = vec![
        node(1, "Checkpoint", &[], json!(["sd.safetensors"])),
        node(6, "Text", &[("clip", "CLIP")], json!(["the first"])),
        node(6, "Text", &[("clip", "CLIP")], json!(["the second"])),
        sampler(3, json!([7, "fixed"])),
    ];
    nodes[1]["inputs"][0]["link"] = json!(1);
    nodes[2]["inputs"][0]["link"] = json!(2);
    nodes[3]["inputs"][1]["link"] = json!(3);
    let links = json!([[1, 1, 1, 6, 0, "CLIP"], [2, 1, 1, 6, 0, "CLIP"], [3, 6, 0, 3, 1, "?"]]);
    let workflow = json!({"last_node_id": 99, "nodes": nodes, "links": links, "version": 0.4});
    let converted = converted(&workflow);
    assert!(converted.problems.is_empty(), "{:?}", converted.problems);
    let graph: Value = serde_json::from_str(&converted.graph.to_json()).unwrap();
    assert_eq!(graph["6"]["inputs"]["text"], "the first");
    assert_eq!(graph["100"]["inputs"], json!({"text": "the second", "clip": ["1", 1]}));
    assert_eq!(graph["3"]["inputs"]["positive"], json!(["6", 0]));
    let warning = "node 100 (Text): is node 100 here, as another node has the id 6, too";
    assert_eq!(sentences(&converted.warnings), [warning]);
}

/// Two texts, the second with a title, and a sampler whose steps come from a primitive; the second
/// text's words were made a socket.
fn group_node(class: &str) -> Value {
    let bare = |mut node: Value| {
        node.as_object_mut().unwrap().remove("id");
        node
    };
    let mut second = node(0, "Text", &[("clip", "CLIP"), ("text", "STRING")], json!(["unused"]));
    second["inputs"][1]["widget"] = json!({"name": "text"});
    second["title"] = json!("Second");
    let mut sampler = sampler(0, json!([1, "fixed", 2, 3.0, "euler", 0.5]));
    let steps = json!({"name": "steps", "type": "INT", "link": 5, "widget": {"name": "steps"}});
    sampler["inputs"].as_array_mut().unwrap().push(steps);
    let mut primitive = node(0, "PrimitiveNode", &[], json!([2, "fixed"]));
    primitive["outputs"] = json!([{"name": "INT", "type": "INT", "widget": {"name": "steps"}}]);
    let load = node(0, "Load", &[], json!(["dog.png", "alpha", "image"]));
    let nodes =
        [node(0, "Text", &[("clip", "CLIP")], json!(["unused"])), second, load, sampler, primitive];
    let definition = json!({"nodes": nodes.map(bare), "external": [[2, 1, "MASK"]],
        "links": [[0, 0, 3, 1, 6, "CONDITIONING"], [1, 0, 3, 2, 7, "CONDITIONING"],
            [2, 0, 3, 3, 8, "IMAGE"], [4, 0, 3, 4, 9, "INT"], [null, 0, 3, 0, 1, "MODEL"]],
        "config": {"3": {"input": {"cfg": {"name": "guidance"}}}}});
    let inputs =
        [("clip", "CLIP"), ("Second clip", "CLIP"), ("model", "MODEL"), ("Second text", "STRING")];
    let values = json!([
        "a cat",
        "cat.png",
        "red",
        "image",
        false,
        7,
        "randomize",
        6.5,
        "ddim",
        0.75,
        true,
        12,
        "fixed"
    ]);
    let nodes = vec![
        node(1, "Checkpoint", &[], json!(["sd.safetensors"])),
        node(5, class, &inputs, values),
        node(9, "Save", &[("images", "IMAGE")], json!(["a"])),
        node(4, "PrimitiveNode", &[], json!(["a dog"])),
    ];
    // Outputs: those of the picture that are seen, then the sampler's.
    let links = [(0, 1, 1, 0), (0, 1, 1, 1), (0, 0, 1, 2), (3, 0, 1, 3), (1, 1, 2, 0)];
    let mut workflow = saved(nodes, &links);
    workflow["extra"]["groupNodes"] = json!({"Draw": definition});
    workflow
}

#[test]
fn group_nodes_are_laid_out() {
    for class in ["workflow>Draw", "workflow/Draw"] {
        let graph = api(&group_node(class));
        assert_eq!(graph["9"]["inputs"]["images"], json!(["5:3", 0]), "{graph:#}");
        assert_eq!(graph["5:0"]["inputs"], json!({"text": "a cat", "clip": ["1", 1]}));
        assert_eq!(graph["5:1"]["inputs"], json!({"text": "a dog", "clip": ["1", 1]}));
        assert_eq!(
            graph["5:2"]["inputs"],
            json!({"image": "cat.png", "channel": "red", "turn": false})
        );
        assert_eq!(
            graph["5:3"]["inputs"],
            json!({"seed": 7, "steps": 12, "cfg": 6.5, "sampler_name": "ddim", "denoise": 0.75,
                "per_item": true, "model": ["1", 0], "positive": ["5:0", 0],
                "negative": ["5:1", 0], "image": ["5:2", 0]})
        );
        assert_eq!(graph.as_object().unwrap().len(), 6);
    }
}

#[test]
fn group_nodes_in_group_nodes_end() {
    let mut workflow = group_node("workflow>Outer");
    let groups = &mut workflow["extra"]["groupNodes"];
    let inner =
        node(0, "workflow>Draw", &[], json!(["a hat", "hat.png", "alpha", "image", true, 8]));
    let mut inner = inner;
    inner["outputs"] = json!([{"name": "MASK"}, {"name": "IMAGE"}]);
    groups["Outer"] = json!({"nodes": [inner], "links": [], "external": [[0, 1, "IMAGE"]]});
    let graph = api(&workflow);
    assert_eq!(graph["9"]["inputs"]["images"], json!(["5:0:3", 0]), "{graph:#}");
    assert_eq!(graph["5:0:0"]["inputs"], json!({"text": "a cat", "clip": ["1", 1]}));
    assert_eq!(graph["5:0:1"]["inputs"]["text"], "a dog");
    assert_eq!(graph["5:0:3"]["inputs"]["seed"], 7);

    workflow["extra"]["groupNodes"]["Outer"]["nodes"][0]["type"] = json!("workflow>Outer");
    let problems = sentences(&converted(&workflow).problems);
    assert!(problems[0].contains("does a group node hold itself?"), "{problems:?}");
}

#[test]
fn a_group_with_an_unknown_class_is_named() {
    let mut workflow = group_node("workflow>Draw");
    workflow["extra"]["groupNodes"]["Draw"]["nodes"][1]["type"] = json!("Nobody's");
    let problems = sentences(&converted(&workflow).problems);
    assert_eq!(
        problems,
        [
            "node 5 (workflow>Draw): this group node cannot be laid out: it holds a node of the class \
          \"Nobody's\", which no library has"
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
    let plan =
        Plan::with_known(&converted.graph, &catalogue(), &folders, "cpu", converted.problems);
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
fn a_subgraph_in_itself_ends() {
    let mut inside = subgraph();
    inside["nodes"].as_array_mut().unwrap().push(node(77, "5e1f-uuid", &[], json!([])));
    inside["nodes"].as_array_mut().unwrap().push(node(78, "5e1f-uuid", &[], json!([])));
    let mut workflow = saved(vec![node(12, "5e1f-uuid", &[], json!([]))], &[]);
    workflow["definitions"] = json!({"subgraphs": [inside]});
    let problems = sentences(&converted(&workflow).problems);
    assert!(problems[0].contains("does a subgraph hold itself?"), "{problems:?}");
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

// ---- Any file, and there and back -----------------------------------------------------------

/// JSON that often looks like a workflow.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-20i64..20).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "Text",
            "Sampler",
            "Save",
            "Load",
            "Reroute",
            "PrimitiveNode",
            "GetNode",
            "SetNode",
            "uuid",
            "-10",
            "-20",
            "1",
            "2",
            "{a|",
            "%date:yyy%",
            "%a.b%",
            "image",
            "fixed",
        ])
        .prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 80, 8, |inner| {
        let keys = prop::sample::select(vec![
            "nodes",
            "links",
            "id",
            "type",
            "mode",
            "inputs",
            "outputs",
            "link",
            "widget",
            "name",
            "widgets_values",
            "properties",
            "title",
            "definitions",
            "subgraphs",
            "inputNode",
            "outputNode",
            "origin_id",
            "origin_slot",
            "target_id",
            "target_slot",
            "proxyWidgets",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..8).prop_map(|pairs| {
                let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value));
                Value::Object(pairs.collect())
            }),
        ]
    })
}

/// Workflows of nodes that are almost sound.
fn any_workflow() -> impl Strategy<Value = Value> {
    let classes = || {
        prop::sample::select(vec![
            "Text",
            "Sampler",
            "Save",
            "Load",
            "Lora",
            "Reroute",
            "PrimitiveNode",
            "GetNode",
            "SetNode",
            "uuid",
            "Unknown",
        ])
    };
    let node = move || {
        (
            0u64..6,
            classes(),
            0u64..5,
            prop::collection::vec(any_json(), 0..5),
            prop::collection::vec(0u64..9, 0..5),
        )
    };
    let nodes = move || {
        let node = node().prop_map(|(id, class, mode, values, links)| {
            let inputs: Vec<Value> = links
                .iter()
                .map(|link| json!({"name": "clip", "type": "CLIP", "link": link, "widget": {"name": "text"}}))
                .collect();
            json!({"id": id, "type": class, "mode": mode, "widgets_values": values, "inputs": inputs,
                "outputs": [{}], "properties": {"proxyWidgets": values}})
        });
        prop::collection::vec(node, 0..6)
    };
    let end = || prop_oneof![(0i64..6).boxed(), Just(-10i64).boxed(), Just(-20i64).boxed()];
    let links = || prop::collection::vec((0u64..9, end(), 0u64..3, end(), 0u64..3), 0..9);
    let links = move || {
        links().prop_map(|links| {
            links
                .iter()
                .map(|link| json!([link.0, link.1, link.2, link.3, link.4, "*"]))
                .collect::<Vec<_>>()
        })
    };
    (nodes(), links(), nodes(), links()).prop_map(|(nodes, links, inner, inner_links)| {
        json!({"nodes": nodes, "links": links, "definitions": {"subgraphs": [
            {"id": "uuid", "nodes": inner, "links": inner_links, "inputs": [{"name": "clip"}]}]}})
    })
}

/// The graph as an editor would save it: links by number, values without names, and between two
/// nodes a reroute where `reroute` says so.
fn as_saved(
    graph: &Graph,
    catalogue: &Catalogue,
    reroute: impl Fn(usize) -> bool,
    objects: bool,
) -> Value {
    let mut nodes = Vec::new();
    let mut links = Vec::new();
    let mut line = |from: Value, slot: u64, to: Value, input: usize| {
        let number = links.len() + 1;
        links.push(match objects {
            true => json!({"id": number, "origin_id": from, "origin_slot": slot, "target_id": to,
                "target_slot": input, "type": "*"}),
            false => json!([number, from, slot, to, input, "*"]),
        });
        number
    };
    let mut extra = Vec::new();
    for node in graph.nodes() {
        let class = &catalogue.get(&node.class).unwrap().descriptor;
        let (mut inputs, mut values) = (Vec::new(), Vec::new());
        let in_order = class.inputs.iter().filter(|input| !input.optional);
        let in_order = in_order.chain(class.inputs.iter().filter(|input| input.optional));
        for input in in_order {
            let is_widget = !matches!(input.kind, crate::catalogue::InputKind::Socket);
            let mut socket = json!({"name": input.name, "type": input.type_name, "link": null});
            let linked = match node.input(&input.name) {
                Some(Input::Link { id, slot }) => {
                    let mut from = (json!(id), *slot);
                    if reroute(extra.len()) {
                        let rerouted = json!(format!("r{}", extra.len()));
                        let link = line(from.0, from.1, rerouted.clone(), 0);
                        extra.push(json!({"id": rerouted, "type": "Reroute", "outputs": [{}],
                            "inputs": [{"name": "", "type": "*", "link": link}]}));
                        from = (rerouted, 0);
                    } else {
                        extra.push(json!({"id": format!("n{}", extra.len()), "type": "Note"}));
                    }
                    socket["link"] = json!(line(from.0, from.1, json!(node.id), inputs.len()));
                    true
                }
                Some(Input::Literal { value, .. }) => {
                    values.push(value.clone());
                    false
                }
                _ => {
                    if is_widget {
                        values.push(Value::Null);
                    }
                    false
                }
            };
            if linked && is_widget {
                socket["widget"] = json!({"name": input.name});
                values.push(json!(1));
            }
            if linked || !is_widget {
                inputs.push(socket);
            }
            if input.kind.is_seed() {
                values.push(json!("randomize"));
            }
        }
        nodes.push(json!({"id": node.id, "type": node.class, "inputs": inputs, "outputs": [{}],
            "title": node.title(), "widgets_values": values, "mode": 0}));
    }
    nodes.extend(extra);
    json!({"nodes": nodes, "links": links, "version": if objects { json!(1) } else { json!(0.4) }})
}

/// Graphs of these classes whose links lead back; every widget has a value or a link.
fn any_graph() -> impl Strategy<Value = Graph> {
    let node = (
        prop::sample::select(vec!["Text", "Sampler", "Save", "Lora"]),
        prop::option::of("[a-z]{1,5}"),
        prop::collection::vec(
            (any::<bool>(), any::<prop::sample::Index>(), 0i64..99, "[a-z]{0,5}"),
            10,
        ),
    );
    prop::collection::vec(node, 1..9).prop_map(|nodes| {
        let catalogue = catalogue();
        let mut graph = Graph::default();
        for (at, (class, title, parts)) in nodes.iter().enumerate() {
            let meta = title.as_ref().map(|title| json!({ "title": title }));
            let mut node =
                Node { id: at.to_string(), class: (*class).to_owned(), meta, inputs: vec![] };
            let descriptor = &catalogue.get(class).unwrap().descriptor;
            // A file of a newer editor names all its widgets; this one names those with links, and so
            // not all may have one.
            let widgets = descriptor
                .inputs
                .iter()
                .filter(|input| !matches!(input.kind, crate::catalogue::InputKind::Socket));
            let free = widgets.clone().next().map(|input| input.name.clone());
            for (input, (linked, from, number, text)) in descriptor.inputs.iter().zip(parts) {
                use crate::catalogue::InputKind;
                let literal = match &input.kind {
                    InputKind::Socket => None,
                    InputKind::Int { .. } => Some(json!(number)),
                    InputKind::Float { .. } => Some(json!(*number as f64)),
                    InputKind::Boolean { .. } => Some(json!(number % 2 == 0)),
                    InputKind::Combo { choices, .. } => {
                        Some(json!(choices[*number as usize % choices.len()]))
                    }
                    InputKind::Text { .. } | InputKind::Path { .. } => Some(json!(text)),
                };
                let may_link = at > 0 && Some(&input.name) != free.as_ref();
                if may_link && *linked {
                    let link = Input::Link { id: from.index(at).to_string(), slot: 0 };
                    node.inputs.push((input.name.clone(), link));
                } else if let Some(value) = literal {
                    let literal = Input::Literal { value, origin: Origin::File };
                    node.inputs.push((input.name.clone(), literal));
                }
            }
            graph.push(node);
        }
        graph
    })
}

/// The graph with its inputs in the order of their names: that of the file says nothing.
fn sorted(graph: &Graph) -> Vec<Node> {
    let mut nodes = graph.nodes().to_vec();
    nodes.iter_mut().for_each(|node| node.inputs.sort_by(|one, other| one.0.cmp(&other.0)));
    nodes
}

proptest! {
    #[test]
    fn any_json_is_converted_or_told(nodes in any_json(), links in any_json(), definitions in any_json()) {
        let workflow = json!({"nodes": [nodes], "links": links, "definitions": {"subgraphs": [definitions]}});
        let Converted { mut graph, texts, .. } = converted(&workflow);
        texts.apply(&mut graph, &catalogue(), None, &now());
    }

    #[test]
    fn any_workflow_is_converted_or_told(workflow in any_workflow()) {
        let Converted { mut graph, texts, problems, warnings } = converted(&workflow);
        texts.apply(&mut graph, &catalogue(), None, &now());
        for problem in problems.iter().chain(&warnings) {
            prop_assert!(problem.node.is_some(), "{problem} names no node");
        }
        // What was converted is a graph: it can be written and read.
        let again = Graph::parse(&graph.to_json()).unwrap();
        prop_assert_eq!(again.nodes().len(), graph.nodes().len());
    }

    #[test]
    fn any_text_is_a_prompt_and_a_name(text in "[a-c{}|\\\\/*%.:ydM\n ]{0,40}|\\PC{0,20}", seed: u64) {
        let once = prompt(&text, seed);
        prop_assert_eq!(&once, &prompt(&text, seed));
        let save = node(9, "Save", &[], json!([text]));
        let Converted { mut graph, texts, .. } = converted(&saved(vec![save], &[]));
        texts.apply(&mut graph, &catalogue(), Some(seed), &now());
    }

    #[test]
    fn there_and_back(graph in any_graph(), reroutes in any::<u64>(), objects: bool) {
        let workflow = as_saved(&graph, &catalogue(), |at| reroutes >> (at % 64) & 1 == 1, objects);
        let Converted { graph: back, problems, warnings, .. } = converted(&workflow);
        prop_assert!(problems.is_empty() && warnings.is_empty(), "{:?} {:?}", problems, warnings);
        prop_assert_eq!(sorted(&back), sorted(&graph));
    }
}
