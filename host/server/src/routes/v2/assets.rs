//! `/api/v2/assets`: files that clients bring, and what jobs made, by their ids.

use super::super::files::{Root, inside, media_type, serve_passive};
use super::super::upload::place;
use super::super::{Shared, blocking};
use super::jobs::known;
use super::shapes::{self, Content, Item, date, never};
use super::{base, invalid, not_found, refused};
use crate::app::App;
use crate::fault::Fault;
use crate::message::now;
use crate::store::{Asset, V2Row};
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::multipart::MultipartRejection;
use axum::extract::{Multipart, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::path::PathBuf;
use uuid::Uuid;

const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

/// The longest name that a client may give a file, or its type.
const LONGEST: usize = 1024;

fn asset_json(asset: &Asset, created_new: Option<bool>, base: &str) -> Json {
    let url = format!("{base}/api/v2/assets/{}/content", asset.id);
    let mut told = json!({"id": asset.id, "hash": asset.hash, "size_bytes": asset.size,
        "content_type": asset.content_type, "file_path": asset.file_path,
        "created_at": date(asset.created), "url": url, "url_expires_at": never(asset.created),
        "expires_at": null});
    if let Some(created_new) = created_new {
        told["created_new"] = created_new.into();
    }
    told
}

/// The file of an asset, if it is still there.
fn file(app: &App, asset: &Asset) -> Result<Option<PathBuf>, Fault> {
    let Some(name) = inside(&asset.name) else { return Ok(None) };
    let is_whole = |path: &PathBuf| path.metadata().is_ok_and(|data| data.len() == asset.size);
    Ok(Root::Input.find(app, &name)?.filter(is_whole))
}

/// The asset with these bytes, if its file is still there.
fn of_hash(app: &App, hash: &str) -> Result<Option<Asset>, Fault> {
    let Some(asset) = app.store.asset_of_hash(&hash.to_ascii_lowercase())? else { return Ok(None) };
    Ok(file(app, &asset)?.map(|_| asset))
}

/// What a job made, by its id.
fn output(app: &App, id: &str) -> Result<Option<(V2Row, Item)>, Fault> {
    let Some((job, _)) = id.split_once('.') else { return Ok(None) };
    let Some(row) = app.store.job_v2(job)? else { return Ok(None) };
    let running = app.queue.running_job(job);
    let items = shapes::items(job, &shapes::made(app, &row, running.as_deref()));
    let item = items.into_iter().find(|item| item.id == id);
    Ok(item.map(|item| (row, item)))
}

fn unknown(id: &str) -> Fault {
    not_found(format!("there is no asset {id}"))
}

/// A workflow with names of files where it refers to assets.
pub fn resolve(app: &App, workflow: Map<String, Json>) -> Result<Map<String, Json>, Fault> {
    let mut missing = Vec::new();
    let mut resolved = workflow;
    for (_, node) in &mut resolved {
        for (_, value) in node.get_mut("inputs").and_then(Json::as_object_mut).into_iter().flatten()
        {
            if value["__type"] != "core/ASSET" {
                continue;
            }
            match name(app, &value["info"])? {
                Some(name) => *value = name.into(),
                None => missing.push(match value["info"]["id"].as_str() {
                    Some(id) => id.to_owned(),
                    None => "a reference without an id".to_owned(),
                }),
            }
        }
    }
    if missing.is_empty() {
        return Ok(resolved);
    }
    let sentence =
        format!("the workflow refers to assets that are not here: {}", missing.join(", "));
    Err(refused(UNPROCESSABLE, "missing_asset", sentence, json!({"missing_ids": missing})))
}

/// What a node calls an asset.
fn name(app: &App, info: &Json) -> Result<Option<String>, Fault> {
    if let Some(id) = info["id"].as_str() {
        if let Some(asset) = app.store.asset(id)? {
            return Ok(file(app, &asset)?.map(|_| asset.name));
        }
        if let Some((_, item)) = output(app, id)?
            && let Content::File { root, path } = item.content
        {
            let is_there = root.find(app, &path)?.is_some();
            return Ok(is_there.then(|| format!("{} [{}]", path.display(), root.name())));
        }
        return Ok(None);
    }
    match info["hash"].as_str() {
        Some(hash) => Ok(of_hash(app, hash)?.map(|asset| asset.name)),
        None => Ok(None),
    }
}

/// A file as it was sent, and what was said of it.
struct Form {
    bytes: Bytes,
    media_type: Option<String>,
    texts: HashMap<String, String>,
}

async fn read(multipart: Result<Multipart, MultipartRejection>) -> Result<Form, Fault> {
    let mut multipart = multipart.map_err(|error| invalid(UNPROCESSABLE, error.body_text()))?;
    let fault = |error: axum::extract::multipart::MultipartError| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            error.body_text(),
            Json::Null,
        ),
        _ => invalid(UNPROCESSABLE, error.body_text()),
    };
    let (mut file, mut texts) = (None, HashMap::new());
    while let Some(field) = multipart.next_field().await.map_err(fault)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            let media_type = field.content_type().map(str::to_owned);
            file = Some((field.bytes().await.map_err(fault)?, media_type));
        } else if texts.len() < 64 {
            texts.insert(name, field.text().await.map_err(fault)?.trim().to_owned());
        }
    }
    let missing = || invalid(UNPROCESSABLE, "no \"file\" was sent");
    let (bytes, media_type) = file.ok_or_else(missing)?;
    Ok(Form { bytes, media_type, texts })
}

