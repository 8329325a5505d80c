//! Merging: whichever step a merger ends at, every record is there once, and the next one goes on. There is no broker: what merges waits
//! for none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;

use tidelog::stream::Format;

use super::{Fault, Met, Plan, live, shuffled};
use crate::archive::{Record, Topic, on_disk};
use crate::rig::program::Program;
use crate::rig::records::Random;
use crate::rig::topics::PATIENCE;
use crate::rig::wait_until;
use crate::site::{STOP, Settings, Site};

/// What a merger passes.
pub(super) const STEPS: &[&str] = &[
    "segment.bytes",
    "segment.seal",
    "segment.put",
    "segment.answer",
    "merge.entry",
    "checkpoint.put",
    "checkpoint.answer",
    "page.put",
    "page.answer",
    "snapshot.put",
    "snapshot.answer",
    "segment.delete",
    "pack.put",
    "pack.answer",
    "page.delete",
    "checkpoint.delete",
    "snapshot.delete",
];

/// Of these, what it passes that packs old entries of a chain.
const OF_PACKS: &[&str] = &["pack.put", "pack.answer", "page.delete", "checkpoint.delete", "snapshot.delete"];

/// How many segments wait to be merged in a life.
const SMALL: usize = 4;

struct Case {
    site: Site,
    topic: Topic,
    runtime: Runtime,
    records: Vec<Record>,
    skipped: i64,
}

impl Case {
    fn new(format: Format) -> Case {
        let site = Site::new("127.0.0.1:1", &Settings { topics: &["orders"], ..Settings::default() });
        site.merges("6s");
        let runtime = Runtime::new().expect("a runtime");
        let store = on_disk(&site.home().path().join("archive"));
        let mut case = Case {
            topic: runtime.block_on(Topic::begin_with(&store, "orders", 0, 3)),
            site,
            runtime,
            records: Vec::new(),
            skipped: 0,
        };
        case.append(format, 2);
        case
    }

    fn append(&mut self, format: Format, segments: usize) {
        self.runtime.block_on(self.topic.reopen());
        for _ in 0..segments {
            let first = self.records.len() as i64;
            let record =
                |n: i64| Record::new((n % 3) as i32, n / 3, 1_000_000 + n * 10 - if n % 7 == 0 { 500 } else { 0 });
            let records: Vec<Record> = (first..first + 6).map(record).collect();
            self.runtime.block_on(self.topic.append(format, &records));
            self.records.extend(records);
        }
    }

    fn is_merged(&self) -> bool {
        self.site.files("orders").iter().all(|file| !file["url"].as_str().expect("a URL").contains("-test-"))
    }

    /// All of it is there, once and in order, and nothing is damaged.
    fn judge(&self) {
        self.site.assert_sound();
        let lines = self.site.tidelog(&["cat", "--topic", "orders"]).expect(0).json_lines();
        for partition in 0..3 {
            let of = |line: &&serde_json::Value| line["partition"] == partition;
            let found: Vec<_> = lines.iter().filter(of).map(|line| (&line["offset"], &line["value"])).collect();
            let held: Vec<_> = self.records.iter().filter(|record| record.partition == partition).collect();
            assert_eq!(found.len(), held.len(), "of partition {partition}");
            for ((offset, value), record) in found.iter().zip(held) {
                assert_eq!(
                    (offset.as_i64(), value.as_str().map(str::as_bytes)),
                    (Some(record.offset), record.value.as_deref())
                );
            }
        }
    }

    /// One life of a merger, that is to end or fail at a step.
    fn life(&mut self, format: Format, fault: &Fault, met: &Met) {
        self.append(format, SMALL);
        if fault.step.starts_with("page") || fault.step.starts_with("snapshot") {
            // The entry that says so stands behind a snapshot.
            let missing = 63 - self.topic.head() % 64;
            self.append(format, usize::try_from(missing).expect("small"));
        }
        live(self.site.home(), &["-c", "tidelog.toml", "run"], fault, met, || self.is_merged());
        self.judge();
    }

    /// Deletion ends on the way, and is gone on with: nothing but what was replaced goes.
    fn delete(&mut self, format: Format, met: &Met) {
        self.append(format, SMALL);
        self.runtime.block_on(self.topic.merge());
        for passing in [1, 3] {
            let text = format!("segment.delete=kill@{passing}");
            let fault = Fault { step: "segment.delete".to_owned(), text, ends: true };
            live(self.site.home(), &["-c", "tidelog.toml", "expire"], &fault, met, || false);
            self.judge();
        }
        self.site.tidelog(&["expire"]).expect(0);
        self.judge();
        let report = self.site.assert_sound();
        assert_eq!((&report["segments"], &report["orphans"]), (&1.into(), &0.into()), "{report}");
    }

