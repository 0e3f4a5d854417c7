//! `/api/v2/jobs`: submitting, asking, stopping.

use super::super::{Shared, blocking};
use super::assets::resolve;
use super::{base, invalid, not_found, refused, shapes};
use crate::app::App;
use crate::fault::Fault;
use crate::message::now;
use crate::prompt::{self, Submission, V2};
use crate::store::{Finished, State as JobState, V2Query, V2Row};
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use kosmograph::graph::is_editor_format;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use uuid::Uuid;

const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

/// The longest key that may be used once.
const LONGEST_KEY: usize = 255;

/// The most bytes of metadata.
const MOST_METADATA: usize = 16 << 10;

/// The largest priority, and the smallest below zero.
const PRIORITY: i64 = 1_000_000;

/// How many jobs are listed at most, and where nothing is said.
const MOST_LISTED: usize = 100;
const LISTED: usize = 50;

/// A job of this id.
pub fn known(app: &App, id: &str) -> Result<V2Row, Fault> {
    let row = app.store.job_v2(id)?;
    row.ok_or_else(|| not_found(format!("there is no job {id}")))
}

/// The metadata of a submission: a text, or labels.
fn metadata(body: &Map<String, Json>) -> Result<Option<Json>, Fault> {
    let wrong = |said: &str| invalid(UNPROCESSABLE, format!("\"metadata\" {said}"));
    match body.get("metadata") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Object(labels)) if !labels.values().all(Json::is_string) => {
            Err(wrong("has a label that is no text"))
        }
        Some(metadata @ (Json::String(_) | Json::Object(_))) => {
            if metadata.to_string().len() > MOST_METADATA {
                return Err(wrong(&format!("is larger than {MOST_METADATA} bytes")));
            }
            Ok(Some(metadata.clone()))
        }
        Some(_) => Err(wrong("is no text and no object of texts")),
    }
}

fn priority(body: &Map<String, Json>) -> Result<Option<i64>, Fault> {
    match body.get("priority") {
        None | Some(Json::Null) => Ok(None),
        Some(value) => {
            let priority = value.as_i64().filter(|priority| priority.abs() <= PRIORITY);
            let sentence =
                format!("\"priority\" is no whole number from -{PRIORITY} to {PRIORITY}");
            priority.map(Some).ok_or_else(|| invalid(UNPROCESSABLE, sentence))
        }
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| !key.is_empty() && key.len() <= LONGEST_KEY);
    let sentence = || format!("Idempotency-Key is no text of 1 to {LONGEST_KEY} signs");
    let key = key.ok_or_else(|| invalid(StatusCode::BAD_REQUEST, sentence()))?;
    Ok(Some(key.to_owned()))
}

/// `extra_data` may carry one secret, which no node here asks for: it is checked, and dropped.
fn check_extra(body: &Map<String, Json>) -> Result<(), Fault> {
    const KEY: &str = "api_key_comfy_org";
    let is_right = match body.get("extra_data") {
        None | Some(Json::Null) => true,
        Some(Json::Object(extra)) => {
            extra.iter().all(|(name, value)| name == KEY && value.is_string())
        }
        Some(_) => false,
    };
    let sentence = "\"extra_data\" takes \"api_key_comfy_org\", a text, and nothing else";
    if is_right { Ok(()) } else { Err(invalid(StatusCode::BAD_REQUEST, sentence)) }
}

/// What is wrong with a workflow, said as v2 says it.
fn translated(fault: Fault) -> Fault {
    let error = &fault.body["error"];
    let message = error["message"].as_str().unwrap_or("the workflow is refused");
    match error["type"].as_str() {
        Some(code @ ("idempotency_key_reuse" | "queue_full" | "store_failed")) => {
            let retry_after = fault.retry_after;
            Fault { retry_after, ..refused(fault.status, code, message, Json::Null) }
        }
        kind if fault.status == StatusCode::BAD_REQUEST => {
            let details = json!({"type": kind, "node_errors": fault.body["node_errors"],
                "extra_info": error["extra_info"]});
            refused(UNPROCESSABLE, "invalid_workflow", message, details)
        }
        _ => fault,
    }
}

