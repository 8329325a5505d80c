//! Small segments become large ones while records come, a replay reads, and the archiver is killed now and then: what anybody reads
//! stays the same.

use std::path::Path;

use serde_json::Value;
use tidelog::stream::Format;
use tidelog::tasks::Task;

use crate::archive::{Record, Topic, on_disk};
use crate::http::{SOON, site_at};
use crate::kafka::read_by;
use crate::loops::is_told;
use crate::rig::compare::contents;
use crate::rig::kafka::shared;
use crate::rig::program::Program;
use crate::rig::records::Random;
use crate::rig::topics::{Codec, Message, PATIENCE};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};
use crate::wal::may_mount;

const EACH: i32 = 20;

fn segments(site: &Site, topic: &str) -> i64 {
    site.ls(topic)[0]["segments"].as_i64().expect("a number")
}

/// How many entries of a chain merge, and how many segments the others have added.
fn merged_and_added(archive: &Path, topic: &str) -> (usize, usize) {
    let chain = archive.join(format!("manifest/kafka/main/{topic}.0"));
    let files = std::fs::read_dir(chain).expect("the chain").map(|file| file.expect("a file").path());
    let entries = files.filter(|file| file.extension().is_some_and(|kind| kind == "json"));
    let entries: Vec<Value> =
        entries.map(|file| serde_json::from_slice(&std::fs::read(file).expect("an entry")).expect("JSON")).collect();
    let merges = entries.iter().filter(|entry| entry["kind"] == "merge").count();
    (merges, entries.iter().filter_map(|entry| Some(entry["segments"].as_array()?.len())).sum())
}

fn stays_the_same(format: &str, reader: &str, rounds: i32) {
    assert_eq!(Task::KafkaMerge.name(), "kafka_merge");
    let (kafka, topic) = (shared(), unique("merged"));
    kafka.create_topic(&topic, 2, &[]);
    let settings = Settings { topics: &[&topic], max_age: "200ms", format, ..Settings::default() };
    let (site, server) = site_at(&kafka.bootstrap(), &settings, "");
    // Longer than two rounds take on a busy machine, so that each span has something to merge.
    site.merges("20s");
    // While it cannot tell the time of the store, nothing is merged, and that is told.
    let holds = site.home().path().join("archive/holds");
    std::fs::create_dir_all(site.home().path().join("archive")).expect("a directory");
    std::fs::write(&holds, "").expect("a file in its place");
    let mut program: Program = site.start();
    wait_until("that nothing is merged to be told", PATIENCE, || {
        program.assert_running();
        server.is_up() && is_told(&server, Task::KafkaMerge, "the merging of archived topics is put off")
    });
    std::fs::remove_file(&holds).expect("removed");

    let mut reading = None;
    for round in 0..rounds {
        let message = |n: i32| Message::new(n % 2, "key", &format!("record {n}"));
        let records: Vec<Message> = (round * EACH..(round + 1) * EACH).map(message).collect();
        kafka.produce(&topic, Codec::None, &records);
        site.wait_archived(kafka, &[&topic], &mut [&mut program]);
        if round % 4 == 3 {
            // Wherever it is: in a file of the spool, between upload and entry, behind it.
            program.kill();
            program = site.start();
        }
        if round == rounds / 2 {
            let args = ["-c", "tidelog.toml", "replay", "--all", "--topics", &topic, "--to-stdout", "--rate", "20/s"];
            reading = Some((site.home().start(&args), (round + 1) * EACH));
        }
    }
    let archive = site.home().path().join("archive");
    let (_, added) = merged_and_added(&archive, &topic);
    assert!(added >= rounds as usize, "{added}");
    // One that stands alone in its span stays.
    wait_until("much of it to be merged", SOON, || {
        program.assert_running();
        segments(&site, &topic) as usize * 4 <= added * 3
    });
    let status = server.json("/api/status")["kafka"]["merge"].clone();
    assert!(status["damaged"] == 0, "{status}");
    let expected = kafka.consume_all(&topic);
    assert_eq!(expected.len(), (rounds * EACH) as usize);
    site.assert_holds(&topic, 0, &expected);
    let report = site.assert_sound();
    assert_eq!(report["records"], rounds * EACH, "{report}");
    let report = site.tidelog(&["verify", "--deep", "--against-source", "--json"]).expect(0).json();
    assert_eq!(report["errors"], serde_json::json!([]), "held against the source, it is what it was: {report}");
    assert_eq!(read_by(reader, &site, &topic), contents(kafka, &topic), "as {reader} reads what files lists");
    let files = site.files(&topic);
    assert_eq!(files.len() as i64, segments(&site, &topic));
    let by_time = |option: &str| site.tidelog(&["cat", "--topic", &topic, option, "-1h"]).expect(0).json_lines().len();
    assert_eq!((by_time("--from"), by_time("--to")), (expected.len(), 0));

    // What was replayed meanwhile.
    let (mut reading, least) = reading.expect("it was begun");
    wait_until("the replay to end", PATIENCE, || !reading.is_running());
    let lines = reading.output().matches("\"offset\":").count();
    assert!(lines >= least as usize, "{lines} of at least {least}: {}", reading.output());
    assert_eq!(reading.wait(PATIENCE), 0);
    let target = unique("merged-again");
    site.replay(&topic, &target, &[]);
    assert_eq!(contents(kafka, &target), contents(kafka, &topic));
    let (merges, added) = merged_and_added(&archive, &topic);
    assert!(merges > 0 && (segments(&site, &topic) as usize) < added, "{merges} {added}");
    program.terminate(STOP);
}

