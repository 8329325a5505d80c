//! From the file and the environment to a validated [`Config`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use toml::Table;
use url::Url;

use super::merge;
use super::postgres;
use super::raw::{ENVIRONMENT_PREFIX, Section, overlay};
use super::retention;
use super::state;
use super::values::{Lookup, zstd_level};
use super::{Archive, Config, Http, Isolation, Kafka, Segment, Start, TopicOverride, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::stream::{Format, is_name};

const MIB: u64 = 1 << 20;

impl Config {
    /// Reads the file `path` and lays the process's environment over it.
    pub fn load(path: &Path) -> Result<Self> {
        let (text, environment) = read(path)?;
        Self::parse(&text, &path.display().to_string(), &environment)
    }

    /// Reads a configuration's `text`, named `origin` in messages, with `environment` laid over it.
    pub fn parse(text: &str, origin: &str, environment: &BTreeMap<String, String>) -> Result<Self> {
        let mut table = table(text, origin)?;
        let variables = environment.iter().map(|(name, value)| (name.clone(), value.clone()));
        let problems = overlay(&mut table, variables);
        let lookup = |name: &str| environment.get(name).cloned();

        let mut root = Section::new("", table, &problems);
        let archive = archive_section(&mut root, &lookup);
        let memory_budget = root.section("memory").map_or(192 * MIB, |mut section| {
            let budget = section.size("budget", 192 * MIB, (16 * MIB, 1 << 40));
            section.finish();
            budget
        });
        let kafka = root.section("kafka").map(|section| read_kafka(section, &lookup));
        let postgres = root.section("postgres").map(|section| postgres::read(section, &lookup));
        let http = root.section("http").map(read_http);
        let state = root.section("state").map(|section| {
            let cluster = kafka.as_ref().map_or("main", |kafka| kafka.cluster.as_str());
            state::read(section, cluster, &lookup)
        });
        if state.is_some() && kafka.is_none() && postgres.is_none() {
            root.problem(
                "state",
                "keeps the state of Kafka and Postgres, and there is no section [kafka] nor [postgres]; add one or remove this one",
            );
        }
        let retention = retention::read(root.section("retention"), kafka.as_ref(), state.as_ref());
        root.finish();

        let found = problems.into_found();
        match archive {
            Some(archive) if found.is_empty() => {
                Ok(Self { archive, memory_budget, kafka, postgres, state, retention, http })
            }
            _ => Err(mistakes(origin, &found)),
        }
    }
}

impl Archive {
    /// Reads `[archive]` of the file `path` and nothing else: Postgres' user, who fetches WAL, may not be able to read the
    /// secrets that other sections name.
    pub fn load(path: &Path) -> Result<Self> {
        let (text, environment) = read(path)?;
        Self::parse(&text, &path.display().to_string(), &environment)
    }

    fn parse(text: &str, origin: &str, environment: &BTreeMap<String, String>) -> Result<Self> {
        let mut table = table(text, origin)?;
        let ours = environment.iter().filter(|(name, _)| name.starts_with("TIDELOG__ARCHIVE__"));
        let problems = overlay(&mut table, ours.map(|(name, value)| (name.clone(), value.clone())));
        let lookup = |name: &str| environment.get(name).cloned();
        let archive = archive_section(&mut Section::new("", table, &problems), &lookup);
        let found = problems.into_found();
        archive.filter(|_| found.is_empty()).ok_or_else(|| mistakes(origin, &found))
    }
}

/// The text of the file `path`, and the process's environment.
pub(super) fn read(path: &Path) -> Result<(String, BTreeMap<String, String>)> {
    let text = std::fs::read_to_string(path).map_err(|source| {
        Error::new(Kind::Config, format!("cannot read the configuration {}", path.display()))
            .source(source)
            .hint("name the file with --config; config/tidelog.toml is an example to start from")
    })?;
    let mut environment = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => drop(environment.insert(name, value)),
            (Ok(name), Err(_)) if name.starts_with(ENVIRONMENT_PREFIX) => {
                return Err(Error::new(Kind::Config, format!("the environment variable {name} is not UTF-8")));
            }
            // Not ours.
            _ => {}
        }
    }
    Ok((text, environment))
}

