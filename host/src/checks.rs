//! What libraries say of a plan before anything runs: "check/1" of node.h, and what nodes that read no more than headers
//! fail with.

use std::path::Path;

use crate::execute;
use crate::plan::{LeftOut, Literal, Plan, Source, Step};
use crate::plugin::NodeFailure;
use crate::problem::{Kind, Problem};
use crate::value::Value;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

/// `plan` as "check/1" takes it.
pub fn told(plan: &Plan) -> Json {
    let steps = plan.steps().iter().map(|step| {
        let inputs = step.descriptor.inputs.iter().zip(&step.inputs);
        let inputs: Map<String, Json> = inputs
            .filter_map(|(input, source)| Some((input.name.clone(), source_json(source)?)))
            .collect();
        json!({"class": step.descriptor.class, "inputs": inputs})
    });
    json!({"steps": steps.collect::<Vec<_>>()})
}

fn source_json(source: &Source) -> Option<Json> {
    Some(match source {
        Source::Absent => return None,
        Source::Link { step, slot } => json!({"from": [step, slot]}),
        Source::Literal(literal) => match literal {
            Literal::Boolean(value) => json!({"value": value}),
            Literal::Integer(value) => json!({"value": value}),
            Literal::Natural(value) => json!({"value": value}),
            Literal::Number(value) => json!({"value": value}),
            Literal::Text(text) => json!({"value": text}),
            Literal::Path { path, .. } => json!({"file": path}),
            Literal::TextWithFiles { text, files } => {
                // "file:embeddings/NAME", where a name may have folders in it.
                let name = |property: &str| {
                    let name = property.split_once('/').map_or(property, |(_, name)| name);
                    name.to_owned()
                };
                let files: Map<String, Json> = files
                    .iter()
                    .map(|file| (name(&file.property), file.path.clone().into()))
                    .collect();
                json!({"value": text, "files": files})
            }
        },
    })
}

/// What a library answered, as warnings, and what it refuses as mismatches. What is no remark about a step of the plan says nothing.
pub fn heard(answer: &str, plan: &Plan) -> Vec<Problem> {
    #[derive(Deserialize)]
    struct Remark {
        step: usize,
        input: String,
        message: String,
        #[serde(default)]
        refused: bool,
    }
    let remarks: Vec<Json> = serde_json::from_str(answer).unwrap_or_default();
    let problem = |remark: Json| {
        let Remark { step, input, message, refused } = Remark::deserialize(remark).ok()?;
        let step = plan.steps().get(step)?;
        step.descriptor.input(&input)?;
        let kind = if refused { Kind::ReturnTypeMismatch } else { Kind::Unfit };
        Some(Problem::new(kind, message).at(step.name.clone()).input(&input))
    };
    remarks.into_iter().filter_map(problem).collect()
}

/// Runs, by `run`, what says of itself that it reads no more than headers, as far as that is linked to nothing else and an output
/// is sure to need it. What it fails with, in the order of the plan; nothing more once `run` was cancelled.
pub fn tried(
    plan: &Plan,
    mut run: impl FnMut(&Step, &[Value]) -> Result<Vec<Value>, NodeFailure>,
) -> Vec<Problem> {
    let mut made: Vec<Option<Vec<Value>>> = Vec::new();
    let mut problems = Vec::new();
    for (step, needed) in plan.steps().iter().zip(needed(plan)) {
        if let Some(same) = step.same_as {
            made.push(made.get(same).cloned().flatten());
            continue;
        }
        let inputs = (needed && is_tried(step)).then(|| inputs(step, &made)).flatten();
        made.push(match inputs.map(|inputs| run(step, &inputs)) {
            Some(Ok(values)) => Some(values),
            Some(Err(NodeFailure::Failed { input, sentence })) => {
                problems.push(failure(step, input, sentence));
                None
            }
            Some(Err(NodeFailure::Cancelled)) => break,
            None => None,
        });
    }
    problems
}

/// Whether `step` says that it reads no more than headers, and runs once.
pub fn is_tried(step: &Step) -> bool {
    step.descriptor.checked && !step.descriptor.input_is_list && !step.runs_for_each
}

/// The steps without which `step` cannot run: not what its lazy inputs lead to, for which it asks, or does not.
fn sure_links(step: &Step) -> impl Iterator<Item = usize> {
    let links = execute::lazy::links(step).filter(|(.., lazy)| !lazy);
    links.map(|(from, ..)| from).chain(step.same_as)
}

