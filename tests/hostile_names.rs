//! Names and texts that somebody else has written into the archive, against the built program: what is no name is refused, nothing
//! else is touched for it, and no terminal obeys.
//!
//! ```text
//!   chains and backups written by the test ─► names changed in the objects ─► ls, files, cat, verify, replay, expire, restore-postgres
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidelog::stream::Format;

use crate::archive::{Record, Topic, on_disk};
use crate::postgres_restore::Place;
use crate::rig::kafka::shared;
use crate::rig::postgres::Version;
use crate::rig::program::{Home, Output};
use crate::rig::s3::moto;
use crate::rig::topics::{Codec, Message};
use crate::rig::unique;
use crate::site::{STOP, Settings, Site};

/// What a terminal must not get, in one text: ESC, BEL, DEL, C1, marks of direction, a line that looks like one of ours.
const HOSTILE: &str =
    "\u{1b}]0;title\u{7}\u{1b}[2J\u{7f}\u{9b}31m\u{202e}\u{2067}\u{200f}\u{61c}\nforged: all is well\r";

/// The name of a folder that can be listed, all the same.
const FOLDER: &str = "\u{9b}2J\u{202e}port = 1 #";

fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Nothing in what it said moves anything on a terminal, or has a line that is not ours.
fn assert_tame(output: &Output) {
    for said in [&output.stdout, &output.stderr] {
        assert!(!said.contains(is_unsafe), "{said:?}");
        let forged = said.lines().find(|line| line.starts_with("forged") || line.starts_with("port = "));
        assert_eq!(forged, None, "{said:?}");
    }
}

/// The only entry of a topic that names a segment.
fn entry(home: &Home, topic: &str) -> PathBuf {
    home.path().join(format!("archive/manifest/kafka/main/{topic}.0/00000000000000000001.json"))
}

/// Puts other text in the place of a key, as JSON writes it.
fn rename(file: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(file).expect("an object");
    let (old, new) = (serde_json::json!(old).to_string(), serde_json::json!(new).to_string());
    assert!(text.contains(&old), "{old} in {text}");
    fs::write(file, text.replace(&old, &new)).expect("it can be written");
}

fn home() -> Home {
    let home = Home::new();
    let archive = home.path().join("archive");
    fs::create_dir(&archive).expect("a directory");
    let config =
        format!("[archive]\nurl = \"file://{}\"\nspool_dir = \"{}/spool\"\n", archive.display(), home.path().display());
    home.write("tidelog.toml", &config);
    home
}

#[test]
fn keys_that_no_tidelog_writes_are_refused_by_every_reader() {
    let (home, runtime) = (home(), tokio::runtime::Runtime::new().expect("a runtime"));
    let store = on_disk(&home.path().join("archive"));
    let archive = |topic: &str| {
        runtime.block_on(async {
            let mut topic = Topic::begin(&store, topic, 0).await;
            topic.append(Format::Parquet, &[Record::new(0, 0, 1_000)]).await
        })
    };
    let sound = archive("sound");
    // The bytes are there under each of these keys, as far as a disk has such a file: nothing but the key is wrong.
    let keys: [&dyn Fn(&str) -> String; 9] = [
        &|own| own.replace("segments/", "segments/../segments/"),
        &|own| format!("/{own}"),
        &|_| "/etc/passwd".to_owned(),
        &|own| format!("{own}\nsegments/kafka/forged.parquet"),
        &|own| own.replace("test", HOSTILE),
        &|own| own.replace("test", "\u{202e}tset"),
        &|own| own.replace("generation=0", "generation=+0"),
        &|own| own.replace("date=", "date=%2e%2e"),
        &|_| sound.clone(),
    ];
    let topics: Vec<String> = (0..keys.len()).map(|n| format!("wrong-{n}")).collect();
    for (topic, key) in topics.iter().zip(keys) {
        let own = archive(topic);
        let key = key(&own);
        let place = home.path().join("archive").join(key.trim_start_matches('/'));
        if !place.exists() && place.parent().is_some_and(|folder| fs::create_dir_all(folder).is_ok()) {
            fs::copy(home.path().join("archive").join(&own), &place).ok();
        }
        rename(&entry(&home, topic), &own, &key);
    }
    let run = |args: &[&str]| {
        let output = home.run(&[&["-c", "tidelog.toml"], args].concat()).expect(3);
        assert_tame(&output);
        output
    };
    let listed = run(&["files"]);
    assert_eq!(listed.stdout, format!("{}/archive/{sound}\n", home.path().display()));
    for topic in &topics {
        assert_eq!(
            listed.stderr.matches(&format!("kafka/main/{topic}.0 cannot be read")).count(),
            1,
            "{}",
            listed.stderr
        );
    }
    let json = run(&["files", "--json"]).json();
    assert_eq!(
        (json["files"].as_array().map(Vec::len), json["errors"].as_array().map(Vec::len)),
        (Some(1), Some(keys.len()))
    );
    assert!(run(&["ls"]).stdout.contains("sound"));
    run(&["ls", "--json"]).json();
    assert_eq!(run(&["verify", "--json"]).json()["segments"], 1);
    run(&["verify"]);
    for topic in &topics {
        assert_eq!(run(&["cat", "--topic", topic]).stdout, "");
    }
    assert_eq!(run(&["cat", "--topic", "^."]).json_lines().len(), 1);
    assert_eq!(
        run(&["replay", "--topics", "^.", "--from", "1970-01-01T00:00:00Z", "--to", "now", "--to-stdout"])
            .json_lines()
            .len(),
        1
    );
}

