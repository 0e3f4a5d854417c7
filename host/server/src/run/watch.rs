//! One job's events → what its clients are told, and what its history says.

use super::{Planned, sent, states};
use crate::app::{App, Made};
use crate::engine::Bulletin;
use crate::message::{Preview, Progress, now, text};
use crate::queue::Running;
use crate::routes::{Root, inside};
use crate::store::{Finished, State};
use axum::extract::ws::Utf8Bytes;
use kosmograph::events::{Event, Listener};
use kosmograph::graph::Input;
use kosmograph::plan::Step;
use kosmograph::problem::{Kind, NodeName, Problem};
use serde_json::{Map, Value as Json, json};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module.
pub(super) struct Watch<'a> {
    app: &'a App,
    job: &'a Running,
    planned: Option<Planned<'a>>,
    /// Whether the job asked for pictures of what is being made.
    shows: bool,
    /// Where each node is in the plan.
    places: HashMap<&'a str, usize>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Nodes that need not run; told all at once.
    cached: Vec<String>,
    is_cached_told: bool,
    /// Nodes that ran.
    executed: Vec<String>,
    /// The outputs so far, by node.
    outputs: Map<String, Json>,
    /// The files of the node at work.
    files: Vec<PathBuf>,
    /// All that were written.
    written: Vec<PathBuf>,
    messages: Vec<Json>,
    /// The first file that could not be put where others see it.
    unsent: Option<Problem>,
    end: Option<(State, Option<Json>)>,
}

/// What is said when the store has the end of a job.
pub(super) struct Last {
    client: Option<String>,
    /// The last message, and whether everybody hears it where the job has no client.
    message: Option<(Utf8Bytes, bool)>,
    idle: Utf8Bytes,
}

impl Last {
    pub fn tell(self, app: &App) {
        if app.hub.elsewhere().is_some() {
            // The servers read how it ended, and tell it.
            return app.tell_all(Bulletin::Changed);
        }
        let client = self.client.as_deref();
        if let Some((message, to_all)) = &self.message
            && (client.is_some() || *to_all)
        {
            app.hub.send(client, message);
        }
        app.tell_status();
        if client.is_some() {
            app.hub.send(client, &self.idle);
        }
    }
}

