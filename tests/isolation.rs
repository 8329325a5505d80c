//! One damaged object never blocks the sound ones: topics whose chains are damaged in every way beside topics that are sound,
//! in the archiver and in every command that reads.
//!
//! ```text
//!   chains written by the test ─► damaged, each in its own way ─► run, ls, files, cat, replay, verify
//!                                                                 ─► the sound ones whole, each damaged one named
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog::manifest::{Chain, Change, Outcome};
use tidelog::store::Store;
use tidelog::stream::{Begin, Format, PartitionRange, StreamId, System, TopicGeneration};

use crate::archive::{Record, Topic, on_disk};
use crate::http::site_with_listener;
use crate::rig::http::Server;
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::program::{self, Home, Output, Program};
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site, ends};

/// How long what is tried again with growing waits may take.
const IN_THE_END: Duration = Duration::from_secs(180);

/// How many entries a chain has after its first: more than one snapshot covers.
const ENTRIES: i64 = 70;

/// How many records the topics hold of which the chains know the first [`ENTRIES`].
const RECORDS: i64 = 100;

/// What happens to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// An entry in the middle is gone.
    MissingEntry,
    /// A digit of an entry is another one.
    FlippedByte,
    /// An entry is no JSON.
    NoJson,
    /// The snapshot is another one than the next entry names.
    Snapshot,
    /// The last entry is of a format to come.
    Newer,
    /// An entry cannot be read: a directory lies in its place.
    Unreadable,
    /// The folder holds something, and no entry.
    Foreign,
}

const DAMAGES: [Damage; 7] = [
    Damage::MissingEntry,
    Damage::FlippedByte,
    Damage::NoJson,
    Damage::Snapshot,
    Damage::Newer,
    Damage::Unreadable,
    Damage::Foreign,
];

impl Damage {
    /// What whoever comes across it says.
    fn words(self) -> &'static str {
        match self {
            Damage::MissingEntry => "00000000000000000066.json is missing",
            Damage::FlippedByte => "00000000000000000067.json",
            Damage::NoJson => "00000000000000000066.json cannot be read",
            Damage::Snapshot => "0000000000000000006",
            Damage::Newer => "is written in format 9",
            Damage::Unreadable => "00000000000000000066.json",
            Damage::Foreign => "00000000000000000000.json is missing",
        }
    }
}

/// An archive's directory.
struct Yard {
    archive: PathBuf,
    store: Store,
}

impl Yard {
    fn new(archive: PathBuf) -> Yard {
        fs::create_dir_all(&archive).expect("a directory");
        let store = on_disk(&archive);
        Yard { archive, store }
    }

    fn chain(&self, topic: &str) -> PathBuf {
        self.archive.join(format!("manifest/kafka/main/{topic}.0"))
    }

    fn entry(&self, topic: &str, number: u64) -> PathBuf {
        self.chain(topic).join(format!("{number:020}.json"))
    }

