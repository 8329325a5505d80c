//! Reading keys: a TOML table, laid over by the environment, is taken apart key by key.
//!
//! Every getter notes its mistake and goes on with a default, so that one run tells all of them. A key that no getter
//! asked for is unknown, and is a mistake too. A message is: the key's path, what is wrong with it, the way out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toml::{Table, Value};

/// The prefix of the environment variables that set keys; `__` stands between a section and its key.
pub(super) const ENVIRONMENT_PREFIX: &str = "TIDELOG__";

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: RefCell<Vec<String>>,
    from_environment: BTreeMap<String, String>,
}

impl Problems {
    /// Notes a mistake of the key `path`.
    pub(super) fn add(&self, path: &str, problem: impl AsRef<str>) {
        let origin = match self.from_environment.get(path) {
            Some(variable) => format!(" (set by {variable})"),
            None => String::new(),
        };
        self.found.borrow_mut().push(format!("{path}{origin}: {}", problem.as_ref()));
    }

    /// All mistakes, in the order of the keys that were asked for.
    pub(super) fn into_found(self) -> Vec<String> {
        self.found.into_inner()
    }
}

/// Lays the environment's `TIDELOG__SECTION__KEY` variables over `table`.
pub(super) fn overlay(table: &mut Table, environment: impl Iterator<Item = (String, String)>) -> Problems {
    let mut problems = Problems::default();
    for (variable, value) in environment {
        let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let mut keys: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
        // librdkafka's property names are written with dots, which a variable's name cannot hold.
        if keys.len() == 3 && keys[0] == "kafka" && keys[1] == "properties" {
            keys[2] = keys[2].replace('_', ".");
        }
        let path = keys.join(".");
        problems.from_environment.insert(path.clone(), variable);
        if !insert(table, &keys, value) {
            problems.add(&path, "is not the name of a key; write TIDELOG__SECTION__KEY");
        }
    }
    problems
}

/// Puts `value` at the end of the path `keys`, making tables on the way; false where that cannot be.
fn insert(table: &mut Table, keys: &[String], value: String) -> bool {
    match keys {
        [] => false,
        [key, ..] if key.is_empty() => false,
        [key] => {
            table.insert(key.clone(), Value::String(value));
            true
        }
        [key, rest @ ..] => match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => insert(inner, rest, value),
            _ => false,
        },
    }
}