/// Whether an output is sure to need each step.
fn needed(plan: &Plan) -> Vec<bool> {
    let mut needed = vec![false; plan.steps().len()];
    plan.outputs().for_each(|position| needed[position] = true);
    for (position, step) in plan.steps().iter().enumerate().rev() {
        if needed[position] {
            // Links lead to earlier steps.
            sure_links(step).for_each(|from| needed[from] = true);
        }
    }
    needed
}

/// What `step` is given, where all of that is there.
fn inputs(step: &Step, made: &[Option<Vec<Value>>]) -> Option<Vec<Value>> {
    let of = |source: &Source| match source {
        Source::Absent => Some(Value::none()),
        Source::Literal(literal) => Some(execute::value(literal)),
        Source::Link { step, slot } => made.get(*step)?.as_ref()?.get(*slot).cloned(),
    };
    step.inputs.iter().map(of).collect()
}

/// What came of a step: an error, but of an empty file, which stands for one that is still to come.
fn failure(step: &Step, input: Option<String>, sentence: String) -> Problem {
    let is_empty = |path: &str| {
        Path::new(path).metadata().is_ok_and(|about| about.is_file() && about.len() == 0)
    };
    let of_nothing = step.inputs.iter().any(
        |source| matches!(source, Source::Literal(Literal::Path { path, .. }) if is_empty(path)),
    );
    let mut problem = Problem::failure(step.name.clone(), input, sentence);
    if of_nothing {
        problem.kind = Kind::Unfit;
    }
    problem
}

