//! `/api/jobs`: what the frontend's queue panel shows.

use super::history::there;
use super::{Shared, blocking, object};
use crate::app::App;
use crate::fault::Fault;
use crate::message::number;
use crate::prompt::is_uuid;
use crate::store::{JobQuery, JobRow, SortBy, State as JobState};
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// Files that show something, by their extensions.
const VISUAL: [&str; 12] =
    ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "mp4", "webm", "mov", "avif"];
/// The most signs of a text that stand in a list.
const LONGEST_TEXT: usize = 1024;

const TEXTS: [&str; 5] = ["txt", "json", "md", "csv", "srt"];

fn query(parameters: &HashMap<String, String>) -> Result<JobQuery, Fault> {
    let mut query = JobQuery::default();
    let given = |key: &str| parameters.get(key).map(String::as_str).filter(|text| !text.is_empty());
    for name in given("status").into_iter().flat_map(|names| names.split(',')) {
        let state = JobState::of_name(name.trim());
        query
            .states
            .push(state.ok_or_else(|| Fault::bad(format!("there is no status \"{name}\"")))?);
    }
    query.workflow_id = given("workflow_id").map(str::to_owned);
    query.sort_by = match given("sort_by") {
        None | Some("created_at") => SortBy::Created,
        Some("execution_duration") => SortBy::Duration,
        Some(other) => return Err(Fault::bad(format!("jobs are not sorted by \"{other}\""))),
    };
    query.ascending = match given("sort_order") {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(other) => return Err(Fault::bad(format!("\"{other}\" is no order: asc or desc is"))),
    };
    query.limit = match given("limit").map(str::parse::<i64>) {
        None => None,
        Some(Ok(limit @ 1..)) => u64::try_from(limit).ok(),
        Some(_) => return Err(Fault::bad("limit is no whole number above 0")),
    };
    query.offset = match given("offset").map(str::parse::<i64>) {
        None => 0,
        Some(Ok(offset)) => u64::try_from(offset).unwrap_or(0),
        Some(Err(_)) => return Err(Fault::bad("offset is no whole number")),
    };
    Ok(query)
}

pub async fn list(
    State(app): Shared,
    Query(parameters): Query<HashMap<String, String>>,
) -> Result<JsonBody<Json>, Fault> {
    let query = query(&parameters)?;
    blocking(app, move |app| {
        let (rows, total) = app.store.list(&query)?;
        let has_more = query.offset + (rows.len() as u64) < total;
        let jobs: Vec<Json> = rows.iter().map(|row| job(app, row)).collect();
        Ok(JsonBody(json!({"jobs": jobs, "pagination": {"offset": query.offset,
            "limit": query.limit, "total": total, "has_more": has_more}})))
    })
    .await
}

/// A job in a list; keys without a value are left out.
fn job(app: &App, row: &JobRow) -> Json {
    let outputs = there(app, row.outputs.as_deref().unwrap_or_default());
    let error: Option<Json> = row.error.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let Summary { count, previewable, best } = summary(&outputs);
    let mut job = json!({"id": row.id, "status": row.state.name(), "priority": number(row.number),
        "create_time": row.created, "execution_start_time": row.started,
        "execution_end_time": row.ended, "execution_error": error, "outputs_count": count,
        "previewable_outputs_count": previewable, "preview_output": best,
        "workflow_id": row.workflow_id});
    if let Some(object) = job.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    job
}

struct Summary {
    count: usize,
    previewable: usize,
    /// What shows best what came of the job.
    best: Option<Json>,
}

fn summary(outputs: &Map<String, Json>) -> Summary {
    let (mut count, mut previewable) = (0, 0);
    let mut best: Option<(u8, Json)> = None;
    for (node, output) in outputs {
        for (media, items) in output.as_object().into_iter().flatten() {
            for item in items.as_array().into_iter().flatten() {
                if let (Some(text), "text") = (item.as_str(), media.as_str()) {
                    if best.is_none() {
                        let content: String = text.chars().take(LONGEST_TEXT).collect();
                        let output =
                            json!({"content": content, "nodeId": node, "mediaType": media});
                        best = Some((3, output));
                    }
                    continue;
                }
                // A text, or a flag about the others, as `animated`: nothing to be had.
                if !item.is_object() {
                    continue;
                }
                count += 1;
                let Some(name) = item["filename"].as_str() else { continue };
                let extension = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
                let is_visual = VISUAL.contains(&extension.as_str());
                let is_text = TEXTS.contains(&extension.as_str());
                previewable += usize::from(is_visual || is_text);
                let kind = item["type"].as_str().unwrap_or("output");
                let rank = match (is_visual, kind) {
                    (true, "output") => 0,
                    (true, _) => 1,
                    _ if is_text => 2,
                    _ => continue,
                };
                if best.as_ref().is_none_or(|(so_far, _)| rank < *so_far) {
                    let subfolder = item["subfolder"].as_str().unwrap_or_default();
                    let output = json!({"filename": name, "subfolder": subfolder, "type": kind,
                        "nodeId": node, "mediaType": media});
                    best = Some((rank, output));
                }
            }
        }
    }
    Summary { count, previewable, best: best.map(|(_, output)| output) }
}

