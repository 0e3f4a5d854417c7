//! Any file is converted or told, and what is saved from a graph is that graph again.

use super::*;

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
