//! Submitting, listing, stopping.

use super::{Shared, blocking, json_text, object, texts};
use crate::fault::Fault;
use crate::message::number;
use crate::prompt::{self, Submission, truth};
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value as Json, json};
use std::collections::HashMap;

pub async fn remaining(State(app): Shared) -> JsonBody<Json> {
    JsonBody(json!({"exec_info": {"queue_remaining": app.queue.remaining()}}))
}

pub async fn submit(
    State(app): Shared,
    Query(parameters): Query<HashMap<String, String>>,
    body: Bytes,
) -> Result<JsonBody<Json>, Fault> {
    let accepted =
        blocking(app, move |app| prompt::submit(app, Submission::read(&body, &parameters)?))
            .await?;
    let mut answer = json!({"prompt_id": accepted.ids[0], "number": number(accepted.number),
        "node_errors": accepted.node_errors});
    if accepted.ids.len() > 1 {
        answer["prompt_ids"] = accepted.ids.into();
    }
    Ok(JsonBody(answer))
}

pub async fn list(State(app): Shared) -> Result<Response, Fault> {
    let text = blocking(app, |app| Ok(app.store.queue()?)).await?;
    Ok(json_text(text))
}

pub async fn change(State(app): Shared, body: Bytes) -> Result<StatusCode, Fault> {
    let asked = object(&body)?;
    let delete = texts(&asked, "delete")?;
    blocking(app, move |app| {
        if asked.get("clear").is_some_and(truth) {
            app.remove_waiting(None)?;
        }
        if let Some(ids) = delete {
            app.remove_waiting(Some(&ids))?;
        }
        app.tell_status();
        Ok(StatusCode::OK)
    })
    .await
}

/// Whatever the body is: clients send none, or half of one.
pub async fn interrupt(State(app): Shared, body: Bytes) -> Result<StatusCode, Fault> {
    let asked = object(&body).unwrap_or_default();
    let id = asked.get("prompt_id").and_then(Json::as_str).map(|id| vec![id.to_owned()]);
    blocking(app, move |app| {
        app.stop_running(id.as_deref())?;
        Ok(StatusCode::OK)
    })
    .await
}

pub async fn free(State(app): Shared, body: Bytes) -> Result<StatusCode, Fault> {
    let asked = object(&body).unwrap_or_default();
    if ["unload_models", "free_memory"].iter().any(|key| asked.get(*key).is_some_and(truth)) {
        blocking(app, |app| Ok(app.free()?)).await?;
    }
    Ok(StatusCode::OK)
}
