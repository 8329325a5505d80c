//! What is expired of topics: by the time of archiving, never what is read, and archiving goes on where it was.

use serde_json::{Value, json};
use tidelog::tasks::Task;

use crate::http::{SOON, Service, site_at};
use crate::loops::is_told;
use crate::rig::kafka::shared;
use crate::rig::topics::{Codec, Message, PATIENCE};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};

/// Timestamps of 2001: how old records say that they are decides nothing.
fn produce(topic: &str, from: i32, many: i32) {
    let message = |n: i32| Message::new(n % 2, "key", &format!("record {n}"));
    shared().produce(topic, Codec::None, &(from..from + many).map(message).collect::<Vec<_>>());
}

fn keep(site: &Site, kafka: &str) {
    keep_with(site, &format!("[retention]\nkafka = {kafka:?}\n"));
}

/// What the topic itself has, where all others have `kafka`.
fn keep_of(site: &Site, topic: &str, own: &str, kafka: &str) {
    let own = format!("[[kafka.topic]]\nmatch = {topic:?}\nretention = {own:?}\n");
    keep_with(site, &format!("{own}[retention]\nkafka = {kafka:?}\n"));
}

/// Replaces the end of the configuration.
fn keep_with(site: &Site, end: &str) {
    const MARK: &str = "# what is kept\n";
    let path = site.home().path().join("tidelog.toml");
    let config = std::fs::read_to_string(&path).expect("the configuration");
    let rest = config.split(MARK).next().expect("the rest");
    std::fs::write(&path, format!("{rest}{MARK}{end}")).expect("written");
}

fn expire(site: &Site, args: &[&str]) -> Value {
    site.tidelog(&[&["expire", "--json"], args].concat()).expect(0).json()["kafka"][0].clone()
}

#[test]
fn records_are_expired_by_the_time_of_archiving_and_never_while_they_are_read() {
    assert_eq!(Task::KafkaMaintenance.name(), "kafka_upkeep");
    let (kafka, topic) = (shared(), unique("retained"));
    kafka.create_topic(&topic, 2, &[]);
    produce(&topic, 0, 40);
    let (site, server) = site_at(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() }, "");
    site.archive(kafka, &[&topic]);
    keep(&site, "1h");
    assert_eq!((expire(&site, &[])["segments"].clone(), site.ls(&topic)[0]["records"].clone()), (json!(0), json!(40)));
    let ends = site.ends(&topic);
    keep_of(&site, &topic, "1s", "1h");
    wait_until("all to be old", SOON, || expire(&site, &["--dry-run"])["kept_records"] == 0);
    keep_of(&site, &topic, "forever", "1s");
    assert_eq!(expire(&site, &[]), Value::Null, "of a topic that is kept for ever nothing is looked at");
    keep_of(&site, &topic, "1s", "1h");
    assert_eq!(site.ls(&topic)[0]["records"], 40, "a dry run changes nothing");

    // A replay that is under way keeps what it reads, to its end.
    let mut reading = site.home().start(&[
        "-c",
        "tidelog.toml",
        "replay",
        "--all",
        "--topics",
        &topic,
        "--to-stdout",
        "--rate",
        "10/s",
    ]);
    let holds = site.home().path().join("archive/holds/kafka/main");
    let held = || {
        std::fs::read_dir(&holds).is_ok_and(|mut files| {
            files.any(|file| file.expect("a file").path().extension().is_some_and(|kind| kind == "json"))
        })
    };
    wait_until("the replay to hold what it reads", SOON, held);
    let said = expire(&site, &[]);
    assert_eq!((&said["segments"], &said["held"], &said["kept_records"]), (&json!(0), &json!(true), &json!(40)));
    wait_until("the replay to end", PATIENCE, || !reading.is_running());
    assert_eq!(reading.output().matches("\"offset\":").count(), 40, "{}", reading.output());
    assert_eq!(reading.wait(PATIENCE), 0);
    assert!(!held(), "nothing is held any more");

    let said = expire(&site, &[]);
    assert_eq!((&said["records"], &said["held"], &said["kept_records"]), (&json!(40), &json!(false), &json!(0)));
    assert_eq!(expire(&site, &[])["segments"], 0);
    let row = site.ls(&topic)[0].clone();
    assert_eq!((&row["records"], &row["min_time"], &row["gaps"]), (&json!(0), &Value::Null, &json!([])), "{row}");
    assert_eq!(site.ends(&topic), ends);
    let told = "retention expired older records; nothing of it is kept";
    let cat = site.tidelog(&["cat", "--topic", &topic]).expect(0);
    assert!(cat.json_lines().is_empty() && cat.stderr.contains(told), "{}", cat.stderr);
    let replay = site.tidelog(&["replay", "--all", "--topics", &topic, "--to-stdout", "--dry-run"]).expect(0);
    assert!(replay.stderr.contains(told), "{}", replay.stderr);
    let one = ["cat", "--topic", &topic, "--partition", "1", "--offsets", "3..5"];
    assert!(site.tidelog(&one).expect(0).stderr.contains("expired what lies before offset 20"));
    assert_eq!(site.tidelog(&["verify", "--json"]).expect(0).json()["errors"], json!([]));

    // An archiver goes on where the archive was, and says while it cannot expire.
    keep(&site, "1h");
    std::fs::remove_dir_all(site.home().path().join("archive/holds")).expect("removed");
    std::fs::write(site.home().path().join("archive/holds"), "").expect("a file in its place");
    let program = site.start();
    let mut service = Service { site, server, program };
    wait_until("the maintenance to be told", PATIENCE, || {
        service.program.assert_running();
        service.server.is_up() && is_told(&service.server, Task::KafkaMaintenance, "is put off")
    });
    std::fs::remove_file(service.site.home().path().join("archive/holds")).expect("removed");
    produce(&topic, 40, 10);
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);
    let lines = service.site.tidelog(&["cat", "--topic", &topic]).expect(0).json_lines();
    let mut offsets: Vec<(i64, i64)> = lines
        .iter()
        .map(|line| (line["partition"].as_i64().expect("a partition"), line["offset"].as_i64().expect("an offset")))
        .collect();
    offsets.sort_unstable();
    let expected: Vec<(i64, i64)> =
        (0..2).flat_map(|partition| (20..25).map(move |offset| (partition, offset))).collect();
    assert_eq!(offsets, expected);
    service.site.assert_sound();
}

