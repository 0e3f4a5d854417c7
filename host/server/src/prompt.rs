//! `POST /prompt`: what a client sends → jobs that wait.

use crate::app::App;
use crate::asker;
use crate::fault::Fault;
use crate::message::now;
use crate::needs;
use crate::store::NewJob;
use crate::validation::{Known, part_for};
use axum::http::StatusCode;
use kosmograph::ask::Ask;
use kosmograph::changes::{Seeds, set_seed};
use kosmograph::graph::{self, Graph, Input, Origin, is_editor_format};
use kosmograph::job::Job;
use kosmograph::plan::{Plan, Refusal};
use kosmograph::problem::Problem;
use kosmograph::workflow_file::WorkflowFile;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use uuid::Uuid;

/// The most nodes that a workflow may have.
const MOST_NODES: usize = 10_000;

/// The most jobs that one request may make.
const MOST_SEEDS: u64 = 1000;

/// The longest name of a client.
const LONGEST_CLIENT: usize = 256;

/// How many nodes a sentence names.
const FEW_TARGETS: usize = 5;

/// Keys of `extra_data` that are nobody else's business: they are dropped at once.
const SECRETS: [&str; 2] = ["auth_token_comfy_org", "api_key_comfy_org"];

/// What sentences call the workflow.
const NAME: &str = "the prompt";

/// What was sent, read but not yet understood.
#[derive(Debug)]
pub struct Submission {
    file: WorkflowFile,
    /// The prompt as it was sent, where it is of the API's format.
    object: Option<Map<String, Json>>,
    pub client: Option<String>,
    id: Option<String>,
    number: Option<f64>,
    front: bool,
    targets: Option<Vec<String>>,
    extra: Map<String, Json>,
    seeds: Option<Seeds>,
    webhook: Option<Json>,
    v2: V2,
}

/// What only API v2's clients say.
#[derive(Clone, Debug, Default)]
pub struct V2 {
    /// A key that may be used once.
    pub key: Option<String>,
    /// Kept beside the job, and told again.
    pub metadata: Option<Json>,
    pub priority: Option<i64>,
}

/// Whether a job's end may be told where its client wants it told.
///
/// # Errors
/// It is no text, or this server sends nothing there, 400.
pub fn webhook(app: &App, asked: Option<&Json>) -> Result<Option<String>, Fault> {
    let refused = |sentence: String| bad("webhook_refused", sentence);
    let Some(asked) = asked.filter(|asked| !asked.is_null()) else { return Ok(None) };
    let url = asked.as_str().ok_or_else(|| refused("\"webhook_url\" is no text".into()))?;
    let none = "this server sends no webhooks; its operator allows hosts with --webhook-host";
    let webhooks = app.webhooks.as_ref().ok_or_else(|| refused(none.into()))?;
    webhooks.check(url).map_err(refused)?;
    Ok(Some(url.to_owned()))
}

/// What became of it.
#[derive(Debug)]
pub struct Accepted {
    /// One for each seed.
    pub ids: Vec<String>,
    pub number: f64,
    /// What is wrong with outputs that were left out.
    pub node_errors: Map<String, Json>,
}

fn bad(kind: &str, message: impl Into<String>) -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, kind, message)
}

