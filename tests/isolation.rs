//! One damaged object never blocks the sound ones: topics whose chains are damaged in every way beside topics that are sound,
//! in the archiver and in every command that reads.
//!
//! ```text
//!   chains written by the test ─► damaged, each in its own way ─► run, ls, files, cat, replay, verify
//!                                                                 ─► the sound ones whole, each damaged one named
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog::manifest::{Chain, Change, Outcome};
use tidelog::store::Store;
use tidelog::stream::{Begin, PartitionRange, TopicLife};

use crate::archive::on_disk;
use crate::http::site_with_listener;
use crate::rig::http::Server;
use crate::rig::kafka::shared;
use crate::rig::program::Program;
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
            Damage::Newer => "is written in format 2",
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
        let stream = TopicLife::new("main", topic, 0).stream();
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
            Damage::Newer => edit(71, "\"format\":1", "\"format\":2"),
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

fn readiness(server: &Server) -> (u16, String) {
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
    assert!(ready.contains("more topics") && ready.contains("restore the object"), "{ready}");

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
