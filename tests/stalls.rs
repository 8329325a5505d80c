//! Ready means that it works: whatever keeps records from the archive is named, with the way out, in `/readyz`, in
//! `/api/status` and in `/metrics`, and is gone from there when it is over.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::http::Service;
use crate::rig::kafka::{Kafka, KafkaOptions};
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_for, wait_until};
use crate::site::{STOP, Settings};

/// How long something that happens within seconds on an idle machine may take.
const SOON: Duration = Duration::from_secs(60);

fn produce(kafka: &Kafka, topic: &str, numbers: std::ops::Range<i32>) {
    let messages: Vec<Message> =
        numbers.map(|n| Message::new(0, &format!("key-{n}"), &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::None, &messages);
}

/// The failing task of `/api/status`, once it is there.
fn failing(service: &mut Service, task: &str) -> Value {
    wait_for(&format!("{task} to fail"), SOON, || {
        service.program.assert_running();
        let status = service.server.json("/api/status");
        status["failing"].as_array().expect("what fails").iter().find(|failing| failing["task"] == task).cloned()
    })
}

/// The directory is away, and a file in its place, while `work` goes on.
fn without(directory: &Path, work: impl FnOnce()) {
    let away = directory.with_extension("away");
    fs::rename(directory, &away).expect("it is taken away");
    fs::write(directory, "").expect("a file can be written");
    work();
    fs::remove_file(directory).expect("the file is removed");
    fs::rename(&away, directory).expect("it is brought back");
}

// ---- every loop that retries reports

#[test]
fn what_fails_and_is_tried_again_is_named_by_its_task_until_it_succeeds() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("stall-tasks"));
    kafka.create_topic(&topic, 1, &[]);
    produce(&kafka, &topic, 0..10);
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    let home = service.site.home().path().to_owned();
    let spool =
        fs::read_dir(home.join("spool")).expect("the spool").next().expect("a directory").expect("a name").path();
    let named = |service: &mut Service, task: &str, about: &str| {
        let failure = failing(service, task);
        assert_eq!(
            (failure["about"].as_str(), failure["stops_archiving"].as_bool()),
            (Some(about), Some(true)),
            "{failure}"
        );
        let answer = service.server.get("/readyz");
        assert_eq!(answer.status, 503, "{}", answer.body);
        let reasons = answer.json()["reasons"].to_string();
        assert!(reasons.contains(failure["since"].as_str().expect("a time")), "{reasons} does not tell of {failure}");
        let series = |name: &str| service.metric(&format!("tidelog_task_failing{name}{{task={task:?}}}"));
        assert!(series("").is_some_and(|loops| loops >= 1.0) && series("_since_timestamp_seconds").is_some());
    };
    let mends = |service: &mut Service, task: &str| {
        service.wait_ready();
        let series = |name: &str| service.metric(&format!("tidelog_task_failing{name}{{task={task:?}}}"));
        assert_eq!((series(""), series("_since_timestamp_seconds")), (Some(0.0), None));
    };

    without(&home.join("archive/segments"), || {
        produce(&kafka, &topic, 10..20);
        named(&mut service, "kafka_upload", &topic);
    });
    mends(&mut service, "kafka_upload");
    without(&spool, || {
        produce(&kafka, &topic, 20..30);
        named(&mut service, "kafka_spool", &topic);
    });
    mends(&mut service, "kafka_spool");
    kafka.stop(1);
    named(&mut service, "kafka_ends", "");
    kafka.restart(1);
    mends(&mut service, "kafka_ends");
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    wait_until("nothing to fail", SOON, || service.server.json("/api/status")["failing"] == serde_json::json!([]));
    service.program.terminate(STOP);
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}