    /// A chain of [`ENTRIES`] entries, an offset each.
    fn write(&self, topic: &str) {
        let now = || DateTime::<Utc>::from_timestamp_millis(1_795_334_712_345).expect("a time");
        let stream = TopicGeneration::new("main", topic, 0).stream();
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let begin = Begin::topic(None, vec![Some(0)]);
            let mut chain = Chain::begin(&self.store, &stream, begin, "test", now()).await.expect("a chain begins");
            for start in 0..ENTRIES {
                let range = PartitionRange {
                    partition: 0,
                    start,
                    end: start + 1,
                    records: 0,
                    min_timestamp: None,
                    max_timestamp: None,
                };
                let change = Change { empty: vec![range], ..Change::default() };
                let outcome = chain.commit(&change, "test", now()).await.expect("a change is committed");
                assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
            }
        });
    }

    /// Damages a chain; what was there before lies beside the archive.
    fn damage(&self, topic: &str, damage: Damage) {
        let aside = self.aside(topic);
        copy(&self.chain(topic), &aside);
        let edit = |number: u64, from: &str, to: &str| {
            let path = self.entry(topic, number);
            let text = fs::read_to_string(&path).expect("an entry");
            assert!(text.contains(from), "{from} in {text}");
            fs::write(path, text.replacen(from, to, 1)).expect("damage can be done");
        };
        match damage {
            Damage::MissingEntry => fs::remove_file(self.entry(topic, 66)).expect("damage can be done"),
            Damage::FlippedByte => edit(66, "\"writer\":\"test\"", "\"writer\":\"tesu\""),
            Damage::NoJson => fs::write(self.entry(topic, 66), [0; 200]).expect("damage can be done"),
            Damage::Snapshot => edit(64, "\"segments\":0", "\"segments\":1"),
            Damage::Newer => edit(71, "\"format\":1", "\"format\":9"),
            Damage::Unreadable => {
                fs::remove_file(self.entry(topic, 66)).expect("damage can be done");
                fs::create_dir(self.entry(topic, 66)).expect("damage can be done");
            }
            Damage::Foreign => {
                fs::remove_dir_all(self.chain(topic)).expect("damage can be done");
                fs::create_dir(self.chain(topic)).expect("damage can be done");
                fs::write(self.chain(topic).join("notes.txt"), "not ours").expect("damage can be done");
            }
        }
    }

    /// Puts back what was there before the damage.
    fn repair(&self, topic: &str) {
        fs::remove_dir_all(self.chain(topic)).expect("the damaged chain");
        copy(&self.aside(topic), &self.chain(topic));
    }

    fn aside(&self, topic: &str) -> PathBuf {
        self.archive.with_file_name("aside").join(topic)
    }

    /// Things among the chains and the claims that are none.
    fn litter(&self) {
        for folder in ["manifest/kafka/main/lost+found", "manifest/kafka/main/a..b", "manifest/postgres/nonsense"] {
            let folder = self.archive.join(folder);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("00000000000000000000.json"), "{}").expect("a file");
        }
        fs::write(self.archive.join("manifest/kafka/README"), "not ours").expect("a file");
        let claims = self.archive.join("coverage/kafka/main");
        fs::create_dir_all(&claims).expect("a folder");
        fs::write(claims.join("damaged.json"), [0; 100]).expect("a file");
        fs::write(claims.join("newer.json"), r#"{"format":2}"#).expect("a file");
        let foreign = r#"{"format":1,"writer":"gone","at":"2020-01-01T00:00:00Z","streams":{"nonsense":{"0":{"offset":1,"complete_through":"2020-01-01T00:00:00Z"}}}}"#;
        fs::write(claims.join("gone.json"), foreign).expect("a file");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        if file.path().is_dir() {
            copy(&file.path(), &to.join(file.file_name()));
        } else {
            fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
        }
    }
}

// ---- the archiver

/// The end of a topic's only partition, as `ls` of that topic alone says it.
fn end(site: &Site, topic: &str) -> Option<i64> {
    let listing = site.tidelog(&["ls", topic, "--json"]);
    let streams: Value = serde_json::from_str(&listing.stdout).ok()?;
    ends(streams["streams"].as_array()?.first()?).get(&0).copied()
}

fn wait_ends(site: &Site, program: &mut Program, topics: &[&str]) {
    wait_until(&format!("{topics:?} to be archived"), IN_THE_END, || {
        program.assert_running();
        topics.iter().all(|topic| end(site, topic) == Some(RECORDS))
    });
}

pub(crate) fn readiness(server: &Server) -> (u16, String) {
    if !server.is_up() {
        return (0, String::new());
    }
    let answer = server.get("/readyz");
    (answer.status, answer.body)
}

