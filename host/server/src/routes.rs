//! Every address and who answers it. Most are there twice, as they are and below `/api`.

mod files;
mod history;
mod info;
mod jobs;
mod page;
mod picture;
mod queue;
mod socket;
mod upload;
mod userdata;
mod v2;
mod view;

pub use files::{Existing, Root, inside, write};
pub use page::installed_frontend;

use crate::access::guard;
use crate::app::App;
use crate::fault::Fault;
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::header::{self, HeaderMap};
use axum::http::{Extensions, StatusCode, Version};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, patch, post};
use serde_json::{Map, Value as Json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

type Shared = State<Arc<App>>;

/// How long a client may be silent in the middle of a request's body.
const BODY: Duration = Duration::from_secs(30);

/// The whole server.
pub fn router(app: Arc<App>) -> Router {
    let limit = app.options.upload_limit;
    let twice = Router::new()
        .route("/prompt", get(queue::remaining).post(queue::submit))
        .route("/queue", get(queue::list).post(queue::change))
        .route("/interrupt", post(queue::interrupt))
        .route("/free", post(queue::free))
        .route("/history", get(history::list).post(history::change))
        .route("/history/{id}", get(history::one))
        .route("/ws", get(socket::open))
        .route("/view", get(view::view))
        .route("/view_metadata/{folder}", get(view::metadata))
        .route("/upload/image", post(upload::image))
        .route("/upload/mask", post(upload::mask))
        .route("/object_info", get(info::object_info))
        .route("/object_info/{class}", get(info::class_info))
        .route("/system_stats", get(info::system_stats))
        .route("/features", get(info::features))
        .route("/workers", get(info::workers))
        .route("/embeddings", get(info::embeddings))
        .route("/extensions", get(info::nothing_listed))
        .route("/models", get(info::model_folders))
        .route("/models/{folder}", get(info::models))
        .route("/experiment/models", get(info::experiment_folders))
        .route("/experiment/models/{folder}", get(info::experiment_models))
        .route("/i18n", get(info::nothing))
        .route("/workflow_templates", get(info::nothing))
        .route("/global_subgraphs", get(info::nothing))
        .route("/node_replacements", get(info::replacements))
        .route("/users", get(info::users).post(info::no_users))
        .route("/settings", get(info::settings).post(info::change_settings))
        .route("/settings/{id}", get(info::setting).post(info::change_setting))
        .route("/userdata", get(userdata::list))
        .route("/v2/userdata", get(userdata::list_with_folders))
        .route(
            "/userdata/{file}",
            get(userdata::read).post(userdata::store).delete(userdata::delete),
        )
        .route("/userdata/{file}/move/{to}", post(userdata::rename));
    let below_api = Router::new()
        .route("/jobs", get(jobs::list))
        .route("/jobs/cancel", post(jobs::cancel_several))
        .route("/jobs/{id}", get(jobs::one))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/assets", get(info::no_assets).post(info::no_assets))
        .route("/assets/{*rest}", get(info::no_assets).post(info::no_assets))
        .merge(v2::router());
    let once = Router::new()
        .route("/internal/logs", get(info::logs))
        .route("/internal/logs/raw", get(info::raw_logs))
        .route("/internal/logs/subscribe", patch(info::hear_logs))
        .route("/internal/folder_paths", get(info::folder_paths))
        .route("/internal/files/{kind}", get(info::internal_files))
        .route("/healthz", get(info::healthz))
        .route("/readyz", get(info::readyz))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(openapi))
        .route("/templates/{name}", get(page::templates))
        .route("/login", get(page::login_page).post(page::login))
        .route("/kosmograph/workflows", get(page::workflows))
        .route("/kosmograph/workflows/{name}", get(page::workflow))
        .route("/kosmograph/workflow", post(page::workflow_of_picture))
        .route("/kosmograph/{file}", get(page::asset));
    Router::new()
        .merge(twice.clone())
        .merge(once)
        .nest("/api", twice.merge(below_api))
        .fallback(page::frontend)
        .method_not_allowed_fallback(wrong_method)
        .layer(RequestDecompressionLayer::new())
        .layer(from_fn_with_state(app.clone(), json_errors))
        .layer(DefaultBodyLimit::max(limit))
        .layer(RequestBodyTimeoutLayer::new(BODY))
        .layer(from_fn_with_state(app.clone(), guard))
        .layer(from_fn(v2::envelope))
        .layer(
            CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(texts_only()),
        )
        .layer(from_fn(log))
        .with_state(app)
}

/// What is worth it: JSON, texts and scripts. Events go out as they come, and pictures are small already.
fn texts_only() -> impl Predicate {
    let is_text = |_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions| {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default();
        let is_text = kind.starts_with("text/") && !kind.starts_with("text/event-stream");
        is_text
            || ["application/json", "application/wasm", "image/svg+xml"]
                .iter()
                .any(|one| kind.starts_with(one))
    };
    SizeAbove::new(1024).and(is_text)
}