impl<'a> Watch<'a> {
    pub fn new(app: &'a App, job: &'a Running, planned: Option<Planned<'a>>, shows: bool) -> Self {
        let steps = planned.map_or(&[][..], |(plan, _)| plan.steps()).iter().enumerate();
        let places = steps.map(|(at, step)| (step.name.id.as_str(), at)).collect();
        Self { app, job, planned, shows, places, told: Mutex::default() }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Option<&str> {
        self.job.client.as_deref()
    }

    /// To the one who submitted it; to nobody where the job has no client.
    fn to_client(&self, kind: &str, data: &Json) {
        if let Some(client) = self.client().filter(|client| self.app.hub.hears(Some(client))) {
            self.app.hub.send_of(Some(client), &text(kind, data), Some(&self.job.id), None);
        }
    }

    /// To the one who submitted it; to all where the job has no client.
    fn to_watchers(&self, kind: &str, data: &Json) {
        let name = format!("{kind} {}", self.job.id);
        self.app.hub.send_of(self.client(), &text(kind, data), Some(&self.job.id), Some(name));
    }

    /// Tells, and writes into the history.
    fn record(&self, told: &mut Told, kind: &str, data: Json) {
        self.to_client(kind, &data);
        told.messages.push(json!([kind, data]));
    }

    pub fn begin(&self) {
        let data = json!({"prompt_id": self.job.id, "timestamp": now()});
        self.record(&mut self.told(), "execution_start", data);
        if self.planned.is_none() {
            self.tell_cached(&mut self.told());
        }
    }

    fn step(&self, node: &str) -> Option<&Step> {
        self.planned?.0.steps().get(*self.places.get(node)?)
    }

    /// The first step that has neither run nor need to.
    fn next_step(&self) -> Option<&Step> {
        let told = self.told();
        let through: HashSet<&String> = told.executed.iter().chain(&told.cached).collect();
        let is_open = |step: &&Step| !through.contains(&step.name.id);
        self.planned?.0.steps().iter().find(is_open)
    }

    fn tell_cached(&self, told: &mut Told) {
        if std::mem::replace(&mut told.is_cached_told, true) {
            return;
        }
        let data = json!({"nodes": told.cached, "prompt_id": self.job.id, "timestamp": now()});
        self.record(told, "execution_cached", data);
        for node in told.cached.clone() {
            let step = self.step(&node).filter(|step| step.descriptor.output_node);
            let Some(output) = step.and_then(|step| self.app.made_before(step.key)) else {
                continue;
            };
            told.outputs.insert(node.clone(), output.clone());
            self.job.live().outputs.insert(node.clone(), output.clone());
            if !is_nothing(&output) {
                self.executed(&node, &output);
            }
            self.progress(told, &node, "finished", 1, 1);
        }
    }

    /// Sends the pictures that a node made for the job's client alone, and removes them.
    fn send_pictures(&self, node: &str, output: &Json) {
        for item in output["sent"].as_array().into_iter().flatten() {
            let part = |key: &str| item[key].as_str().unwrap_or_default();
            let name = match part("subfolder") {
                "" => part("filename").to_owned(),
                subfolder => format!("{subfolder}/{}", part("filename")),
            };
            // Nodes say it, and whoever made them: a temporary file, and no other.
            let found = inside(&name).filter(|_| part("type") == "temp");
            let found = found.and_then(|name| Root::Temp.find(self.app, &name).ok()?);
            let Some(path) = found else {
                tracing::warn!(
                    job = self.job.id,
                    node,
                    "no temporary file {name:?} is there to send"
                );
                continue;
            };
            match std::fs::read(&path) {
                Ok(picture) if picture.starts_with(PNG) => {
                    let shown = Preview::png(&self.job.id, node, picture);
                    self.app.hub.preview(self.client(), &shown);
                }
                Ok(_) => {
                    tracing::warn!(job = self.job.id, node, "{name:?} is no PNG, and not sent")
                }
                Err(error) => {
                    tracing::warn!(job = self.job.id, node, "{}: {error}", path.display())
                }
            }
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(job = self.job.id, "{}: {error}", path.display());
            }
        }
    }

    fn executed(&self, node: &str, output: &Json) {
        let data = json!({"node": node, "display_node": node, "output": output,
            "prompt_id": self.job.id});
        self.to_client("executed", &data);
    }

    /// Notes the progress of a node, and tells what all nodes' is if that was not told just now.
    fn progress(&self, told: &mut Told, node: &str, state: &str, value: u64, max: u64) {
        let at_work = (state == "running").then(|| self.step(node)).flatten();
        let progress = Progress {
            done: told.cached.len() + told.executed.len(),
            total: self.planned.map_or(0, |(plan, _)| plan.steps().len()),
            node: at_work.map(|step| (step.name.id.clone(), step.name.class.clone())),
            step: value,
            steps: max,
        };
        let mut live = self.job.live();
        live.states.set(&self.job.id, node, state, value, max);
        live.is_news = true;
        live.progress = progress;
        drop(live);
        states::tell(self.app, self.job, false);
        self.app.changed();
    }

    fn started(&self, name: &NodeName) {
        let mut told = self.told();
        self.tell_cached(&mut told);
        let id = &name.id;
        // It may have begun before, in a process that is no more.
        told.outputs.shift_remove(id);
        told.files.clear();
        self.job.live().node = Some(id.clone());
        self.progress(&mut told, id, "running", 0, 1);
        let data = json!({"node": id, "display_node": id, "prompt_id": self.job.id});
        self.to_client("executing", &data);
    }

    fn done(&self, node: &str, seconds: f64) {
        let mut told = self.told();
        told.executed.push(node.to_owned());
        let files = std::mem::take(&mut told.files);
        if let Some(step) = self.step(node) {
            self.app.metrics.ran(&step.name.class, seconds);
            if step.descriptor.output_node {
                let output = told.outputs.get(node).cloned().unwrap_or_else(|| json!({}));
                self.app.remember(step.key, Made { output, files });
            }
        }
        if let Some(output) = told.outputs.get(node) {
            self.executed(node, output);
            self.job.live().outputs.insert(node.to_owned(), output.clone());
        }
        let max = self.job.live().states.of(node).map_or(1, |(_, max)| max);
        self.progress(&mut told, node, "finished", max, max);
        self.job.live().node = None;
    }