#[test]
fn a_damaged_chain_keeps_only_its_own_topic_from_being_archived() {
    let kafka = shared();
    let sound = [unique("sound"), unique("sound-new")];
    let damaged: Vec<(String, Damage)> =
        DAMAGES.iter().map(|damage| (unique(&format!("{damage:?}").to_lowercase()), *damage)).collect();
    let all: Vec<&str> = sound.iter().chain(damaged.iter().map(|(topic, _)| topic)).map(String::as_str).collect();
    for topic in &all {
        kafka.create_topic(topic, 1, &[]);
        let messages: Vec<_> = (0..RECORDS).map(|n| Message::new(0, "key", &format!("record {n}"))).collect();
        kafka.produce(topic, Codec::None, &messages);
    }
    let settings = Settings { topics: &all, ..Settings::default() };
    let (site, server) = site_with_listener(kafka, &settings, "");
    let yard = Yard::new(site.home().path().join("archive"));
    yard.write(&sound[0]);
    for (topic, damage) in &damaged {
        yard.write(topic);
        yard.damage(topic, *damage);
    }
    yard.litter();

    let mut program = site.start();
    wait_ends(&site, &mut program, &[&sound[0], &sound[1]]);
    for topic in &sound {
        wait_until(&format!("{topic} to be known as complete"), IN_THE_END, || {
            program.assert_running();
            let listing = site.tidelog(&["ls", topic, "--json"]).expect(0).json();
            listing["streams"][0]["complete_through"].is_string()
        });
    }
    for (topic, damage) in &damaged {
        let said = program.output();
        let line = said.lines().find(|line| line.contains(topic) && line.contains(damage.words()));
        assert!(line.is_some(), "{topic} ({damage:?}) is not named in:\n{said}");
    }
    let (status, ready) = readiness(&server);
    assert_eq!(status, 503, "{ready}");
    assert!(damaged.iter().any(|(topic, _)| ready.contains(topic)), "{ready}");
    assert!(
        ready.contains("4 more of kafka_positions fail") && ready.contains("restore the object and the one before it"),
        "{ready}"
    );

    // The alerts see them, too: their series are there from the moment of assignment.
    let metrics = server.get("/metrics").body;
    for (topic, damage) in &damaged {
        let series = |name: &str| {
            let name = format!("tidelog_{name}{{topic={topic:?},partition=\"0\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
        };
        assert!(series("lag_seconds").is_some_and(|lag| lag > 0.0), "{damage:?}:\n{metrics}");
        assert_eq!(series("complete_through_timestamp_seconds"), Some(0.0), "{damage:?}");
    }

    // Each is read on as soon as it is whole again, without a restart, and readiness forgets it.
    for (topic, _) in &damaged {
        yard.repair(topic);
    }
    let repaired: Vec<&str> = damaged.iter().map(|(topic, _)| topic.as_str()).collect();
    wait_ends(&site, &mut program, &repaired);
    wait_until("the archiver to be ready", IN_THE_END, || readiness(&server).0 == 200);
    program.terminate(STOP);
    let report = site.tidelog(&["verify", "--deep", "--json"]).expect(0).json();
    assert_eq!(report["records"], 2 * RECORDS - ENTRIES + repaired.len() as i64 * (RECORDS - ENTRIES), "{report}");
}

#[test]
fn a_damaged_write_ahead_log_keeps_no_topic_from_being_archived() {
    let (kafka, topic) = (shared(), unique("beside-wal"));
    kafka.create_topic(&topic, 1, &[]);
    kafka.produce(&topic, Codec::None, &numbered(0..RECORDS));
    let (site, server) = site_with_listener(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    // Nobody listens there: the archive is looked at first.
    let postgres = "[postgres]\nurl = \"postgres://nobody@127.0.0.1:1/postgres\"\nslot = \"tidelog\"\n[kafka]\n";
    site.reconfigure("[kafka]\n", postgres);
    let yard = Yard::new(site.home().path().join("archive"));
    let chain = yard.archive.join("manifest/postgres/7291");
    fs::create_dir_all(&chain).expect("a folder");
    fs::write(chain.join(format!("{:020}.json", 0)), [0; 100]).expect("damage can be done");
    let mut program = site.start();
    wait_ends(&site, &mut program, &[&topic]);
    wait_until("the damage to be named", IN_THE_END, || {
        program.assert_running();
        let (status, ready) = readiness(&server);
        status == 503 && ready.contains("manifest/postgres/7291") && ready.contains("restore the object")
    });
    program.terminate(STOP);
}

// ---- the commands that read

/// What the readers are tried on: a sound topic of ten records, a topic of which the first generation is damaged and the second
/// is not, a topic whose snapshot's page is gone, one in every other damage, and a Postgres system.
struct Shelf {
    home: Home,
    /// The streams that no command can read whole.
    damaged: Vec<String>,
}

impl Shelf {
    fn new() -> Shelf {
        let home = Home::new();
        let path = home.path().display();
        home.write("tidelog.toml", &format!("[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}\"\n"));
        let yard = Yard::new(home.path().join("archive"));
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let records = |from: i64| (from..from + 10).map(|offset| Record::new(0, offset, 1_000 + offset));
            let (first, second): (Vec<_>, Vec<_>) = (records(0).collect(), records(100).collect());
            Topic::begin(&yard.store, "sound", 0).await.append(Format::Parquet, &first).await;
            Topic::begin(&yard.store, "twice", 1).await.append(Format::Avro, &second).await;
            let system = System { system_id: 7291, wal_segment_size: 16 << 20, server_version: 17 };
            let stream = StreamId::Postgres { system_id: 7291 };
            Chain::begin(&yard.store, &stream, Begin::Postgres(system), "test", tidelog::time::now())
                .await
                .expect("it begins");
        });
        let mut damaged = vec!["kafka/main/twice.0".to_owned()];
        yard.write("twice");
        yard.damage("twice", Damage::MissingEntry);
        for damage in DAMAGES {
            let topic = format!("{damage:?}").to_lowercase();
            yard.write(&topic);
            yard.damage(&topic, damage);
            damaged.push(format!("kafka/main/{topic}.0"));
        }
        yard.litter();
        Shelf { home, damaged }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.home.run(&[&["-c", "tidelog.toml"], args].concat())
    }

    /// Every damaged stream is named, once, and nothing else is.
    fn assert_named(&self, said: &str, said_of: &str) {
        for stream in &self.damaged {
            let named = said.lines().filter(|line| line.contains(&format!("{stream} cannot be read"))).count();
            assert_eq!(named, 1, "{said_of} of {stream}:\n{said}");
        }
        let all = said.lines().filter(|line| line.contains(" cannot be read")).count();
        assert!(all <= self.damaged.len() + 1, "{said_of}:\n{said}");
        assert!(!said.contains("kafka/main/sound.0") && !said.contains("postgres/7291"), "{said_of}:\n{said}");
    }
}

