//! Answers that say no, in the shape that ComfyUI's clients read.

use crate::store::StoreError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value as Json, json};

/// A request that is refused.
#[derive(Debug)]
pub struct Fault {
    pub status: StatusCode,
    /// What is answered, JSON.
    pub body: Json,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl Fault {
    /// `{"error": {"type", "message", "details", "extra_info"}, "node_errors": {}}`, which every client
    /// understands.
    pub fn new(status: StatusCode, kind: &str, message: impl Into<String>) -> Self {
        Self::with(status, kind, message, "", json!({}), Map::new())
    }

    /// As [`Self::new`], with all of its parts.
    pub fn with(
        status: StatusCode,
        kind: &str,
        message: impl Into<String>,
        details: &str,
        extra_info: Json,
        node_errors: Map<String, Json>,
    ) -> Self {
        let (message, details) = (message.into(), details.to_owned());
        let error = json!({"type": kind, "message": message, "details": details,
            "extra_info": extra_info});
        Self {
            status,
            body: json!({"error": error, "node_errors": node_errors}),
            retry_after: None,
        }
    }

    /// `{"error": message}`, as `/api/jobs` and the files of users say it.
    pub fn plain(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, body: json!({"error": message.into()}), retry_after: None }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::plain(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::plain(StatusCode::NOT_FOUND, message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::plain(StatusCode::FORBIDDEN, message)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Taken(_) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_prompt_id", error.to_string())
            }
            StoreError::KeyUsed(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reuse",
                error.to_string(),
            ),
            StoreError::Sqlite(_) | StoreError::Engine(_) => {
                tracing::error!("{error}");
                let mut fault =
                    Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_failed", error.to_string());
                fault.retry_after = Some(10);
                fault
            }
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