impl Submission {
    /// Reads a body: ComfyUI's request, a workflow of either format alone, or a saved picture. What a
    /// picture or a workflow has no place for, the parameters of the address say.
    ///
    /// # Errors
    /// What is wrong with it, 400.
    pub fn read(body: &[u8], parameters: &HashMap<String, String>) -> Result<Self, Fault> {
        let mut request = Map::new();
        for key in ["client_id", "prompt_id", "number", "front", "seed", "webhook_url"] {
            if let Some(value) = parameters.get(key) {
                request.insert(key.into(), Json::from(value.as_str()));
            }
        }
        let invalid = |error: &dyn std::fmt::Display| bad("invalid_prompt", error.to_string());
        if body.starts_with(b"\x89PNG\r\n\x1a\n") {
            let file = WorkflowFile::from_bytes(body, "the picture").map_err(|e| invalid(&e))?;
            return Self::of(file, None, request);
        }
        let json = read_json(body)
            .map_err(|error| bad("invalid_json", format!("the body is no JSON: {error}")))?;
        let Json::Object(mut object) = json else {
            return Err(bad("no_prompt", "the body is no JSON object with a \"prompt\""));
        };
        let text = match object.shift_remove("prompt") {
            Some(Json::Object(prompt)) => {
                request.extend(object);
                let is_of_api = !is_editor_format(&prompt);
                let text = Json::Object(prompt.clone()).to_string();
                let file =
                    WorkflowFile { prompt: text, editor: None, folder: None, notes: Vec::new() };
                return Self::of(file, is_of_api.then_some(prompt), request);
            }
            // A text that is JSON, as some clients save it.
            Some(Json::String(text)) => {
                request.extend(object);
                text
            }
            Some(_) => return Err(bad("invalid_prompt", "\"prompt\" is no object of nodes")),
            None => {
                let has_nodes =
                    object.values().any(|node| node.get("class_type").is_some_and(Json::is_string));
                if !has_nodes && !is_editor_format(&object) {
                    return Err(bad("no_prompt", "the body has no \"prompt\""));
                }
                Json::Object(object).to_string()
            }
        };
        let file = WorkflowFile { prompt: text, editor: None, folder: None, notes: Vec::new() };
        Self::of(file, None, request)
    }

    /// A job of API v2. Its client is called as the job is, so that a socket of that name follows it.
    ///
    /// # Errors
    /// What is wrong with it, 400.
    pub fn of_v2(
        workflow: Map<String, Json>,
        id: &str,
        webhook: Option<Json>,
        v2: V2,
    ) -> Result<Self, Fault> {
        // Pictures of what is being made go to those alone who follow the job.
        let extra = json!({"preview_method": "auto"});
        let request =
            json!({"prompt_id": id, "client_id": id, "extra_data": extra, "webhook_url": webhook});
        let request = request.as_object().cloned().unwrap_or_default();
        let prompt = Json::Object(workflow.clone()).to_string();
        let file = WorkflowFile { prompt, editor: None, folder: None, notes: Vec::new() };
        Ok(Self { v2, ..Self::of(file, Some(workflow), request)? })
    }

    fn of(
        file: WorkflowFile,
        object: Option<Map<String, Json>>,
        mut request: Map<String, Json>,
    ) -> Result<Self, Fault> {
        let mut take = |key: &str| request.shift_remove(key).filter(|value| !value.is_null());
        let extra = match take("extra_data") {
            None => Map::new(),
            Some(Json::Object(extra)) => extra,
            Some(_) => return Err(bad("invalid_extra_data", "\"extra_data\" is no object")),
        };
        // Where ComfyUI keeps it, some clients put it themselves.
        let inside = || extra.get("client_id").filter(|client| !client.is_null()).cloned();
        let client = match take("client_id").or_else(inside) {
            None => None,
            Some(Json::String(client)) if client.len() <= LONGEST_CLIENT => {
                Some(client).filter(|client| !client.is_empty())
            }
            Some(_) => return Err(bad("invalid_client_id", "\"client_id\" is no short text")),
        };
        let id = match take("prompt_id") {
            None => None,
            Some(Json::String(id)) if is_uuid(&id) => Some(id),
            Some(other) => {
                let sentence = format!(
                    "\"prompt_id\" must be a UUID in lower case with hyphens, which {other} is not"
                );
                return Err(bad("invalid_prompt_id", sentence));
            }
        };
        let number = match take("number") {
            None => None,
            Some(value) => {
                let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
                let number = number.filter(|number| number.is_finite());
                Some(number.ok_or_else(|| bad("invalid_number", "\"number\" is no number"))?)
            }
        };
        let front = take("front").is_some_and(|front| truth(&front));
        let targets = match take("partial_execution_targets") {
            None => None,
            Some(Json::Array(ids)) => Some(ids.iter().map(plain).collect()),
            Some(_) => {
                let sentence = "\"partial_execution_targets\" is no list of node ids";
                return Err(bad("invalid_targets", sentence));
            }
        };
        let seeds = match take("seed") {
            None => None,
            Some(seed) => {
                Some(plain(&seed).parse().map_err(|error: String| bad("invalid_seed", error))?)
            }
        };
        let (webhook, v2) = (take("webhook_url"), V2::default());
        Ok(Self { file, object, client, id, number, front, targets, extra, seeds, webhook, v2 })
    }
}