#[test]
fn readers_go_on_with_what_is_sound_and_name_what_is_not() {
    let shelf = Shelf::new();
    let ls = shelf.run(&["ls", "--json"]).expect(3);
    let listing = ls.json();
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|one| one["stream"].as_str().expect("a stream").to_owned()).collect()
    };
    assert_eq!(names(&listing["streams"]), ["kafka/main/sound.0", "kafka/main/twice.1", "postgres/7291"]);
    let mut damaged = shelf.damaged.clone();
    damaged.sort();
    assert_eq!(names(&listing["errors"]), damaged);
    shelf.assert_named(&ls.stderr, "ls");
    let table = shelf.run(&["ls"]).expect(3).stdout;
    assert_eq!(table.matches("  damaged").count(), damaged.len(), "{table}");
    assert!(table.contains("kafka/main/sound "), "{table}");
    // Who asks for what is sound learns nothing of the rest.
    assert!(!shelf.run(&["ls", "sound"]).expect(0).stderr.contains("error"));

    let files = shelf.run(&["files"]).expect(3);
    assert_eq!(files.stdout.lines().count(), 2, "{}", files.stdout);
    shelf.assert_named(&files.stderr, "files");
    let cat = shelf.run(&["cat", "--topic", "^"]).expect(3);
    assert_eq!(cat.stdout.lines().count(), 20, "the later generation of a topic is printed: {}", cat.stdout);
    shelf.assert_named(&cat.stderr, "cat");
    shelf.run(&["cat", "--topic", "sound"]).expect(0);
    assert!(shelf.run(&["cat", "--topic", "missingentry"]).expect(3).stderr.contains("66.json is missing"));

    let replay = shelf.run(&["replay", "--from", "1970-01-01T00:00:00Z", "--to-stdout"]).expect(3);
    assert_eq!(replay.stdout.lines().count(), 10, "of a topic all generations or none: {}", replay.stdout);
    shelf.assert_named(&replay.stderr, "replay");
    let verify = shelf.run(&["verify", "--json"]).expect(3).json();
    let told: BTreeSet<String> = names(&verify["errors"]).into_iter().collect();
    assert_eq!(told.into_iter().collect::<Vec<_>>(), damaged, "{verify}");
    assert_eq!(verify["records"], 20, "{verify}");
}

