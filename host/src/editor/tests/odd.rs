//! Files as other programs and other editors write them.

use super::*;

/// The class that a primitive of the catalogue is, and one with a choice behind its number.
fn with_numbers() -> Catalogue {
    let words = json!({"name": "after", "type": "COMBO", "choices": ["fixed", "free"]});
    let int = |name: &str| json!({"name": name, "type": "INT", "default": 1});
    let choice = json!({"name": "name", "type": "COMBO", "choices": ["a", "b"]});
    let library = json!({"name": "numbers", "version": "1", "nodes": [
        {"class": "Int", "inputs": [int("value")], "outputs": [{"name": "i", "type": "INT"}]},
        {"class": "Words", "inputs": [int("value"), words], "outputs": []},
        {"class": "Noted", "inputs": [int("value"), {"name": "note", "type": "STRING"}, int("more")], "outputs": []},
        {"class": "Choice", "inputs": [choice, int("more")], "outputs": []}]});
    let mut catalogue = catalogue();
    catalogue.add(Path::new("libnumbers.so"), &library).unwrap();
    catalogue
}

fn inputs(class: &str, values: Value) -> (Value, Vec<String>) {
    let workflow = saved(vec![node(1, class, &[], values)], &[]);
    let converted = convert(workflow.as_object().unwrap(), &with_numbers());
    let graph: Value = serde_json::from_str(&converted.graph.to_json()).unwrap();
    (graph["1"]["inputs"].clone(), sentences(&converted.warnings))
}

#[test]
fn what_becomes_of_any_number_afterwards_is_no_value() {
    let none: Vec<String> = Vec::new();
    for word in ["fixed", "increment", "decrement", "randomize"] {
        assert_eq!(inputs("Int", json!([55, word])), (json!({"value": 55}), none.clone()));
        assert_eq!(
            inputs("Choice", json!(["a", word, "", 3])),
            (json!({"name": "a", "more": 3}), none.clone())
        );
    }
    assert_eq!(inputs("Choice", json!(["a", "fixed", 3])).0, json!({"name": "a", "more": 3}));
    // Where the next widget may hold the word, it is that one's unless there is one value too many.
    let words = |values| inputs("Words", values).0;
    assert_eq!(words(json!([5, "fixed"])), json!({"value": 5, "after": "fixed"}));
    assert_eq!(words(json!([5, "randomize", "free"])), json!({"value": 5, "after": "free"}));
    assert_eq!(words(json!([5, "fixed", "fixed"])), json!({"value": 5, "after": "fixed"}));
    let noted = |values| inputs("Noted", values).0;
    assert_eq!(noted(json!([5, "fixed", 6])), json!({"value": 5, "note": "fixed", "more": 6}));
    assert_eq!(
        noted(json!([5, "fixed", "a", 6, "randomize"])),
        json!({"value": 5, "note": "a", "more": 6})
    );
    // What else is too much is told.
    assert_eq!(inputs("Int", json!([55, 7])).1.len(), 1);
}

#[test]
fn a_primitive_has_its_value_by_name_too() {
    for (values, named) in [
        (json!({"value": 12, "control_after_generate": "fixed"}), Value::Null),
        (json!({"control_after_generate": "fixed", "steps": 12}), Value::Null),
        (json!([12, "fixed"]), Value::Null),
        (json!([]), json!({"value": 12})),
    ] {
        let mut primitive = node(1, "PrimitiveNode", &[], values.clone());
        primitive["widgets_values_named"] = named;
        let mut sampler = sampler(3, json!([7, "fixed", 20]));
        let steps = json!({"name": "steps", "type": "INT", "widget": {"name": "steps"}});
        sampler["inputs"].as_array_mut().unwrap().push(steps);
        let graph = api(&saved(vec![primitive, sampler], &[(0, 0, 1, 4)]));
        assert_eq!(graph["3"]["inputs"]["steps"], 12, "{values}");
    }
}

#[test]
fn set_and_get_have_their_names_by_name_too() {
    let named = json!({"Constant": "model"});
    let set = node(2, "SetNode", &[("MODEL", "MODEL")], named.clone());
    let get = node(4, "GetNode", &[], named);
    let nodes = vec![node(1, "Checkpoint", &[], json!(["a"])), set, get, sampler(3, json!([7]))];
    let graph = api(&saved(nodes, &[(0, 0, 1, 0), (2, 0, 3, 0)]));
    assert_eq!(graph["3"]["inputs"]["model"], json!(["1", 0]));
}

#[test]
fn a_mode_is_read_however_it_is_written() {
    let converted_with = |mode: Value| {
        let mut lora = node(2, "Lora", &[("model", "MODEL"), ("clip", "CLIP")], json!(["a", 1, 1]));
        lora["mode"] = mode;
        let nodes = vec![node(1, "Checkpoint", &[], json!(["a"])), lora, sampler(3, json!([7]))];
        let workflow = saved(nodes, &[(0, 0, 1, 0), (1, 0, 2, 0)]);
        let Converted { graph, warnings, .. } = converted(&workflow);
        let graph: Value = serde_json::from_str(&graph.to_json()).unwrap();
        (graph["3"]["inputs"]["model"].clone(), sentences(&warnings))
    };
    for mode in [json!(4), json!(4.0), json!("4"), json!("4.0")] {
        assert_eq!(converted_with(mode.clone()), (json!(["1", 0]), vec![]), "{mode}");
    }
    for mode in [json!(2), json!(2.0), json!("2")] {
        let (model, warnings) = converted_with(mode.clone());
        assert!(model.is_null() && warnings[0].contains("which is muted"), "{mode}: {warnings:?}");
    }
    for mode in [json!(0), json!(0.0), json!("0"), json!(1), json!(3), json!(null)] {
        assert_eq!(converted_with(mode.clone()), (json!(["2", 0]), vec![]), "{mode}");
    }
    for mode in [json!(7), json!("bypass"), json!(true), json!(4.5), json!([4])] {
        let (model, warnings) = converted_with(mode.clone());
        let said = format!("node 2 (Lora): its mode is {mode}, which no editor writes");
        assert!(model == json!(["2", 0]) && warnings[0].starts_with(&said), "{warnings:?}");
    }
}

#[test]
fn a_subgraph_may_be_defined_in_another() {
    let link = |id: i64, from: i64, to: i64| json!({"id": id, "origin_id": from, "origin_slot": 0, "target_id": to, "target_slot": 0});
    let define = |id: &str, inside: Value| {
        let inner = inside["id"].as_i64().unwrap();
        json!({"id": id, "name": id, "nodes": [inside], "inputNode": {"id": -10},
            "outputNode": {"id": -20}, "inputs": [], "outputs": [{"name": "x"}],
            "links": [link(1, inner, -20)]})
    };
    let mut outer = define("outer-id", node(5, "inner-id", &[], json!([])));
    outer["definitions"] =
        json!({"subgraphs": [define("inner-id", node(6, "Checkpoint", &[], json!(["a"])))]});
    let nodes = vec![node(1, "outer-id", &[], json!([])), sampler(3, json!([7]))];
    let mut workflow = saved(nodes, &[(0, 0, 1, 0)]);
    workflow["definitions"] = json!({"subgraphs": [outer]});
    let graph = api(&workflow);
    assert_eq!(graph["3"]["inputs"]["model"], json!(["1:5:6", 0]));
    assert_eq!(graph["1:5:6"]["inputs"]["ckpt_name"], "a");
}
