//! Jobs and their outputs in the shapes of API v2.

use crate::app::App;
use crate::message::Progress;
use crate::queue::{Running, Why};
use crate::routes::files::{Root, inside, media_type};
use crate::routes::history::there;
use crate::store::{State as JobState, V2Row};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};

/// The history is bounded by its length, and its entries do not grow old: a date that is asked for is a
/// hundred years away, in milliseconds.
const LONG: i64 = 100 * 365 * 24 * 3600 * 1000;

/// Milliseconds since 1970 as RFC 3339 writes them.
pub fn date(milliseconds: i64) -> String {
    let date = DateTime::<Utc>::from_timestamp_millis(milliseconds).unwrap_or_default();
    date.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A date that does not come.
pub fn never(from: i64) -> String {
    date(from.saturating_add(LONG))
}

/// What a job made: a file, or a text that the store has.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    File { root: Root, path: PathBuf },
    Text(String),
}

/// One output.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The job's id, and a digest of where the output is.
    pub id: String,
    pub node: String,
    pub name: String,
    /// v2's word for what it is.
    pub kind: &'static str,
    pub media_type: &'static str,
    pub content: Content,
}

/// The outputs of `job`, of what its nodes told.
pub fn items(job: &str, outputs: &Map<String, Json>) -> Vec<Item> {
    let mut items = Vec::new();
    for (node, output) in outputs {
        for (key, told) in output.as_object().into_iter().flatten() {
            let told: &[Json] = match told {
                Json::Array(told) => told,
                Json::String(_) => std::slice::from_ref(told),
                _ => continue,
            };
            let number = |at: usize| at + 1;
            items.extend(
                told.iter()
                    .enumerate()
                    .filter_map(|(at, told)| item(job, node, key, number(at), told)),
            );
        }
    }
    items
}

fn item(job: &str, node: &str, key: &str, number: usize, told: &Json) -> Option<Item> {
    let digest = blake3::hash(json!([node, key, number, told]).to_string().as_bytes()).to_hex();
    let id = format!("{job}.{}", &digest[..16]);
    let node = node.to_owned();
    if let Json::String(text) = told {
        let name = format!("{}_{number}.txt", node.replace(['/', ':'], "_"));
        let (kind, content) = ("text", Content::Text(text.clone()));
        return Some(Item {
            id,
            node,
            name,
            kind,
            media_type: "text/plain; charset=utf-8",
            content,
        });
    }
    let name = told["filename"].as_str()?.to_owned();
    let subfolder = told["subfolder"].as_str().unwrap_or_default();
    let root = Root::of_name(told["type"].as_str().unwrap_or("output"))?;
    let path = inside(Path::new(subfolder).join(&name).to_str()?)?;
    let media_type = media_type(&path);
    let by_media = || match media_type.split('/').next() {
        Some("image") => "image",
        Some("video") => "video",
        Some("audio") => "audio",
        Some("text") => "text",
        _ => "file",
    };
    let kind = match key {
        "images" => "image",
        "gifs" | "video" | "videos" => "video",
        "audio" => "audio",
        "text" => "text",
        "latents" => "latent",
        _ => by_media(),
    };
    Some(Item { id, node, name, kind, media_type, content: Content::File { root, path } })
}

/// An output as v2 tells it.
pub fn output(app: &App, row: &V2Row, item: &Item, base: &str) -> Json {
    let size = match &item.content {
        Content::Text(text) => text.len() as u64,
        Content::File { root, path } => root.size(app, path).unwrap_or(0),
    };
    let url = format!("{base}/api/v2/assets/{}/content", item.id);
    json!({"node_id": item.node, "name": item.name, "type": item.kind, "job_id": row.id,
        "content_type": item.media_type, "size_bytes": size, "id": item.id, "hash": null, "url": url,
        "url_expires_at": never(row.created)})
}

/// What a job made so far.
pub fn made(app: &App, row: &V2Row, running: Option<&Running>) -> Map<String, Json> {
    match (&row.outputs, running) {
        (Some(text), _) => there(app, text),
        (None, Some(running)) => running.live().outputs.clone(),
        (None, None) => Map::new(),
    }
}

/// v2's word for how it is with a job, and its place if it waits.
pub fn status(app: &App, row: &V2Row, running: Option<&Running>) -> (&'static str, Option<usize>) {
    match (row.state, running) {
        (JobState::Completed, _) => ("succeeded", None),
        (JobState::Failed, _) => ("failed", None),
        (JobState::Cancelled, _) => ("canceled", None),
        (_, Some(running)) if running.why() == Some(Why::Asked) => ("canceling", None),
        (_, Some(_)) | (JobState::Running, None) => ("running", None),
        (JobState::Pending, None) => ("queued", app.position(&row.id)),
    }
}