#[test]
fn a_replay_sends_what_is_sound_and_never_forgets_what_it_left_out() {
    let (shelf, kafka, id) = (Shelf::new(), shared(), unique("partial"));
    let (rename, into) = (format!("^={id}."), kafka.bootstrap());
    let args = |topics: &[&'static str], id: &str| -> Vec<String> {
        let fixed = ["replay", "--from", "1970-01-01T00:00:00Z", "--to", "2000-01-01T00:00:00Z", "--json"];
        let mut args: Vec<String> = fixed.iter().map(ToString::to_string).collect();
        for topic in topics {
            args.extend(["--topics".to_owned(), (*topic).to_owned()]);
        }
        args.extend(["--rename", &rename, "--into", &into, "--id", id].map(str::to_owned));
        args
    };
    let run = |args: Vec<String>| shelf.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let both = args(&["sound", "missingentry"], &id);
    let dry: Vec<String> = both.iter().cloned().chain(["--dry-run".to_owned()]).collect();
    for (round, command) in [dry, both.clone(), both].into_iter().enumerate() {
        let replayed = run(command).expect(3);
        let told = replayed.json()["warnings"].to_string();
        assert!(told.contains("kafka/main/missingentry.0"), "round {round}: {told}");
        assert!(replayed.stderr.contains("all is replayed but missingentry"), "{}", replayed.stderr);
    }
    assert_eq!(kafka.consume_all(&format!("{id}.sound")).len(), 10, "once");
    run(args(&["missingentry"], &unique("alone"))).expect(3);
    // The damaged one comes later, by itself.
    let yard = Yard::new(shelf.home.path().join("archive"));
    yard.repair("missingentry");
    run(args(&["missingentry"], &unique("later"))).expect(0);
}

#[test]
fn a_lost_page_and_a_refused_object_are_in_the_way_of_no_other() {
    let home = Home::new();
    let path = home.path().display();
    home.write("tidelog.toml", &format!("[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}\"\n"));
    let yard = Yard::new(home.path().join("archive"));
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let records: Vec<_> = (0..10).map(|offset| Record::new(0, offset, 1_000 + offset)).collect();
        Topic::begin(&yard.store, "sound", 0).await.append(Format::Parquet, &records).await;
        let mut paged = Topic::begin(&yard.store, "paged", 0).await;
        for offset in 0..ENTRIES {
            paged.append(Format::Avro, &[Record::new(0, offset, 1_000)]).await;
        }
    });
    for topic in ["refused", "closed"] {
        yard.write(topic);
    }
    // A page that is gone alone is made again of its entries.
    fs::remove_dir_all(yard.chain("paged").join("pages")).expect("damage can be done");
    fs::remove_file(yard.entry("paged", 5)).expect("damage can be done");
    let rights = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("rights can be set");
    };
    rights(&yard.entry("refused", 66), 0o000);
    rights(&yard.chain("closed"), 0o000);
    rights(home.path(), 0o755);
    // As root everything can be read: the program runs as somebody else.
    let tidelog = |args: &[&str]| {
        let command = home.command(&[&["-c", "tidelog.toml"], args].concat());
        let mut other = Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).current_dir(home.path());
        other.arg(command.get_program()).args(command.get_args());
        program::run(other)
    };
    let named = |output: &Output, topics: &[&str]| {
        for topic in topics {
            let named = output.stderr.matches(&format!("kafka/main/{topic}.0 cannot be read")).count();
            assert_eq!(named, 1, "{topic}: {}", output.stderr);
        }
    };
    let ls = tidelog(&["ls"]).expect(3);
    assert!(ls.stdout.contains("kafka/main/sound "), "{}", ls.stdout);
    named(&ls, &["refused", "closed"]);
    let files = tidelog(&["files"]).expect(3);
    assert_eq!(files.stdout.lines().count(), 1);
    named(&files, &["paged", "refused", "closed"]);
    let cat = tidelog(&["cat", "--topic", "^"]).expect(3);
    assert_eq!(cat.stdout.lines().count(), 10);
    named(&cat, &["paged", "refused", "closed"]);
    let report = tidelog(&["verify", "--json"]).expect(3).json();
    let told = report["errors"].to_string();
    assert!(["paged", "refused", "closed"].iter().all(|topic| told.contains(&format!("{topic}.0"))), "{report}");
    assert!(!told.contains("sound"), "{report}");
    rights(&yard.chain("closed"), 0o755);
}

// ---- two clusters under one name

pub(crate) fn numbered(numbers: std::ops::Range<i64>) -> Vec<Message> {
    numbers.map(|n| Message::new(0, "key", &format!("record {n}"))).collect()
}

pub(crate) fn cluster() -> Kafka {
    Kafka::start(KafkaOptions::default())
}

/// `check --connect` fails, and what it says of the cluster.
pub(crate) fn checked(site: &Site) -> Value {
    let answers = site.tidelog(&["check", "--connect", "--json"]).expect(2).json();
    let answers = answers["checks"].as_array().expect("answers").clone();
    let failed = answers.into_iter().find(|answer| answer["check"] == "cluster").expect("an answer of the cluster");
    assert_eq!(failed["ok"], false, "{failed}");
    failed
}

