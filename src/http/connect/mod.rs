//! Kafka Connect's REST shapes, so that tools which watch and steer Connect can watch and steer tidelog (Kafka's
//! documentation, "Kafka Connect", "REST API"; `ConnectorsResource` and `RestServer` in Kafka's source).
//!
//! The connector `kafka` is a sink: it takes records out of Kafka, and its tasks are the partitions that this process
//! owns, numbered in the order of topic and partition. The connector `postgres` is a source, whose one task is the timeline
//! that is received. What Connect would let one create, change or delete is set in
//! tidelog's configuration; those calls are refused.

mod masked;
mod names;
mod shape;

use std::future::{Ready, ready};
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::app::{App, AppState};
use super::auth;
use super::refusal::refusal;
use super::server::Peer;
use crate::pipeline::desired::{Control, DesiredState};
use crate::pipeline::skips::{Refused, Told};
use crate::source::kafka::TopicPartition;
use crate::stream::GapReason;
use crate::telemetry::VERSION;
use shape::Connector;

/// `GET /connector-plugins`.
pub(super) fn plugins(State(_): AppState) -> Ready<Response> {
    let plugins = json!([
        { "class": names::KAFKA_CLASS, "type": "sink", "version": VERSION },
        { "class": names::POSTGRES_CLASS, "type": "source", "version": VERSION },
    ]);
    ready(Json(plugins).into_response())
}

/// `GET /connectors`, also with `?expand=info` and `?expand=status`.
pub(super) fn connectors(State(app): AppState, RawQuery(query): RawQuery) -> Ready<Response> {
    let all = Connector::all(&app);
    let expand = values(query.as_deref(), "expand");
    if expand.is_empty() {
        let names: Vec<&str> = all.iter().map(|connector| connector.name).collect();
        return ready(Json(names).into_response());
    }
    let mut answer = Map::new();
    for connector in &all {
        let mut parts = Map::new();
        for what in &expand {
            match what.as_str() {
                "info" => drop(parts.insert("info".to_owned(), connector.info())),
                "status" => drop(parts.insert("status".to_owned(), connector.status())),
                // Connect passes over what it does not know, too.
                _ => {}
            }
        }
        answer.insert(connector.name.to_owned(), Value::Object(parts));
    }
    ready(Json(answer).into_response())
}

/// The values of a parameter that may come several times.
fn values(query: Option<&str>, name: &str) -> Vec<String> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
}

/// Answers with what `show` makes of the connector.
fn shown(app: &App, name: &str, show: impl FnOnce(&Connector) -> Value) -> Ready<Response> {
    let connectors = Connector::all(app);
    let found = connectors.iter().find(|connector| connector.name == name);
    ready(found.map_or_else(|| no_connector(name), |connector| Json(show(connector)).into_response()))
}

fn no_connector(name: &str) -> Response {
    refusal(StatusCode::NOT_FOUND, format!("Connector {name} not found"))
}

/// `GET /connectors/<name>`.
pub(super) fn connector(State(app): AppState, Path(name): Path<String>) -> Ready<Response> {
    shown(&app, &name, Connector::info)
}

/// `GET /connectors/<name>/config`.
pub(super) fn config(State(app): AppState, Path(name): Path<String>) -> Ready<Response> {
    shown(&app, &name, |connector| json!(connector.config))
}

/// `GET /connectors/<name>/status`.
pub(super) fn status(State(app): AppState, Path(name): Path<String>) -> Ready<Response> {
    shown(&app, &name, Connector::status)
}

/// `GET /connectors/<name>/tasks`.
pub(super) fn tasks(State(app): AppState, Path(name): Path<String>) -> Ready<Response> {
    shown(&app, &name, Connector::task_configs)
}

/// `GET /connectors/<name>/topics`.
pub(super) fn topics(State(app): AppState, Path(name): Path<String>) -> Ready<Response> {
    shown(&app, &name, |connector| json!({ connector.name: { "topics": connector.topics } }))
}

/// `GET /connectors/<name>/offsets`: what checkpoints cover.
pub(super) fn offsets(State(app): AppState, Path(name): Path<String>) -> Ready<Response> {
    shown(&app, &name, Connector::offsets)
}

/// `GET /connectors/<name>/tasks/<number>/status`.
pub(super) fn task_status(State(app): AppState, Path((name, task)): Path<(String, String)>) -> Ready<Response> {
    let connectors = Connector::all(&app);
    let Some(connector) = connectors.iter().find(|connector| connector.name == name) else {
        return ready(no_connector(&name));
    };
    let found = task.parse().ok().and_then(|number| connector.task_status(number));
    ready(found.map_or_else(
        || refusal(StatusCode::NOT_FOUND, format!("No status found for task {name}-{task}")),
        |status| Json(status).into_response(),
    ))
}

/// Who asks for a change, and with what.
type Caller = (Extension<Peer>, HeaderMap);

/// `PUT /connectors/<name>/pause`.
pub(super) fn pause(state: AppState, name: Path<String>, caller: Caller) -> Ready<Response> {
    change(&state, (&name, "pause"), &caller, StatusCode::ACCEPTED, |control| control.request(DesiredState::Pause))
}

/// `PUT /connectors/<name>/resume`.
pub(super) fn resume(state: AppState, name: Path<String>, caller: Caller) -> Ready<Response> {
    change(&state, (&name, "resume"), &caller, StatusCode::ACCEPTED, |control| control.request(DesiredState::Run))
}