pub async fn submit(
    State(app): Shared,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, JsonBody<Json>), Fault> {
    let sentence = |error: &dyn std::fmt::Display| format!("the body is no JSON object: {error}");
    let body = prompt::read_json(&body).and_then(serde_json::from_value);
    let mut body: Map<String, Json> =
        body.map_err(|error| invalid(StatusCode::BAD_REQUEST, sentence(&error)))?;
    let wrong = |code: &str, message: &str| refused(UNPROCESSABLE, code, message, Json::Null);
    // The contract reserves the former, too; an operator who allows webhooks has a use for it.
    let webhook = body.shift_remove("webhook_url").filter(|value| !value.is_null());
    let is_reserved = [
        ("webhook_url", webhook.is_some() && app.webhooks.is_none()),
        ("inputs", body.get("inputs").is_some_and(|value| !value.is_null())),
    ];
    for (reserved, is_there) in is_reserved {
        if is_there {
            let sentence = format!("\"{reserved}\" is reserved and not taken");
            return Err(wrong("invalid_workflow", &sentence));
        }
    }
    let Some(Json::Object(workflow)) = body.shift_remove("workflow") else {
        let sentence = "\"workflow\" is no object of nodes, which the API's format is";
        return Err(wrong("invalid_workflow", sentence));
    };
    if is_editor_format(&workflow) {
        let sentence = "this is the editor's format; export the workflow for the API";
        return Err(wrong("workflow_format_ui", sentence));
    }
    check_extra(&body)?;
    let v2 = V2 { key: key(&headers)?, metadata: metadata(&body)?, priority: priority(&body)? };
    let base = base(&app, &headers);
    blocking(app, move |app| {
        let workflow = resolve(app, workflow)?;
        let id = Uuid::new_v4().to_string();
        let submitted = Submission::of_v2(workflow, &id, webhook, v2)
            .and_then(|submission| prompt::submit(app, submission))
            .map_err(translated)?;
        let mut job = shapes::job(app, &known(app, &id)?, &base);
        if !submitted.node_errors.is_empty() {
            // Of outputs that are left out.
            job["node_errors"] = submitted.node_errors.into();
        }
        Ok((StatusCode::CREATED, JsonBody(job)))
    })
    .await
}

/// The states of the store that v2's word may be.
fn states(name: &str) -> Option<&'static [JobState]> {
    Some(match name {
        "queued" => &[JobState::Pending],
        "running" | "canceling" => &[JobState::Running],
        "succeeded" => &[JobState::Completed],
        "canceled" => &[JobState::Cancelled],
        "failed" => &[JobState::Failed],
        "expired" => &[],
        _ => return None,
    })
}

/// What is listed, and the words that its jobs' statuses may be; none is all.
fn query(parameters: &HashMap<String, String>) -> Result<(V2Query, Vec<String>), Fault> {
    let bad = |sentence: String| invalid(StatusCode::BAD_REQUEST, sentence);
    let given = |key: &str| parameters.get(key).map(String::as_str).filter(|text| !text.is_empty());
    let mut query = V2Query { limit: LISTED, ..V2Query::default() };
    let mut statuses = Vec::new();
    for name in given("status").into_iter().flat_map(|names| names.split(',')).map(str::trim) {
        let of_name = states(name).ok_or_else(|| bad(format!("there is no status \"{name}\"")))?;
        query.states.extend(of_name);
        statuses.push(name.to_owned());
    }
    if let Some(limit) = given("limit") {
        let number = limit.parse().ok().filter(|number| (1..=MOST_LISTED).contains(number));
        let sentence = || format!("limit is no whole number from 1 to {MOST_LISTED}");
        query.limit = number.ok_or_else(|| bad(sentence()))?;
    }
    if let Some(cursor) = given("cursor") {
        let number = cursor.parse().ok();
        query.before = Some(number.ok_or_else(|| {
            refused(StatusCode::BAD_REQUEST, "invalid_cursor", "cursor is of no list", Json::Null)
        })?);
    }
    let label = |(name, value): (&String, &String)| {
        let name = name.strip_prefix("metadata[")?.strip_suffix(']')?;
        Some((name.to_owned(), value.clone()))
    };
    query.labels = parameters.iter().filter_map(label).collect();
    if query.labels.len() > 16 {
        return Err(bad("more than 16 labels are asked for".into()));
    }
    Ok((query, statuses))
}