/// JSON as Python writes it, too: NaN and Infinity stand bare in what its clients send, and in pictures.
///
/// # Errors
/// It is none.
pub fn read_json(body: &[u8]) -> Result<Json, serde_json::Error> {
    serde_json::from_slice(body).or_else(|error| {
        let text = std::str::from_utf8(body).ok();
        text.and_then(|text| graph::parse_json(text).ok()).ok_or(error)
    })
}

/// Canonical: lower case, hyphens.
pub fn is_uuid(text: &str) -> bool {
    Uuid::try_parse(text).is_ok_and(|uuid| uuid.hyphenated().to_string() == text)
}

/// A text as it is, everything else as JSON.
fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether Python would take it for true.
pub fn truth(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(value) => *value,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(object) => !object.is_empty(),
    }
}

/// Puts a submission into the queue: as soon as this returns it is not lost any more.
///
/// # Errors
/// What is wrong with it (400), that the queue is full (429), or that the store fails (503).
pub fn submit(app: &App, submission: Submission) -> Result<Accepted, Fault> {
    let Submission { file, object, client, id, number, front, targets, seeds, v2, .. } = submission;
    let (mut extra, webhook) = (submission.extra, webhook(app, submission.webhook.as_ref())?);
    if let Some(object) = &object {
        let unnamed =
            |(_, node): &(&String, &Json)| !node.get("class_type").is_some_and(Json::is_string);
        if let Some((id, node)) = object.iter().find(unnamed) {
            return Err(missing_class(id, node["_meta"]["title"].as_str(), ""));
        }
    }
    let invalid = |problem: Problem| bad("invalid_prompt", problem.to_string());
    let mut job = Job::of(file, NAME, app.surroundings.clone()).map_err(invalid)?;
    let catalogue = &app.surroundings.libraries.catalogue;
    if job.graph.nodes().len() > MOST_NODES {
        let count = job.graph.nodes().len();
        let sentence = format!("the prompt has {count} nodes; {MOST_NODES} is the most");
        return Err(bad("prompt_too_large", sentence));
    }
    if let Some(node) = job.graph.nodes().iter().find(|node| catalogue.get(&node.class).is_none()) {
        return Err(missing_class(&node.id, node.title(), &node.class));
    }
    let full = job.graph.clone();
    if let Some(targets) = &targets {
        job.graph = part_for(&full, catalogue, targets);
        if job.graph.nodes().is_empty() {
            return Err(no_target(targets));
        }
    }
    let variants =
        variants(&mut job, seeds, &mut |plan, catalogue| asker::ask(app, plan, catalogue))?;
    let count = variants.len();
    if count > 1 && id.is_some() {
        return Err(bad(
            "invalid_prompt_id",
            "a range of seeds makes several jobs, which need an id each",
        ));
    }
    if !app.promise(count)? {
        return Err(full_queue(app));
    }
    let number = match number {
        Some(number) => number,
        None => app.next_number(front)?,
    };
    let mut node_errors = Map::new();
    if let Some((plan, graph)) = variants.first() {
        let known = Known { graph, catalogue, folders: &job.folders };
        node_errors = known.node_errors(plan.problems());
    }
    dress(&mut extra, client.as_deref(), job.editor.as_deref());
    let workflow_id = extra.get("extra_pnginfo").and_then(|info| info["workflow"]["id"].as_str());
    let jobs: Vec<NewJob> = variants
        .into_iter()
        .map(|(plan, graph)| {
            let as_sent = object.as_ref().filter(|_| seeds.is_none() && count == 1);
            let prompt = match as_sent {
                Some(object) => Json::Object(object.clone()).to_string(),
                None => overlay(&full, &graph).to_json(),
            };
            NewJob {
                id: id.clone().unwrap_or_else(|| Uuid::new_v4().to_string()),
                number,
                client: client.clone(),
                prompt,
                extra: Json::Object(extra.clone()).to_string(),
                targets: plan.outputs().map(|at| plan.steps()[at].name.id.clone()).collect(),
                workflow_id: workflow_id.map(str::to_owned),
                created: now(),
                metadata: v2.metadata.as_ref().map(Json::to_string),
                priority: v2.priority,
                webhook: webhook.clone(),
                needs: needs::of(&plan, &graph, catalogue),
            }
        })
        .collect();
    let ids = app.accept(jobs, v2.key.as_deref())?;
    Ok(Accepted { ids, number, node_errors })
}

