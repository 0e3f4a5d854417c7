//! What the server has and is: classes, models, settings, memory, logs.

use super::{Shared, blocking, json_text, object};
use crate::fault::Fault;
use crate::message::text;
use crate::routes::files::Root;
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kosmograph::catalogue::InputKind;
use kosmograph::folders::{Entry, Folders, same_kind};
use kosmograph::{object_info, replace};
use serde_json::{Map, Value as Json, json};
use std::time::UNIX_EPOCH;

/// The version of ComfyUI whose contract this is.
const COMFYUI: &str = "0.38.0";

/// The frontend that this server was made for.
pub const FRONTEND: &str = "1.58.1";

/// Files that `/experiment/models` speaks of.
const EXTENSIONS: [&str; 6] = [".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors"];

pub fn folders_of_models() -> impl Iterator<Item = &'static str> {
    Folders::kinds()
}

pub async fn nothing() -> JsonBody<Json> {
    JsonBody(json!({}))
}

pub async fn nothing_listed() -> JsonBody<Json> {
    JsonBody(json!([]))
}

pub async fn no_assets() -> Fault {
    let error = json!({"code": "SERVICE_DISABLED", "message": "this server keeps no assets",
        "details": {}});
    Fault {
        status: StatusCode::SERVICE_UNAVAILABLE,
        body: json!({"error": error}),
        retry_after: None,
    }
}

pub async fn object_info(State(app): Shared) -> Result<Response, Fault> {
    let text = blocking(app, |app| {
        let with = &app.surroundings;
        Ok(object_info::object_info(&with.libraries.catalogue, &with.folders).to_string())
    });
    Ok(json_text(text.await?))
}

pub async fn class_info(State(app): Shared, Path(name): Path<String>) -> Result<Response, Fault> {
    let text = blocking(app, move |app| {
        let with = &app.surroundings;
        let catalogue = &with.libraries.catalogue;
        let mut found = Map::new();
        if let Some(class) = catalogue.get(&name) {
            found.insert(name, object_info::class_info(catalogue, class, &with.folders));
        }
        Ok(Json::Object(found).to_string())
    });
    Ok(json_text(text.await?))
}

/// Classes that are gone and those that do their work, which happens here before a prompt is checked, too.
pub async fn replacements(State(app): Shared) -> JsonBody<Json> {
    JsonBody(replace::as_comfyui(&app.surroundings.libraries.catalogue))
}

pub async fn system_stats(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let (mut total, mut free) = (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits() {
            (total, free) = (total.min(limits.total_memory), free.min(limits.free_memory));
        }
        let device = app.surroundings.device.as_str();
        let (kind, index) = device.split_once(':').unwrap_or((device, "0"));
        let index: u32 = index.parse().unwrap_or(0);
        // Of a GPU the server, which loads no library, knows nothing but its name.
        let (vram_total, vram_free) = if kind == "cpu" { (total, free) } else { (0, 0) };
        Ok(JsonBody(json!({
            "system": {"os": std::env::consts::OS, "ram_total": total, "ram_free": free,
                "comfyui_version": COMFYUI, "required_frontend_version": FRONTEND,
                "installed_templates_version": "", "required_templates_version": "",
                "python_version": format!("none (kosmograph {})", env!("CARGO_PKG_VERSION")),
                "pytorch_version": "none", "embedded_python": false,
                "argv": app.options.arguments},
            "devices": [{"name": device, "type": kind, "index": index, "vram_total": vram_total,
                "vram_free": vram_free, "torch_vram_total": vram_total,
                "torch_vram_free": vram_free}]})))
    })
    .await
}

/// What the server offers, as `/features` and the first words of a socket say it.
pub fn offered(upload_limit: usize) -> Json {
    json!({"supports_preview_metadata": true, "supports_model_type_tags": true,
        "max_upload_size": upload_limit, "node_replacements": true, "assets": false})
}

pub async fn features(State(app): Shared) -> JsonBody<Json> {
    JsonBody(offered(app.options.upload_limit))
}

pub async fn embeddings(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| {
        let names = app.surroundings.folders.names("embeddings", Entry::File);
        let stem = |name: &String| {
            name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned()
        };
        Ok(JsonBody(names.iter().map(stem).collect()))
    })
    .await
}

pub async fn model_folders() -> JsonBody<Json> {
    JsonBody(folders_of_models().collect())
}

fn known(folder: &str) -> Result<(), Fault> {
    let is_known = folders_of_models().any(|known| known == folder);
    let sentence = || format!("there is no folder of models called \"{folder}\"");
    if is_known { Ok(()) } else { Err(Fault::not_found(sentence())) }
}

pub async fn models(
    State(app): Shared,
    Path(folder): Path<String>,
) -> Result<JsonBody<Json>, Fault> {
    known(&folder)?;
    blocking(app, move |app| {
        let with = &app.surroundings;
        // What its loaders offer: where one takes models in folders, those, too.
        let mut wanted: Vec<(Entry, &[String])> = Vec::new();
        let classes = with.libraries.catalogue.classes().iter();
        for input in classes.flat_map(|class| &class.descriptor.inputs) {
            if let InputKind::Path { folder: of_input, entry, .. } = &input.kind
                && same_kind(of_input, &folder)
                && !wanted.contains(&(*entry, &input.extensions))
            {
                wanted.push((*entry, &input.extensions));
            }
        }
        if wanted.is_empty() {
            wanted.push((Entry::File, &[]));
        }
        let names = wanted
            .iter()
            .flat_map(|(entry, extensions)| with.folders.names_of(&folder, *entry, extensions));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.dedup();
        Ok(JsonBody(names.into()))
    })
    .await
}