/// `run` ends by itself and says why. Gives the id that it found.
pub(crate) fn refused(site: &Site, says: &str) {
    let program = site.start();
    let log = site.home().path().join("refused");
    wait_until("the other cluster to be refused", IN_THE_END, || {
        fs::write(&log, program.output()).expect("a file");
        program.output().contains(says)
    });
    assert_eq!(program.wait(STOP), 2, "{}", fs::read_to_string(&log).expect("what it said"));
}

fn generations(site: &Site, topic: &str) -> Vec<i64> {
    site.ls(topic).iter().map(|stream| stream["records"].as_i64().expect("records")).collect()
}

#[test]
fn two_clusters_under_one_name_never_mix() {
    let (a, b) = (cluster(), cluster());
    let topic = unique("orders");
    for (kafka, records) in [(&a, 500), (&b, 400)] {
        kafka.create_topic(&topic, 1, &[]);
        kafka.produce(&topic, Codec::None, &numbered(0..records));
    }
    b.create_topic("only-there", 1, &[]);
    b.produce("only-there", Codec::None, &numbered(0..10));
    let settings = Settings { topics: &[&topic, "only-there"], ..Settings::default() };
    let site = Site::new(&a.bootstrap(), &settings);
    site.archive(&a, &[&topic]);
    for round in 1..=2 {
        site.reconfigure(&a.bootstrap(), &b.bootstrap());
        refused(&site, "is the Kafka cluster");
        let said = checked(&site);
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(&b.bootstrap())), "{said}");
        assert!(said["hint"].as_str().is_some_and(|hint| hint.contains("kafka.cluster_id = ")), "{said}");
        site.tidelog(&["check"]).expect(0);

        site.reconfigure(&b.bootstrap(), &a.bootstrap());
        a.produce(&topic, Codec::None, &numbered(0..50));
        site.archive(&a, &[&topic]);
        assert_eq!(generations(&site, &topic), [500 + 50 * round], "nothing of the other cluster, nothing twice");
    }
    assert_eq!(site.ls("only-there"), [] as [Value; 0]);
    site.assert_holds(&topic, 0, &a.consume_all(&topic));
    site.assert_sound();

    // Under a name of its own the other one is archived, too.
    site.reconfigure(&a.bootstrap(), &b.bootstrap());
    site.reconfigure("cluster = \"main\"", "cluster = \"other\"");
    site.tidelog(&["check", "--connect"]).expect(0);
    site.archive(&b, &["only-there"]);
}

#[test]
fn a_rebuilt_cluster_goes_on_once_it_is_confirmed() {
    let (kafka, topic) = (cluster(), unique("rebuilt"));
    let fill = |records| {
        kafka.create_topic(&topic, 1, &[]);
        kafka.produce(&topic, Codec::None, &numbered(0..records));
    };
    fill(300);
    let (site, server) = site_with_listener(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    let mut program = site.start();
    site.wait_archived(&kafka, &[&topic], &mut [&mut program]);

    // While the archiver runs: it stays up, and takes nothing.
    kafka.rebuild();
    fill(400);
    wait_until("the rebuilt cluster to be refused", IN_THE_END, || {
        program.assert_running();
        let (status, ready) = readiness(&server);
        status == 503 && ready.contains("is the Kafka cluster") && ready.contains(&topic)
    });
    assert_eq!(generations(&site, &topic), [300]);
    program.terminate(STOP);
    refused(&site, "is the Kafka cluster");
    let hint = checked(&site)["hint"].as_str().expect("a hint").to_owned();
    let id = hint.split('"').nth(1).expect("the id").to_owned();

    // The hint as it stands is the way on.
    site.reconfigure("cluster = \"main\"\n", &format!("cluster = \"main\"\ncluster_id = \"{id}\"\n"));
    site.tidelog(&["check", "--connect"]).expect(0);
    for round in 0..2 {
        let mut program = site.start();
        site.wait_archived(&kafka, &[&topic], &mut [&mut program]);
        program.terminate(STOP);
        assert_eq!(generations(&site, &topic), [300, 400 + 10 * round]);
        kafka.produce(&topic, Codec::None, &numbered(0..10));
    }
    // What is confirmed is that cluster, and no third one.
    kafka.rebuild();
    fill(100);
    refused(&site, "kafka.cluster_id says");
    assert!(checked(&site)["detail"].as_str().is_some_and(|detail| detail.contains(&id)));
    assert_eq!(generations(&site, &topic), [300, 410]);
    site.assert_sound();
}
