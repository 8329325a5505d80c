//! The documents name what the program takes: every key, every variable, every property, and the README's first example.

use std::collections::BTreeMap;
use std::path::Path;

use tidelog::config::Config;
use tidelog::source::kafka::Cluster;
use tidelog::telemetry::metrics::ALL;

const README: &str = include_str!("../README.md");
const CONFIG: &str = include_str!("../docs/CONFIG.md");
const HTTP: &str = include_str!("../docs/HTTP.md");
const RELIABILITY: &str = include_str!("../docs/RELIABILITY.md");
const SECURITY: &str = include_str!("../docs/SECURITY.md");
const LEAST: &str = "[archive]\nurl = \"memory://\"\n[kafka]\nbootstrap_servers = \"b:1\"\ntopics = [\"a\"]\n";

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// The keys that the program knows in `section`, from what it says of one that it does not know.
fn keys_of(section: &str) -> Vec<String> {
    let heading = if section.is_empty() { String::new() } else { format!("{section}\n") };
    let error = Config::parse(&format!("{heading}zzzzzz = 1\n"), "test", &none()).expect_err("there is no such key");
    let text = error.to_string();
    let line = text.lines().find(|line| line.contains("zzzzzz: is not a key")).expect("the key is refused");
    let (_, keys) = line.split_once("the keys here are ").expect("the known keys are told");
    keys.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_described() {
    for key in keys_of("") {
        assert!(CONFIG.contains(&format!("`[{key}]`")), "docs/CONFIG.md does not name [{key}]");
    }
    for section in [
        "[archive]",
        "[memory]",
        "[http]",
        "[kafka]",
        "[kafka.segment]",
        "[kafka.merge]",
        "[[kafka.topic]]",
        "[postgres]",
        "[postgres.base_backup]",
        "[state]",
    ] {
        for key in keys_of(section) {
            assert!(CONFIG.contains(&format!("| `{key}` |")), "docs/CONFIG.md does not describe {key} of {section}");
        }
    }
}

#[test]
fn every_metric_is_described_with_its_labels_and_no_other() {
    let rows: BTreeMap<&str, &str> = HTTP
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .filter(|(name, _)| name.starts_with("tidelog_") || name.starts_with("process_"))
        .collect();
    for metric in ALL {
        let row = rows.get(metric.name).unwrap_or_else(|| panic!("docs/HTTP.md does not describe {}", metric.name));
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let told = row.split('|').nth(2).expect("a column of labels").trim();
        assert_eq!(told, labels.join(", "), "labels of {}", metric.name);
    }
    assert_eq!(rows.len(), ALL.len(), "docs/HTTP.md describes a metric that is not there");
}

#[test]
fn the_variables_of_the_example_are_taken() {
    let variables = CONFIG.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')?.0.split_once('='));
    let variables: BTreeMap<String, String> = variables
        .filter(|(name, _)| name.starts_with("TIDELOG__"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert!(variables.len() >= 5, "the table is found: {variables:?}");
    let config = Config::parse(LEAST, "test", &variables).expect("the variables are right");
    let kafka = config.kafka.expect("[kafka] is there");
    assert_eq!(kafka.topics, ["orders", "^cdc\\."]);
    assert!(kafka.properties.contains_key("sasl.password"));
    assert_eq!(config.archive.options["aws_region"], "eu-central-1");
}

#[test]
fn the_properties_that_are_said_to_be_refused_are() {
    let (_, table) = CONFIG.split_once("Properties that are refused").expect("the table is there");
    let rows = table.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
    let names: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|names| names.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect();
    assert!(names.len() >= 10, "the table is found: {names:?}");
    for name in names {
        let text = format!("{LEAST}[kafka.properties]\n{name:?} = \"x\"\n");
        let kafka = Config::parse(&text, "test", &none()).expect("it is TOML").kafka.expect("[kafka] is there");
        let error = Cluster::new(&kafka).err().unwrap_or_else(|| panic!("{name} is not refused"));
        assert!(error.to_string().contains("cannot be set"), "{name}: {error}");
    }
}

#[test]
fn the_first_example_of_the_readme_is_valid() {
    let (_, rest) = README.split_once("```toml\n").expect("there is an example");
    let (example, _) = rest.split_once("```").expect("it ends");
    let config = Config::parse(example, "README.md", &none()).expect("the example is valid");
    assert_eq!(config.kafka.expect("[kafka] is there").topics, ["orders"]);
}

/// All sources below a folder.
fn sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

#[test]
fn every_test_that_security_and_reliability_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    ["src", "tests"].iter().for_each(|folder| sources(&root.join(folder), &mut text));
    for (document, told) in [("SECURITY", SECURITY), ("RELIABILITY", RELIABILITY)] {
        let named: Vec<&str> = told.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
        assert!(named.len() > 30, "{named:?}");
        for name in named {
            let is_test = name.rsplit("::").next().is_some_and(|test| text.contains(&format!("fn {test}(")));
            // A whole module of tests.
            let module = name.trim_end_matches("::tests").trim_end_matches("::").replace("::", "/");
            let is_module = ["src", "tests"].iter().any(|folder| {
                let place = root.join(folder).join(&module);
                place.with_extension("rs").exists() || place.join("mod.rs").exists()
            });
            assert!(is_test || is_module, "docs/{document}.md names {name}, which is not there");
        }
    }
}