pub async fn one(State(app): Shared, Path(id): Path<String>) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| {
        let found = app.store.row(&id)?.zip(app.store.job(&id)?);
        let Some((row, entry)) = found else { return Err(Fault::not_found("Job not found")) };
        let json = |text: &str| serde_json::from_str::<Json>(text).unwrap_or_default();
        let mut job = job(app, &row);
        job["workflow"] = json!({"prompt": json(&entry.prompt), "extra_data": json(&entry.extra)});
        if row.ended.is_some() {
            let completed = row.state == JobState::Completed;
            job["outputs"] = there(app, &entry.outputs).into();
            job["execution_status"] = json!({"completed": completed,
                "status_str": if completed { "success" } else { "error" },
                "messages": json(&entry.messages)});
        }
        Ok(JsonBody(job))
    })
    .await
}

/// Takes jobs out of the queue, and stops those that run. Whether there was one.
fn stop(app: &App, ids: &[String]) -> Result<bool, Fault> {
    let removed = app.remove_waiting(Some(ids))?;
    let asked = app.stop_running(Some(ids))?;
    if !removed.is_empty() {
        app.tell_status();
    }
    Ok(!removed.is_empty() || asked > 0)
}

pub async fn cancel(State(app): Shared, Path(id): Path<String>) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| Ok(JsonBody(json!({"cancelled": stop(app, &[id])?})))).await
}

pub async fn cancel_several(State(app): Shared, body: Bytes) -> Result<JsonBody<Json>, Fault> {
    let refused = |sentence: &str, invalid: Vec<Json>| Fault {
        status: StatusCode::BAD_REQUEST,
        body: json!({"error": sentence, "invalid_ids": invalid}),
        retry_after: None,
    };
    let asked = object(&body)?;
    let Some(Json::Array(ids)) = asked.get("job_ids") else {
        return Err(refused("\"job_ids\" is no list", Vec::new()));
    };
    let is_id = |id: &&Json| id.as_str().is_some_and(is_uuid);
    let invalid: Vec<Json> = ids.iter().filter(|id| !is_id(id)).cloned().collect();
    if !invalid.is_empty() {
        return Err(refused("these are no UUIDs", invalid));
    }
    let ids: Vec<String> = ids.iter().filter_map(Json::as_str).map(str::to_owned).collect();
    blocking(app, move |app| Ok(JsonBody(json!({"cancelled": stop(app, &ids)?})))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_what_was_made() {
        let outputs = json!({"7": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"}]},
            "9": {"text": ["words"], "images": [{"filename": "a.PNG", "subfolder": "s", "type": "output"},
                {"filename": "b.png", "subfolder": "", "type": "output"}]}});
        let Summary { count, previewable, best } = summary(outputs.as_object().unwrap());
        assert_eq!((count, previewable), (3, 3));
        assert_eq!(
            best.unwrap(),
            json!({"filename": "a.PNG", "subfolder": "s", "type": "output", "nodeId": "9",
                "mediaType": "images"})
        );
    }

    #[test]
    fn texts_and_flags_are_no_files() {
        let told = |outputs: Json| {
            let Summary { count, best, .. } = summary(outputs.as_object().unwrap());
            (count, best.unwrap_or_default())
        };
        let text = json!({"3": {"text": ["words", "more"]}});
        let shown = json!({"content": "words", "nodeId": "3", "mediaType": "text"});
        assert_eq!(told(text), (0, shown));
        let animated = json!({"3": {"text": ["words"]}, "4": {"animated": [true], "images":
            [{"filename": "a.webp", "subfolder": "", "type": "output"}]}});
        let (count, best) = told(animated);
        assert_eq!((count, &best["filename"]), (1, &json!("a.webp")));
        let long = told(json!({"3": {"text": ["ä".repeat(5000)]}})).1;
        assert_eq!(long["content"].as_str().unwrap().chars().count(), LONGEST_TEXT);
    }

    #[test]
    fn queries_are_checked() {
        let query = |pairs: &[(&str, &str)]| {
            let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            query(&pairs.iter().map(pair).collect())
        };
        assert_eq!(query(&[("status", "pending,failed")]).unwrap().states.len(), 2);
        assert_eq!(query(&[("offset", "-5")]).unwrap().offset, 0);
        for wrong in [
            ("status", "done"),
            ("sort_by", "x"),
            ("sort_order", "up"),
            ("limit", "0"),
            ("limit", "x"),
        ] {
            assert_eq!(query(&[wrong]).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }
}
