//! The status page, and Connect's root, which share the path `/`: a browser asks for HTML, a tool does not.
//!
//! The page comes from the program itself and asks for nothing from anywhere else; its policy forbids it
//! (Content-Security-Policy). It shows what `/api/status` says, records of a moment on request, and changes nothing.

use std::future::{Ready, ready};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::app::AppState;
use crate::telemetry::{REVISION, VERSION};

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const TEXT: &str = include_str!("page/text.js");
const MOMENT: &str = include_str!("page/moment.js");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub(super) fn root(State(app): AppState, headers: HeaderMap) -> Ready<Response> {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let mut answer = if wants_html(accept) {
        file("text/html; charset=utf-8", PAGE)
    } else {
        let cluster_id = app.published.kafka().and_then(|kafka| kafka.cluster_id().map(str::to_owned));
        Json(json!({ "version": VERSION, "commit": REVISION, "kafka_cluster_id": cluster_id })).into_response()
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    ready(answer)
}

/// `GET /page.css`.
pub(super) fn style(State(_): AppState) -> Ready<Response> {
    ready(file("text/css; charset=utf-8", STYLE))
}

/// `GET /page.js`.
pub(super) fn script(State(_): AppState) -> Ready<Response> {
    ready(file("text/javascript; charset=utf-8", SCRIPT))
}

/// `GET /text.js`, which the script imports.
pub(super) fn text(State(_): AppState) -> Ready<Response> {
    ready(file("text/javascript; charset=utf-8", TEXT))
}

/// `GET /moment.js`, which the script imports.
pub(super) fn moment(State(_): AppState) -> Ready<Response> {
    ready(file("text/javascript; charset=utf-8", MOMENT))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let policy = HeaderName::from_static("content-security-policy");
    ([(header::CONTENT_TYPE, kind), (policy, POLICY)], text).into_response()
}

/// Returns whether HTML is among what the client takes, and not after JSON (RFC 9110, 12.5.1).
fn wants_html(accept: &str) -> bool {
    let weight = |kind: &str| {
        let items = accept.split(',').filter_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            parts.next().filter(|name| name.eq_ignore_ascii_case(kind))?;
            parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |weight| weight.parse::<f32>().ok())
        });
        items.fold(0.0, f32::max)
    };
    let html = weight("text/html");
    html > 0.0 && html >= weight("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_the_page_and_a_tool_gets_json() {
        for accept in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "TEXT/HTML",
            "application/json, text/html",
        ] {
            assert!(wants_html(accept), "{accept}");
        }
        for accept in
            ["", "*/*", "application/json", "text/plain", "application/json, text/html;q=0.5", "text/html;q=0"]
        {
            assert!(!wants_html(accept), "{accept}");
        }
    }

    #[test]
    fn nothing_of_the_page_comes_from_elsewhere() {
        for text in [PAGE, STYLE, SCRIPT, TEXT, MOMENT] {
            assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("//cdn"));
        }
        assert!(!(PAGE.contains("style=") || PAGE.contains("onclick")));
        assert!(!(SCRIPT.contains("innerHTML") || MOMENT.contains("innerHTML")));
    }
}