pub(super) fn table(text: &str, origin: &str) -> Result<Table> {
    toml::from_str(text).map_err(|error| {
        // The error's own text shows the line, which may hold a secret.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::new(Kind::Config, format!("{origin} is not TOML: line {line}: {}", error.message().replace('\n', ", ")))
    })
}

fn archive_section(root: &mut Section<'_>, lookup: Lookup<'_>) -> Option<Archive> {
    let archive = root.section("archive");
    if archive.is_none() {
        root.problem("archive", "is missing; write a section [archive] with a url");
    }
    archive.map(|section| read_archive(section, lookup))
}

/// All mistakes of a configuration at once.
pub(super) fn mistakes(origin: &str, found: &[String]) -> Error {
    let count = found.len();
    let message =
        format!("{origin} has {count} mistake{}\n  {}", if count == 1 { "" } else { "s" }, found.join("\n  "));
    Error::new(Kind::Config, message)
}

fn read_archive(mut section: Section<'_>, lookup: Lookup<'_>) -> Archive {
    let text = section.required_text("url", "file:///var/lib/tidelog/archive");
    let url = match archive_url(&text) {
        Ok(url) => url,
        Err(problem) => {
            if !text.trim().is_empty() {
                section.problem("url", problem);
            }
            Url::from_directory_path("/").unwrap_or_else(|()| unreachable!("the root is a path"))
        }
    };
    let spool_dir = section.parsed(
        "spool_dir",
        |text| absolute_path(text, "/var/lib/tidelog/spool"),
        PathBuf::from("/var/lib/tidelog/spool"),
    );
    let options = section.section("options").map(|section| section.free(lookup)).unwrap_or_default();
    section.finish();
    Archive { url, spool_dir, options }
}

fn absolute_path(text: &str, example: &str) -> Result<PathBuf, String> {
    match Path::new(text) {
        path if path.is_absolute() => Ok(path.to_owned()),
        _ => Err(format!("{text:?} is not an absolute path; write it from the root, like {example}")),
    }
}

fn read_http(mut section: Section<'_>) -> Http {
    let listen = section.parsed("listen", listen_address, SocketAddr::from((Ipv4Addr::LOCALHOST, 9095)));
    let mut token = |key| section.parsed(key, |text| absolute_path(text, "/etc/tidelog/token").map(Some), None);
    let (admin_token_file, reader_token_file) = (token("admin_token_file"), token("reader_token_file"));
    let labels = section.count("max_topic_labels", 200);
    section.finish();
    let max_topic_labels = usize::try_from(labels).unwrap_or(usize::MAX);
    Http { listen, admin_token_file, reader_token_file, max_topic_labels }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address; use \"127.0.0.1:9095\", or \"0.0.0.0:9095\" for all interfaces")
    })
}