#[test]
fn what_records_and_folders_say_is_printed_and_obeyed_by_no_terminal() {
    let (home, runtime) = (home(), tokio::runtime::Runtime::new().expect("a runtime"));
    let archive = home.path().join("archive");
    let store = on_disk(&archive);
    let record = Record {
        key: Some(HOSTILE.into()),
        value: Some(format!("\u{2028}{HOSTILE}").into()),
        headers: vec![(HOSTILE.into(), Some(HOSTILE.into()))],
        ..Record::new(0, 0, 1_000)
    };
    runtime.block_on(async { Topic::begin(&store, "orders", 0).await.append(Format::Avro, &[record]).await });
    // A chain in a folder that is not named like one, and claims whose writer is another one.
    let foreign = archive.join(format!("manifest/kafka/main/{FOLDER}.0"));
    fs::create_dir(&foreign).expect("a folder");
    fs::copy(entry(&home, "orders"), foreign.join("00000000000000000000.json")).expect("a copy");
    let claims = archive.join("coverage/kafka/main");
    fs::create_dir_all(&claims).expect("a folder");
    let lie = serde_json::json!({ "format": 1, "writer": HOSTILE, "at": "2026-01-01T00:00:00Z", "streams": {} });
    fs::write(claims.join("a41c.json"), lie.to_string()).expect("claims");
    let run = |args: &[&str], status| {
        let output = home.run(&[&["-c", "tidelog.toml", "--log-format", "text"], args].concat()).expect(status);
        assert_tame(&output);
        output
    };
    let lines = run(&["cat", "--topic", "orders"], 0);
    assert_eq!(lines.stdout.lines().count(), 1, "{:?}", lines.stdout);
    let line = lines.json();
    assert_eq!((line["key"].as_str(), line["headers"][0][1].as_str()), (Some(HOSTILE), Some(HOSTILE)));
    assert_eq!(line["value"], format!("\u{2028}{HOSTILE}"));
    let listed = run(&["ls"], 0);
    assert!(
        listed.stderr.contains("\\u{1b}]0;title\\u{7}") && listed.stderr.contains("\\u{202e}"),
        "{}",
        listed.stderr
    );
    run(&["verify"], 0);
    // What a user types comes back in errors.
    for typed in [HOSTILE, &format!("^({HOSTILE}")] {
        let refused = home.run(&["-c", "tidelog.toml", "cat", "--topic", typed]);
        assert!(matches!(refused.status, Some(1 | 2)), "{refused:?}");
        assert_tame(&refused);
    }
}

/// Dates the files of a folder two days back.
fn make_old(folder: &Path) {
    for file in fs::read_dir(folder).expect("a folder") {
        let file = fs::File::options().write(true).open(file.expect("a file").path()).expect("a file");
        let written = file.metadata().and_then(|facts| facts.modified()).expect("a date");
        file.set_modified(written - Duration::from_secs(2 * 86_400)).expect("it can be dated back");
    }
}

