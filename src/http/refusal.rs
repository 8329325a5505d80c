//! Requests that are refused, as Kafka Connect says it.

use std::future::{Ready, ready};

use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error as Kafka Connect writes it.
pub(super) fn refusal(status: StatusCode, message: impl Into<String>) -> Response {
    let message: String = message.into();
    (status, axum::Json(json!({ "error_code": status.as_u16(), "message": message }))).into_response()
}

pub(super) fn unknown_path(uri: Uri) -> Ready<Response> {
    let message = format!("there is no {}; docs/HTTP.md lists the paths", uri.path());
    ready(refusal(StatusCode::NOT_FOUND, message))
}

pub(super) fn wrong_method(method: Method, uri: Uri) -> Ready<Response> {
    let path = uri.path();
    let way_out = match path.rsplit('/').next() {
        Some("pause" | "resume" | "stop") => "it takes PUT",
        Some("restart" | "skip") => "it takes POST",
        // What Connect would let one create, change or delete.
        _ if path.starts_with("/connectors") => "what is archived is set in the configuration",
        _ => "it is only read, with GET",
    };
    ready(refusal(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed on {path}: {way_out}")))
}
