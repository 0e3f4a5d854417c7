//! The editor's own files: saved workflows, its style sheet.

use super::files::{Existing, inside, io_fault, media_type, serve};
use super::{Shared, blocking};
use crate::app::App;
use crate::fault::Fault;
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Path as InPath, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

type Parameters = Query<HashMap<String, String>>;

/// Most entries of a list, and how deep folders are looked into.
const MOST: usize = 10_000;
const DEEPEST: usize = 16;

/// The editor's style sheet.
const STYLE: &str = "user.css";

/// A page that asks for a style sheet that nobody wrote gets an empty one.
pub fn no_style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], "").into_response()
}

fn is_set(parameters: &HashMap<String, String>, key: &str) -> bool {
    parameters.get(key).is_some_and(|text| text == "true" || text == "1")
}

/// Whether `overwrite` says no; it is yes where nothing is said.
fn keeps(parameters: &HashMap<String, String>) -> bool {
    parameters.get("overwrite").is_some_and(|text| text == "false")
}

fn resolve(app: &App, name: &str) -> Result<PathBuf, Fault> {
    let path = inside(name.trim_end_matches('/'));
    let outside = || Fault::forbidden(format!("\"{name}\" leaves the folder of the user's files"));
    Ok(app.options.userdata.join(path.ok_or_else(outside)?))
}

/// What is in a folder that is a copy becomes what is there.
fn bring_all(app: &App, folder: &Path, name: &str) -> Result<(), Fault> {
    let Some(bucket) = &app.bucket else { return Ok(()) };
    bucket.bring_all(folder).map_err(|error| io_fault(name, &error))
}

fn milliseconds(time: std::io::Result<SystemTime>) -> u64 {
    let since = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(0)
}

fn info(path: &str, metadata: &Metadata) -> Json {
    json!({"path": path, "size": metadata.len(), "modified": milliseconds(metadata.modified()),
        "created": milliseconds(metadata.created().or_else(|_| metadata.modified()))})
}

/// What is in a folder: names from there on, with "/" between them.
fn walk(folder: &Path, recurse: bool) -> Vec<(String, Metadata)> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            let name = format!("{prefix}{name}");
            if found.len() >= MOST {
                break;
            }
            if metadata.is_dir() && recurse && depth < DEEPEST {
                open.push((entry.path(), format!("{name}/"), depth + 1));
            }
            found.push((name, metadata));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

pub async fn list(
    State(app): Shared,
    Query(parameters): Parameters,
) -> Result<JsonBody<Json>, Fault> {
    let Some(dir) = parameters.get("dir").filter(|dir| !dir.is_empty()).cloned() else {
        return Err(Fault::bad("no folder \"dir\" was given"));
    };
    blocking(app, move |app| {
        let folder = resolve(app, &dir)?;
        bring_all(app, &folder, &dir)?;
        if !folder.is_dir() {
            return Err(Fault::not_found(format!("there is no folder {dir}")));
        }
        let files = walk(&folder, is_set(&parameters, "recurse"));
        let files = files.iter().filter(|(_, metadata)| metadata.is_file());
        let entry = |(name, metadata): &(String, Metadata)| {
            if is_set(&parameters, "full_info") {
                info(name, metadata)
            } else if is_set(&parameters, "split") {
                Json::from([name.as_str()].into_iter().chain(name.split('/')).collect::<Vec<_>>())
            } else {
                json!(name)
            }
        };
        Ok(JsonBody(files.map(entry).collect()))
    })
    .await
}