pub async fn list(
    State(app): Shared,
    Query(parameters): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<JsonBody<Json>, Fault> {
    let (query, statuses) = query(&parameters)?;
    let base = base(&app, &headers);
    blocking(app, move |app| {
        if !statuses.is_empty() && query.states.is_empty() {
            return Ok(JsonBody(json!({"jobs": [], "truncated": false, "next_cursor": null})));
        }
        let rows = app.store.list_v2(&query)?;
        let next = rows.last().filter(|_| rows.len() == query.limit).map(|row| row.seq.to_string());
        let jobs = rows.iter().map(|row| shapes::job(app, row, &base));
        // What runs may be about to be stopped, which the store does not know.
        let is_asked = |job: &Json| {
            statuses.is_empty() || statuses.iter().any(|status| job["status"] == status.as_str())
        };
        let jobs: Vec<Json> = jobs.filter(is_asked).collect();
        Ok(JsonBody(json!({"jobs": jobs, "truncated": next.is_some(), "next_cursor": next})))
    })
    .await
}

pub async fn one(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<JsonBody<Json>, Fault> {
    let base = base(&app, &headers);
    blocking(app, move |app| Ok(JsonBody(shapes::job(app, &known(app, &id)?, &base)))).await
}

pub async fn workflow(State(app): Shared, Path(id): Path<String>) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| {
        let entry = app.store.job(&id)?;
        let entry = entry.ok_or_else(|| not_found(format!("there is no job {id}")))?;
        let workflow: Json = serde_json::from_str(&entry.prompt).unwrap_or_default();
        Ok(JsonBody(json!({"workflow": workflow, "format": "api"})))
    })
    .await
}

/// Stops a job that waits or runs. Whoever asks about one that waited finds it canceled.
pub async fn cancel(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<JsonBody<Json>, Fault> {
    let base = base(&app, &headers);
    blocking(app, move |app| {
        known(app, &id)?;
        let data = json!({"prompt_id": id, "node_id": "", "node_type": "", "executed": [],
            "timestamp": now()});
        let (outputs, messages) = (json!({}), json!([["execution_interrupted", data]]));
        let (state, ended) = (JobState::Cancelled, now());
        let finished = Finished { state, ended, outputs, messages, error: None };
        if app.cancel_waiting(&id, &finished)? {
            app.metrics.finished(state);
            app.tell_status();
        } else {
            app.stop_running(Some(std::slice::from_ref(&id)))?;
            app.changed();
        }
        Ok(JsonBody(shapes::job(app, &known(app, &id)?, &base)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_checked() {
        let query = |pairs: &[(&str, &str)]| {
            let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            query(&pairs.iter().map(pair).collect())
        };
        let (asked, statuses) =
            query(&[("status", "queued,canceling"), ("limit", "7"), ("metadata[a]", "b")]).unwrap();
        assert_eq!(asked.states, [JobState::Pending, JobState::Running]);
        assert_eq!((asked.limit, statuses.len()), (7, 2));
        assert_eq!(asked.labels, [("a".to_owned(), "b".to_owned())]);
        for wrong in [("status", "done"), ("limit", "0"), ("limit", "101"), ("cursor", "x")] {
            assert_eq!(query(&[wrong]).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }
}