/// Whether a URL or an address holds a name or a password, which would be shown wherever the address is.
fn holds_credentials(text: &str) -> bool {
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    authority.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

fn archive_url(text: &str) -> Result<Url, String> {
    if holds_credentials(text) {
        return Err("credentials do not belong into the URL; use the cloud's usual environment variables or \
                    [archive.options]"
            .to_owned());
    }
    if text.starts_with('/') {
        return Err(format!("{text:?} is a path; write it as file://{text}"));
    }
    let url = Url::parse(text).map_err(|error| {
        format!("{text:?} is not a URL ({error}); write file:///path, s3://bucket/prefix, gs://… or az://…")
    })?;
    match url.scheme() {
        "file" if url.host_str().is_some_and(|host| !host.is_empty()) => {
            Err(format!("{text:?} has a relative path; write three slashes, like file:///var/lib/tidelog/archive"))
        }
        "file" | "memory" => Ok(url),
        "s3" | "gs" | "az" if url.host_str().is_some() => Ok(url),
        scheme @ ("s3" | "gs" | "az") => Err(format!("{text:?} names no bucket; write {scheme}://bucket/prefix")),
        other => Err(format!("{other}:// is not a store; use file://, s3://, gs:// or az://")),
    }
}

fn read_kafka(mut section: Section<'_>, lookup: Lookup<'_>) -> Kafka {
    let cluster = section.parsed("cluster", cluster_name, "main".to_owned());
    let cluster_id = section.parsed("cluster_id", |text| cluster_id(text).map(Some), None);
    let bootstrap_servers = section.required_text("bootstrap_servers", "localhost:9092");
    if bootstrap_servers.split(',').any(holds_credentials) {
        section.problem(
            "bootstrap_servers",
            "credentials do not belong into the address; use sasl.username and sasl.password of [kafka.properties]",
        );
    }
    let group_id = section.parsed(
        "group_id",
        |text| {
            if text.trim().is_empty() {
                Err("is empty; leave it out for \"tidelog\"".to_owned())
            } else {
                Ok(text.to_owned())
            }
        },
        "tidelog".to_owned(),
    );
    let topics = section.list("topics");
    match &topics {
        None => section
            .problem("topics", "is missing; name topics, or write ^ and a regex, like [\"orders\", \"^cdc\\\\.\"]"),
        Some(topics) if topics.is_empty() => {
            section.problem("topics", "is empty; name at least one topic, or leave the section [kafka] out");
        }
        Some(_) => {}
    }
    let topics = topics.unwrap_or_default();
    for topic in &topics {
        if let Err(problem) = TopicPattern::parse(topic) {
            section.problem("topics", problem);
        }
    }
    let exclude = section.list("exclude").unwrap_or_else(|| vec!["^__".to_owned()]);
    let exclude = exclude.iter().filter_map(|text| match TopicPattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(problem) => {
            section.problem("exclude", problem);
            None
        }
    });
    let exclude = exclude.collect();
    let start = section.parsed("start", start, Start::Earliest);
    let isolation = section.parsed("isolation", isolation, Isolation::ReadCommitted);
    let properties = section.section("properties").map(|section| section.free(lookup)).unwrap_or_default();
    let default = Segment {
        format: Format::Parquet,
        zstd_level: 3,
        max_bytes: 64 * MIB,
        max_records: 1_000_000,
        max_age: Duration::from_secs(60),
    };
    let segment = match section.section("segment") {
        Some(mut section) => {
            let segment = read_segment(&mut section, &default);
            section.finish();
            segment
        }
        None => default,
    };
    let merge = merge::read(section.section("merge"));
    let overrides = section.sections("topic").into_iter().map(|section| read_override(section, &segment)).collect();
    section.finish();
    Kafka {
        cluster,
        cluster_id,
        bootstrap_servers,
        group_id,
        topics,
        exclude,
        start,
        isolation,
        properties,
        segment,
        merge,
        overrides,
    }
}

fn read_segment(section: &mut Section<'_>, default: &Segment) -> Segment {
    Segment {
        format: section.parsed(
            "format",
            |text| match text {
                "parquet" => Ok(Format::Parquet),
                "avro" => Ok(Format::Avro),
                _ => Err(format!("{text:?} is not a format; use \"parquet\" or \"avro\"")),
            },
            default.format,
        ),
        zstd_level: section.parsed("compression", zstd_level, default.zstd_level),
        max_bytes: section.size("max_bytes", default.max_bytes, (1024, 5 << 30)),
        max_records: section.count("max_records", default.max_records),
        max_age: section.duration("max_age", default.max_age, Duration::from_millis(100)),
    }
}

fn read_override(mut section: Section<'_>, default: &Segment) -> TopicOverride {
    let text = section.required_text("match", "^cdc\\.audit");
    let pattern = TopicPattern::parse(&text).unwrap_or_else(|problem| {
        if !text.trim().is_empty() {
            section.problem("match", problem);
        }
        TopicPattern::Name(text)
    });
    let segment = read_segment(&mut section, default);
    let retention = retention::of_topic(&mut section, &segment);
    section.finish();
    TopicOverride { pattern, segment, retention }
}

