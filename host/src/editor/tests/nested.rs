//! Subgraphs and group nodes are laid flat.

use super::*;

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
fn what_a_copy_shows_of_a_copy_inside_is_the_outer_ones() {
    // A copy of a subgraph inside another, each of which shows the widgets of what is in it.
    let around = |values: Value, shown: Value, of_inner: Value| {
        let mut workflow = widget_slots(&[("model", Some(1), false)], json!([12, 4.5, "inner", 7]));
        let mut inner = workflow["nodes"][1].clone();
        inner["properties"]["proxyWidgets"] =
            json!([["-1", "steps"], ["3", "cfg"], ["-1", "text"], ["-1", "seed"]]);
        inner["widgets_values"] = of_inner;
        inner["id"] = json!(5);
        let link = |id: i64, from: i64, to: i64| {
            json!({"id": id, "origin_id": from, "origin_slot": 0, "target_id": to,
                "target_slot": 0, "type": "*"})
        };
        let outer = json!({"id": "0a", "name": "Around", "nodes": [inner],
            "inputNode": {"id": -10}, "outputNode": {"id": -20}, "inputs": [{"name": "model"}],
            "outputs": [{"name": "IMAGE"}], "links": [link(1, -10, 5), link(2, 5, -20)]});
        workflow["definitions"]["subgraphs"].as_array_mut().unwrap().push(outer);
        workflow["nodes"][1]["type"] = json!("0a");
        workflow["nodes"][1]["properties"]["proxyWidgets"] = shown;
        workflow["nodes"][1]["widgets_values"] = values;
        let graph = api(&workflow);
        let inputs = &graph["12:5:3"]["inputs"];
        assert_eq!(inputs["model"], json!(["1", 0]), "{graph:#}");
        let text = graph["12:5:6"]["inputs"]["text"].clone();
        json!([inputs["steps"], inputs["cfg"], text, inputs["seed"]])
    };
    let of_inner = json!([12, 4.5, "inner", 7]);
    assert_eq!(around(json!([]), json!([]), of_inner.clone()), of_inner);
    let shown = json!([["5", "cfg"], ["5", "text"], ["5", "seed"]]);
    let values = json!([6.5, "outer", 8]);
    let all = json!([12, 6.5, "outer", 8]);
    assert_eq!(around(values.clone(), shown.clone(), of_inner), all);
    // The inner copy has no values of its own.
    assert_eq!(around(values, shown, json!([])), json!([2, 6.5, "outer", 8]));
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
    workflow["extra"]["groupNodes"] = json!({"Other": {"nodes": []}});
    for extra in [workflow["extra"].clone(), json!({})] {
        workflow["extra"] = extra;
        assert_eq!(
            sentences(&converted(&workflow).problems),
            [
                "node 5 (workflow>Draw): this group node cannot be laid out: extra.groupNodes of the file \
             has no definition of its name"
            ]
        );
    }
}

#[test]
fn a_muted_group_need_not_be_known() {
    let mut workflow = group_node("workflow>Draw");
    workflow["nodes"][1]["mode"] = json!(2);
    workflow["extra"]["groupNodes"]["Draw"]["nodes"][1]["type"] = json!("Nobody's");
    let converted = converted(&workflow);
    assert!(converted.problems.is_empty(), "{:?}", converted.problems);
    assert_eq!(
        sentences(&converted.warnings),
        ["node 9 (Save), input \"images\": is linked to node 5 (workflow>Draw), which is muted"]
    );
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