/// Whether nothing more becomes of a job of this status.
pub fn is_terminal(status: &str) -> bool {
    matches!(status, "succeeded" | "failed" | "canceled" | "expired")
}

pub fn progress(progress: &Progress) -> Json {
    let node = progress.node.as_ref();
    let mut told = json!({"value": progress.value(), "nodes_done": progress.done,
        "nodes_total": progress.total, "current_node": node.map(|(id, _)| id),
        "current_node_class": node.map(|(_, class)| class), "step": null, "steps": null,
        "message": null});
    if let Some((_, class)) = node.filter(|_| progress.steps > 1) {
        told["step"] = progress.step.into();
        told["steps"] = progress.steps.into();
        told["message"] = format!("{class} {}/{}", progress.step, progress.steps).into();
    }
    told
}

/// A job.
pub fn job(app: &App, row: &V2Row, base: &str) -> Json {
    let running = app.queue.running_job(&row.id);
    let running = running.as_deref();
    let (status, position) = status(app, row, running);
    let id = &row.id;
    let outputs: Vec<Json> = items(id, &made(app, row, running))
        .iter()
        .map(|item| output(app, row, item, base))
        .collect();
    let own = format!("{base}/api/v2/jobs/{id}");
    let mut job = json!({"id": id, "status": status, "created_at": date(row.created),
        "create_time": date(row.created), "started_at": row.started.map(date),
        "completed_at": row.ended.map(date), "expires_at": never(row.created),
        "queue_position": position,
        "progress": running.map(|running| progress(&running.live().progress)),
        "outputs": outputs, "error": error(row),
        "metrics": {"queue_ms": row.started.map(|started| started - row.created),
            "execution_ms": row.started.zip(row.ended).map(|(started, ended)| ended - started)},
        "outputs_reused": reused(row),
        "urls": {"self": own, "events": format!("{own}/events"), "cancel": format!("{own}/cancel")}});
    if let Some(metadata) = row.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok())
    {
        job["metadata"] = metadata;
    }
    if let Some(priority) = row.priority {
        job["priority"] = priority.into();
    }
    job
}

/// What went wrong with a job.
fn error(row: &V2Row) -> Option<Json> {
    let said: Json = serde_json::from_str(row.error.as_deref()?).ok()?;
    let text = |key: &str| said[key].as_str().map(str::trim_end).filter(|text| !text.is_empty());
    let lines = said["traceback"].as_array().into_iter().flatten().filter_map(Json::as_str);
    let traceback = lines.collect::<Vec<_>>().join("\n");
    Some(json!({"code": "node_execution_error", "message": text("exception_message"),
        "node_id": text("node_id"), "class_type": text("node_type"), "traceback": traceback}))
}

/// Whether some of its nodes needed not run.
fn reused(row: &V2Row) -> bool {
    let messages: Json = row
        .messages
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut messages = messages.as_array().into_iter().flatten();
    let cached = messages.find(|message| message[0] == "execution_cached");
    cached
        .is_some_and(|cached| cached[1]["nodes"].as_array().is_some_and(|nodes| !nodes.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_files_and_texts() {
        let outputs = json!({"9": {"images": [{"filename": "a.png", "subfolder": "s", "type": "output"},
            {"filename": "../a.png", "subfolder": "", "type": "output"}], "animated": [false]},
            "4": {"text": ["words"], "latents": [{"filename": "x.latent", "type": "temp"}]}});
        let items = items("j", outputs.as_object().unwrap());
        let kinds: Vec<_> = items.iter().map(|item| (item.kind, item.name.as_str())).collect();
        assert_eq!(kinds, [("image", "a.png"), ("text", "4_1.txt"), ("latent", "x.latent")]);
        assert_eq!(
            items[0].content,
            Content::File { root: Root::Output, path: PathBuf::from("s/a.png") }
        );
        assert!(items.iter().all(|item| item.id.starts_with("j.") && item.id.len() == 18));
        assert_ne!(items[0].id, items[2].id);
    }

    #[test]
    fn dates_are_such_as_clients_parse() {
        assert_eq!(date(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert!(never(1_700_000_000_123).starts_with("2123-"));
    }
}
