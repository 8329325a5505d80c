//! Topics: every record that the brokers have is archived once, whichever step the archiver ends at.

use tidelog::manifest::{Chain, Change};
use tidelog::stream::{PartitionRange, TopicGeneration};

use super::{Fault, Met, Plan, live, shuffled};
use crate::archive::on_disk;
use crate::rig::kafka::{Kafka, shared};
use crate::rig::records::Random;
use crate::rig::topics::{Codec, End, Message};
use crate::rig::unique;
use crate::site::{STOP, Settings, Site};
use crate::state::commit;

/// What an archiver of topics passes.
pub(super) const STEPS: &[&str] = &[
    "segment.bytes",
    "segment.seal",
    "segment.put",
    "segment.answer",
    "begin.put",
    "begin.answer",
    "checkpoint.put",
    "checkpoint.answer",
    "page.put",
    "page.answer",
    "snapshot.put",
    "snapshot.answer",
    "group.commit",
    "group.revoke",
    "coverage.put",
    "coverage.answer",
    "state_version.put",
    "state_version.answer",
    "state_checkpoint.put",
    "state_checkpoint.answer",
    "expire.entry",
];

/// Those of them that `make test` tries, one life each.
const FEW: &[&str] = &[
    "segment.bytes",
    "segment.put",
    "segment.answer",
    "checkpoint.put",
    "checkpoint.answer",
    "page.put",
    "snapshot.answer",
    "group.commit",
    "group.revoke",
    "expire.entry",
];

const PARTITIONS: i32 = 3;

/// The group whose positions are kept as state.
fn reader(site: &Site) -> String {
    format!("{}-reader", site.group)
}

struct Case {
    site: Site,
    topic: String,
    produced: i32,
}

impl Case {
    fn new(kafka: &Kafka) -> Case {
        let topic = unique("crashes");
        kafka.create_topic(&topic, PARTITIONS, &[]);
        // A static member is in its group again at once.
        let properties = [("group.instance.id", "one"), ("session.timeout.ms", "6000")];
        let settings = Settings {
            topics: &[&topic],
            properties: &properties,
            max_age: "300ms",
            max_records: 25,
            ..Settings::default()
        };
        let site = Site::new(&kafka.bootstrap(), &settings);
        let reader = reader(&site);
        site.reconfigure(
            "[kafka.segment]\n",
            &format!("[state]\nevery = \"1s\"\ngroups = [{reader:?}]\n[kafka.segment]\n"),
        );
        let config = std::fs::read_to_string(site.home().path().join("tidelog.toml")).expect("the configuration");
        let member = "\"group.instance.id\" = ";
        std::fs::write(
            site.home().path().join("other.toml"),
            config.replace(&format!("{member}\"one\""), &format!("{member}\"other\"")),
        )
        .expect("written");
        Case { site, topic, produced: 0 }
    }

    fn produce(&mut self, kafka: &Kafka, count: i32) {
        let numbers = self.produced..self.produced + count;
        let message = |n: i32| Message::new(n % PARTITIONS, &format!("key-{}", n % 10), &format!("record {n}"));
        kafka.produce(&self.topic, Codec::Lz4, &numbers.map(message).collect::<Vec<_>>());
        self.produced += count;
    }

    fn is_archived(&self, kafka: &Kafka) -> bool {
        let ends = self.site.ends(&self.topic);
        (0..).zip(kafka.watermarks(&self.topic)).all(|(partition, (_, end))| ends.get(&partition) >= Some(&end))
    }

