//! What a browser is shown: the official frontend where it is there, or else our own page.

use super::files::{inside, media_type, serve};
use super::{Shared, blocking};
use crate::fault::Fault;
use crate::prompt::{converted, is_workflow};
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Path as InPath, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use kosmograph::workflow_file::WorkflowFile;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

const INDEX: &str = include_str!("../../page/index.html");
const LOGIN: &str = include_str!("../../page/login.html");
const ASSETS: [(&str, &str, &str); 2] = [
    ("page.js", "text/javascript; charset=utf-8", include_str!("../../page/page.js")),
    ("page.css", "text/css; charset=utf-8", include_str!("../../page/page.css")),
];

/// What our own pages may do: nothing that does not come from here.
const POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; \
                      frame-ancestors 'none'; form-action 'self'; base-uri 'none'";

/// How many workflows a folder is looked through for.
const MOST: usize = 2000;

fn own(html: &'static str, status: StatusCode) -> Response {
    let mut response = (status, Html(html)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, must-revalidate"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

pub async fn login_page() -> Response {
    own(LOGIN, StatusCode::OK)
}

/// Takes the token of a form, and gives a cookie for it.
pub async fn login(State(app): Shared, body: Bytes) -> Response {
    let form = String::from_utf8_lossy(&body);
    let token = form.split('&').find_map(|pair| pair.strip_prefix("token="));
    let session = token.map(decoded).and_then(|token| app.access.session(&token, app.options.tls));
    match session.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        Some(cookie) => {
            let headers =
                [(header::SET_COOKIE, cookie), (header::LOCATION, HeaderValue::from_static("./"))];
            (StatusCode::SEE_OTHER, headers).into_response()
        }
        None => {
            // Who guesses shall not do it fast.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            own(LOGIN, StatusCode::UNAUTHORIZED)
        }
    }
}

/// A form's value without its escapes.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'+', _) => decoded.push(b' '),
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Files of the frontend, and `/` where there is none.
pub async fn frontend(
    State(app): Shared,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return Fault::not_found("there is nothing at this address").into_response();
    }
    let path = decoded(&uri.path().replace('+', "%2B"));
    let name = path.trim_start_matches('/');
    let missing = || Fault::not_found("there is nothing at this address").into_response();
    let Some(folder) = &app.options.frontend else {
        return if name.is_empty() { own(INDEX, StatusCode::OK) } else { missing() };
    };
    if name == "user.css" && !folder.join(name).is_file() {
        return super::userdata::no_style();
    }
    let relative = if name.is_empty() { Some(PathBuf::from("index.html")) } else { inside(name) };
    let Some(file) = relative.map(|relative| folder.join(relative)).filter(|file| file.is_file())
    else {
        return missing();
    };
    let kind = media_type(&file);
    let mut response = serve(&file, &headers, kind).await;
    let lasting = if name.is_empty() {
        "no-store, must-revalidate"
    } else if kind.starts_with("image/") {
        "public, max-age=86400"
    } else {
        "no-cache"
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(lasting));
    response
}

/// The templates that a frontend offers: there are none.
pub async fn templates(InPath(name): InPath<String>) -> Response {
    match name.as_str() {
        name if !name.ends_with(".json") => {
            Fault::not_found("there is nothing at this address").into_response()
        }
        "index_logo.json" => JsonBody(json!({})).into_response(),
        _ => JsonBody(json!([])).into_response(),
    }
}

/// A file of our own page.
pub async fn asset(InPath(name): InPath<String>) -> Response {
    let Some((_, kind, text)) = ASSETS.iter().find(|(known, _, _)| *known == name) else {
        return Fault::not_found("there is nothing at this address").into_response();
    };
    let headers = [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")];
    (headers, *text).into_response()
}

/// The workflows of the folder: `[{"name", "title"}]`.
pub async fn workflows(State(app): Shared) -> Result<JsonBody<Json>, Fault> {
    blocking(app, |app| {
        let mut names: Vec<String> = std::fs::read_dir(&app.options.workflows)
            .into_iter()
            .flatten()
            .flatten()
            .take(MOST)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".json") && !name.starts_with('.'))
            .collect();
        names.sort();
        let is_one = |name: &String| {
            let text = std::fs::read_to_string(app.options.workflows.join(name));
            text.is_ok_and(|text| is_workflow(&text))
        };
        let entry = |name: &String| {
            let title = name.trim_end_matches(".json").replace(['_', '-'], " ");
            json!({"name": name, "title": title})
        };
        Ok(JsonBody(names.iter().filter(|name| is_one(name)).map(entry).collect()))
    })
    .await
}

/// `{"prompt": API format, "workflow": the editor's graph or null}`.
fn opened(app: &crate::app::App, file: WorkflowFile, name: &str) -> Result<JsonBody<Json>, Fault> {
    let (prompt, workflow) =
        converted(app, file, name).map_err(|problem| Fault::bad(problem.to_string()))?;
    Ok(JsonBody(json!({"prompt": prompt, "workflow": workflow})))
}

pub async fn workflow(
    State(app): Shared,
    InPath(name): InPath<String>,
) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| {
        let missing = || Fault::not_found(format!("there is no workflow {name}"));
        let is_plain = |path: &PathBuf| path.file_name() == Some(Path::new(&name).as_os_str());
        let relative = inside(&name).filter(is_plain).ok_or_else(missing)?;
        let path = app.options.workflows.join(relative);
        if !path.is_file() {
            return Err(missing());
        }
        let file = WorkflowFile::read(&path).map_err(|error| Fault::bad(error.to_string()))?;
        opened(app, file, &name)
    })
    .await
}

/// As [`workflow`], of a picture or a file that was dropped onto the page.
pub async fn workflow_of_picture(State(app): Shared, body: Bytes) -> Result<JsonBody<Json>, Fault> {
    blocking(app, move |app| {
        let name = "the file";
        let file = WorkflowFile::from_bytes(&body, name);
        opened(app, file.map_err(|error| Fault::bad(error.to_string()))?, name)
    })
    .await
}

/// The frontend of Python's package, where it is installed.
pub fn installed_frontend() -> Option<PathBuf> {
    let package = "comfyui_frontend_package/static";
    let mut homes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(|name| std::env::var_os(name).map(PathBuf::from))
        .map(|prefix| prefix.join("lib"))
        .collect();
    homes.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/lib")));
    homes.extend(["/usr/local/lib".into(), "/usr/lib".into()]);
    let in_home = |home: PathBuf| {
        let mut pythons: Vec<PathBuf> = std::fs::read_dir(home)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        pythons.sort();
        let is_python = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        };
        pythons.into_iter().rev().filter(is_python).find_map(|python| {
            ["site-packages", "dist-packages"]
                .into_iter()
                .map(|packages| python.join(packages).join(package))
                .find(|folder| folder.join("index.html").is_file())
        })
    };
    homes.into_iter().find_map(in_home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        assert_eq!(decoded("a+b%20c%C3%BC%zz%4"), "a b cü%zz%4");
    }
}
