//! Finished jobs, as ComfyUI's `/history` has them.

use super::files::{Root, inside};
use super::{Shared, blocking, json_text, object, texts};
use crate::app::App;
use crate::fault::Fault;
use crate::prompt::truth;
use crate::store::{Entry, HistoryRange, State as JobState, push_tuple};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// The outputs of a job that is over, without temporary files that are gone: a server that starts anew
/// begins without any, and clients show what the history promises. A node that has nothing left is left out,
/// as one that made nothing is.
pub fn there(app: &App, outputs: &str) -> Map<String, Json> {
    let mut outputs: Map<String, Json> = serde_json::from_str(outputs).unwrap_or_default();
    // In a bucket they stay, and to ask for each would take its time.
    if app.bucket.is_some() {
        return outputs;
    }
    let is_there = |item: &Json| {
        let part = |key: &str| item[key].as_str().unwrap_or_default();
        if part("type") != "temp" {
            return true;
        }
        let name = format!("{}/{}", part("subfolder"), part("filename"));
        let name = inside(name.trim_start_matches('/'));
        name.is_some_and(|name| matches!(Root::Temp.find(app, &name), Ok(Some(_))))
    };
    let keeps = |items: &mut Json| match items.as_array_mut() {
        Some(items) if !items.is_empty() => {
            items.retain(is_there);
            !items.is_empty()
        }
        _ => true,
    };
    outputs.retain(|_, output| match output.as_object_mut() {
        Some(output) if !output.is_empty() => {
            output.retain(|_, items| keeps(items));
            !output.is_empty()
        }
        _ => true,
    });
    outputs
}

/// One entry, put together from the texts that the store has.
fn text(app: &App, entry: &Entry) -> String {
    let outputs = there(app, &entry.outputs);
    let meta: Map<String, Json> = outputs
        .keys()
        .map(|id| {
            let of_node = json!({"node_id": id, "display_node": id, "parent_node": null,
                "real_node_id": id});
            (id.clone(), of_node)
        })
        .collect();
    let completed = entry.state == JobState::Completed;
    let status = if completed { "success" } else { "error" };
    let mut tuple = String::new();
    let parts = [entry.prompt.as_str(), &entry.extra, &entry.targets];
    push_tuple(&mut tuple, entry.number, &entry.id, parts);
    format!(
        "{}:{{\"prompt\":{},\"outputs\":{},\"meta\":{},\"status\":{{\"status_str\":\"{status}\",\
         \"completed\":{completed},\"messages\":{}}}}}",
        Json::from(entry.id.as_str()),
        tuple,
        Json::Object(outputs),
        Json::Object(meta),
        entry.messages
    )
}

fn answer(app: &App, entries: &[Entry]) -> Response {
    json_text(format!(
        "{{{}}}",
        entries.iter().map(|entry| text(app, entry)).collect::<Vec<_>>().join(",")
    ))
}

pub async fn list(
    State(app): Shared,
    Query(parameters): Query<HashMap<String, String>>,
) -> Result<Response, Fault> {
    let number = |key: &str| match parameters.get(key) {
        None => Ok(None),
        Some(text) => {
            let number = text.trim().parse::<i64>();
            number.map(Some).map_err(|_| Fault::bad(format!("{key} is no whole number")))
        }
    };
    let range = HistoryRange {
        max_items: number("max_items")?.and_then(|most| u64::try_from(most).ok()),
        offset: number("offset")?.and_then(|offset| u64::try_from(offset).ok()),
    };
    blocking(app, move |app| Ok(answer(app, &app.store.history(range)?))).await
}

pub async fn one(State(app): Shared, Path(id): Path<String>) -> Result<Response, Fault> {
    blocking(app, move |app| {
        let found = app.store.finished(&id)?;
        Ok(answer(app, found.as_slice()))
    })
    .await
}

pub async fn change(State(app): Shared, body: Bytes) -> Result<StatusCode, Fault> {
    let asked = object(&body)?;
    let delete = texts(&asked, "delete")?;
    blocking(app, move |app| {
        if asked.get("clear").is_some_and(truth) {
            app.store.forget(None)?;
        }
        if let Some(ids) = delete {
            app.store.forget(Some(&ids))?;
        }
        Ok(StatusCode::OK)
    })
    .await
}
