//! A place where tidelog archives: its configuration, its archive, and what its commands say about it.
//!
//! ```text
//!   Kafka ─► Site::start (tidelog run) ─► <home>/archive ─► ls, files, cat, verify, replay
//!     └──────────────────────── is everything there, once? ─────────────┘
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Timestamp;
use serde_json::Value;

use crate::rig::kafka::Kafka;
use crate::rig::program::{self, Home, Output, Program};
use crate::rig::s3::Bucket;
use crate::rig::topics::Record;
use crate::rig::unique;

/// How long the archive may take to catch up on a machine that does other work, too.
const CATCH_UP: Duration = Duration::from_secs(90);

/// How long a clean stop may take: a few uploads, a checkpoint, leaving the group.
pub(crate) const STOP: Duration = Duration::from_secs(25);

/// What a configuration says beside the servers and directories.
#[derive(Clone)]
pub(crate) struct Settings<'a> {
    pub(crate) topics: &'a [&'a str],
    pub(crate) format: &'a str,
    pub(crate) max_age: &'a str,
    pub(crate) max_records: u64,
    pub(crate) properties: &'a [(&'a str, &'a str)],
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Settings { topics: &[], format: "parquet", max_age: "500ms", max_records: 1_000_000, properties: &[] }
    }
}

/// A directory with `tidelog.toml`, `archive` and `spool`.
pub(crate) struct Site {
    home: Home,
    pub(crate) group: String,
    /// The process whose mounts commands see; 0 if they see their own.
    eyes: AtomicU32,
}

impl Site {
    pub(crate) fn new(bootstrap: &str, settings: &Settings<'_>) -> Site {
        let (home, group) = (Home::new(), unique("group"));
        let path = home.path().display();
        let properties: String =
            settings.properties.iter().map(|(name, value)| format!("{name:?} = {value:?}\n")).collect();
        let Settings { topics, format, max_age, max_records, .. } = settings;
        let config = format!(
            r#"[archive]
url = "file://{path}/archive"
spool_dir = "{path}/spool"
[kafka]
cluster = "main"
bootstrap_servers = "{bootstrap}"
group_id = "{group}"
topics = {topics:?}
[kafka.properties]
"topic.metadata.refresh.interval.ms" = "1000"
"reconnect.backoff.max.ms" = "1000"
{properties}[kafka.merge]
enabled = false
[kafka.segment]
format = "{format}"
max_age = "{max_age}"
max_records = {max_records}
"#
        );
        home.write("tidelog.toml", &config);
        Site { home, group, eyes: AtomicU32::new(0) }
    }