/// The answer where `partial_execution_targets` names nothing that can be made.
fn no_target(targets: &[String]) -> Fault {
    let sentence = match targets {
        [] => "\"partial_execution_targets\" names no node, so there is nothing to run".to_owned(),
        [one] => format!("\"partial_execution_targets\": {one:?} is no output node of the prompt"),
        several => {
            let names = several.iter().take(FEW_TARGETS).map(|id| format!("{id:?}"));
            let names = names.collect::<Vec<_>>().join(", ");
            let more = if several.len() > FEW_TARGETS { ", …" } else { "" };
            format!(
                "\"partial_execution_targets\": none of {names}{more} is an output node of the prompt"
            )
        }
    };
    bad("prompt_no_outputs", sentence)
}

/// The answer where there is no room.
pub fn full_queue(app: &App) -> Fault {
    let waiting = app.queue.waiting();
    let sentence = format!("{waiting} jobs are waiting, which is the most; try again later");
    let mut fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", sentence);
    fault.retry_after = Some(5);
    fault
}

/// A node of a class that there is not, or that says none.
fn missing_class(id: &str, title: Option<&str>, class: &str) -> Fault {
    let node = match title {
        Some(title) => format!("node {id} \"{title}\""),
        None => format!("node {id}"),
    };
    let message = match class {
        "" => format!("{node} has no class_type"),
        class => format!("{node}: no library has the class \"{class}\""),
    };
    let class = Some(class).filter(|class| !class.is_empty());
    let extra = json!({"node_id": id, "class_type": class, "node_title": title});
    let details = format!("Node ID '#{id}'");
    Fault::with(StatusCode::BAD_REQUEST, "missing_node_type", message, &details, extra, Map::new())
}

/// What is run, once for each seed.
fn variants(
    job: &mut Job,
    seeds: Option<Seeds>,
    ask: &mut Ask,
) -> Result<Vec<(Plan, Graph)>, Fault> {
    let libraries = job.libraries.clone();
    let (catalogue, folders) = (&libraries.catalogue, job.folders.clone());
    let folders = &folders;
    let refused = |graph: &Graph, refusal: Refusal| {
        Known { graph, catalogue, folders }.refused(&refusal.problems)
    };
    let places = ranges(&job.graph, job)?;
    let seeds = match (seeds, places.first()) {
        (Some(seeds), _) => {
            set_seed(&mut job.graph, catalogue, seeds.first())
                .map_err(|error| bad("invalid_seed", error.to_string()))?;
            seeds
        }
        (None, Some((_, _, seeds))) => *seeds,
        (None, None) => {
            let graph = job.graph.clone();
            let planned = job.plan_asking(None, ask);
            return Ok(vec![planned.map_err(|refusal| refused(&graph, refusal))?]);
        }
    };
    let of_all = places.is_empty();
    if seeds.last() - seeds.first() >= MOST_SEEDS {
        return Err(bad("invalid_seed", format!("that is more than {MOST_SEEDS} seeds")));
    }
    let mut variants = Vec::new();
    for seed in seeds.iter() {
        for (at, name, _) in &places {
            let input = Input::Literal { value: json!(seed), origin: Origin::File };
            job.graph.inputs_mut(*at).set(name, input);
        }
        let graph = job.graph.clone();
        let planned = job.plan_asking(of_all.then_some(seed), ask);
        variants.push(planned.map_err(|refusal| refused(&graph, refusal))?);
    }
    Ok(variants)
}