/// One table of the configuration while it is read.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    asked: BTreeSet<&'static str>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    pub(super) fn new(path: impl Into<String>, table: Table, problems: &'a Problems) -> Self {
        Self { path: path.into(), table, asked: BTreeSet::new(), problems }
    }

    /// The full path of `key`.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake of `key`.
    pub(super) fn problem(&self, key: &str, problem: impl AsRef<str>) {
        self.problems.add(&self.path_of(key), problem);
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.insert(key);
        self.table.remove(key)
    }

    /// A section below this one.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        match self.take(key)? {
            Value::Table(table) => Some(Section::new(self.path_of(key), table, self.problems)),
            _ => {
                self.problem(key, format!("is a section; write it as [{}]", self.path_of(key)));
                None
            }
        }
    }

    /// The sections of an array below this one (`[[path.key]]`).
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let path = self.path_of(key);
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) if items.iter().all(Value::is_table) => items
                .into_iter()
                .enumerate()
                .filter_map(|(i, item)| match item {
                    Value::Table(table) => Some(Section::new(format!("{path}[{i}]"), table, self.problems)),
                    _ => None,
                })
                .collect(),
            Some(_) => {
                self.problem(key, format!("is a list of sections; write each as [[{path}]]"));
                Vec::new()
            }
        }
    }

    /// A text, if it is there.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.problem(key, format!("{other} is not a text; put it between quotes"));
                None
            }
        }
    }

    /// Takes a key if it says just this word.
    pub(super) fn is_text(&mut self, key: &'static str, word: &str) -> bool {
        let is = self.table.get(key).and_then(Value::as_str) == Some(word);
        is && self.take(key).is_some()
    }

    /// A text that must be there and not be empty.
    pub(super) fn required_text(&mut self, key: &'static str, example: &str) -> String {
        if !self.table.contains_key(key) {
            self.asked.insert(key);
            self.problem(key, format!("is missing; set it, for example {key} = {example:?}"));
            return String::new();
        }
        let text = self.text(key);
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            self.problem(key, format!("is empty; set it, for example {key} = {example:?}"));
        }
        text.unwrap_or_default()
    }

    /// A text that must be there and may be a secret: `{ file = "…" }` or `{ env = "…" }`.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        example: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> String {
        match self.table.get(key) {
            Some(Value::Table(table)) if is_secret(table) => {}
            _ => return self.required_text(key, example),
        }
        let Some(value) = self.take(key) else { return String::new() };
        plain_or_secret(value, environment).unwrap_or_else(|problem| {
            self.problem(key, problem);
            String::new()
        })
    }

    /// As [`Section::secret`], for a key without a default.
    pub(super) fn optional_secret(
        &mut self,
        key: &'static str,
        example: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<String> {
        self.table.contains_key(key).then(|| self.secret(key, example, environment)).or_else(|| {
            self.asked.insert(key);
            None
        })
    }

    /// `true` or `false`.
    pub(super) fn truth(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Boolean(truth)) => truth,
            // The environment has only texts.
            Some(Value::String(text)) if text == "true" || text == "false" => text == "true",
            Some(other) => {
                self.problem(key, format!("{other} is neither true nor false"));
                default
            }
        }
    }

    /// A list of texts, if it is there. The environment writes it as a TOML list or with commas.
    pub(super) fn list(&mut self, key: &'static str) -> Option<Vec<String>> {
        let items = match self.take(key)? {
            Value::Array(items) => items,
            Value::String(text) if text.trim_start().starts_with('[') => match parse_list(&text) {
                Some(items) => items,
                None => {
                    self.problem(key, format!("{text:?} is not a list; write [\"a\", \"b\"]"));
                    return None;
                }
            },
            Value::String(text) => text.split(',').map(|item| Value::String(item.trim().to_owned())).collect(),
            other => {
                self.problem(key, format!("{other} is not a list; write {key} = [\"a\", \"b\"]"));
                return None;
            }
        };
        let mut texts = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            match item {
                Value::String(text) if !text.is_empty() => texts.push(text),
                other => self.problem(key, format!("item {i}, {other}, is not a text; write {key} = [\"a\", \"b\"]")),
            }
        }
        Some(texts)
    }

    /// A list of texts, or one text, which is a list of one.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        match self.table.get(key) {
            Some(Value::String(text)) if !text.trim_start().starts_with('[') => self.text(key).map(|text| vec![text]),
            _ => self.list(key),
        }
    }

    /// Reads a text by `parse`, whose error says what is wrong and the way out.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        default: T,
    ) -> T {
        let Some(text) = self.text(key) else { return default };
        parse(&text).unwrap_or_else(|problem| {
            self.problem(key, problem);
            default
        })
    }

    /// A size in bytes (`"64MiB"`, or a number of bytes) between two bounds.
    pub(super) fn size(&mut self, key: &'static str, default: u64, (least, most): (u64, u64)) -> u64 {
        let size = match self.take(key) {
            None => return default,
            Some(Value::Integer(number)) => {
                u64::try_from(number).map_err(|_| format!("{number} is not a size; use \"64MiB\""))
            }
            Some(Value::String(text)) => parse_size(&text),
            Some(other) => Err(format!("{other} is not a size; use a text like \"64MiB\"")),
        };
        match size {
            Ok(size) if size < least => {
                self.problem(key, format!("{size} is not allowed, use {} or more", show_size(least)));
                default
            }
            Ok(size) if size > most => {
                self.problem(key, format!("{} is not allowed, use {} or less", show_size(size), show_size(most)));
                default
            }
            Ok(size) => size,
            Err(problem) => {
                self.problem(key, problem);
                default
            }
        }
    }

    /// As [`Section::size`], for a key without a default.
    pub(super) fn optional_size(&mut self, key: &'static str, bounds: (u64, u64)) -> Option<u64> {
        self.table.contains_key(key).then(|| self.size(key, bounds.0, bounds)).or_else(|| {
            self.asked.insert(key);
            None
        })
    }

    /// A whole number of at least 1.
    pub(super) fn count(&mut self, key: &'static str, default: u64) -> u64 {
        let number = match self.take(key) {
            None => return default,
            Some(Value::Integer(number)) => u64::try_from(number).ok(),
            Some(Value::String(text)) => text.replace('_', "").parse().ok(),
            Some(_) => None,
        };
        match number {
            Some(number) if number > 0 => number,
            _ => {
                self.problem(key, "is not allowed, use a whole number of 1 or more");
                default
            }
        }
    }

    /// As [`Section::count`], for a key without a default.
    pub(super) fn optional_count(&mut self, key: &'static str) -> Option<u64> {
        self.table.contains_key(key).then(|| self.count(key, 1)).or_else(|| {
            self.asked.insert(key);
            None
        })
    }

    /// As [`Section::duration`], for a key without a default.
    pub(super) fn optional_duration(&mut self, key: &'static str, least: Duration) -> Option<Duration> {
        self.table.contains_key(key).then(|| self.duration(key, least, least)).or_else(|| {
            self.asked.insert(key);
            None
        })
    }

    /// A time span (`"60s"`, `"24h"`) of at least `least`.
    pub(super) fn duration(&mut self, key: &'static str, default: Duration, least: Duration) -> Duration {
        let Some(text) = self.text(key) else { return default };
        match humantime::parse_duration(&text) {
            Ok(span) if span >= least => span,
            Ok(_) => {
                self.problem(key, format!("{text} is not allowed, use {} or more", humantime::format_duration(least)));
                default
            }
            Err(_) => {
                self.problem(key, format!("{text:?} is not a time span; use a number with a unit, like \"500ms\", \"60s\", \"24h\" or \"7d\""));
                default
            }
        }
    }

    /// All keys of a section whose names are another program's (`[kafka.properties]`). A value is a text, a number, a
    /// truth value, or a secret: `{ file = "…" }` or `{ env = "…" }`.
    pub(super) fn free(mut self, environment: &dyn Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        let mut waiting: Vec<(String, Value)> = std::mem::take(&mut self.table).into_iter().collect();
        while let Some((key, value)) = waiting.pop() {
            match value {
                // `security.protocol = …` without quotes around the name is a table `security` to TOML.
                Value::Table(table) if !is_secret(&table) => {
                    waiting.extend(table.into_iter().map(|(below, value)| (format!("{key}.{below}"), value)));
                }
                value => match plain_or_secret(value, environment) {
                    Ok(value) => drop(values.insert(key, value)),
                    Err(problem) => self.problem(&key, problem),
                },
            }
        }
        values
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let known: Vec<&str> = self.asked.iter().copied().collect();
            let near = known.iter().find(|name| near(name, key));
            self.problem(
                key,
                match near {
                    Some(name) => format!("is not a key; did you mean {name}?"),
                    None => format!("is not a key; the keys here are {}", known.join(", ")),
                },
            );
        }
    }
}