    /// `problem`, said of the node at work.
    pub fn at_work(&self, problem: Problem) -> Problem {
        let node = self.job.live().node.clone();
        match node.and_then(|node| self.step(&node)) {
            Some(step) => problem.at(step.name.clone()),
            None => problem,
        }
    }

    pub fn failed(&self, failure: &Problem) {
        let mut told = self.told();
        self.tell_cached(&mut told);
        let mut error = error_of(&self.job.id, self.planned, failure, &told.executed);
        error["current_outputs"] = told.executed.clone().into();
        told.end = Some((State::Failed, Some(error)));
    }

    pub fn interrupted(&self) {
        let mut told = self.told();
        self.tell_cached(&mut told);
        told.end = Some((State::Cancelled, None));
    }

    pub fn succeeded(&self) {
        if let Some(unsent) = self.told().unsent.take() {
            return self.failed(&unsent);
        }
        let mut told = self.told();
        self.tell_cached(&mut told);
        told.end = Some((State::Completed, None));
    }

    /// What the store is given, what is said then, and the files that were written.
    pub fn end(self) -> (Finished, Last, Vec<PathBuf>) {
        // Whatever was not told because it came too quickly.
        states::tell(self.app, self.job, true);
        let node = self.job.live().node.take();
        let at_work = node.as_deref().and_then(|node| self.step(node));
        let step = at_work.or_else(|| self.next_step()).map(|step| step.name.clone());
        let Self { job, told, .. } = self;
        let Told { mut messages, outputs, executed, end, written, .. } =
            told.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (state, error) = end.unwrap_or((State::Completed, None));
        let (id, timestamp) = (&job.id, now());
        let (kind, data) = match (state, &error) {
            (State::Failed, Some(error)) => ("execution_error", error.clone()),
            (State::Cancelled, _) => {
                let (node_id, node_type) =
                    step.map_or((String::new(), String::new()), |name| (name.id, name.class));
                let data = json!({"prompt_id": id, "node_id": node_id, "node_type": node_type,
                    "executed": executed, "timestamp": timestamp});
                ("execution_interrupted", data)
            }
            _ => ("execution_success", json!({"prompt_id": id, "timestamp": timestamp})),
        };
        let message = text(kind, &data);
        messages.push(json!([kind, data]));
        let idle = text("executing", &json!({"node": null, "prompt_id": id}));
        let to_all = state == State::Cancelled;
        let last = Last { client: job.client.clone(), message: Some((message, to_all)), idle };
        let (outputs, messages) = (Json::Object(outputs), Json::Array(messages));
        (Finished { state, ended: timestamp, outputs, messages, error }, last, written)
    }
}

