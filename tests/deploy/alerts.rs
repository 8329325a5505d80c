//! The alert rules: each fires when it has to, all are silent while all is well, and each has its runbook.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::manifests::{build, the};
use super::{promtool, read};
use crate::rig::process::temporary_directory;
use crate::rig::program;

/// The rules as a Prometheus without the operator takes them, made by the command that the file and the docs name.
fn plain_rules(directory: &Path) {
    let command = "sed -n '/^  groups:/,$s/^  //p' deploy/kubernetes/base/prometheusrule.yaml";
    for said in ["deploy/kubernetes/base/prometheusrule.yaml", "docs/OPERATIONS.md"] {
        assert!(read(said).contains(&format!("{command} > tidelog.rules.yaml")), "{said} names another command");
    }
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let rules = program::run(shell).expect(0).stdout;
    std::fs::write(directory.join("rules.yaml"), rules).expect("a file can be written");
}

/// The alerts, each with its rule.
fn alerts() -> Vec<(String, Value)> {
    let base = build("base");
    let groups = the(base, "PrometheusRule")["spec"]["groups"].as_array().expect("groups").clone();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone());
    rules.map(|rule| (rule["alert"].as_str().expect("an alert").to_owned(), rule)).collect()
}

#[test]
fn every_alert_fires_and_is_silent_in_time() {
    let directory = temporary_directory("rules");
    plain_rules(directory.path());
    promtool(directory.path(), &["check", "rules", "rules.yaml"]).expect(0);
    std::fs::write(directory.path().join("test.yaml"), include_str!("alerts_test.yaml"))
        .expect("a file can be written");
    promtool(directory.path(), &["test", "rules", "test.yaml"]).expect(0);

    // The test itself leaves none out.
    let (healthy, faults) = include_str!("alerts_test.yaml").split_once("# ---- the process").expect("two parts");
    for (alert, _) in alerts() {
        let silent = healthy.matches(&format!("{{alertname: {alert}, ")).count();
        assert!(silent >= 2, "{alert} is not shown to be silent while all is well");
        let mut cases = faults.split("- alertname: ").filter(|case| case.starts_with(&format!("{alert}\n")));
        assert!(cases.any(|case| case.contains("exp_labels")), "{alert} is not shown firing");
    }
}

#[test]
fn every_alert_has_a_severity_and_a_runbook() {
    let operations = read("docs/OPERATIONS.md");
    let headings: BTreeSet<String> =
        operations.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_lowercase).collect();
    let alerts = alerts();
    assert!(alerts.len() >= 20, "{}", alerts.len());
    for (alert, rule) in &alerts {
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("critical" | "warning")), "{alert}: {severity:?}");
        let link = rule["annotations"]["runbook_url"].as_str().expect("a runbook");
        assert_eq!(link, format!("docs/OPERATIONS.md#{}", alert.to_lowercase()));
        assert!(headings.contains(&alert.to_lowercase()), "docs/OPERATIONS.md has no section ### {alert}");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 10), "{alert} has no {text}");
        }
    }
    // And no section speaks of an alert that is not there.
    let named = alerts.iter().map(|(alert, _)| alert.to_lowercase()).collect::<BTreeSet<_>>();
    let stale: Vec<_> = headings
        .iter()
        .filter(|one| one.starts_with("tidelog") && !one.contains(' ') && !named.contains(*one))
        .collect();
    assert!(stale.is_empty(), "{stale:?}");
}

#[test]
fn the_rules_name_metrics_that_the_program_has() {
    for (alert, rule) in alerts() {
        super::dashboard::assert_metrics(&alert, rule["expr"].as_str().expect("an expression"));
    }
}
