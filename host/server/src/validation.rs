//! What is wrong with a workflow, as ComfyUI's server says it.

use crate::fault::Fault;
use axum::http::StatusCode;
use kosmograph::catalogue::{Catalogue, InputKind};
use kosmograph::folders::Folders;
use kosmograph::graph::{Graph, Input};
use kosmograph::object_info::class_info;
use kosmograph::problem::{Kind, Problem};
use serde_json::{Map, Value as Json, json};
use std::collections::HashSet;

/// What a list of names may have and still be told whole.
const FEW: usize = 20;

/// What the graph of a problem is known by.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub graph: &'a Graph,
    pub catalogue: &'a Catalogue,
    pub folders: &'a Folders,
}

impl Known<'_> {
    /// `{id: {"errors": […], "dependent_outputs": […], "class_type"}}`: each problem at its node.
    pub fn node_errors(self, problems: &[Problem]) -> Map<String, Json> {
        let mut errors: Map<String, Json> = Map::new();
        for problem in problems {
            let Some(node) = &problem.node else { continue };
            let entry = errors.entry(node.id.clone()).or_insert_with(|| {
                json!({"errors": [], "dependent_outputs": self.dependent_outputs(&node.id),
                    "class_type": node.class})
            });
            if let Some(list) = entry["errors"].as_array_mut() {
                list.push(self.error(problem));
            }
        }
        errors
    }

    /// Why nothing of the workflow can be made.
    pub fn refused(self, problems: &[Problem]) -> Fault {
        let refused = |kind: &str, message: &str, details: &str, node_errors| {
            Fault::with(StatusCode::BAD_REQUEST, kind, message, details, json!({}), node_errors)
        };
        if let Some(problem) = problems.iter().find(|problem| problem.kind == Kind::PromptNoOutputs)
        {
            return refused("prompt_no_outputs", &problem.message, "", Map::new());
        }
        let line = |problem: &Problem| {
            let error = self.error(problem);
            let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text("message"), text("details"))
        };
        let details = problems.iter().map(line).collect::<Vec<_>>().join("\n");
        let message = "every output of the prompt has a problem";
        let node_errors = self.node_errors(problems);
        refused("prompt_outputs_failed_validation", message, &details, node_errors)
    }

    /// `{"type", "message", "details", "extra_info"}` of one problem.
    fn error(self, problem: &Problem) -> Json {
        let input = problem.input.as_deref().unwrap_or_default();
        let id = problem.node.as_ref().map(|node| node.id.as_str()).unwrap_or_default();
        let node = self.graph.position(id).map(|at| &self.graph.nodes()[at]);
        let class = node.and_then(|node| self.catalogue.get(&node.class));
        let received = match node.and_then(|node| node.input(input)) {
            Some(Input::Link { id, slot }) => json!([id, slot]),
            Some(Input::Literal { value, .. }) => value.clone(),
            Some(Input::BareList(items)) => Json::from(items.clone()),
            None => Json::Null,
        };
        let mut config = Json::Null;
        if let Some(class) = class.filter(|_| !input.is_empty()) {
            let info = class_info(self.catalogue, class, self.folders);
            let of = |group: &str| info["input"][group].get(input).cloned();
            config = of("required").or_else(|| of("optional")).unwrap_or_default();
        }
        let descriptor = class.and_then(|class| class.descriptor.input(input));
        let mut message = sentence(input, &problem.message);
        if let Some(nearest) = &problem.nearest {
            message.push_str(&format!("; did you mean \"{nearest}\"?"));
        }
        let is_path = descriptor.is_some_and(|input| matches!(input.kind, InputKind::Path { .. }));
        let mut extra =
            json!({"input_name": input, "input_config": config, "received_value": received});
        let (kind, details) = match problem.kind {
            Kind::RequiredInputMissing => {
                extra = json!({"input_name": input});
                ("required_input_missing", input.to_owned())
            }
            Kind::BadLinkedInput => ("bad_linked_input", input.to_owned()),
            Kind::ReturnTypeMismatch => {
                let wanted = descriptor.map(|input| input.type_name.as_str()).unwrap_or_default();
                let given = self.linked_type(&received).unwrap_or_default();
                extra = json!({"input_name": input, "input_config": config, "received_type": given,
                    "linked_node": received});
                let details =
                    format!("{input}, received_type({given}) mismatch input_type({wanted})");
                ("return_type_mismatch", details)
            }
            Kind::InvalidInputType => {
                extra["exception_message"] = json!(problem.message);
                ("invalid_input_type", format!("{input}, {received}, {}", problem.message))
            }
            Kind::ValueSmallerThanMin => ("value_smaller_than_min", input.to_owned()),
            Kind::ValueBiggerThanMax => ("value_bigger_than_max", input.to_owned()),
            Kind::ValueNotInList | Kind::InvalidPath if is_path || config[0].is_array() => {
                let count = config[0].as_array().map_or(0, Vec::len);
                let list = if count > FEW {
                    extra["input_config"] = Json::Null;
                    format!("(list of length {count})")
                } else {
                    config[0].to_string()
                };
                let shown = received.as_str().map_or_else(|| received.to_string(), str::to_owned);
                ("value_not_in_list", format!("{input}: '{shown}' not in {list}"))
            }
            Kind::DependencyCycle => {
                extra = json!({"node_id": id, "cycle_nodes": self.circle(id)});
                ("dependency_cycle", message.clone())
            }
            Kind::MissingNodeType => {
                extra = json!({"node_id": id, "class_type": node.map(|node| &node.class)});
                ("missing_node_type", id.to_owned())
            }
            _ if input.is_empty() => ("custom_validation_failed", message.clone()),
            _ => ("custom_validation_failed", format!("{input}: {message}")),
        };
        json!({"type": kind, "message": message, "details": details, "extra_info": extra})
    }

    /// The type of what a link leads to.
    fn linked_type(self, link: &Json) -> Option<String> {
        let at = self.graph.position(link.get(0)?.as_str()?)?;
        let class = self.catalogue.get(&self.graph.nodes()[at].class)?;
        let slot = usize::try_from(link.get(1)?.as_u64()?).ok()?;
        Some(class.descriptor.outputs.get(slot)?.kind.clone())
    }

    /// The ids of a circle that goes through `id`.
    fn circle(self, id: &str) -> Vec<String> {
        let Some(start) = self.graph.position(id) else { return Vec::new() };
        let reached = |from: usize| closure(self.graph, [from]);
        let of_start = reached(start);
        let leads_back = |&at: &usize| {
            links(self.graph, at).any(|next| next == start || reached(next).contains(&start))
        };
        let nodes = (0..self.graph.nodes().len()).filter(|at| of_start.contains(at));
        nodes.filter(leads_back).map(|at| self.graph.nodes()[at].id.clone()).collect()
    }

    /// The output nodes that need `id`, or are it.
    fn dependent_outputs(self, id: &str) -> Vec<String> {
        let Some(at) = self.graph.position(id) else { return Vec::new() };
        let needs = |output: &usize| closure(self.graph, [*output]).contains(&at);
        let outputs = outputs(self.graph, self.catalogue).into_iter().filter(needs);
        outputs.map(|at| self.graph.nodes()[at].id.clone()).collect()
    }
}