    /// Brings the chain to where its next entry but a snapshot is none: by offsets that an aborted transaction took, one an entry.
    fn grow_to_a_snapshot(&mut self, kafka: &Kafka) {
        self.produce(kafka, 3);
        self.site.archive(kafka, &[&self.topic]);
        let archive = self.site.home().path().join("archive");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let stream = TopicGeneration::new("main", &self.topic, 0).stream();
            let mut chain =
                Chain::open(&on_disk(&archive), &stream).await.expect("a sound chain").expect("it has begun");
            let missing = 63 - i64::try_from(chain.head() % 64).expect("small");
            if missing == 0 {
                return;
            }
            let start = chain.position(0).map_or(0, |at| at.end);
            let messages: Vec<_> = (0..missing).map(|n| Message::new(0, "key", &format!("aborted {n}"))).collect();
            kafka.produce_transaction(&self.topic, &messages, End::Abort);
            for start in start..start + missing {
                let none = PartitionRange {
                    partition: 0,
                    start,
                    end: start + 1,
                    records: 0,
                    min_timestamp: None,
                    max_timestamp: None,
                };
                let change = Change { empty: vec![none], ..Change::default() };
                chain.commit(&change, "test", tidelog::time::now()).await.expect("committed");
            }
            assert_eq!(chain.head() % 64, 63);
        });
    }

    /// One life, that is to end or fail at a step.
    fn life(&mut self, kafka: &Kafka, fault: &Fault, met: &Met) {
        if fault.step.starts_with("page") || fault.step.starts_with("snapshot") {
            self.grow_to_a_snapshot(kafka);
        }
        self.produce(kafka, 60);
        if fault.step.starts_with("state") {
            // The archiver's own group is no part of the state.
            commit(kafka, &reader(&self.site), &self.topic, self.produced.into(), "");
        }
        let run = ["-c", "tidelog.toml", "run"];
        let mut other = None;
        live(self.site.home(), &run, fault, met, || {
            let is_service = ["coverage", "state", "group"].iter().any(|of| fault.step.starts_with(of));
            if fault.step == "group.revoke" && other.is_none() && self.is_archived(kafka) {
                // Another member takes some of the partitions.
                other = Some(self.site.home().start(&["-c", "other.toml", "run"]));
            }
            // What does not hang on records comes in its own time.
            (!is_service || !fault.ends) && self.is_archived(kafka)
        });
    }

    /// Nothing is lost, nothing comes twice, nothing is left over.
    fn judge(&self, kafka: &Kafka) {
        self.site.archive(kafka, &[&self.topic]);
        let report = self.site.assert_sound();
        assert_eq!(report["gaps"], serde_json::json!([]), "{report}");
        let held = kafka.consume_all(&self.topic);
        assert_eq!(held.len(), usize::try_from(self.produced).expect("a count"));
        self.site.assert_holds(&self.topic, 0, &held);
        let spool = std::fs::read_dir(self.site.home().path().join("spool")).expect("the spool");
        let left: Vec<_> = spool.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "directories of killed processes in the spool: {left:?}");
    }

    /// Retention dies before its entry, before its answer and behind it; the archive goes on where it was.
    fn expire(&mut self, kafka: &Kafka, met: &Met) {
        let path = self.site.home().path().join("tidelog.toml");
        let config = std::fs::read_to_string(&path).expect("the configuration");
        std::fs::write(&path, format!("{config}[retention]\nkafka = \"1s\"\n")).expect("written");
        let ends = self.site.ends(&self.topic);
        std::thread::sleep(std::time::Duration::from_secs(2)); // all of it is older than a second then
        for step in ["expire.entry", "checkpoint.put", "checkpoint.answer"] {
            live(self.site.home(), &["-c", "tidelog.toml", "expire"], &Fault::kill(step), met, || false);
            self.site.assert_sound();
        }
        let again = self.site.tidelog(&["expire", "--json"]).expect(0).json();
        assert_eq!(again["kafka"][0]["records"], 0, "the entry was there although nobody was told: {again}");
        assert_eq!(self.site.ends(&self.topic), ends);
        assert_eq!(self.site.ls(&self.topic)[0]["records"], 0);
        std::fs::write(&path, config).expect("written");
        self.produce(kafka, 30);
        let mut program = self.site.start();
        self.site.wait_archived(kafka, &[&self.topic], &mut [&mut program]);
        program.terminate(STOP);
        assert_eq!(self.site.tidelog(&["cat", "--topic", &self.topic]).expect(0).json_lines().len(), 30);
        self.site.assert_sound();
    }
}

#[test]
fn whichever_step_the_archiver_ends_at_every_record_is_archived_once() {
    let plan = Plan::from_environment();
    let steps = if plan.is_long { STEPS } else { FEW };
    plan.run(steps, |seed, met| {
        println!("crashes of Kafka: seed {seed}");
        let (kafka, mut random) = (shared(), Random::new(seed));
        let mut case = Case::new(kafka);
        let begin = steps.iter().copied().filter(|step| step.starts_with("begin"));
        let rest: Vec<&str> =
            steps.iter().copied().filter(|step| !step.starts_with("begin") && *step != "expire.entry").collect();
        // A chain begins once: these are only met while it has not.
        let all: Vec<&str> = begin.chain(shuffled(&rest, &mut random)).collect();
        for step in all {
            let fault = match plan.is_long && !step.starts_with("begin") {
                true => Fault::draw(step, &mut random),
                false => Fault::kill(step),
            };
            case.life(kafka, &fault, met);
        }
        case.judge(kafka);
        case.expire(kafka, met);
    });
}
