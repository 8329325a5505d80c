//! Nothing that fails within the archiver is passed over in silence: it is tried again and named, or ends the process.

use std::fs;
use std::path::{Path, PathBuf};

use crate::http::Service;
use crate::rig::kafka::shared;
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_for};
use crate::site::{STOP, Settings};
use crate::stalls::{failing, without};

/// The segments in a spool.
fn sealed(spool: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(spool).expect("the spool").flatten().map(|entry| entry.path());
    let files = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten().map(|entry| entry.path());
    files.filter(|file| file.extension().is_some_and(|kind| kind == "segment")).collect()
}

/// A bit of a segment turns while it waits in the spool for a store that is away.
fn damage_the_spool(format: &str) {
    let (kafka, topic) = (shared(), unique("spool-disk"));
    kafka.create_topic(&topic, 1, &[]);
    let produce = |from: usize| {
        let all: Vec<Message> =
            (from..from + 100).map(|n| Message::new(0, &format!("k{n}"), &format!("value {n}"))).collect();
        kafka.produce(&topic, Codec::None, &all);
    };
    produce(0);
    // A killed process is soon out of its group.
    let properties: &[(&str, &str)] = &[("session.timeout.ms", "6000")];
    let settings = Settings { topics: &[&topic], format, properties, ..Settings::default() };
    let mut service = Service::start(kafka, &settings, "");
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    let home = service.site.home().path().to_owned();
    without(&home.join("archive/segments"), || {
        produce(100);
        failing(&mut service, "kafka_upload");
        let files = wait_for("a segment in the spool", STOP, || {
            Some(sealed(&home.join("spool"))).filter(|all| !all.is_empty())
        });
        for file in files {
            let mut bytes = fs::read(&file).expect("a segment");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).expect("it can be written over");
        }
    });
    let said = wait_for("the damage to be named", STOP * 4, || {
        service.program.assert_running();
        let answer = service.server.get("/readyz");
        Some(answer.body).filter(|said| answer.status == 503 && said.contains("is damaged: its sha256 is"))
    });
    assert!(said.contains("archive.spool_dir"), "{said}");
    assert_eq!(service.site.ends(&topic), [(0, 100)].into(), "nothing of it is archived");
    // The way out that it names.
    service.program.kill();
    service.site.archive(kafka, &[&topic]);
    service.site.assert_sound();
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

#[test]
fn what_a_disk_made_of_a_segment_is_named_and_never_archived() {
    damage_the_spool("parquet");
    damage_the_spool("avro");
}