pub async fn experiment_folders(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| {
        let folder = |kind: &'static str| {
            let places = app.surroundings.folders.places_of(kind);
            let places: Vec<String> =
                places.iter().map(|path| path.display().to_string()).collect();
            json!({"name": kind, "folders": places, "extensions": EXTENSIONS})
        };
        Ok(JsonBody(folders_of_models().map(folder).collect()))
    })
    .await
}

pub async fn experiment_models(
    State(app): Shared,
    Path(folder): Path<String>,
) -> Result<JsonBody<Json>, Fault> {
    known(&folder)?;
    blocking(app, move |app| {
        let folders = &app.surroundings.folders;
        let places = folders.places_of(&folder);
        let model = |name: &String| {
            let mut paths = places.iter().enumerate();
            let (index, metadata) = paths
                .find_map(|(index, place)| Some((index, place.join(name).metadata().ok()?)))?;
            let milliseconds = |time: std::io::Result<std::time::SystemTime>| {
                let since = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                since.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(0)
            };
            let modified = milliseconds(metadata.modified());
            let created = milliseconds(metadata.created().or_else(|_| metadata.modified()));
            Some(json!({"name": name, "pathIndex": index, "modified": modified, "created": created,
                "size": metadata.len()}))
        };
        Ok(JsonBody(folders.names(&folder, Entry::File).iter().filter_map(model).collect()))
    })
    .await
}

pub async fn users() -> JsonBody<Json> {
    JsonBody(json!({"storage": "server", "migrated": true}))
}

pub async fn no_users() -> Fault {
    Fault::bad("this server has one user, and takes no other")
}

pub async fn settings(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| Ok(JsonBody(Json::Object(app.store.settings()?)))).await
}

pub async fn change_settings(State(app): Shared, body: Bytes) -> Result<StatusCode, Fault> {
    let settings = object(&body)?;
    blocking(app, move |app| {
        app.store.set(&settings)?;
        Ok(StatusCode::OK)
    })
    .await
}

pub async fn setting(State(app): Shared, Path(id): Path<String>) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| Ok(JsonBody(app.store.setting(&id)?.unwrap_or_default()))).await
}

pub async fn change_setting(
    State(app): Shared,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Fault> {
    let value: Json = serde_json::from_slice(&body)
        .map_err(|error| Fault::bad(format!("the body is no JSON: {error}")))?;
    blocking(app, move |app| {
        app.store.set(&Map::from_iter([(id, value)]))?;
        Ok(StatusCode::OK)
    })
    .await
}

pub async fn logs(State(app): Shared) -> JsonBody<Json> {
    JsonBody(app.log.text().into())
}

pub async fn raw_logs(State(app): Shared) -> JsonBody<Json> {
    JsonBody(json!({"entries": app.log.entries(), "size": {"cols": 200, "rows": 50}}))
}

pub async fn hear_logs(State(app): Shared, body: Bytes) -> Result<StatusCode, Fault> {
    let asked = object(&body)?;
    let Some(client) = asked.get("clientId").and_then(Json::as_str) else {
        return Err(Fault::bad("\"clientId\" is missing"));
    };
    let hears = asked.get("enabled").is_some_and(crate::prompt::truth);
    // One that is not there yet hears nothing, which is no fault of its own.
    if app.hub.hear_logs(client, hears) && hears {
        let entries = json!({"entries": app.log.entries()});
        app.hub.send(Some(client), &text("logs", &entries));
    }
    Ok(StatusCode::OK)
}

pub async fn folder_paths(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| {
        let paths = |kind: &'static str| {
            let places = app.surroundings.folders.places_of(kind);
            let places = places.iter().map(|path| Json::from(path.display().to_string()));
            (kind.to_owned(), places.collect::<Json>())
        };
        Ok(JsonBody(Json::Object(folders_of_models().map(paths).collect())))
    })
    .await
}

pub async fn internal_files(
    State(app): Shared,
    Path(kind): Path<String>,
) -> Result<JsonBody<Json>, Fault> {
    let root = Root::of_name(&kind);
    let root = root.ok_or_else(|| Fault::bad(format!("\"{kind}\" is no folder of the server")))?;
    blocking(app, move |app| {
        let mut files = root.list(app);
        files.sort_by(|one, other| other.cmp(one));
        Ok(JsonBody(files.into_iter().map(|(_, name)| Json::from(name)).collect()))
    })
    .await
}

/// Who works, and at what.
pub async fn workers(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| Ok(JsonBody(crate::fleet::presence::all(app)?))).await
}

pub async fn healthz() -> &'static str {
    "ok"
}

/// Ready is who takes another job.
pub async fn readyz(State(app): Shared) -> (StatusCode, &'static str) {
    if app.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "the server is about to end")
    } else if !app.queue.has_room() {
        (StatusCode::SERVICE_UNAVAILABLE, "the queue is full")
    } else {
        (StatusCode::OK, "ready")
    }
}

pub async fn metrics(State(app): Shared) -> Result<Response, Fault> {
    let text = blocking(app, |app| Ok(app.metrics.text(app))).await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text).into_response())
}