fn parse_list(text: &str) -> Option<Vec<Value>> {
    let table: Table = toml::from_str(&format!("list = {text}")).ok()?;
    match table.get("list") {
        Some(Value::Array(items)) => Some(items.clone()),
        _ => None,
    }
}

/// Whether a table is written like a secret.
fn is_secret(table: &Table) -> bool {
    table.keys().any(|key| key == "file" || key == "env")
}

/// A plain value as text, or the text that a secret's file or variable holds.
fn plain_or_secret(value: Value, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let table = match value {
        Value::String(text) => return Ok(text),
        Value::Integer(number) => return Ok(number.to_string()),
        Value::Float(number) => return Ok(number.to_string()),
        Value::Boolean(truth) => return Ok(truth.to_string()),
        Value::Table(table) => table,
        // It may be a secret: what it is must not be printed.
        _ => return Err("is not a value; use a text, or { file = \"…\" } for a secret".to_owned()),
    };
    let mut entries = table.iter();
    match (entries.next(), entries.next()) {
        (Some((kind, Value::String(path))), None) if kind == "file" => std::fs::read_to_string(path)
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|error| format!("its file {path} cannot be read ({error}); create it or mend its rights")),
        (Some((kind, Value::String(name))), None) if kind == "env" => {
            environment(name).ok_or_else(|| format!("the environment variable {name} is not set; set it"))
        }
        _ => Err("is not a secret; write { file = \"/path\" } or { env = \"NAME\" }".to_owned()),
    }
}

/// Whether two keys differ by so little that one may be meant for the other: one letter changed, left out, added or
/// swapped with its neighbour.
fn near(known: &str, given: &str) -> bool {
    let (a, b) = (known.as_bytes(), given.as_bytes());
    let start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let end = a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[start..a.len() - end], &b[start..b.len() - end]);
    a.len() <= 1 && b.len() <= 1 || a.len() == 2 && b.len() == 2 && a[0] == b[1] && a[1] == b[0]
}

/// The units of sizes, largest first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads `"64MiB"`, `"1.5 GB"` or `"4096"`.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; use a number with a unit, like \"64MiB\"");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim();
    let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(wrong()),
    };
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A size in the largest unit of 1024 that divides it.
fn show_size(size: u64) -> String {
    UNITS[..4]
        .iter()
        .find(|(_, factor)| size > 0 && size.is_multiple_of(*factor))
        .map_or_else(|| format!("{size} B"), |(name, factor)| format!("{} {name}", size / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_every_unit() {
        for (text, size) in
            [("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("4096", 4096), ("1_000 kb", 1_000_000), ("7 B", 7)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "MiB", "64 Mi", "-1", "1..2", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(show_size(64 << 20), "64 MiB");
        assert_eq!(show_size(1000), "1000 B");
    }

    #[test]
    fn a_slip_of_the_pen_is_near_and_another_word_is_not() {
        for given in ["topic", "topics2", "tpoics", "topiks"] {
            assert!(near("topics", given), "{given}");
        }
        assert!(!near("topics", "servers"));
    }
}