    fn chain(&self) -> PathBuf {
        self.site.home().path().join("archive/manifest/kafka/main/orders.0")
    }

    /// The numbers of the entries that have objects of their own.
    fn entries(&self) -> Vec<u64> {
        let names = std::fs::read_dir(self.chain()).expect("the chain").flatten().map(|entry| entry.file_name());
        let mut numbers: Vec<u64> =
            names.filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    fn packs(&self) -> usize {
        std::fs::read_dir(self.chain().join("packs")).map_or(0, |packs| {
            packs.flatten().filter(|entry| !entry.file_name().to_string_lossy().contains('#')).count()
        })
    }

    /// Adds entries without a record.
    fn skip(&mut self, until: u64) {
        self.runtime.block_on(self.topic.reopen());
        while self.topic.head() < until {
            let offset = self.topic.head() as i64;
            self.runtime.block_on(self.topic.skip(3, self.skipped..offset + 1));
            self.skipped = offset + 1;
        }
    }

    /// What is in a folder was written two hours before.
    fn date_back(folder: &Path) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten().filter(|entry| entry.path().is_file()) {
            let file = std::fs::File::options().write(true).open(entry.path()).expect("it opens");
            let written = file.metadata().and_then(|of| of.modified()).expect("a date");
            file.set_modified(written - Duration::from_secs(7_200)).expect("it can be dated back");
        }
    }

    /// Old entries are packed and their objects deleted, with an end at each step.
    fn pack(&mut self, random: &mut Random, met: &Met) {
        self.skip(1_300);
        Self::date_back(&self.chain());
        let args = ["-c", "tidelog.toml", "run"];
        for step in ["pack.put", "pack.answer"] {
            live(self.site.home(), &args, &Fault::kill(step), met, || false);
            self.judge();
        }
        let all = self.entries();
        live(self.site.home(), &args, &Fault::kill("page.delete"), &Met::default(), || self.packs() == 2);
        assert_eq!(self.entries(), all, "the chain does not say so yet, and the packs are young");
        Self::date_back(&self.chain().join("packs"));
        self.skip(1_400);
        for step in ["page.delete", "checkpoint.delete", "snapshot.delete"] {
            let text = format!("{step}=kill@{}", 1 + random.below(4));
            live(self.site.home(), &args, &Fault { step: step.to_owned(), text, ends: true }, met, || false);
            self.judge();
        }
        let is_gone = || self.entries().into_iter().filter(|number| *number < 1_024).eq([0, 64, 128, 256, 512]);
        let mut program: Program = self.site.start();
        wait_until("the objects of what is packed to be gone", PATIENCE, || {
            program.assert_running();
            is_gone()
        });
        program.terminate(STOP);
        self.judge();
        assert!(self.site.assert_sound()["orphans"] == 0);
        self.skip(1_410);
        self.judge();
    }
}

#[test]
fn whichever_step_a_merger_ends_at_every_record_is_there_once_and_the_next_one_goes_on() {
    let plan = Plan::from_environment();
    plan.run(STEPS, |seed, met| {
        println!("crashes of merging: seed {seed}");
        let mut random = Random::new(seed);
        let format = if random.below(2) == 0 { Format::Parquet } else { Format::Avro };
        let apart = |step: &&str| *step == "segment.delete" || OF_PACKS.contains(step);
        let steps: Vec<&str> = STEPS.iter().copied().filter(|step| !apart(step)).collect();
        let mut case = Case::new(format);
        for step in shuffled(&steps, &mut random) {
            let fault = if plan.is_long { Fault::draw(step, &mut random) } else { Fault::kill(step) };
            case.life(format, &fault, met);
        }
        let spool = case.site.home().path().join("spool");
        let directories = || std::fs::read_dir(&spool).expect("the spool").flatten().map(|entry| entry.file_name());
        let of_killed: Vec<_> = directories().collect();
        let mut program: Program = case.site.start();
        wait_until("all to be merged", PATIENCE, || {
            program.assert_running();
            case.is_merged()
        });
        program.terminate(STOP);
        case.judge();
        let left: Vec<_> = directories().filter(|name| of_killed.contains(name)).collect();
        assert!(left.is_empty(), "directories of killed processes in the spool: {left:?}");
        Case::new(format).delete(format, met);
        Case::new(format).pack(&mut random, met);
    });
}