#[test]
fn small_segments_become_large_ones_while_everything_else_goes_on_and_nothing_changes() {
    stays_the_same("parquet", "duckdb", 16);
}

#[test]
fn small_avro_segments_become_large_ones_and_nothing_changes() {
    stays_the_same("avro", "fastavro", 8);
}

/// What a process takes at the most, in KiB, until all segments are merged, or for a few seconds where none are.
fn peak(site: &Site, merges: bool) -> u64 {
    let mut program = site.start();
    if merges {
        let is_small = |file: &Value| file["url"].as_str().expect("a URL").contains("-test-");
        wait_until("all to be merged", PATIENCE * 3, || {
            program.assert_running();
            !site.files("large").iter().any(is_small)
        });
    } else {
        std::thread::sleep(std::time::Duration::from_secs(5)); // what it begins with is there then
    }
    let peak = program.peak_kib();
    program.terminate(STOP);
    peak
}

/// Without a broker: what merges waits for none.
#[test]
fn merging_takes_no_more_than_64_mib_however_much_there_is_and_however_small_it_was_stored() {
    let site = Site::new("127.0.0.1:1", &Settings { topics: &["large"], ..Settings::default() });
    let (runtime, mut random) = (tokio::runtime::Runtime::new().expect("a runtime"), Random::new(1));
    let store = on_disk(&site.home().path().join("archive"));
    let mut topic = runtime.block_on(Topic::begin(&store, "large", 0));
    let mut next = 0;
    let mut append = |format, records: i64, value: &mut dyn FnMut() -> Vec<u8>| {
        let record = |offset| Record { value: Some(value()), ..Record::new(0, offset, offset) };
        runtime.block_on(topic.append(format, &(next..next + records).map(record).collect::<Vec<_>>()));
        next += records;
    };
    for format in [Format::Parquet, Format::Avro] {
        // 96 MiB that cannot be made smaller, and 150 MB that become next to nothing.
        (0..12).for_each(|_| append(format, 128, &mut || random.bytes(64 << 10)));
        (0..5).for_each(|_| append(format, 30_000, &mut || vec![b'x'; 1_000]));
    }
    let without = peak(&site, false);
    let before = site.ls("large")[0]["segments"].clone();
    site.merges("6s");
    let with = peak(&site, true);
    println!("{} MiB with merging, {} MiB without", with >> 10, without >> 10);
    assert!(with <= without + (64 << 10), "{with} KiB with merging, {without} KiB without");
    assert!(site.ls("large")[0]["segments"].as_u64() < before.as_u64());
    site.assert_sound();
}

/// Without a broker, too.
#[test]
fn a_volume_that_is_full_puts_merging_off_and_it_goes_on_once_there_is_room() {
    if !may_mount() {
        return;
    }
    let site = Site::new("127.0.0.1:1", &Settings { topics: &["full"], ..Settings::default() });
    site.merges("6s");
    let (runtime, mut random) = (tokio::runtime::Runtime::new().expect("a runtime"), Random::new(2));
    let store = on_disk(&site.home().path().join("archive"));
    let mut topic = runtime.block_on(Topic::begin(&store, "full", 0));
    for segment in 0..12 {
        let record = |offset| Record { value: Some(random.bytes(16 << 10)), ..Record::new(0, offset, offset) };
        let records: Vec<Record> = (segment * 10..segment * 10 + 10).map(record).collect();
        runtime.block_on(topic.append(Format::Parquet, &records));
    }
    let before = site.tidelog(&["cat", "--topic", "full"]).expect(0).stdout;
    let mount =
        "mv archive built && mkdir archive && mount -t tmpfs -o size=6m tmpfs archive && cp -r built/. archive/";
    let mut program = site.start_after(mount);
    wait_until("the program to begin", PATIENCE, || {
        program.assert_running();
        program.output().contains("no broker can be reached")
    });
    // Of 6 MiB the segments take 2, and the ballast what is left, long before the first span is old enough.
    let archive = format!("/proc/{}/root{}", program.id(), site.home().path().join("archive").display());
    let ballast = Path::new(&archive).join("ballast");
    assert!(std::fs::write(&ballast, vec![0; 8 << 20]).is_err(), "the volume is full");
    wait_until("merging to be put off", PATIENCE, || {
        program.assert_running();
        program.output().contains("the merging of archived topics is put off")
    });
    site.look_through(program.id());
    assert_eq!(site.tidelog(&["cat", "--topic", "full"]).expect(0).stdout, before, "nothing is lost of it");
    assert_eq!(segments(&site, "full"), 12);
    std::fs::remove_file(&ballast).expect("removed");
    wait_until("all to be merged", PATIENCE, || {
        program.assert_running();
        segments(&site, "full") < 12
    });
    assert_eq!(site.tidelog(&["cat", "--topic", "full"]).expect(0).stdout, before);
    let report = site.assert_sound();
    assert_eq!(report["orphans"], 0, "{report}");
    program.terminate(STOP);
}