/// The seeds that are written as a range, `"3..6"`, in the place of a number: all of them the same one.
fn ranges(graph: &Graph, job: &Job) -> Result<Vec<(usize, String, Seeds)>, Fault> {
    let mut places: Vec<(usize, String, Seeds)> = Vec::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let Some(class) = job.libraries.catalogue.get(&node.class) else { continue };
        for input in class.descriptor.inputs.iter().filter(|input| input.kind.is_seed()) {
            let Some(Input::Literal { value: Json::String(text), .. }) = node.input(&input.name)
            else {
                continue;
            };
            if let (true, Ok(seeds)) = (text.contains(".."), text.parse::<Seeds>()) {
                if places.first().is_some_and(|(_, _, first)| *first != seeds) {
                    let sentence =
                        format!("{}: the prompt has two different ranges of seeds", node.name());
                    return Err(bad("invalid_seed", sentence));
                }
                places.push((at, input.name.clone(), seeds));
            }
        }
    }
    Ok(places)
}

/// `full`, with the inputs that the nodes of `part` have.
fn overlay(full: &Graph, part: &Graph) -> Graph {
    let mut full = full.clone();
    for node in part.nodes() {
        if let Some(at) = full.position(&node.id) {
            full.inputs_mut(at).inputs = node.inputs.clone();
        }
    }
    full
}

/// Makes of what a client sent what is kept: without secrets, with what the server adds.
fn dress(extra: &mut Map<String, Json>, client: Option<&str>, editor: Option<&str>) {
    for secret in SECRETS {
        extra.shift_remove(secret);
    }
    let info = extra.entry("extra_pnginfo").or_insert_with(|| json!({}));
    let graph = editor.and_then(|editor| serde_json::from_str::<Json>(editor).ok());
    match (info.as_object_mut(), graph) {
        (Some(info), Some(graph)) if info.get("workflow").is_none_or(Json::is_null) => {
            info.insert("workflow".into(), graph);
        }
        _ => (),
    }
    if info.as_object().is_some_and(Map::is_empty) {
        extra.shift_remove("extra_pnginfo");
    }
    if let Some(client) = client {
        extra.insert("client_id".into(), client.into());
    }
    extra.insert("create_time".into(), now().into());
}

/// The plan of a job that was accepted, and the graph that its pictures carry.
///
/// # Errors
/// Everything that is wrong with it by now: a file may have gone.
pub fn plan_again(
    app: &App,
    prompt: &str,
    targets: &[String],
    ask: &mut Ask,
) -> Result<(Plan, Graph), Vec<Problem>> {
    let file =
        WorkflowFile { prompt: prompt.to_owned(), editor: None, folder: None, notes: Vec::new() };
    let mut job = Job::of(file, NAME, app.surroundings.clone()).map_err(|problem| vec![problem])?;
    let full = job.graph.clone();
    job.graph = part_for(&full, &app.surroundings.libraries.catalogue, targets);
    let (plan, _) = job.plan_asking(None, ask).map_err(|refusal| refusal.problems)?;
    Ok((plan, full))
}

/// What a workflow of either format is for the API.
///
/// # Errors
/// It is none.
pub fn converted(
    app: &App,
    file: WorkflowFile,
    name: &str,
) -> Result<(Json, Option<Json>), Problem> {
    let job = Job::of(file, name, app.surroundings.clone())?;
    let editor = job.editor.as_deref().and_then(|editor| serde_json::from_str(editor).ok());
    let graph = job.plan(None).map_or_else(|_| job.graph.clone(), |(_, graph)| graph);
    let prompt = serde_json::from_str(&graph.to_json()).unwrap_or_default();
    Ok((prompt, editor))
}

/// Whether a text is a workflow at all.
pub fn is_workflow(text: &str) -> bool {
    graph::parse_object(text).is_ok_and(|object| {
        is_editor_format(&object) || object.values().any(|node| node.get("class_type").is_some())
    })
}

#[cfg(test)]
mod tests;
