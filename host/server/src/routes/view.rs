//! `GET /view`: a picture, or another file, of the input, output or temp folder.

use super::files::{Root, annotated, inside, io_fault, serve_passive};
use super::picture::{self, Channel, Preview};
use super::{Shared, blocking, json_text};
use crate::app::App;
use crate::fault::Fault;
use axum::extract::{Path as InPath, Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use kosmograph::folders::Entry;
use kosmograph::graph::Origin;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

/// The longest header of a model file that is read.
const LONGEST_HEADER: u64 = 64 << 20;

/// The file that the parameters name, and its own name.
fn locate(app: &App, parameters: &HashMap<String, String>) -> Result<(PathBuf, String), Fault> {
    let Some(name) = parameters.get("filename") else {
        return Err(Fault::not_found("no filename was given"));
    };
    if name.starts_with("blake3:") {
        return Err(Fault::not_found("there are no assets here"));
    }
    let (plain, root) = annotated(name);
    let root = match (root, parameters.get("type").map(String::as_str)) {
        (Some(root), _) => root,
        (None, None | Some("")) => Root::Output,
        (None, Some(name)) => Root::of_name(name)
            .ok_or_else(|| Fault::bad(format!("\"{name}\" is no folder of the server")))?,
    };
    let refused = || Fault::bad(format!("\"{name}\" is no file's name"));
    if plain.contains("..") {
        return Err(refused());
    }
    let mut relative = inside(plain).ok_or_else(refused)?;
    if let Some(subfolder) = parameters.get("subfolder").filter(|folder| !folder.is_empty()) {
        let outside = || Fault::forbidden(format!("\"{subfolder}\" leaves its folder"));
        let subfolder = subfolder.trim_end_matches('/');
        relative = inside(subfolder).ok_or_else(outside)?.join(relative);
    }
    let own = relative.file_name().map(|name| name.to_string_lossy().into_owned());
    let found = root.find(app, &relative)?;
    let missing =
        || Fault::not_found(format!("there is no {} in {}", relative.display(), root.name()));
    Ok((found.ok_or_else(missing)?, own.unwrap_or_default()))
}

pub async fn view(
    State(app): Shared,
    Query(parameters): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = parameters.clone();
    let (path, name) = blocking(app.clone(), move |app| locate(app, &asked)).await?;
    let channel = match parameters.get("channel").map(String::as_str) {
        Some("rgb") => Channel::Colours,
        Some("a") => Channel::Alpha,
        _ => Channel::All,
    };
    let preview = parameters.get("preview").map(|asked| Preview::of(asked, channel));
    if preview.is_none() && channel == Channel::All {
        let mut response = serve_passive(&path, &name, &headers).await;
        if !response.headers().contains_key(header::CACHE_CONTROL) {
            // The file of a name may be another one tomorrow: asked again, by its tag.
            let value = HeaderValue::from_static("no-cache");
            response.headers_mut().insert(header::CACHE_CONTROL, value);
        }
        return Ok(response);
    }
    let made = blocking(app, move |_| picture::shown(&path, channel, preview)).await?;
    let disposition = HeaderValue::from_bytes(
        format!("filename=\"{}\"", name.replace(['"', '='], "_")).as_bytes(),
    );
    let disposition = disposition.unwrap_or(HeaderValue::from_static("inline"));
    let kind = HeaderValue::from_static(made.media_type);
    let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, made.bytes).into_response())
}

/// What a model file's author wrote into its header.
pub async fn metadata(
    State(app): Shared,
    InPath(folder): InPath<String>,
    Query(parameters): Query<HashMap<String, String>>,
) -> Result<Response, Fault> {
    let name = parameters.get("filename").cloned().unwrap_or_default();
    if !name.ends_with(".safetensors") {
        return Err(Fault::not_found("only .safetensors files carry metadata"));
    }
    let text = blocking(app, move |app| {
        let folders = &app.surroundings.folders;
        let missing = |sentence: String| Fault::not_found(sentence);
        if !super::info::folders_of_models().any(|known| known == folder) {
            return Err(missing(format!("there is no folder of models called \"{folder}\"")));
        }
        let path = folders
            .resolve(&folder, Entry::File, &name, Origin::File)
            .map_err(|error| missing(error.to_string()))?;
        let unreadable = |error: std::io::Error| io_fault(&name, &error);
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let mut length = [0; 8];
        if let Err(error) = file.read_exact(&mut length) {
            return Err(match error.kind() {
                ErrorKind::UnexpectedEof => {
                    missing(format!("{name}: is too short to have a header"))
                }
                _ => unreadable(error),
            });
        }
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER {
            return Err(missing(format!("{name}: its header is too long to be one")));
        }
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).map_err(unreadable)?;
        let header: Json = serde_json::from_slice(&header).unwrap_or_default();
        match &header["__metadata__"] {
            Json::Object(metadata) => Ok(Json::Object(metadata.clone()).to_string()),
            _ => Err(missing(format!("{name}: carries no metadata"))),
        }
    })
    .await?;
    Ok(json_text(text))
}
