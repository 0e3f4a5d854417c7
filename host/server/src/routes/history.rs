//! Finished jobs, as ComfyUI's `/history` has them.

use super::{Shared, blocking, json_text, object, texts};
use crate::fault::Fault;
use crate::prompt::truth;
use crate::store::{Entry, HistoryRange, State as JobState, push_tuple};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// One entry, put together from the texts that the store has.
fn text(entry: &Entry) -> String {
    let outputs: Map<String, Json> = serde_json::from_str(&entry.outputs).unwrap_or_default();
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
        entry.outputs,
        Json::Object(meta),
        entry.messages
    )
}

fn answer(entries: &[Entry]) -> Response {
    json_text(format!("{{{}}}", entries.iter().map(text).collect::<Vec<_>>().join(",")))
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
    blocking(app, move |app| Ok(answer(&app.store.history(range)?))).await
}

pub async fn one(State(app): Shared, Path(id): Path<String>) -> Result<Response, Fault> {
    blocking(app, move |app| {
        let found = app.store.finished(&id)?;
        Ok(answer(found.as_slice()))
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