#[test]
fn a_base_backup_with_a_name_that_is_none_writes_no_setting_and_expires_nothing() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let taken = || place.back_up()["name"].as_str().expect("a name").to_owned();
    let (good, other, mixed) = (taken(), taken(), taken());
    place.wait_archived();
    place.stop_archiving();
    let systems = place.home.path().join("archive/backups/postgres");
    let backups = fs::read_dir(systems).expect("backups").next().expect("a system").expect("a folder").path();
    let hostile = backups.join(FOLDER);
    // Whole, and consistent in itself: its name is what is wrong.
    fs::rename(backups.join(&other), &hostile).expect("renamed");
    let commit = hostile.join("backup.json");
    let text = fs::read_to_string(&commit).expect("a backup");
    let escaped = serde_json::json!(FOLDER).to_string();
    fs::write(&commit, text.replace(&other, escaped.trim_matches('"'))).expect("changed");
    // A sound name, and a part out of the folder of another backup, which would be read, and deleted with it.
    let commit = backups.join(&mixed).join("backup.json");
    let text = fs::read_to_string(&commit).expect("a backup");
    fs::write(&commit, text.replacen(&format!("/{mixed}/base.tar"), &format!("/{good}/base.tar"), 1)).expect("changed");

    let data = place.home.path().join("data");
    let run = |args: &[&str], status| {
        let output = place.tidelog(args).expect(status);
        assert_tame(&output);
        output
    };
    let into = data.display().to_string();
    for name in [FOLDER, &mixed] {
        run(&["restore-postgres", "--into", &into, "--backup", name], 3);
        assert!(!data.join("postgresql.auto.conf").exists(), "{name:?}");
    }
    run(&["restore-postgres", "--into", &into], 0);
    for name in ["postgresql.auto.conf", "tidelog.restored.conf", "tidelog.recovery.conf"] {
        let text = fs::read_to_string(data.join(name)).expect("a configuration");
        assert!(!text.lines().any(|line| line.starts_with("port")) && !text.contains('\u{9b}'), "{text}");
    }
    let shown = run(&["ls"], 3).stderr;
    assert!(shown.contains("port = 1") && shown.contains(&mixed), "{shown}");
    // The folder's name, the part of another backup, and that the chain names a backup that is not there any more.
    let errors = run(&["verify", "--json"], 3).json()["errors"].clone();
    assert_eq!(errors.as_array().map(Vec::len), Some(3), "{errors}");

    // Left behind by nobody: what lies in a folder without a backup's name is not ours to delete.
    let killed = backups.join("20260101T000000Z-a41c");
    fs::create_dir(&killed).expect("a folder");
    fs::write(killed.join("base.tar.0000000.zst"), "x").expect("a part");
    fs::remove_file(hostile.join("backup.json")).expect("removed");
    make_old(&hostile);
    make_old(&killed);
    place.home.write(
        "tidelog.toml",
        &(fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration")
            + "[retention]\npostgres = \"7d\"\n"),
    );
    // It names what it passes over.
    run(&["expire"], 3);
    assert!(hostile.join("base.tar.0000000.zst").exists() && !killed.join("base.tar.0000000.zst").exists());
}

/// Folders in which tidelog lists, one below the other and beside each other.
const LISTED: [&str; 10] = [
    "manifest",
    "manifest/kafka",
    "manifest/kafka/main",
    "manifest/kafka/main/sound.0",
    "manifest/postgres",
    "segments",
    "segments/kafka/cluster=main/topic=sound",
    "coverage/kafka/main",
    "backups/postgres/system=7",
    "holds/postgres/7",
];

/// Every reading command gives the sound topic, and names what it passes over once, on a line.
fn assert_passed_over(home: &Home, sound: &str) {
    for (command, given) in [
        (&["ls"][..], "sound"),
        (&["files"], sound),
        (&["cat", "--topic", "sound"], "partition 0 offset 0"),
        (&["verify", "--deep"], ""),
        (&["replay", "--topics", "sound", "--from", "1970-01-01T00:00:00Z", "--to-stdout"], "partition 0 offset 0"),
    ] {
        let output = home.run(&[&["-c", "tidelog.toml"], command].concat()).expect(0);
        assert_tame(&output);
        assert!(output.stdout.contains(given), "{command:?}: {}", output.stdout);
        let lines = output.stderr.lines().filter(|line| line.contains("cannot be one of this archive"));
        let told: Vec<String> =
            lines.map(|line| line.replace(line.split('"').nth(3).unwrap_or_default(), "")).collect();
        let once: std::collections::BTreeSet<&String> = told.iter().collect();
        assert!(!told.is_empty(), "{command:?} names nothing: {}", output.stderr);
        assert_eq!(once.len(), told.len(), "{command:?} repeats itself: {told:#?}");
    }
}

#[test]
fn files_that_can_have_no_key_are_in_nobody_s_way() {
    use std::os::unix::ffi::OsStrExt as _;
    let (home, runtime) = (home(), tokio::runtime::Runtime::new().expect("a runtime"));
    let archive = home.path().join("archive");
    let sound = runtime.block_on(async {
        let mut topic = Topic::begin(&on_disk(&archive), "sound", 0).await;
        topic.append(Format::Parquet, &[Record::new(0, 0, 1_000)]).await
    });
    for folder in LISTED.map(|folder| archive.join(folder)) {
        fs::create_dir_all(folder.join("a\u{1b}[2Jfolder")).expect("a directory");
        fs::write(folder.join("a\u{1b}[2Jfolder/file"), "x").expect("a file");
        fs::write(folder.join("a line\nfeed"), "x").expect("a file");
        fs::write(folder.join(std::ffi::OsStr::from_bytes(b"latin-1 \xe9")), "x").expect("a file");
        std::os::unix::fs::symlink("..", folder.join("back")).expect("a link");
        std::os::unix::fs::symlink("itself", folder.join("itself")).expect("a link");
        std::os::unix::fs::symlink("nowhere", folder.join("gone")).expect("a link");
    }
    assert_passed_over(&home, &sound);
}