/// `PUT /connectors/<name>/stop`.
pub(super) fn stop(state: AppState, name: Path<String>, caller: Caller) -> Ready<Response> {
    change(&state, (&name, "stop"), &caller, StatusCode::NO_CONTENT, |control| control.request(DesiredState::Stop))
}

/// `POST /connectors/<name>/restart`. With `includeTasks` or `onlyFailed` Connect answers with the state (KIP-745).
pub(super) fn restart(
    state: AppState,
    name: Path<String>,
    RawQuery(query): RawQuery,
    caller: Caller,
) -> Ready<Response> {
    let is_true = |name| values(query.as_deref(), name).iter().any(|value| value.eq_ignore_ascii_case("true"));
    let answer = change(&state, (&name, "restart"), &caller, StatusCode::NO_CONTENT, Control::restart).into_inner();
    if answer.status().is_success() && (is_true("includeTasks") || is_true("onlyFailed")) {
        let connectors = Connector::all(&state);
        if let Some(connector) = connectors.iter().find(|connector| connector.name == name.as_str()) {
            return ready((StatusCode::ACCEPTED, Json(connector.restarting())).into_response());
        }
    }
    ready(answer)
}

/// How long an answer waits for the end of an order to skip: less than [`ANSWER_WITHIN`](crate::http::gate).
const SKIP_WITHIN: Duration = Duration::from_secs(10);

/// `POST /connectors/kafka/skip?topic=…&partition=…&offset=…`: what stands at that offset and cannot be read becomes a gap. (Not one
/// of Connect's; its own way, an alteration of offsets, would let one skip anything.)
pub(super) async fn skip(
    State(app): AppState,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    caller: Caller,
) -> Response {
    let one = |name| values(query.as_deref(), name).pop();
    let at = one("topic").zip(one("partition").and_then(|partition| partition.parse().ok()));
    let asked = at.zip(one("offset").and_then(|offset| offset.parse::<i64>().ok()).filter(|offset| *offset >= 0));
    if let Err(refused) = allowed(&app, (&name, "skip"), &caller) {
        return *refused;
    }
    let Some(kafka) = app.published.kafka().filter(|_| name == names::KAFKA) else { return no_connector(&name) };
    let Some(((topic, partition), offset)) = asked else {
        return refusal(
            StatusCode::BAD_REQUEST,
            "it takes ?topic=NAME&partition=NUMBER&offset=NUMBER, as /readyz names them",
        );
    };
    let at = TopicPartition::new(topic.as_str(), partition);
    tracing::warn!(%at, offset, "it was asked over HTTP to skip what cannot be read");
    let mut told = kafka.skips.request(at.clone(), offset).told();
    let ended = told.wait_for(|told| *told != Told::Looking);
    match tokio::time::timeout(SKIP_WITHIN, ended).await.map(|ended| ended.map(|told| told.clone())) {
        Ok(Ok(Told::Skipped(lost))) => Json(json!({
            "topic": topic, "partition": partition, "start": lost.start, "end": lost.end,
            "offsets": lost.end - lost.start, "reason": GapReason::Unreadable.name(),
        }))
        .into_response(),
        Ok(Ok(Told::Refused(Refused::NotHere))) => refusal(
            StatusCode::NOT_FOUND,
            format!(
                "this process does not read {at}: ask the one that does; it is named in its own /connectors/kafka/tasks"
            ),
        ),
        Ok(Ok(Told::Refused(Refused::Because(why)))) => {
            refusal(StatusCode::CONFLICT, format!("nothing was skipped: {why}"))
        }
        _ => {
            let looking = json!({ "topic": topic, "partition": partition, "start": offset, "state": "looking" });
            (StatusCode::ACCEPTED, Json(looking)).into_response()
        }
    }
}

/// Does a change that the caller may make, to a connector that is there.
fn change(
    app: &App,
    (name, what): (&str, &str),
    caller: &Caller,
    done: StatusCode,
    order: impl FnOnce(&Control),
) -> Ready<Response> {
    if let Err(refused) = allowed(app, (name, what), caller) {
        return ready(*refused);
    }
    let control = match name {
        names::KAFKA => app.published.kafka().map(|kafka| &kafka.control),
        names::POSTGRES => app.published.postgres().map(|postgres| &postgres.control),
        _ => None,
    };
    let Some(control) = control else { return ready(no_connector(name)) };
    order(control);
    ready(done.into_response())
}

/// Returns whether the caller may make a change; either leaves a trail.
fn allowed(
    app: &App,
    (name, what): (&str, &str),
    (Extension(Peer(peer)), headers): &Caller,
) -> Result<(), Box<Response>> {
    match auth::allow(app.token.as_ref(), headers) {
        Ok(way) => {
            tracing::info!(connector = name, what, %peer, ?way, "a change was asked for over HTTP");
            Ok(())
        }
        Err(refused) => {
            app.gate.trail.refused("token", *peer, &format!("{what} of {name:?}"), Instant::now());
            Err(refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_may_come_several_times() {
        assert_eq!(values(Some("expand=info&x=1&expand=status"), "expand"), ["info", "status"]);
        assert_eq!(values(Some("includeTasks=True"), "includeTasks"), ["True"]);
        assert!(values(None, "expand").is_empty() && values(Some(""), "expand").is_empty());
    }
}