impl TopicPattern {
    /// Reads a topic's name, or `^` and a regex; the error says what is wrong and the way out.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('^') {
            return match Regex::new(text) {
                Ok(regex) => Ok(Self::Regex(regex)),
                Err(error) => {
                    let last = error.to_string();
                    let reason = last.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    Err(format!("{text:?} is not a regex ({reason}); mend it, or name the topics one by one"))
                }
            };
        }
        // org.apache.kafka.common.internals.Topic: 1 to 249 letters, digits, '.', '_' and '-', but not "." or "..".
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > 249 || text == "." || text == ".." || !text.chars().all(legal) {
            return Err(format!("{text:?} is not the name of a topic; for a regex begin with ^"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// A cluster's name becomes a part of object keys and directory names.
fn cluster_name(text: &str) -> Result<String, String> {
    if !is_name(text) {
        return Err(format!(
            "{text:?} is not allowed; use letters, digits, '.', '_' and '-', 100 at most, not '.' first"
        ));
    }
    Ok(text.to_owned())
}

/// A cluster's id as Kafka's tools print it: 16 bytes in base64, or whatever text an older cluster was given.
fn cluster_id(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.contains(char::is_whitespace) {
        return Err(format!(
            "{text:?} is not a cluster's id; write what `kafka-cluster.sh cluster-id` prints, or leave it out"
        ));
    }
    Ok(text.to_owned())
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        time => match chrono::DateTime::parse_from_rfc3339(time) {
            Ok(time) => Ok(Start::Timestamp(time.timestamp_millis())),
            Err(_) => Err(format!(
                "{text:?} is not a start; use \"earliest\", \"latest\" or a time like \"2026-11-22T08:00:00Z\""
            )),
        },
    }
}

fn isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "read_committed" => Ok(Isolation::ReadCommitted),
        "read_uncommitted" => Ok(Isolation::ReadUncommitted),
        _ => Err(format!("{text:?} is not an isolation level; use \"read_committed\" or \"read_uncommitted\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Hidden, Server, State};

    const LEAST: &str =
        "[archive]\nurl = \"file:///tmp/a\"\n[kafka]\nbootstrap_servers = \"b:1\"\ntopics = [\"orders\"]\n";

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, "test.toml", &BTreeMap::new())
    }

    fn problems(text: &str) -> String {
        let error = parse(text).expect_err("the text is wrong");
        assert_eq!(error.kind(), Kind::Config);
        error.to_string()
    }

    #[test]
    fn the_least_configuration_has_the_documented_defaults() {
        let config = parse(LEAST).expect("it is enough");
        let kafka = config.kafka.expect("[kafka] is there");
        assert_eq!(config.memory_budget, 192 << 20);
        assert_eq!((kafka.cluster.as_str(), kafka.group_id.as_str()), ("main", "tidelog"));
        assert_eq!((kafka.start, kafka.isolation), (Start::Earliest, Isolation::ReadCommitted));
        assert!(kafka.excludes("__consumer_offsets") && !kafka.excludes("orders"));
        assert_eq!(kafka.segment.max_age, Duration::from_secs(60));
        assert_eq!(kafka.segment.zstd_level, 3);
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_path_constraint_and_way_out() {
        let text = problems(
            "[archive]\nurl = \"/data\"\n[kafka]\ncluster_id = \"\"\nbootstrap_server = \"b:1\"\ntopics = []\nstart = \"yesterday\"\n\
             [kafka.segment]\nmax_bytes = 0\nformat = \"orc\"\nmax_age = \"1\"\n[memory]\nbudget = \"1MiB\"\n[metrics]\n",
        );
        for part in [
            "test.toml has 11 mistakes",
            "archive.url: \"/data\" is a path; write it as file:///data",
            "kafka.bootstrap_servers: is missing; set it",
            "kafka.bootstrap_server: is not a key; did you mean bootstrap_servers?",
            "kafka.topics: is empty; name at least one topic",
            "kafka.cluster_id: \"\" is not a cluster's id; write what",
            "kafka.start: \"yesterday\" is not a start; use",
            "kafka.segment.max_bytes: 0 is not allowed, use 1 KiB or more",
            "kafka.segment.format: \"orc\" is not a format; use \"parquet\" or \"avro\"",
            "kafka.segment.max_age: \"1\" is not a time span; use",
            "memory.budget: 1048576 is not allowed, use 16 MiB or more",
            "metrics: is not a key; the keys here are archive, ",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_environment_sets_any_key_and_its_mistakes_name_the_variable() {
        let environment =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = Config::parse(
            LEAST,
            "test.toml",
            &environment(&[
                ("TIDELOG__KAFKA__BOOTSTRAP_SERVERS", "other:2"),
                ("TIDELOG__KAFKA__TOPICS", "a,b"),
                ("TIDELOG__KAFKA__SEGMENT__MAX_RECORDS", "7"),
                ("TIDELOG__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL"),
            ]),
        );
        let kafka = config.expect("it is valid").kafka.expect("[kafka] is there");
        assert_eq!(kafka.bootstrap_servers, "other:2");
        assert_eq!(kafka.topics, ["a", "b"]);
        assert_eq!(kafka.segment.max_records, 7);
        assert_eq!(kafka.properties["security.protocol"], "SSL");

        let error = Config::parse(LEAST, "test.toml", &environment(&[("TIDELOG__KAFKA__TOPIKS", "a")]))
            .expect_err("no such key");
        assert!(error.to_string().contains("kafka.topiks (set by TIDELOG__KAFKA__TOPIKS): is not a key"), "{error}");
    }

    #[test]
    fn a_secret_comes_from_a_file_or_a_variable() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "s3cret\n").expect("it can be written");
        let text = format!(
            "{LEAST}[kafka.properties]\n\"sasl.password\" = {{ file = {:?} }}\n\"sasl.username\" = {{ env = \"USER_NAME\" }}\n",
            file.path()
        );
        let environment = BTreeMap::from([("USER_NAME".to_owned(), "me".to_owned())]);
        let kafka = Config::parse(&text, "t", &environment).expect("it is valid").kafka.expect("[kafka] is there");
        assert_eq!(
            (kafka.properties["sasl.password"].as_str(), kafka.properties["sasl.username"].as_str()),
            ("s3cret", "me")
        );
        assert!(problems(&text).contains("the environment variable USER_NAME is not set; set it"));
    }

    #[test]
    fn a_property_needs_no_quotes_around_its_name() {
        let text =
            format!("{LEAST}[kafka.properties]\nsecurity.protocol = \"SSL\"\nsasl.password = {{ env = \"P\" }}\n");
        let environment = BTreeMap::from([("P".to_owned(), "p".to_owned())]);
        let kafka = Config::parse(&text, "t", &environment).expect("it is valid").kafka.expect("[kafka] is there");
        assert_eq!(
            (kafka.properties["security.protocol"].as_str(), kafka.properties["sasl.password"].as_str()),
            ("SSL", "p")
        );
        let text = problems(&format!("{LEAST}[kafka.properties]\nsasl.password = [\"secret\"]\n"));
        assert!(
            text.contains("kafka.properties.sasl.password: is not a value") && !text.contains("secret\""),
            "{text}"
        );
    }

    #[test]
    fn of_the_overrides_that_match_the_last_one_counts() {
        let text = format!(
            "{LEAST}[[kafka.topic]]\nmatch = \"^or\"\nformat = \"avro\"\n[[kafka.topic]]\nmatch = \"orders\"\nmax_age = \"5s\"\n"
        );
        let kafka = parse(&text).expect("it is valid").kafka.expect("[kafka] is there");
        assert_eq!(kafka.segment_of("orders").max_age, Duration::from_secs(5));
        assert_eq!(kafka.segment_of("orange").format, Format::Avro);
        assert_eq!(kafka.segment_of("other").format, Format::Parquet);
    }

    #[test]
    fn the_listener_has_defaults_and_takes_no_host_names() {
        let http = |text: &str| parse(&format!("{LEAST}[http]\n{text}"));
        let least = http("").expect("an empty section is enough").http.expect("[http] is there");
        assert_eq!((least.listen.to_string().as_str(), least.admin_token_file), ("127.0.0.1:9095", None));
        assert_eq!(least.max_topic_labels, 200);
        assert!(parse(LEAST).expect("it is valid").http.is_none());
        let all = http("listen = \"[::]:1\"\nadmin_token_file = \"/t\"\nmax_topic_labels = 3\n");
        let all = all.expect("it is valid").http.expect("[http] is there");
        assert_eq!((all.listen.to_string().as_str(), all.max_topic_labels), ("[::]:1", 3));
        for (text, says) in [
            (
                "listen = \"localhost:9095\"",
                "http.listen: \"localhost:9095\" is not an address; use \"127.0.0.1:9095\"",
            ),
            ("listen = \"9095\"", "http.listen: \"9095\" is not an address"),
            ("admin_token_file = \"token\"", "http.admin_token_file: \"token\" is not an absolute path"),
            ("reader_token_file = \"token\"", "http.reader_token_file: \"token\" is not an absolute path"),
            ("max_topic_labels = 0", "http.max_topic_labels: is not allowed, use a whole number of 1 or more"),
            (
                "port = 1",
                "http.port: is not a key; the keys here are admin_token_file, listen, max_topic_labels, reader_token_file",
            ),
        ] {
            let error = http(text).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn credentials_in_an_address_are_refused_and_not_repeated() {
        for url in ["s3://key:hunter2@bucket/x", "file://hunter2@host/x", "ftp://hunter2@x"] {
            let text = problems(&format!("[archive]\nurl = {url:?}\n"));
            assert!(text.contains("archive.url: credentials do not belong into the URL"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        let text = problems(&LEAST.replace("b:1", "a:1,SASL_SSL://me:hunter2@b:1"));
        assert!(text.contains("kafka.bootstrap_servers: credentials do not belong"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        // An @ in a path is no credential.
        assert!(parse("[archive]\nurl = \"file:///tmp/a@b\"\n").is_ok());
    }

    #[test]
    fn state_is_kept_of_all_groups_unless_it_is_said_otherwise() {
        let state = |text: &str| parse(&format!("{LEAST}[state]\n{text}")).expect("valid").state.expect("a section");
        let all = State {
            every: Duration::from_secs(30),
            groups: vec!["^.*".into()],
            exclude_groups: Vec::new(),
            connect: Vec::new(),
            schema_registry: Vec::new(),
        };
        assert_eq!(state(""), all);
        let some = state("every = \"1m\"\ngroups = [\"billing\", \"^etl-\"]\nexclude_groups = [\"^etl-test\"]\n");
        assert_eq!((some.every, some.groups.len(), some.exclude_groups.len()), (Duration::from_secs(60), 2, 1));
        assert_eq!(parse(LEAST).expect("valid").state, None);
    }

    #[test]
    fn clusters_of_connect_have_names_and_workers() {
        let connect = |text: &str| {
            let state = parse(&format!("{LEAST}cluster = \"east\"\n[state]\n{text}")).expect("valid").state;
            state.expect("a section").connect
        };
        let shown = |text: &str| {
            let urls = |server: &Server| server.urls.iter().map(|url| url.as_str().to_owned()).collect();
            connect(text).iter().map(|server| (server.name.clone(), urls(server))).collect::<Vec<(_, Vec<_>)>>()
        };
        let one = |name: &str, urls: &[&str]| (name.to_owned(), urls.iter().map(|url| (*url).to_owned()).collect());
        assert_eq!(shown(""), []);
        assert_eq!(
            shown("connect_url = \"http://a:8083, https://b/path\"\n"),
            [one("east", &["http://a:8083/", "https://b/path"])]
        );
        assert_eq!(
            shown("connect_url = [\"http://a:8083\", \"etl=http://b:1,http://c:1\"]\n"),
            [one("east", &["http://a:8083/"]), one("etl", &["http://b:1/", "http://c:1/"])]
        );
        let [server] = &connect(
            "connect_url = \"http://a:1\"\n[state.connect]\nuser = \"u\"\npassword = \"hunter2\"\nca_file = \"/ca\"\n",
        )[..] else {
            panic!("one server")
        };
        let access = &server.access;
        assert_eq!(
            (access.user.as_deref(), access.password.as_ref().map(Hidden::reveal)),
            (Some("u"), Some("hunter2"))
        );
        assert!(!format!("{server:?}").contains("hunter2"), "{server:?}");
        let text = problems(&format!("{LEAST}[state]\nconnect_url = \"http://me:hunter2@a:1\"\n"));
        assert!(text.contains("state.connect_url: credentials do not belong into the URL"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn mistakes_in_the_section_of_state_are_told() {
        for (text, told) in [
            ("every = \"10ms\"", "state.every: 10ms is not allowed, use 1s or more"),
            ("groups = []", "state.groups: is empty"),
            ("groups = [\"^(\"]", "state.groups: "),
            ("exclude_groups = [\"^(\"]", "state.exclude_groups: "),
            ("connect_url = \"c:8083\"", "state.connect_url: \"c:8083\" is not an address; write http://host:8083"),
            ("connect_url = \"http://c:8083/?a\"", "state.connect_url: is to end with its path"),
            ("connect_url = []", "state.connect_url: is empty"),
            ("connect_url = [\"http://a:1\", \"http://b:1\"]", "state.connect_url: names two main; give each a name"),
            ("connect_url = \"a b=http://c:1\"", "state.connect_url: \"a b\" is no name for a cluster"),
            ("[state.connect]\nuser = \"a\"", "state.connect: says how connect_url is asked, and there is none"),
            (
                "connect_url = \"http://c:1\"\n[state.connect]\npassword = \"a\"",
                "state.connect.password: is that of no user",
            ),
            (
                "connect_url = \"http://c:1\"\n[state.connect]\nca_file = \"a\"",
                "state.connect.ca_file: \"a\" is not an absolute path",
            ),
            ("schema_registry_url = \"r:8081\"", "state.schema_registry_url: \"r:8081\" is not an address"),
            ("evry = \"1s\"", "did you mean every?"),
            ("[retention]\nstate = \"29s\"", "retention.state: 29s is not allowed, use state.every (30s) or more"),
            ("[retention]\nstate = \"0s\"", "retention.state: 0s is not allowed, use 1s or more"),
            (
                "[retention]\nkafka = \"59s\"",
                "retention.kafka: 59s is not allowed, use max_age of segments (1m) or more",
            ),
            ("[retention]\nkafka_bytes = \"7B\"", "retention.kafka_bytes: 7 is not allowed, use 64 MiB or more"),
        ] {
            let problems = problems(&format!("{LEAST}[state]\n{text}\n"));
            assert!(problems.contains(told), "{text}: {problems}");
        }
        let alone = "[archive]\nurl = \"file:///a\"\n[state]\n";
        assert!(problems(alone).contains("there is no section [kafka] nor [postgres]"));
        let of_postgres = "[archive]\nurl = \"file:///a\"\n[postgres]\nurl = \"postgres://a@b/c\"\n[state]\n";
        assert!(parse(of_postgres).expect("slots are state, too").state.is_some());
    }

    #[test]
    fn the_example_configuration_is_valid() {
        let config = parse(include_str!("../../config/tidelog.toml")).expect("the example works as it is");
        assert!(config.kafka.is_some());
    }
}