#[test]
fn pipes_and_sockets_in_the_place_of_objects_are_damage_and_nobody_waits_for_them() {
    let (home, runtime) = (home(), tokio::runtime::Runtime::new().expect("a runtime"));
    let archive = home.path().join("archive");
    let made = |topic: &str| {
        let segment = runtime.block_on(async {
            let mut topic = Topic::begin(&on_disk(&archive), topic, 0).await;
            topic.append(Format::Parquet, &[Record::new(0, 0, 1_000)]).await
        });
        (entry(&home, topic), archive.join(segment))
    };
    made("sound");
    let pipe = |place: &Path| {
        fs::remove_file(place).expect("it was there");
        assert!(std::process::Command::new("mkfifo").arg(place).status().expect("mkfifo").success());
    };
    pipe(&made("an-entry").0);
    pipe(&made("a-pipe").1);
    let (behind, (_, linked)) = (made("behind").1, made("a-link"));
    pipe(&behind);
    fs::remove_file(&linked).expect("it was there");
    std::os::unix::fs::symlink(behind, &linked).expect("a link");
    let (_, socket) = made("a-socket");
    // The name of a socket is short.
    let short = home.path().join("s");
    let _listening = std::os::unix::net::UnixListener::bind(&short).expect("a socket");
    fs::rename(&short, &socket).expect("it can be moved");
    let (_, device) = made("a-device");
    fs::remove_file(&device).expect("it was there");
    std::os::unix::fs::symlink("/dev/zero", &device).expect("a link");
    for command in [
        &["cat", "--topic", "^"][..],
        &["verify", "--deep"],
        &["replay", "--topics", "^", "--from", "1970-01-01T00:00:00Z", "--to-stdout"],
    ] {
        let output = home.run(&[&["-c", "tidelog.toml"], command].concat()).expect(3);
        let told = format!("{}{}", output.stdout, output.stderr);
        for topic in ["an-entry", "a-pipe", "a-link", "a-socket", "a-device"] {
            let why = if command[0] == "verify" { "" } else { "and not a file" };
            assert!(
                told.lines().any(|line| line.contains(topic) && line.contains(why)),
                "{command:?}, {topic}: {told}"
            );
        }
        assert!(command[0] == "verify" || output.stdout.contains("\"topic\":\"sound\""), "{command:?}: {told}");
    }
    for command in ["ls", "files"] {
        let output = home.run(&["-c", "tidelog.toml", command]).expect(3);
        assert!(output.stdout.contains("sound") && output.stderr.contains("an-entry"), "{output:?}");
    }
}

/// In S3: keys with controls, and with parts that are empty or lead up. moto takes any.
#[test]
fn objects_whose_keys_no_client_takes_are_in_nobody_s_way() {
    let (kafka, topic, bucket) = (shared(), unique("strange-keys"), moto());
    kafka.create_topic(&topic, 1, &[]);
    let settings = Settings { topics: &[&topic], max_age: "200ms", ..Settings::default() };
    let site = Site::new(&kafka.bootstrap(), &settings);
    site.archive_in(&bucket);
    let messages = |what: &str| [Message::new(0, "key", what)];
    let mut program = site.start();
    kafka.produce(&topic, Codec::None, &messages("before"));
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    let chain = format!("manifest/kafka/main/{topic}.0");
    for folder in LISTED.into_iter().chain([&*chain]) {
        // moto has no route to a key with a line feed.
        for name in ["a\u{1b}[2J", "/empty", "a//b/", "./x", "up/../../x", "\u{1}/file", " blank "] {
            bucket.put(&format!("archive/{folder}/{name}"), "x");
        }
    }
    kafka.produce(&topic, Codec::None, &messages("beside"));
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    program.terminate(STOP);
    // A start opens the chains by listing them.
    kafka.produce(&topic, Codec::None, &messages("behind"));
    site.archive(kafka, &[&topic]);
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
    for command in [&["ls"][..], &["files"], &["cat", "--topic", &topic], &["verify", "--deep"]] {
        let output = site.tidelog(command).expect(0);
        assert_tame(&output);
        assert!(output.stderr.contains("is passed over"), "{command:?}: {}", output.stderr);
    }
}