/// What `expire` says of a topic: what goes, what stays, and whether it is read.
fn said(site: &Site, args: &[&str]) -> (u64, u64, u64, bool) {
    let said = expire(site, args);
    let number = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("{name} of {said}"));
    (number("segments"), number("kept_records"), number("kept_bytes"), said["held"] == true)
}

#[test]
fn what_lies_beyond_the_size_is_expired_and_a_replay_over_it_ends_right() {
    let (kafka, topic) = (shared(), unique("bounded"));
    kafka.create_topic(&topic, 2, &[]);
    let (site, server) = site_at(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() }, "");
    site.reconfigure("max_age = \"500ms\"\n", "max_age = \"500ms\"\nmax_bytes = \"1KiB\"\n");
    // Five runs, of which each leaves a segment.
    for from in (0..100).step_by(20) {
        produce(&topic, from, 20);
        site.archive(kafka, &[&topic]);
    }
    let (ends, row) = (site.ends(&topic), site.ls(&topic)[0].clone());
    let (stored, segments) =
        (row["stored_bytes"].as_u64().expect("a size"), row["segments"].as_u64().expect("a number"));
    assert!(segments >= 5, "{row}");
    let keep = |site: &Site, own: &str, general: &str| {
        let own = format!("[[kafka.topic]]\nmatch = {topic:?}\nmax_bytes = \"1KiB\"\nretention_bytes = {own}\n");
        keep_with(site, &format!("{own}[retention]\nkafka_bytes = {general}\n"));
    };
    keep(&site, "\"unlimited\"", "1024");
    assert_eq!(expire(&site, &[]), Value::Null, "of a topic that is kept whatever its size nothing is looked at");
    keep(&site, &stored.to_string(), "1024");
    assert_eq!(said(&site, &["--dry-run"]), (0, 100, stored, false), "just the size is kept");
    let half = stored / 2;
    keep(&site, &half.to_string(), "1024");
    let (going, left, kept, _) = said(&site, &["--dry-run"]);
    assert!(
        0 < going && half <= kept && kept < half + stored / segments * 2,
        "{going} of {segments}, {kept} of {stored} stay"
    );
    assert_eq!(site.ls(&topic)[0]["records"], 100, "a dry run changes nothing");

    // A replay that is under way keeps what it reads, to its end.
    let replay = ["-c", "tidelog.toml", "replay", "--all", "--topics", &topic, "--to-stdout", "--rate", "20/s"];
    let mut reading = site.home().start(&replay);
    let holds = site.home().path().join("archive/holds/kafka/main");
    let is_hold = |file: std::fs::DirEntry| file.path().extension().is_some_and(|kind| kind == "json");
    let held = || std::fs::read_dir(&holds).is_ok_and(|mut files| files.any(|file| file.is_ok_and(is_hold)));
    wait_until("the replay to hold what it reads", SOON, held);
    assert_eq!(said(&site, &[]), (0, 100, stored, true));
    wait_until("the replay to end", PATIENCE, || !reading.is_running());
    assert_eq!(reading.output().matches("\"offset\":").count(), 100, "{}", reading.output());
    assert_eq!(reading.wait(PATIENCE), 0);

    // Of two with different sizes each gives up by its own.
    assert_eq!(said(&site, &[]), (going, left, kept, false));
    keep(&site, &stored.to_string(), "1024");
    assert_eq!(said(&site, &[]), (0, left, kept, false), "the larger one brings nothing back");
    let lines = site.tidelog(&["cat", "--topic", &topic]).expect(0).json_lines();
    assert_eq!(lines.len() as u64, left);
    // Of each partition the newest stay, and nothing stays that was archived in a run before that of something that went.
    let firsts = [0, 1].map(|partition| {
        let offsets = lines.iter().filter(|line| line["partition"] == partition);
        let mut offsets: Vec<i64> = offsets.map(|line| line["offset"].as_i64().expect("an offset")).collect();
        offsets.sort_unstable();
        let first = offsets.first().copied().unwrap_or(50);
        assert_eq!(offsets, (first..50).collect::<Vec<_>>(), "of partition {partition}");
        first
    });
    let run_that_went = firsts.iter().map(|first| (first - 1) / 10).max();
    let run_that_stays = firsts.iter().map(|first| first / 10).min();
    assert!(run_that_went <= run_that_stays, "{firsts:?}");
    assert_eq!(site.ends(&topic), ends);

    // The service does so by itself, and archives on.
    keep(&site, "1024", "1024");
    let program = site.start();
    let mut service = Service { site, server, program };
    let fewer = || service.site.ls(&topic)[0]["records"].as_u64().is_some_and(|records| records < left);
    wait_until("the service to expire", PATIENCE, fewer);
    produce(&topic, 100, 10);
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);
    service.site.assert_sound();
}