    /// Changes the configuration of processes that start from now on.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).expect("the configuration can be read");
        assert!(text.contains(from), "{from} is not in:\n{text}");
        self.home.write("tidelog.toml", &text.replace(from, to));
    }

    /// Segments that were sealed within such a span are merged. Without, none are: when it is looked is drawn, and what a test counts
    /// in a minute would hang on that.
    pub(crate) fn merges(&self, after: &str) {
        self.reconfigure(
            "[kafka.merge]\nenabled = false\n",
            &format!("[kafka.merge]\nafter = {after:?}\ncpu_percent = 100\n"),
        );
    }

    /// Processes that start from now on use the other site's archive, on the disk or in a store.
    pub(crate) fn shares_archive_of(&self, other: &Site) {
        let place = |site: &Site| {
            let text = std::fs::read_to_string(site.config()).expect("the configuration can be read");
            let (_, archive) = text.split_once("[archive]\n").expect("an archive");
            archive.split_once("spool_dir").expect("a spool").0.to_owned()
        };
        self.reconfigure(&place(self), &place(other));
    }

    /// The archive of processes that start from now on lies in a bucket, possibly behind a proxy.
    pub(crate) fn archive_in(&self, bucket: &Bucket) {
        let options: String = bucket.options().iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
        let path = self.home.path().display();
        self.reconfigure(&format!("url = \"file://{path}/archive\""), &format!("url = \"{}/archive\"", bucket.url()));
        self.reconfigure("[kafka]\n", &format!("[archive.options]\n{options}[kafka]\n"));
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// `tidelog run`.
    pub(crate) fn start(&self) -> Program {
        self.home.start(&["-c", "tidelog.toml", "run"])
    }

    /// `tidelog run` by a shell that prepares its machine with `before`, in namespaces of its own: what is mounted there is
    /// gone with the process, and so is the name that the machine is given.
    pub(crate) fn start_after(&self, before: &str) -> Program {
        let tidelog = self.home.command(&["-c", "tidelog.toml", "run"]);
        let mut command = Command::new("unshare");
        let exec = format!("{before} && exec {:?} -c tidelog.toml run", tidelog.get_program());
        command.args(["-m", "-u", "sh", "-ec", &exec]).current_dir(self.home.path());
        for (name, value) in tidelog.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Program::start(command, &self.home.path().join("output")).prepared()
    }

    /// From now on commands see the disks that process `id` sees.
    pub(crate) fn look_through(&self, id: u32) {
        self.eyes.store(id, Ordering::Relaxed);
    }

    /// Any command of the program with this site's configuration, to its end.
    pub(crate) fn tidelog(&self, args: &[&str]) -> Output {
        let command = self.home.command(&[&["-c", &self.config()], args].concat());
        let Some(id) = self.eyes() else { return program::run(command) };
        let mut through = Command::new("nsenter");
        through.args(["-m", "-t", &id.to_string()]).arg(command.get_program()).args(command.get_args());
        program::run(through)
    }

    /// The streams of `tidelog ls --json` for a topic, the oldest generation first. None while nothing is archived.
    pub(crate) fn ls(&self, topic: &str) -> Vec<Value> {
        let listing = self.tidelog(&["ls", "--json"]).expect(0).json();
        let mut streams = listing["streams"].as_array().expect("streams").clone();
        streams.retain(|stream| stream["topic"] == topic);
        streams.sort_by_key(|stream| stream["generation"].as_u64());
        streams
    }

    /// Where the topic's present generation is archived up to, by partition.
    pub(crate) fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.ls(topic).last().map(ends).unwrap_or_default()
    }

    /// Waits until the archive has everything that the topics hold now.
    pub(crate) fn wait_archived(&self, kafka: &Kafka, topics: &[&str], programs: &mut [&mut Program]) {
        let wanted: Vec<(&str, Vec<(i64, i64)>)> =
            topics.iter().map(|topic| (*topic, kafka.watermarks(topic))).collect();
        let is_there = |(topic, marks): &(&str, Vec<(i64, i64)>)| {
            let ends = self.ends(topic);
            (0..).zip(marks).all(|(partition, (first, end))| first == end || ends.get(&partition) >= Some(end))
        };
        let what = format!("the archive to have {wanted:?}");
        let start = Instant::now();
        while !wanted.iter().all(is_there) {
            for program in programs.iter_mut() {
                program.assert_running();
            }
            if start.elapsed() > CATCH_UP {
                let said: Vec<String> = programs.iter().map(|program| program.output()).collect();
                let ends: Vec<_> = topics.iter().map(|topic| self.ends(topic)).collect();
                panic!("waited in vain for {what}; it has {ends:?}; the programs said:\n{}", said.join("\n--\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Archives everything that the topics hold now, and stops.
    pub(crate) fn archive(&self, kafka: &Kafka, topics: &[&str]) {
        let mut program = self.start();
        self.wait_archived(kafka, topics, &mut [&mut program]);
        program.terminate(STOP);
    }

    /// `verify --deep` finds nothing wrong, and the numbers of every chain follow each other. Gives what verify said.
    pub(crate) fn assert_sound(&self) -> Value {
        let report = self.tidelog(&["verify", "--deep", "--json"]).expect(0).json();
        assert_eq!(report["errors"], serde_json::json!([]), "{report}");
        let archive = self.archive_directory();
        let streams = self.tidelog(&["ls", "--json"]).expect(0).json();
        for stream in streams["streams"].as_array().expect("streams") {
            let name = stream["stream"].as_str().expect("a name");
            let files = std::fs::read_dir(archive.join("manifest").join(name)).expect("the chain");
            let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
            let mut numbers: Vec<u64> = names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
            let packs = std::fs::read_dir(archive.join("manifest").join(name).join("packs")).into_iter().flatten();
            let packs = packs
                .filter_map(|pack| Some(pack.ok()?.file_name().to_string_lossy().strip_suffix(".zst")?.to_owned()));
            let firsts: Vec<u64> = packs.filter_map(|first| first.parse().ok()).collect();
            numbers.extend(firsts.into_iter().flat_map(|first| first..first + 512));
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "the chain of {name}");
        }
        report
    }

    fn config(&self) -> String {
        self.home.path().join("tidelog.toml").display().to_string()
    }

    fn eyes(&self) -> Option<u32> {
        Some(self.eyes.load(Ordering::Relaxed)).filter(|id| *id > 0)
    }

    fn archive_directory(&self) -> PathBuf {
        let archive = self.home.path().join("archive");
        match self.eyes() {
            None => archive,
            Some(id) => PathBuf::from(format!("/proc/{id}/root{}", archive.display())),
        }
    }

    /// The archive holds exactly these records of a topic's generation, each once, in order.
    pub(crate) fn assert_holds(&self, topic: &str, generation: u32, expected: &[Record]) {
        let generation = generation.to_string();
        let output = self.tidelog(&["cat", "--topic", topic, "--generation", &generation]).expect(0);
        let mut archived = output.json_lines();
        // A stable sort: what a partition's records follow each other by is the archive's order.
        archived.sort_by_key(|line| line["partition"].as_i64());
        for (number, (line, record)) in archived.iter().zip(expected).enumerate() {
            let text = |bytes: &Option<Vec<u8>>| bytes.clone().map(|bytes| String::from_utf8(bytes).expect("text"));
            assert_eq!(
                (line["partition"].as_i64(), line["offset"].as_i64(), line["key"].as_str(), line["value"].as_str()),
                (
                    Some(i64::from(record.partition)),
                    Some(record.offset),
                    text(&record.key).as_deref(),
                    text(&record.value).as_deref()
                ),
                "record {number} of {topic}"
            );
            let time = chrono::DateTime::parse_from_rfc3339(line["timestamp"].as_str().expect("a time"));
            let time = time.expect("RFC 3339").timestamp_millis();
            assert_eq!(Timestamp::CreateTime(time), record.timestamp, "record {number} of {topic}");
        }
        assert_eq!(archived.len(), expected.len(), "records of {topic} in the archive, and in Kafka");
    }

    /// The committed objects as `tidelog files --json` lists them.
    pub(crate) fn files(&self, topic: &str) -> Vec<Value> {
        let listing = self.tidelog(&["files", topic, "--json"]).expect(0).json();
        listing["files"].as_array().expect("files").clone()
    }

    /// The records between the beginning and now of one topic, sent to another one of the same cluster.
    pub(crate) fn replay(&self, topic: &str, to: &str, more: &[&str]) -> Value {
        let rename = format!("^.*$={to}");
        let args = ["replay", "--topics", topic, "--rename", &rename, "--from", "2000-01-01T00:00:00Z", "--json"];
        self.tidelog(&[&args, more].concat()).expect(0).json()
    }
}

/// The ends of a stream's partitions.
pub(crate) fn ends(stream: &Value) -> BTreeMap<i32, i64> {
    let partitions = stream["partitions"].as_array().expect("partitions");
    let number = |value: &Value| value.as_i64().expect("a number");
    let partition = |value: &Value| i32::try_from(number(&value["partition"])).expect("a partition");
    partitions.iter().map(|at| (partition(at), number(&at["end"]))).collect()
}