pub async fn list_with_folders(
    State(app): Shared,
    Query(parameters): Parameters,
) -> Result<JsonBody<Json>, Fault> {
    let path = parameters.get("path").cloned().unwrap_or_default();
    blocking(app, move |app| {
        let folder = match path.trim_matches('/') {
            "" => app.options.userdata.clone(),
            path => resolve(app, path)?,
        };
        bring_all(app, &folder, &path)?;
        if !folder.is_dir() {
            return match path.is_empty() {
                true => Ok(JsonBody(json!([]))),
                false => Err(Fault::not_found(format!("there is no folder {path}"))),
            };
        }
        let prefix = path.trim_matches('/');
        let entry = |(name, metadata): (String, Metadata)| {
            let whole = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            match metadata.is_dir() {
                true => json!({"name": name, "path": whole, "type": "directory"}),
                false => {
                    json!({"name": name, "path": whole, "type": "file", "size": metadata.len(),
                    "modified": milliseconds(metadata.modified())})
                }
            }
        };
        Ok(JsonBody(walk(&folder, false).into_iter().map(entry).collect()))
    })
    .await
}

pub async fn read(
    State(app): Shared,
    InPath(name): InPath<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let path = resolve(&app, &name)?;
    if app.bucket.is_some() {
        let (path, name) = (path.clone(), name.clone());
        let bring = move |app: &App| app.bring(&path).map_err(|error| io_fault(&name, &error));
        blocking(app.clone(), bring).await?;
    }
    if !path.is_file() && name == STYLE {
        return Ok(no_style());
    }
    if !path.is_file() {
        return Err(Fault::not_found(format!("there is no file {name}")));
    }
    // The editor's style sheet is the only one of these files that a page is made with.
    let is_style = name == STYLE;
    let media = if is_style { media_type(&path) } else { "application/octet-stream" };
    let media = if media_type(&path) == "application/json" { "application/json" } else { media };
    let mut response = serve(&path, &headers, media).await;
    if !is_style {
        let own = path.file_name().map(|name| name.to_string_lossy().replace(['"', '='], "_"));
        let value = format!("attachment; filename=\"{}\"", own.unwrap_or_default());
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
        }
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn written(path: &Path, name: &str, full_info: bool) -> Json {
    match path.metadata() {
        Ok(metadata) if full_info => info(name, &metadata),
        _ => json!(name),
    }
}

pub async fn store(
    State(app): Shared,
    InPath(name): InPath<String>,
    Query(parameters): Parameters,
    body: Bytes,
) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| {
        let path = resolve(app, &name)?;
        let existing = if keeps(&parameters) { Existing::Keep } else { Existing::Replace };
        match app.write(&path, &body, existing) {
            Ok(true) => Ok(JsonBody(written(&path, &name, is_set(&parameters, "full_info")))),
            Ok(false) => {
                Err(Fault::plain(StatusCode::CONFLICT, format!("there is a file {name} already")))
            }
            Err(error) => Err(io_fault(&name, &error)),
        }
    })
    .await
}

pub async fn delete(State(app): Shared, InPath(name): InPath<String>) -> Result<StatusCode, Fault> {
    blocking(app, move |app| {
        let path = resolve(app, &name)?;
        app.remove(&path).map_err(|error| io_fault(&name, &error))?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

pub async fn rename(
    State(app): Shared,
    InPath((name, to)): InPath<(String, String)>,
    Query(parameters): Parameters,
) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| {
        let (from, target) = (resolve(app, &name)?, resolve(app, &to)?);
        for (path, name) in [(&from, &name), (&target, &to)] {
            app.bring(path).map_err(|error| io_fault(name, &error))?;
        }
        if !from.is_file() {
            return Err(Fault::not_found(format!("there is no file {name}")));
        }
        if keeps(&parameters) && target.exists() {
            return Err(Fault::plain(
                StatusCode::CONFLICT,
                format!("there is a file {to} already"),
            ));
        }
        let moved = || {
            target.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            match &app.bucket {
                Some(bucket) => bucket.rename(&from, &target),
                None => std::fs::rename(&from, &target),
            }
        };
        moved().map_err(|error| io_fault(&to, &error))?;
        Ok(JsonBody(written(&target, &to, is_set(&parameters, "full_info"))))
    })
    .await
}
