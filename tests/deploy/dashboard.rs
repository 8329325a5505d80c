//! The Grafana dashboard: a model that Grafana takes, with queries that Prometheus takes, of metrics that the program has.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;
use tidelog::telemetry::metrics::{self, Metric, Type};

use super::{promtool, read};
use crate::rig::process::temporary_directory;

/// The metrics of the write-ahead log, which a process has that archives one.
const POSTGRES: [&str; 11] = [
    "tidelog_wal_received_lsn_bytes",
    "tidelog_wal_durable_lsn_bytes",
    "tidelog_wal_lag_bytes",
    "tidelog_wal_lag_seconds",
    "tidelog_slot_retained_bytes",
    "tidelog_slot_safe_bytes",
    "tidelog_slot_lost",
    "tidelog_slot_seconds_to_loss",
    "tidelog_base_backup_last_success_timestamp_seconds",
    "tidelog_recoverable_from_timestamp_seconds",
    "tidelog_recoverable_to_timestamp_seconds",
];

/// Whether a scrape of the program has series of this name; `up` is what Prometheus itself adds.
fn is_known(name: &str) -> bool {
    let of_histogram = |metric: &Metric| {
        metric.kind == Type::Histogram
            && ["_bucket", "_sum", "_count"].iter().any(|part| name.strip_suffix(part) == Some(metric.name))
    };
    let of = |metric: &Metric| (metric.kind != Type::Histogram && metric.name == name) || of_histogram(metric);
    name == "up" || POSTGRES.contains(&name) || metrics::ALL.iter().any(|metric| of(metric))
}

/// Every metric that `query` selects is one of ours, or one that Prometheus knows of every target.
pub(super) fn assert_metrics(where_: &str, query: &str) {
    let names = regex::Regex::new(r"\b(tidelog_[a-z_]+|process_[a-z_]+|up)\b").expect("a regex");
    let mut found = 0;
    for name in names.captures_iter(query) {
        let name = &name[1];
        assert!(is_known(name), "{where_}: no metric is called {name}: {query}");
        found += 1;
    }
    assert!(found > 0, "{where_}: no metric in {query}");
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/tidelog.json")).expect("JSON")
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("no list at {pointer}"))
}

/// Every query with where it stands: of panels and annotations.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut queries = Vec::new();
    for panel in list(dashboard, "/panels").iter().filter(|panel| panel["type"] != "row") {
        for target in list(panel, "/targets") {
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    for annotation in list(dashboard, "/annotations/list") {
        queries.push((text(&annotation["name"]), text(&annotation["expr"])));
    }
    queries
}

/// The queries of panels that a process without Postgres fills, each with its panel, with everything chosen.
pub(super) fn of_kafka() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let rows = list(&dashboard, "/panels").iter().filter(|panel| panel["type"] == "row");
    let top = |panel: &Value| panel["gridPos"]["y"].as_u64().expect("a position");
    let tops: Vec<(u64, &str)> = rows.map(|row| (top(row), row["title"].as_str().expect("a title"))).collect();
    let row_of = |panel: &Value| tops.iter().rev().find(|(row, _)| *row < top(panel)).expect("a row").1;
    let panels = list(&dashboard, "/panels").iter().filter(|panel| panel["type"] != "row");
    let chosen = |query: &Value| {
        let query = query.as_str().expect("a query").replace("$__rate_interval", "1m");
        ["$namespace", "$instance", "$topic"].iter().fold(query, |query, variable| query.replace(variable, ".*"))
    };
    panels
        .filter(|panel| row_of(panel) != "Postgres")
        .flat_map(|panel| {
            let title = panel["title"].as_str().expect("a title").to_owned();
            list(panel, "/targets").iter().map(move |target| (title.clone(), chosen(&target["expr"])))
        })
        .collect()
}

#[test]
fn every_query_is_one_that_prometheus_takes() {
    let dashboard = dashboard();
    let queries = queries(&dashboard);
    assert!(queries.len() > 40, "{}", queries.len());
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, (title, query)) in queries.iter().enumerate() {
        assert_metrics(title, query);
        // A query that forgets a variable shows all that there is, whatever is chosen.
        assert!(query.contains("namespace=~\"$namespace\", instance=~\"$instance\""), "{title}: {query}");
        let filled = query.replace("$__rate_interval", "1m");
        writeln!(rules, "      - record: query:{number}\n        expr: {}", Value::from(filled)).expect("a text grows");
    }
    for variable in list(&dashboard, "/templating/list").iter().filter(|variable| variable["type"] == "query") {
        let query = variable["definition"].as_str().expect("a query");
        let selector = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", ")).expect(query).0;
        assert_metrics("variables", selector);
        writeln!(
            rules,
            "      - record: variable:{}\n        expr: {}",
            variable["name"].as_str().expect("a name"),
            Value::from(selector)
        )
        .expect("a text grows");
    }
    let directory = temporary_directory("dashboard");
    std::fs::write(directory.path().join("rules.yaml"), rules).expect("a file can be written");
    promtool(directory.path(), &["check", "rules", "rules.yaml"]).expect(0);
}

#[test]
fn the_model_is_whole() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(41), "an old schema");
    assert_eq!(dashboard.get("id"), None, "an id belongs to one Grafana");
    let names: Vec<_> = list(&dashboard, "/templating/list").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["datasource", "namespace", "instance", "topic"]);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard, "/panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: the id is another panel's");
        let at = |name: &str| panel["gridPos"][name].as_u64().expect("a position");
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(x < 24 && taken.insert((x, y)), "{title} lies over another panel, or beside the grid");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 5), "{title} does not say what it shows");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        let sources = list(panel, "/targets").iter().map(|target| &target["datasource"]).chain([&panel["datasource"]]);
        for source in sources {
            assert_eq!(source["uid"], "${datasource}", "{title} is bound to one data source");
        }
    }
}