/// What is wrong at `input`, with the input as its subject where it has none: it stands alone here.
fn sentence(input: &str, message: &str) -> String {
    const VERBS: [&str; 8] = ["is", "takes", "names", "has", "holds", "does", "must", "leads"];
    let begins_with_verb = message.split(' ').next().is_some_and(|word| VERBS.contains(&word));
    match begins_with_verb && !input.is_empty() {
        true => format!("{input} {message}"),
        false => message.to_owned(),
    }
}

/// The positions of the output nodes.
pub fn outputs(graph: &Graph, catalogue: &Catalogue) -> Vec<usize> {
    let is_output = |at: &usize| {
        let class = catalogue.get(&graph.nodes()[*at].class);
        class.is_some_and(|class| class.descriptor.output_node)
    };
    (0..graph.nodes().len()).filter(is_output).collect()
}

fn links(graph: &Graph, at: usize) -> impl Iterator<Item = usize> {
    graph.nodes()[at].inputs.iter().filter_map(|(_, input)| match input {
        Input::Link { id, .. } => graph.position(id),
        _ => None,
    })
}

/// The nodes at `from`, and all that they need.
fn closure(graph: &Graph, from: impl IntoIterator<Item = usize>) -> HashSet<usize> {
    let mut found: HashSet<usize> = HashSet::new();
    let mut open: Vec<usize> = from.into_iter().collect();
    while let Some(at) = open.pop() {
        if found.insert(at) {
            open.extend(links(graph, at));
        }
    }
    found
}

/// The part of `graph` that the nodes `targets` need; ids that are no output nodes count nothing.
pub fn part_for(graph: &Graph, catalogue: &Catalogue, targets: &[String]) -> Graph {
    let wanted =
        outputs(graph, catalogue).into_iter().filter(|&at| targets.contains(&graph.nodes()[at].id));
    let needed = closure(graph, wanted);
    let mut part = Graph::default();
    for (at, node) in graph.nodes().iter().enumerate() {
        if needed.contains(&at) {
            part.push(node.clone());
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_a_sentence() {
        assert_eq!(
            sentence("model", "is missing; it takes a MODEL"),
            "model is missing; it takes a MODEL"
        );
        assert_eq!(sentence("seed", "\"abc\" is no number"), "\"abc\" is no number");
        assert_eq!(sentence("", "is needed to compute it"), "is needed to compute it");
    }
}