impl Listener for Watch<'_> {
    fn wants_previews(&self) -> bool {
        self.shows
    }

    fn preview(&self, node: &str, preview: &kosmograph::preview::Preview) {
        match jpeg(preview) {
            Ok(picture) => {
                let shown = Preview::jpeg(&self.job.id, node, picture);
                self.app.hub.preview(self.client(), &shown);
                let mut live = self.job.live();
                let number = live.preview.as_ref().map_or(0, |(number, _)| *number);
                live.preview = Some((number + 1, Arc::new(shown)));
                drop(live);
                self.app.changed();
            }
            Err(error) => tracing::warn!(job = self.job.id, "a preview cannot be shown: {error}"),
        }
    }

    fn event(&self, event: &Event) {
        match event {
            Event::Cached(name) => self.told().cached.push(name.id.clone()),
            Event::NodeStarted(name) => self.started(name),
            Event::Progress { node, step, steps } => {
                let mut told = self.told();
                self.progress(&mut told, node, "running", *step, *steps);
                drop(told);
                let data = json!({"value": step, "max": steps, "prompt_id": self.job.id,
                    "node": node});
                self.to_watchers("progress", &data);
            }
            Event::Output { node, output, .. } if output.get("sent").is_some() => {
                let mut output = output.clone().into_owned();
                if let Some(folder) = sent::folder(self.app, self.job) {
                    sent::name(&mut output, &folder);
                }
                self.send_pictures(node, &output);
            }
            Event::Output { node, output, files } => {
                let mut output = output.clone().into_owned();
                let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
                let sent = sent::send(self.app, self.job, &files, &mut output);
                let mut told = self.told();
                told.written.extend_from_slice(&files);
                if let Err(sentence) = sent {
                    tracing::warn!(job = self.job.id, node = &**node, "{sentence}");
                    let problem = Problem::new(Kind::NodeFailed, sentence);
                    let name = self.step(node).map(|step| step.name.clone());
                    let problem = match name {
                        Some(name) => problem.at(name),
                        None => problem,
                    };
                    told.unsent.get_or_insert(problem);
                    return;
                }
                let all = told.outputs.entry(node.to_string()).or_insert_with(|| json!({}));
                join(all, &output);
                told.files.extend(files);
            }
            Event::NodeDone { node, seconds } => self.done(node, *seconds),
            Event::MadeRoom { models, results, bytes, .. } => {
                self.app.metrics.made_room(*models, *results, *bytes);
            }
            Event::Error(problem) => {
                let mut told = self.told();
                self.tell_cached(&mut told);
                if let Some(node) = &problem.node {
                    let (value, max) = self.job.live().states.of(&node.id).unwrap_or((0, 1));
                    self.progress(&mut told, &node.id, "error", value, max);
                }
                drop(told);
                tracing::warn!(job = self.job.id, "{problem}");
                self.app.log.line(&self.app.hub, &problem.to_string());
            }
            Event::Log { node, message, .. } => {
                let line = match node {
                    Some(node) => format!("{node}: {message}"),
                    None => message.to_string(),
                };
                self.app.log.line(&self.app.hub, &line);
            }
            Event::Skipped { .. } => {
                let mut told = self.told();
                self.tell_cached(&mut told);
            }
            _ => (),
        }
    }
}

/// How a PNG begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The quality of previews, and their longest side, ComfyUI's.
const QUALITY: u8 = 95;
const SIDE: u32 = 512;

/// A preview as clients are sent it, made as large as it may be.
fn jpeg(preview: &kosmograph::preview::Preview) -> Result<Vec<u8>, image::ImageError> {
    let (width, height) = (preview.width, preview.height);
    let picture = image::RgbImage::from_raw(width, height, preview.rgb.clone());
    let picture = image::DynamicImage::ImageRgb8(picture.unwrap_or_default());
    let picture = picture.resize(SIDE, SIDE, image::imageops::FilterType::Triangle);
    kosmograph_picture_files::jpeg(&picture.into_rgb8(), QUALITY)
}

/// The data of `execution_error`.
pub fn error_of(
    id: &str,
    planned: Option<Planned>,
    failure: &Problem,
    executed: &[String],
) -> Json {
    let (node_id, node_type) = match &failure.node {
        Some(node) => (node.id.as_str(), node.class.as_str()),
        None => ("", ""),
    };
    let graph = planned.map(|(_, graph)| graph);
    let node = graph.and_then(|graph| Some(&graph.nodes()[graph.position(node_id)?]));
    let mut inputs = Map::new();
    for (name, input) in node.iter().flat_map(|node| &node.inputs) {
        if let Input::Literal { value, .. } = input {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            inputs.insert(name.clone(), json!([text]));
        }
    }
    let sentence = failure.to_string();
    json!({"prompt_id": id, "node_id": node_id, "node_type": node_type, "executed": executed,
        "exception_message": format!("{}\n", failure.message), "exception_type": "NodeFailed",
        "traceback": [sentence], "current_inputs": inputs, "current_outputs": [],
        "timestamp": now()})
}

fn is_nothing(output: &Json) -> bool {
    output.as_object().is_none_or(Map::is_empty)
}

/// Adds the lists of `more` to those of `all`, as a node that saves one picture after the other tells them.
fn join(all: &mut Json, more: &Json) {
    let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) else { return };
    for (key, value) in more {
        match (all.get_mut(key).and_then(Json::as_array_mut), value.as_array()) {
            (Some(all), Some(more)) => all.extend(more.iter().cloned()),
            _ => {
                all.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_joined() {
        let mut all = json!({});
        join(&mut all, &json!({"images": [1], "text": "a"}));
        join(&mut all, &json!({"images": [2, 3], "text": "b"}));
        assert_eq!(all, json!({"images": [1, 2, 3], "text": "b"}));
    }
}