/// The access log: one event for each request, without what may be a secret in its parameters.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|from| from.0.ip());
    let start = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_secs_f64() * 1e3);
    let from = from.map(|from| from.to_string()).unwrap_or_default();
    tracing::info!(target: "access", %method, path, status, ms = (ms * 10.0).round() / 10.0, from);
    response
}

/// Clients read JSON from every refusal: what the library below refuses in plain text is told as such.
async fn json_errors(State(app): Shared, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let kind = response.headers().get(axum::http::header::CONTENT_TYPE);
    let is_plain = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE && kind.is_none() {
        let sentence = "the body's Content-Encoding is none that this server unpacks; gzip is";
        let fault = Fault::new(status, "unsupported_encoding", sentence);
        return axum::response::IntoResponse::into_response(fault);
    }
    if !is_plain || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    let (kind, sentence) = match status {
        StatusCode::PAYLOAD_TOO_LARGE => ("too_large", too_large(app.options.upload_limit)),
        _ => ("invalid_request", String::from_utf8_lossy(&body).into_owned()),
    };
    axum::response::IntoResponse::into_response(Fault::new(status, kind, sentence))
}

/// What is said of a body that is larger than this many bytes, or would be when it is unpacked.
fn too_large(limit: usize) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_, unit)| limit >= *unit && limit.is_multiple_of(*unit));
    let limit = match unit {
        Some((name, unit)) => format!("{} {name}", limit / unit),
        None => format!("{limit} bytes"),
    };
    format!(
        "the body is larger than {limit}, the most that this server takes; --upload-limit raises it"
    )
}

/// What clients are generated from; a test holds it against the router.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

async fn openapi() -> Response {
    json_text(OPENAPI.to_owned())
}

async fn wrong_method() -> Fault {
    let sentence = "this address takes another method";
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", sentence)
}

/// Does what may wait for the disk where waiting holds nobody up.
async fn blocking<T: Send + 'static>(
    app: Arc<App>,
    work: impl FnOnce(&App) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (give, mut answer) = tokio::sync::oneshot::channel();
    // Boxed: the runtime's side of it is compiled once, and not for each request.
    let work: Box<dyn FnOnce() + Send> = Box::new(move || drop(give.send(work(&app))));
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string());
    match done.and_then(|()| answer.try_recv().map_err(|error| error.to_string())) {
        Ok(result) => result,
        Err(error) => {
            tracing::error!("a request failed: {error}");
            let sentence = "the server made a mistake over this request; please report it";
            Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", sentence))
        }
    }
}

/// A body that is to be a JSON object, whatever its Content-Type says.
fn object(body: &[u8]) -> Result<Map<String, Json>, Fault> {
    match serde_json::from_slice(body) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(Fault::bad("the body is no JSON object")),
        Err(error) => Err(Fault::bad(format!("the body is no JSON: {error}"))),
    }
}

/// The list of texts at `key`, where there is one.
fn texts(object: &Map<String, Json>, key: &str) -> Result<Option<Vec<String>>, Fault> {
    let wrong = || Fault::bad(format!("\"{key}\" is no list of ids"));
    match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Array(items)) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong));
            texts.collect::<Result<_, _>>().map(Some)
        }
        Some(_) => Err(wrong()),
    }
}

/// An answer that is JSON already.
fn json_text(text: String) -> Response {
    let kind = [(axum::http::header::CONTENT_TYPE, "application/json")];
    axum::response::IntoResponse::into_response((kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The addresses and methods that a part of this source adds to a router.
    fn routes(source: &str, below: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for part in source.split(".route(").skip(1) {
            let mut quoted = part.split('"');
            let path = quoted.nth(1).unwrap().replace("{*", "{");
            let handlers: String = quoted.collect();
            // Up to the parenthesis that closes this route.
            let mut depth = 1;
            let end = handlers.find(|c| {
                depth += match c {
                    '(' => 1,
                    ')' => -1,
                    _ => 0,
                };
                depth == 0
            });
            let handlers = &handlers[..end.unwrap_or(handlers.len())];
            for method in ["get", "post", "patch", "delete", "head", "put"] {
                let is_there = handlers.match_indices(&format!("{method}(")).any(|(at, _)| {
                    !handlers[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                });
                if is_there {
                    found.insert(format!("{method} {below}{path}"));
                }
            }
        }
        found
    }

    #[test]
    fn the_description_names_every_address() {
        let (source, v2) = (include_str!("routes.rs"), include_str!("routes/v2.rs"));
        let part = |from: &str, to: &str| {
            let rest = &source[source.find(from).unwrap()..];
            &rest[..rest.find(to).unwrap()]
        };
        let mut there = routes(part("let twice =", "let once ="), "/api");
        there.extend(routes(part("let once =", ".fallback("), ""));
        there.extend(routes(v2, "/api"));
        let described: Json = serde_json::from_str(OPENAPI).unwrap();
        let paths = described["paths"].as_object().unwrap().iter();
        let described: BTreeSet<String> = paths
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                methods.map(move |method| format!("{method} {path}"))
            })
            .collect();
        assert!(there.len() > 70, "{there:?}");
        assert_eq!(there, described);
    }
}