/// The outputs of `plan` that cannot be made where `problems` are of its steps.
pub fn left_out(plan: &Plan, problems: &[Problem]) -> Vec<LeftOut> {
    let steps = plan.steps();
    let mut causes: Vec<Option<String>> = Vec::new();
    for step in steps {
        let is_own = |problem: &&Problem| problem.node.as_deref() == Some(&step.name);
        let own = problems.iter().find(is_own).map(|_| step.name.id.clone());
        let of_earlier = sure_links(step).find_map(|from| causes.get(from).cloned().flatten());
        causes.push(own.or(of_earlier));
    }
    let left_out = plan.outputs().filter_map(|at| {
        Some(LeftOut { name: steps[at].name.clone(), because_of: causes[at].clone()? })
    });
    left_out.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::folders::Folders;
    use crate::graph::Graph;
    use crate::python::PythonPack;
    use std::path::Path;

    #[test]
    fn a_plan_is_told_and_remarks_about_it_are_heard() {
        let library = json!({"name": "a", "version": "1", "nodes": [
            {"class": "Load", "inputs": [{"name": "file", "type": "STRING", "role": "path",
                "folder": "input", "entry": "file"}], "outputs": [{"name": "x", "type": "X"}]},
            {"class": "Show", "output_node": true, "inputs": [{"name": "x", "type": "X"},
                {"name": "text", "type": "STRING", "mentions": "embeddings"},
                {"name": "n", "type": "INT", "default": 3}]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("a"), &library).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.png"), "").unwrap();
        std::fs::create_dir(folder.path().join("embeddings")).unwrap();
        std::fs::write(folder.path().join("embeddings/mood.pt"), "").unwrap();
        let root = folder.path().to_owned();
        let folders =
            Folders { input: vec![root.clone()], models: vec![root.clone()], ..Folders::default() };
        let graph = json!({"1": {"class_type": "Load", "inputs": {"file": "a.png"}},
            "2": {"class_type": "Show", "inputs": {"x": ["1", 0], "text": "embedding:mood"}}});
        let graph = Graph::parse(&graph.to_string()).unwrap();
        let plan = Plan::new(&graph, &catalogue, &folders, "cpu").unwrap();
        let text = json!({"value": "embedding:mood",
            "files": {"mood": root.join("embeddings/mood.pt")}});
        assert_eq!(
            told(&plan),
            json!({"steps": [
                {"class": "Load", "inputs": {"file": {"file": root.join("a.png")}}},
                {"class": "Show", "inputs":
                    {"x": {"from": [0, 0]}, "text": text, "n": {"value": 3}}}]})
        );
        let answer = json!([{"step": 1, "input": "text", "message": "is odd"}, 3,
            {"step": 2, "input": "text", "message": "x"}, {"step": 1, "input": "y", "message": "x"}]);
        let heard: Vec<String> =
            heard(&answer.to_string(), &plan).iter().map(Problem::to_string).collect();
        assert_eq!(heard, ["node 2 (Show), input \"text\": is odd"]);
        let kind = |answer: Json| super::heard(&answer.to_string(), &plan)[0].kind;
        assert_eq!(kind(answer), Kind::Unfit);
        let refused = json!([{"step": 1, "input": "x", "message": "is odd", "refused": true}]);
        assert_eq!(kind(refused), Kind::ReturnTypeMismatch);
        assert!(super::heard("no JSON", &plan).is_empty());
    }

    fn pack() -> PythonPack {
        let (program, path) = ("python3".into(), "p".into());
        let (name, version, folders) = ("p".to_owned(), "1".to_owned(), "{}".to_owned());
        PythonPack { program, path, name, version, folders, reads: Vec::new() }
    }

    /// Two loaders, one of which a node asks for only if it wants it; what takes the first; and what is no loader.
    fn plan_of_loaders(folder: &Path) -> Plan {
        let model = json!([{"name": "m", "type": "M"}]);
        let file = json!({"name": "file", "type": "STRING", "role": "path", "folder": "input", "entry": "file"});
        let takes = json!({"name": "m", "type": "M"});
        let library = json!({"name": "l", "version": "1", "nodes": [
            {"class": "Load", "checked": true, "inputs": [file], "outputs": model},
            {"class": "Change", "checked": true, "inputs": [takes], "outputs": model},
            {"class": "Draw", "inputs": [takes], "outputs": model},
            {"class": "Save", "output_node": true, "inputs": [takes]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("l"), &library).unwrap();
        // Lazy inputs are of packs in Python alone.
        let switch = json!({"name": "p", "version": "1", "nodes": [{"class": "Switch", "outputs": model,
            "inputs": [takes, {"name": "other", "type": "M", "lazy": true}]}]});
        catalogue.add_pack(&pack(), &switch).unwrap();
        let node = |class: &str, inputs: Json| json!({"class_type": class, "inputs": inputs});
        let graph = json!({
            "a": node("Load", json!({"file": "a"})), "b": node("Load", json!({"file": "b"})),
            "change": node("Change", json!({"m": ["a", 0]})), "draw": node("Draw", json!({"m": ["change", 0]})),
            "after": node("Change", json!({"m": ["draw", 0]})), "save": node("Save", json!({"m": ["after", 0]})),
            "switch": node("Switch", json!({"m": ["a", 0], "other": ["b", 0]})),
            "keep": node("Save", json!({"m": ["switch", 0]}))});
        for (name, text) in [("a", ""), ("b", "b")] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let folders = Folders { input: vec![folder.to_owned()], ..Folders::default() };
        let graph = Graph::parse(&graph.to_string()).unwrap();
        Plan::new(&graph, &catalogue, &folders, "cpu").unwrap()
    }

    #[test]
    fn what_reads_headers_is_run_as_far_as_it_is_sure_to_be_needed() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan_of_loaders(folder.path());
        let mut ran = Vec::new();
        let problems = tried(&plan, |step, inputs| {
            ran.push((step.name.id.clone(), inputs.len()));
            Ok(vec![Value::none()])
        });
        ran.sort();
        assert_eq!(
            ran,
            [("a".to_owned(), 1), ("change".to_owned(), 1)],
            "not b, nor what is behind draw"
        );
        assert!(problems.is_empty());

        let mut calls = 0;
        let cancelled = tried(&plan, |_, _| {
            calls += 1;
            Err(NodeFailure::Cancelled)
        });
        assert_eq!((calls, cancelled.len()), (1, 0));
    }

    #[test]
    fn what_fails_costs_the_outputs_that_need_it() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan_of_loaders(folder.path());
        let fail = |id: &'static str| {
            tried(&plan, |step, _| match step.name.id == id {
                true => Err(NodeFailure::Failed { input: Some("m".into()), sentence: "no".into() }),
                false => Ok(vec![Value::none()]),
            })
        };
        let outputs = |problems: &[Problem]| {
            let left_out = left_out(&plan, problems);
            let mut ids: Vec<_> =
                left_out.into_iter().map(|out| (out.name.id, out.because_of)).collect();
            ids.sort();
            ids
        };
        let changed = fail("change");
        assert_eq!(changed[0].to_string(), "node change (Change), input \"m\": no");
        assert_eq!(changed[0].kind, Kind::NodeFailed);
        assert_eq!(outputs(&changed), [("save".to_owned(), "change".to_owned())]);
        // Its file is empty, which says that it is still to come.
        let loaded = fail("a");
        assert_eq!((loaded.len(), loaded[0].kind), (1, Kind::Unfit));
        let of = |id: &str| (id.to_owned(), "a".to_owned());
        assert_eq!(outputs(&loaded), [of("keep"), of("save")]);
    }
}
