//! Records of a topic at a moment over HTTP: the ones that `cat` prints, by time, and nothing of what they hold without the token.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::http::{READER, SOON, Service, TOKEN, site_with_listener};
use crate::rig::http::{Answer, Server};
use crate::rig::kafka::shared;
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings};

/// When the first record was made: 2026-11-01T00:00:00Z.
const START: i64 = 1_793_491_200_000;

fn ask(server: &Server, topic: &str, query: &str, token: Option<&str>) -> Answer {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", value.as_str())).collect();
    server.request("GET", &format!("/api/streams/{topic}/records?{query}"), &headers)
}

fn shown(server: &Server, topic: &str, from: i64, limit: usize) -> Value {
    let answer = ask(server, topic, &format!("from={}&limit={limit}", tidelog::time::rfc3339(from)), Some(READER));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// What a record is known by, and what it holds.
fn identity(record: &Value) -> Value {
    json!([record["partition"], record["offset"], record["timestamp"], record["key"], record["value"]])
}

fn millis(time: &Value) -> i64 {
    let time = time.as_str().expect("a time");
    chrono::DateTime::parse_from_rfc3339(time).expect("RFC 3339").timestamp_millis()
}

/// What `cat` prints of a topic, by timestamp, partition and offset.
fn catted(service: &Service, topic: &str) -> BTreeMap<(i64, i64, i64), Value> {
    let lines = service.site.tidelog(&["cat", "--topic", topic]).expect(0).stdout;
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let placed = records.map(|record| {
        let time = millis(&record["timestamp"]);
        let number = |name: &str| record[name].as_i64().expect("a number");
        ((time, number("partition"), number("offset")), identity(&record))
    });
    placed.collect()
}

#[test]
fn the_records_of_a_moment_are_those_that_were_archived_by_time_over_all_partitions() {
    let (kafka, topic) = (shared(), unique("moments"));
    kafka.create_topic(&topic, 3, &[("retention.ms", "-1")]);
    // Times that fall, gaps of hours, equal ones, tombstones, keys that are null, and values that are no text.
    let message = |n: i64| Message {
        timestamp: Some(START + n / 40 * 5_400_000 + (n * 7_919 % 600) * 100),
        key: (n % 7 != 0).then(|| format!("key {}", n % 50).into_bytes()),
        value: match n % 11 {
            0 => None,
            1 => Some(vec![0xff, n as u8]),
            _ => Some(format!("record {n} ü").into_bytes()),
        },
        ..Message::new((n * 31 % 3) as i32, "", "")
    };
    let messages: Vec<Message> = (0..900).map(message).collect();
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    for some in messages.chunks(300) {
        kafka.produce(&topic, Codec::Lz4, some);
        service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    }
    let all = catted(&service, &topic);
    assert_eq!(all.len(), 900);

    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let cases = (0..23 * 5_400_000_i64, 1_usize..60);
    runner
        .run(&cases, |(after, limit)| {
            let answer = shown(&service.server, &topic, START + after, limit);
            let week = START + after..START + after + 7 * 86_400_000;
            let within = all.range((week.start, 0, 0)..(week.end, 0, 0));
            let expected: Vec<&Value> = within.map(|(_, record)| record).take(limit).collect();
            let found: Vec<Value> = answer["records"].as_array().expect("a list").iter().map(identity).collect();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            prop_assert_eq!((&answer["masked"], &answer["left_out"]), (&json!(false), &json!([])));
            Ok(())
        })
        .expect("every moment shows what was archived");
    let (mut from, mut met) = (START, BTreeSet::new());
    loop {
        let answer = shown(&service.server, &topic, from, 37);
        let records = answer["records"].as_array().expect("a list");
        met.extend(records.iter().map(|record| identity(record).to_string()));
        from = millis(&answer["until"]);
        if records.len() < 37 {
            break;
        }
    }
    assert_eq!(met.len(), 900, "from page to page none is left out");

    // A segment that is damaged is told, and the others are shown.
    let object = service.site.files(&topic)[0]["url"].as_str().expect("a place").to_owned();
    let bytes = fs::read(&object).expect("the segment");
    fs::write(&object, &bytes[..bytes.len() / 2]).expect("it is cut");
    let answer = shown(&service.server, &topic, START, 200);
    let told = answer["left_out"][0]["object"].as_str().expect("a key");
    assert!(object.ends_with(told) && answer["records"] != json!([]), "{answer}");
    service.program.assert_running();
    service.program.terminate(STOP);
}

#[test]
fn without_the_readers_token_nothing_of_what_records_hold_is_shown() {
    let (kafka, topic) = (shared(), unique("masked"));
    kafka.create_topic(&topic, 1, &[]);
    let secret = "hunter2-hunter2";
    let header = vec![(secret.to_owned(), Some(secret.as_bytes().to_vec()))];
    let long = secret.repeat(2_000);
    kafka.produce(
        &topic,
        Codec::None,
        &[
            Message { headers: header, ..Message::new(0, secret, &long) },
            Message { value: None, ..Message::new(0, secret, "") },
        ],
    );
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    let ask = |query: &str, token| ask(&service.server, &topic, query, token);

    let masked = ask("from=-1h", None);
    assert!(masked.status == 200 && !masked.body.contains("hunter2"), "{masked:?}");
    let records = masked.json();
    assert_eq!((&records["masked"], records["records"].as_array().map(Vec::len)), (&json!(true), Some(2)));
    let first = &records["records"][0];
    assert_eq!(
        (&first["key_bytes"], &first["value_bytes"], &first["header_count"]),
        (&json!(15), &json!(30_000), &json!(1))
    );
    assert_eq!(records["records"][1]["value_bytes"], Value::Null, "a tombstone");

    let open = ask("from=-1h", Some(READER)).json();
    let first = &open["records"][0];
    assert_eq!((&first["key"], &first["headers"]), (&json!(secret), &json!([[secret, secret]])));
    let beginning = first["value"]["beginning"].as_str().expect("it is cut");
    assert!(beginning.len() == 4_096 && long.starts_with(beginning) && first["value_bytes"] == 30_000);
    assert_eq!(open["records"][1]["value"], Value::Null);
    assert!(!service.program.output().contains("hunter2"), "the log says who looked, not what was seen");

    // Whoever may change something may not read for that, and the other way round.
    for token in [TOKEN, "another-token-of-sixteen"] {
        let refused = ask("from=-1h", Some(token));
        assert!(refused.status == 403 && refused.body.contains("http.reader_token_file"), "{refused:?}");
    }
    let changed =
        service.server.request("PUT", "/connectors/kafka/pause", &[("Authorization", &format!("Bearer {READER}"))]);
    assert_eq!(changed.status, 403);
    assert_eq!(service.metric("tidelog_http_refused_total{reason=\"token\"}"), Some(3.0));

    for (query, status, says) in [
        ("", 400, "from"),
        ("from=yesterday", 400, "from: "),
        ("from=-1h&limit=0", 400, "limit: 0 is not allowed, use 1 to 200"),
        ("from=-1h&limit=201", 400, "use 1 to 200"),
        ("from=-1h&limit=x", 400, "limit"),
        ("from=-1h&to=now", 400, "to"),
    ] {
        let answer = ask(query, Some(READER));
        assert!(
            answer.status == status && answer.json()["message"].as_str().is_some_and(|said| said.contains(says)),
            "{query}: {answer:?}"
        );
    }
    let unknown = service.server.get("/api/streams/nothing-of-that-name/records?from=-1h");
    assert_eq!(unknown.status, 404, "{unknown:?}");
    let nothing = ask("from=2030-01-01T00:00:00Z", None).json();
    assert_eq!((&nothing["records"], &nothing["until"]), (&json!([]), &json!("2030-01-08T00:00:00.000Z")));
    service.program.terminate(STOP);
}

#[test]
fn without_a_file_for_the_readers_token_no_record_is_shown() {
    let (kafka, topic) = (shared(), unique("unread"));
    kafka.create_topic(&topic, 1, &[]);
    let (site, server) = site_with_listener(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    let reader = site.home().path().join("reader");
    fs::set_permissions(&reader, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("its rights");
    let refused = site.tidelog(&["check"]).expect(2);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(
        said.contains("http.reader_token_file: ") && said.contains("(mode 0644)") && !said.contains(READER),
        "{said}"
    );
    let line = |file: &Path| format!("reader_token_file = {:?}\n", file.display().to_string());
    site.reconfigure(&line(&reader), "");
    let mut program = site.start();
    wait_until("the listener", SOON, || {
        program.assert_running();
        server.is_up()
    });
    for token in [None, Some(READER), Some(TOKEN)] {
        let answer = ask(&server, &topic, "from=-1h", token);
        assert!(answer.status == 403 && answer.body.contains("http.reader_token_file is not set"), "{answer:?}");
    }
    program.terminate(STOP);
}
