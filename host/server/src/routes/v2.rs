//! Comfy API v2, which ComfyUI's makers' own client libraries speak: jobs that are asked about rather than
//! listened to, streams of events, files by what is in them.

mod assets;
mod events;
mod jobs;
mod shapes;

use crate::app::App;
use crate::fault::Fault;
use axum::Json as JsonBody;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, head, post};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// The largest refusal that is read to be told in v2's shape.
const LARGEST_REFUSAL: usize = 4 << 20;

/// What is added below `/api`.
pub fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/v2/health", get(health))
        .route("/v2/jobs", get(jobs::list).post(jobs::submit))
        .route("/v2/jobs/{id}", get(jobs::one))
        .route("/v2/jobs/{id}/workflow", get(jobs::workflow))
        .route("/v2/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v2/jobs/{id}/events", get(events::events))
        .route("/v2/assets", post(assets::upload))
        .route("/v2/assets/from-hash", post(assets::from_hash))
        .route("/v2/assets/by-hash/{hash}", head(assets::by_hash))
        .route("/v2/assets/{id}", get(assets::one).delete(assets::delete))
        .route("/v2/assets/{id}/content", get(assets::content))
}

async fn health() -> JsonBody<Json> {
    JsonBody(json!({"status": "healthy"}))
}

/// `{"error": {"code", "message", "details"}}`.
fn refused(status: StatusCode, code: &str, message: impl Into<String>, details: Json) -> Fault {
    let error = json!({"code": code, "message": message.into(), "details": details});
    Fault { status, body: json!({"error": error}), retry_after: None }
}

fn invalid(status: StatusCode, message: impl Into<String>) -> Fault {
    refused(status, "invalid_request", message, Json::Null)
}

fn not_found(message: impl Into<String>) -> Fault {
    refused(StatusCode::NOT_FOUND, "not_found", message, Json::Null)
}

/// Refusals of whatever part of the server, in v2's shape where the address is one of its own.
pub async fn envelope(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_own = path.strip_prefix("/api/v2/").is_some_and(|path| !path.starts_with("userdata"));
    let is_head = request.method() == Method::HEAD;
    let response = next.run(request).await;
    let status = response.status();
    if !is_own || is_head || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, LARGEST_REFUSAL).await.unwrap_or_default();
    let said: Json = serde_json::from_slice(&body).unwrap_or_default();
    if said["error"]["code"].is_string() {
        return Response::from_parts(parts, Body::from(body));
    }
    let error = &said["error"];
    let message = error.as_str().or(error["message"].as_str()).unwrap_or("the request is refused");
    let code = match status {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
        _ => error["type"].as_str().unwrap_or("invalid_request"),
    };
    let made = refused(status, code, message, Json::Null).into_response();
    let (made, body) = made.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(made.headers);
    Response::from_parts(parts, body)
}

/// Where the client reached the server: what links begin with. A proxy in front that speaks TLS says so.
fn base(app: &App, headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_secure = app.options.tls || text("x-forwarded-proto") == Some("https");
    let scheme = if is_secure { "https" } else { "http" };
    let is_plain = |host: &&str| {
        host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
    };
    format!("{scheme}://{}", text("host").filter(is_plain).unwrap_or("localhost"))
}