/// Where a client's file goes in the input folder.
fn place_of(file_path: &str) -> Result<PathBuf, Fault> {
    let relative = file_path.strip_prefix("input/").unwrap_or(file_path);
    let short = Some(relative).filter(|relative| relative.len() <= LONGEST);
    let Some(path) = short.and_then(inside).filter(|path| path.file_name().is_some()) else {
        let sentence =
            format!("\"file_path\": \"{file_path}\" is no name of a file below the input folder");
        return Err(invalid(UNPROCESSABLE, sentence));
    };
    let folder =
        path.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let is_of_models = path.components().count() > 1
        && folder.is_some_and(|folder| {
            folder == "models"
                || super::super::info::folders_of_models().any(|known| known == folder)
        });
    if is_of_models {
        let sentence = format!(
            "\"file_path\": \"{file_path}\" is a place of models, which are not uploaded; put the file there"
        );
        return Err(invalid(UNPROCESSABLE, sentence));
    }
    Ok(path)
}

pub async fn upload(
    State(app): Shared,
    headers: HeaderMap,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<(StatusCode, JsonBody<Json>), Fault> {
    let Form { bytes, media_type: sent_as, texts } = read(multipart).await?;
    let base = base(&app, &headers);
    blocking(app, move |app| {
        let text = |key: &str| texts.get(key).map(String::as_str).filter(|text| !text.is_empty());
        let file_path = text("file_path");
        let missing = || invalid(UNPROCESSABLE, "\"file_path\", the name of the file, is missing");
        let file_path = file_path.ok_or_else(missing)?;
        let path = place_of(file_path)?;
        let hash = format!("blake3:{}", blake3::hash(&bytes).to_hex());
        if let Some(expected) =
            text("expected_hash").filter(|text| !text.eq_ignore_ascii_case(&hash))
        {
            let sentence = format!("the bytes are {hash}, and not {expected}");
            return Err(refused(StatusCode::CONFLICT, "hash_mismatch", sentence, Json::Null));
        }
        if let Some(there) = of_hash(app, &hash)? {
            return Ok((StatusCode::OK, JsonBody(asset_json(&there, Some(false), &base))));
        }
        let Some(folder) = Root::Input.folders(app).first() else {
            return Err(invalid(UNPROCESSABLE, "the server has no input folder"));
        };
        let content_type = text("content_type").or(sent_as.as_deref()).unwrap_or(media_type(&path));
        let content_type: String = content_type.chars().take(LONGEST).collect();
        let parent = path.parent().map(PathBuf::from).unwrap_or_default();
        let own = PathBuf::from(path.file_name().unwrap_or_default());
        let (own, owned) = place(app, &folder.join(&parent), &own, &bytes, false)?;
        let name = parent.join(own).display().to_string();
        let asset = app.store.add_asset(Asset {
            id: Uuid::new_v4().to_string(),
            hash,
            size: bytes.len() as u64,
            content_type,
            file_path: file_path.to_owned(),
            name,
            owned,
            created: now(),
        })?;
        Ok((StatusCode::CREATED, JsonBody(asset_json(&asset, Some(true), &base))))
    })
    .await
}

pub async fn from_hash(
    State(app): Shared,
    headers: HeaderMap,
    body: Bytes,
) -> Result<JsonBody<Json>, Fault> {
    let body: Json = serde_json::from_slice(&body).map_err(|error| {
        invalid(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}"))
    })?;
    let Some(hash) = body["hash"].as_str().map(str::to_owned) else {
        return Err(invalid(UNPROCESSABLE, "\"hash\" is no text"));
    };
    let base = base(&app, &headers);
    blocking(app, move |app| match of_hash(app, &hash)? {
        Some(asset) => Ok(JsonBody(asset_json(&asset, Some(false), &base))),
        None => {
            let sentence = format!("there are no bytes of {hash} here");
            Err(refused(StatusCode::NOT_FOUND, "blob_not_found", sentence, Json::Null))
        }
    })
    .await
}

pub async fn by_hash(State(app): Shared, Path(hash): Path<String>) -> Result<StatusCode, Fault> {
    let found = blocking(app, move |app| of_hash(app, &hash)).await?;
    Ok(if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

pub async fn one(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<JsonBody<Json>, Fault> {
    let base = base(&app, &headers);
    blocking(app, move |app| {
        if let Some(asset) = app.store.asset(&id)? {
            return Ok(JsonBody(asset_json(&asset, None, &base)));
        }
        let (row, item) = output(app, &id)?.ok_or_else(|| unknown(&id))?;
        let mut told = shapes::output(app, &row, &item, &base);
        told["file_path"] = item.name.into();
        told["created_at"] = date(row.ended.unwrap_or(row.created)).into();
        Ok(JsonBody(told))
    })
    .await
}

pub async fn content(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let gone = "the bytes of this asset are not there any more";
    let gone = move || refused(StatusCode::NOT_FOUND, "output_unavailable", gone, Json::Null);
    let found = blocking(app.clone(), move |app| {
        if let Some(asset) = app.store.asset(&id)? {
            return Ok(Ok(file(app, &asset)?.ok_or_else(gone)?));
        }
        let (_, item) = output(app, &id)?.ok_or_else(|| unknown(&id))?;
        match item.content {
            Content::File { root, path } => Ok(Ok(root.find(app, &path)?.ok_or_else(gone)?)),
            Content::Text(text) => Ok(Err((item.media_type, text))),
        }
    });
    match found.await? {
        Ok(path) => {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            Ok(serve_passive(&path, &name.unwrap_or_default(), &headers).await)
        }
        Err((media_type, text)) => {
            Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], text)
                .into_response())
        }
    }
}

pub async fn delete(State(app): Shared, Path(id): Path<String>) -> Result<StatusCode, Fault> {
    blocking(app, move |app| {
        let Some(asset) = app.store.asset(&id)? else {
            if id.split_once('.').is_some_and(|(job, _)| known(app, job).is_ok()) {
                let sentence = "what a job made is kept as long as its file is there";
                return Err(refused(StatusCode::FORBIDDEN, "forbidden", sentence, Json::Null));
            }
            return Err(unknown(&id));
        };
        let path = file(app, &asset)?;
        app.store.remove_asset(&id)?;
        if let Some(path) = path.filter(|_| asset.owned)
            && let Err(error) = app.remove(&path)
        {
            tracing::warn!("{}: {error}", path.display());
        }
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}
