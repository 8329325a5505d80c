//! The least rights in `deploy/rights`, on servers that enforce them: with them everything works, and nothing else does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path as Key;
use tidelog::config::Archive;
use tidelog::error::Kind;
use tidelog::store::Store;
use tidelog::stream::Format;

use crate::archive::{Record, Topic};
use crate::connect_check::{Guarded, LOGIN, findings};
use crate::http::{Service, site_at};
use crate::replay::{self, base, expected, found};
use crate::rig::kafka::java;
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program::{self, Home, Program};
use crate::rig::s3::{Enforcing, enforcing};
use crate::rig::topics::{Codec, Message};
use crate::rig::{python, unique, wait_until};
use crate::site::{STOP, Settings, Site};
use crate::state::{commit, wait_state};

const PATIENCE: Duration = Duration::from_secs(120);

fn rights(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/rights").join(name)
}

// ---- Kafka

/// `kafka-acls.sh`, as Kafka's archive has it.
fn kafka_acls(home: &Home) -> PathBuf {
    let java = java();
    let word = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"));
    let environment =
        java.get_envs().filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), word(value?))));
    let command: Vec<String> =
        environment.chain(std::iter::once(word(java.get_program()))).chain(java.get_args().map(word)).collect();
    let script = home.write(
        "kafka-acls.sh",
        &format!("#!/bin/sh\nexec env {} org.apache.kafka.tools.AclCommand \"$@\"\n", command.join(" ")),
    );
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    script
}

#[test]
fn an_archiver_with_the_least_rights_in_kafka_archives_and_can_do_nothing_else() {
    let guarded = Guarded::start();
    let [ours, other] = ["ours", "other"].map(unique);
    for topic in [&ours, &other] {
        guarded.kafka.create_topic(topic, 2, &[]);
        let messages: Vec<Message> = (0..20).map(|n| Message::new(n % 2, "key", &format!("record {n}"))).collect();
        guarded.kafka.produce(topic, Codec::None, &messages);
    }
    // Of everything in the cluster it sees its own alone.
    let settings = Settings { topics: &["^o"], properties: &LOGIN, ..Settings::default() };
    let site = Site::new(&guarded.address, &settings);
    let mut grant = Command::new(rights("kafka-acls.sh"));
    grant.arg(&ours).env("KAFKA_ACLS", kafka_acls(site.home())).env("BOOTSTRAP", guarded.kafka.bootstrap());
    grant.env("PRINCIPAL", "User:archiver").env("GROUP", &site.group);
    program::run(grant).expect(0);
    assert_eq!(findings(&site), (Some(0), vec![]));
    let mut program = site.start();
    site.wait_archived(&guarded.kafka, &[&ours], &mut [&mut program]);
    program.terminate(STOP);
    let listed = site.tidelog(&["ls", "--json"]).expect(0).json();
    assert_eq!((listed["streams"].as_array().map(Vec::len), &listed["streams"][0]["records"]), (Some(1), &20.into()));
    let tried = python::run(
        include_str!("data/kafka_rights.py"),
        &[&guarded.address, "archiver", "a secret", &ours, &other, &site.group],
    );
    let mut tried: serde_json::Value = serde_json::from_str(&tried).expect("answers");
    let committed = tried.as_object_mut().and_then(|tried| tried.remove("commit positions"));
    assert_eq!(committed, Some("allowed".into()), "READ on its group is a right to commit");
    let refused = "TOPIC_AUTHORIZATION_FAILED";
    let expected = ["produce", "read another topic", "create a topic", "delete the topic", "alter the topic"];
    assert_eq!(tried, serde_json::Value::from_iter(expected.map(|name| (name, refused))), "{tried}");
    // Where the archiver reads on is the archive's to say.
    let messages: Vec<Message> = (20..40).map(|n| Message::new(n % 2, "key", &format!("record {n}"))).collect();
    guarded.kafka.produce(&ours, Codec::None, &messages);
    site.archive(&guarded.kafka, &[&ours]);
    site.assert_holds(&ours, 0, &guarded.kafka.consume_all(&ours));
}

/// `STATE=1` is all that the state of a cluster needs; a replay that sets a topic as it was needs ALTER_CONFIGS on it besides.
#[test]
fn with_the_rights_for_state_all_of_it_is_kept_and_a_replay_needs_one_more_to_set_a_topic() {
    let guarded = Guarded::start();
    let [topic, group, target, id] = ["kept", "theirs", "copy", "set"].map(unique);
    guarded.kafka.create_topic(&topic, 1, &[("retention.ms", "8640000000000")]);
    let messages: Vec<Message> = (0..20).map(|n| Message::new(0, "key", &format!("record {n}"))).collect();
    guarded.kafka.produce(&topic, Codec::None, &messages);
    commit(&guarded.kafka, &group, &topic, 3, "");
    let settings = Settings { topics: &[&topic], properties: &LOGIN, ..Settings::default() };
    let (site, server) = site_at(&guarded.address, &settings, "[state]\nevery = \"1s\"\n");
    let mut grant = Command::new(rights("kafka-acls.sh"));
    // Every topic of theirs by the beginning of its name.
    grant.arg("kept").env("KAFKA_ACLS", kafka_acls(site.home())).env("BOOTSTRAP", guarded.kafka.bootstrap());
    grant.env("PRINCIPAL", "User:archiver").env("GROUP", &site.group).env("STATE", "1").env("PATTERN", "prefixed");
    program::run(grant).expect(0);
    let mut service = Service { program: site.start(), site, server };
    service.wait_ready();
    wait_state(&mut service, "topics", "its settings", |state| {
        state[&topic]["settings"]["retention.ms"] == "8640000000000"
    });
    wait_state(&mut service, "groups", "its position", |state| state[&group]["positions"][&topic]["0"]["offset"] == 3);
    wait_state(&mut service, "acls", "access control lists", |state| state["authorizer"] == true);
    assert_eq!(service.server.json("/api/status")["state"]["refused"], serde_json::json!([]));
    service.site.wait_archived(&guarded.kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);

    // With these every other command that asks the brokers does all that it does.
    let compared = service.site.tidelog(&["verify", "--against-source", "--deep", "--json"]).expect(0).json();
    assert_eq!(compared["errors"], serde_json::json!([]), "{compared}");
    service.site.tidelog(&["check", "--connect"]).expect(0);

    let properties = LOGIN.map(|(key, value)| match key {
        "sasl.username" => format!("{key}=replayer\n"),
        "sasl.password" => format!("{key}=another secret\n"),
        _ => format!("{key}={value}\n"),
    });
    let file = service.site.home().write("replayer", &properties.concat()).display().to_string();
    let may_replay = |settings: &str| {
        let mut grant = Command::new(rights("kafka-acls-replay.sh"));
        grant
            .arg(&target)
            .env("KAFKA_ACLS", kafka_acls(service.site.home()))
            .env("BOOTSTRAP", guarded.kafka.bootstrap());
        grant.env("PRINCIPAL", "User:replayer").env("PUT", &group).env("CREATE", "1").env("SETTINGS", settings);
        program::run(grant).expect(0);
    };
    may_replay("");
    let rename = format!(".*={target}");
    let args = ["replay", "--all", "--topics", &topic, "--rename", &rename, "--id", &id, "--settings", "archived"];
    let into = ["--into", &guarded.address, "--into-config", &file, "--groups", &group, "--json"];
    let args = [&args[..], &into].concat();
    let refused = service.site.tidelog(&args).expect(3).json();
    let given = &refused["settings"][0];
    assert_eq!(
        (&refused["records"], &given["left"]["retention.ms"]),
        (&20.into(), &"8640000000000".into()),
        "{refused}"
    );
    assert!(given["told"].to_string().contains("grant DESCRIBE_CONFIGS on the topic"), "{refused}");
    let grant = |operation: &str| {
        let to = ["--add", "--allow-principal", "User:replayer", "--operation", operation, "--topic", &target];
        guarded.acls(&to);
    };
    grant("DescribeConfigs");
    let refused = service.site.tidelog(&args).expect(3).json();
    let told = refused["settings"][0]["told"].to_string();
    assert!(told.contains("authorization failed") && told.contains("grant ALTER_CONFIGS on the topic"), "{refused}");
    may_replay("1");
    let given = service.site.tidelog(&args).expect(0).json();
    assert_eq!(given["settings"][0]["left"], serde_json::json!({}), "{given}");
    assert_eq!(guarded.kafka.committed(&group, &target).get(&0), Some(&3), "{given}");
}

/// What a replay may not do in its target is said by name, before the first record.
#[test]
fn a_replay_names_each_right_that_it_lacks() {
    let guarded = Guarded::start();
    let (archive, id) = (replay::Archive::beside(&guarded.kafka), unique("rights"));
    let all: Vec<Record> = (0..50).map(|n| Record::new(0, n, base() + n)).collect();
    archive.fill("rights", 0, &[(Format::Parquet, all.clone())]);
    guarded.kafka.create_topic("rights.copy", 1, &[]);
    let properties = LOGIN.map(|(key, value)| format!("{key}={value}\n")).concat();
    let file = archive.home.write("replayer", &properties).display().to_string();
    let args = ["--all", "--topics", "rights", "--rename", "(.*)=$1.copy", "--id", &id, "--into-config", &file];
    let args = [&args[..], &["--into", &guarded.address]].concat();
    let group = format!("tidelog-replay-{id}");
    let copy: &[&str] = &["--topic", "rights.copy"];
    // What is said, by a dry run too unless that cannot know it, and what is granted then.
    let steps: [(bool, &[&str], &str, &[&str]); 5] = [
        (true, &["consumer group", &group, "grant READ on the group"], "Read", &["--group", &group]),
        (true, &["Topic authorization failed", "grant READ and WRITE on the target's topics"], "Describe", copy),
        (
            true,
            &["rights.copy may not be replayed into", "READ and WRITE is not", "grant READ and WRITE"],
            "Write",
            copy,
        ),
        (true, &["rights.copy may not be replayed into", "READ is not", "grant READ on the topic"], "Read", copy),
        (
            false,
            &["cannot begin a transaction", "grant WRITE on the transactional ids"],
            "Write",
            &["--transactional-id", &group],
        ),
    ];
    for (dry_knows, words, operation, on) in steps {
        for dry in [true, false] {
            let start = Instant::now();
            let said = archive.replay(&[&args[..], if dry { &["--dry-run"] } else { &[] }].concat());
            let text = said.stdout + &said.stderr;
            assert_eq!(said.status == Some(0), dry && !dry_knows, "before {operation} on {on:?}: {text}");
            assert!(said.status == Some(0) || words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
            assert!(start.elapsed() < Duration::from_secs(15), "{:?}: {text}", start.elapsed());
        }
        guarded.grant(operation, on);
    }
    archive.replay(&args).expect(0);
    assert!(found(&guarded.kafka, "rights.copy") == expected(&all));
}

// ---- Postgres

fn with_least_rights(version: Version) {
    let home = Home::new();
    let path = home.path().display();
    let postgres = Postgres::start(PostgresOptions { version, ..PostgresOptions::default() });
    let mut psql = postgres.client("psql");
    psql.args(["-U", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(rights("postgres.sql"));
    program::run(psql).expect(0);
    postgres.psql("CREATE TABLE markers(id int PRIMARY KEY, filler text); INSERT INTO markers VALUES (1, 'x')");
    home.write(
        "tidelog.toml",
        &format!(
            "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n\
             [postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n",
            postgres.url("tidelog")
        ),
    );
    home.run(&["-c", "tidelog.toml", "check", "--connect"]).expect(0);
    let run = home.start(&["-c", "tidelog.toml", "run"]);
    wait_until("the slot to be used", PATIENCE, || postgres.psql("SELECT active FROM pg_replication_slots") == "t");
    home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
    let said = run.output();
    assert!(!said.contains("42501") && !said.contains("permission denied"), "{said}");
    run.terminate(STOP);
    home.run(&["-c", "tidelog.toml", "verify"]).expect(0);
    // What it needs when WAL was removed before it was archived.
    let query = |sql: &str| {
        let mut psql = postgres.client("psql");
        psql.args(["-U", "tidelog", "-X", "-A", "-t", "-c", sql, "postgres"]);
        program::run(psql)
    };
    query("SELECT min(name) FROM pg_ls_waldir()").expect(0);
    // REPLICATION is a right over all slots, and PostgreSQL has none over some.
    postgres.psql("SELECT pg_create_physical_replication_slot('theirs')");
    query("SELECT pg_drop_replication_slot('theirs')").expect(0);
    query("SELECT pg_create_physical_replication_slot('forged')").expect(0);
    for forbidden in [
        "SELECT * FROM markers",
        "DELETE FROM markers",
        "CREATE TABLE forged(x int)",
        "CREATE ROLE forged",
        "CREATE DATABASE forged",
        "ALTER SYSTEM SET archive_mode = off",
        "SELECT pg_read_file('postgresql.conf')",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_switch_wal()",
        "DROP TABLE markers",
    ] {
        let said = query(forbidden);
        // Up to 14, everybody may make tables in the schema `public`.
        let allowed = forbidden.starts_with("CREATE TABLE") && said.status == Some(0);
        assert!(
            said.status == Some(1) || (allowed && postgres.psql("SHOW server_version_num").as_str() < "150000"),
            "{forbidden}: {said:?}"
        );
    }
}

#[test]
fn an_archiver_with_the_least_rights_in_postgres_archives_and_can_do_little_else() {
    with_least_rights(Version::Debian);
    with_least_rights(Version::V13);
    with_least_rights(Version::V18);
}

// ---- S3

impl Enforcing {
    fn config(&self, user: usize, spool: &Path, more: &str) -> String {
        let options: String = self.options(user).iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
        format!("[archive]\nurl = {:?}\nspool_dir = {spool:?}\n[archive.options]\n{options}{more}", self.url)
    }

    fn store(&self, user: usize) -> Store {
        let options = self.options(user).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let url = self.url.parse().expect("a URL");
        Store::open(&Archive { url, spool_dir: PathBuf::new(), options }).expect("a store")
    }
}

#[test]
fn writer_expirer_and_reader_have_the_least_rights_in_s3_and_no_other() {
    const WRITER: usize = 0;
    const EXPIRER: usize = 1;
    const READER: usize = 2;
    let s3 = enforcing(["s3-writer.json", "s3-expirer.json", "s3-reader.json"].map(rights));
    let home = Home::new();
    let postgres =
        Postgres::start(PostgresOptions { config: &[("max_wal_size", "64MB")], ..PostgresOptions::default() });
    postgres.psql("CREATE TABLE markers(id int PRIMARY KEY, filler text)");
    let source = format!("[postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n", postgres.url("postgres"));
    let spool = home.path().join("spool");
    home.write("writer.toml", &s3.config(WRITER, &spool, &source));
    home.write("expirer.toml", &s3.config(EXPIRER, &spool, "[retention]\npostgres = \"1s\"\n"));
    home.write("reader.toml", &s3.config(READER, &spool, ""));
    home.run(&["-c", "writer.toml", "check", "--connect"]).expect(0);
    let run = home.start(&["-c", "writer.toml", "run"]);
    wait_until("the slot to be used", PATIENCE, || {
        postgres.psql("SELECT count(*) FROM pg_replication_slots WHERE active") == "1"
    });
    for id in 0..3 {
        postgres.psql(&format!("INSERT INTO markers VALUES ({id}, repeat('x', 100)); SELECT pg_switch_wal()"));
        home.run(&["-c", "writer.toml", "backup"]).expect(0);
    }
    assert_no_refusal(&run);
    run.terminate(STOP);
    home.run(&["-c", "reader.toml", "verify"]).expect(0);
    home.run(&["-c", "reader.toml", "ls"]).expect(0);
    let into = home.path().join("data").display().to_string();
    let restored = home.run(&["-c", "reader.toml", "restore-postgres", "--into", &into]).expect(0);
    assert!(!restored.stderr.contains("AccessDenied"), "{}", restored.stderr);
    // The restore's hold keeps what it needs.
    let given = home.run(&["-c", "expirer.toml", "expire", "--json"]).expect(0).json();
    assert!(given["backups"].as_u64().is_some_and(|backups| backups > 0), "{given}");
    home.run(&["-c", "reader.toml", "verify"]).expect(0);
    may_do_no_more(&s3, [WRITER, EXPIRER, READER]);
    // It takes claims back, which are no part of the archive.
    home.run(&["-c", "writer.toml", "timeline", "abandon", "1"]).expect(0);
}

/// Entries above a hole are moved, which takes the right to delete some: neither the archiver has it nor the expirer.
#[test]
fn a_repair_has_rights_of_its_own_in_s3_and_topics_expire_with_the_expirer_s() {
    const WRITER: usize = 0;
    const EXPIRER: usize = 1;
    const REPAIRER: usize = 2;
    let s3 = enforcing(["s3-writer.json", "s3-expirer.json", "s3-repairer.json"].map(rights));
    let (home, runtime) = (Home::new(), tokio::runtime::Runtime::new().expect("a runtime"));
    let spool = home.path().join("spool");
    home.write("writer.toml", &s3.config(WRITER, &spool, ""));
    home.write("expirer.toml", &s3.config(EXPIRER, &spool, "[retention]\nkafka = \"1s\"\n"));
    home.write("repairer.toml", &s3.config(REPAIRER, &spool, ""));
    let [writer, expirer, repairer] = [WRITER, EXPIRER, REPAIRER].map(|user| s3.store(user));
    let entry = |number: u32| Key::from(format!("manifest/kafka/main/orders.0/{number:020}.json"));
    let segments: Vec<Key> = runtime.block_on(async {
        let (mut topic, mut segments) = (Topic::begin(&writer, "orders", 0).await, Vec::new());
        for offset in 0..4 {
            segments.push(topic.append(Format::Parquet, &[Record::new(0, offset, 1_000)]).await.into());
        }
        repairer.delete(&entry(2)).await.expect("whoever repairs may delete entries");
        segments
    });
    let repair = |config: &str| home.run(&["-c", config, "verify", "--repair", "--json"]);
    for config in ["writer.toml", "expirer.toml"] {
        let refused = repair(config);
        assert!(refused.status != Some(0) && refused.stderr.contains("AccessDenied"), "{config}: {refused:?}");
        home.run(&["-c", "writer.toml", "verify"]).expect(3);
    }
    let repaired = repair("repairer.toml").expect(0).json();
    assert_eq!(repaired["repaired"][0]["aside"].as_array().map(Vec::len), Some(2), "{repaired}");
    home.run(&["-c", "writer.toml", "verify"]).expect(0);
    wait_until("what is older than a second to be expired", PATIENCE, || {
        home.run(&["-c", "expirer.toml", "expire"]).expect(0);
        let left = home.run(&["-c", "writer.toml", "cat", "--topic", "orders"]).expect(0);
        left.stdout.is_empty()
    });
    runtime.block_on(async {
        // Deleted an hour later, by whoever may.
        for (user, name) in [(&writer, "the writer"), (&repairer, "the repairer")] {
            assert_eq!(user.delete(&segments[0]).await.expect_err(name).kind(), Kind::Denied, "{name}");
        }
        expirer.delete(&segments[0]).await.expect("the expirer deletes a segment");
        let forged = Bytes::from_static(b"forged");
        assert_eq!(repairer.put(&segments[1], forged).await.expect_err("it writes").kind(), Kind::Denied);
    });
}

#[test]
fn a_drill_has_rights_of_its_own_in_s3_and_no_other() {
    const WRITER: usize = 0;
    const DRILLER: usize = 1;
    let s3 = enforcing(["s3-writer.json", "s3-driller.json"].map(rights));
    let home = Home::new();
    let postgres = Postgres::start(PostgresOptions::default());
    let source = format!("[postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n", postgres.url("postgres"));
    let spool = home.path().join("spool");
    home.write("writer.toml", &s3.config(WRITER, &spool, &source));
    home.write("driller.toml", &s3.config(DRILLER, &spool, ""));
    let run = home.start(&["-c", "writer.toml", "run"]);
    wait_until("the slot to be used", PATIENCE, || {
        postgres.psql("SELECT count(*) FROM pg_replication_slots WHERE active") == "1"
    });
    home.run(&["-c", "writer.toml", "backup"]).expect(0);
    postgres.psql("CREATE TABLE later AS SELECT 1 AS x");
    run.terminate(STOP);
    let bin_dir = crate::drill::programs(Version::Debian);
    let args = ["-c", "driller.toml", "drill", "corruption", "--scratch", ".", "--bin-dir", &bin_dir];
    let said = program::run(crate::drill::as_user(&home.command(&args))).expect(0);
    assert!(!said.stderr.contains("AccessDenied") && said.stdout.contains("the drill passed"), "{said:?}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let driller = s3.store(DRILLER);
        assert_eq!(driller.list(&Key::from("drills")).await.expect("a list").len(), 1, "the result is kept");
        assert_eq!(
            driller
                .list(&Key::from("holds/postgres"))
                .await
                .expect("a list")
                .iter()
                .filter(|hold| hold.location.as_ref().ends_with(".json"))
                .count(),
            0,
            "nothing is held"
        );
        for folder in ["segments", "manifest", "backups", "drills"] {
            let key = driller.list(&Key::from(folder)).await.expect("a list").remove(0).location;
            assert_eq!(driller.delete(&key).await.expect_err("it deletes").kind(), Kind::Denied, "{key}");
            let written = driller.put(&key, Bytes::from_static(b"forged")).await;
            assert_eq!(written.is_ok(), folder == "drills", "{key}");
        }
    });
}

fn assert_no_refusal(program: &Program) {
    let said = program.output();
    assert!(!said.contains("AccessDenied") && !said.contains("denied"), "{said}");
}

/// Each tries what only the others may.
fn may_do_no_more(s3: &Enforcing, [writer, expirer, reader]: [usize; 3]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let [writer, expirer, reader] = [writer, expirer, reader].map(|user| s3.store(user));
        let listed = |store: Store, folder: &'static str| async move {
            store.list(&Key::from(folder)).await.expect("a list").remove(0).location
        };
        let (wal, entry) = (listed(reader.clone(), "segments").await, listed(reader.clone(), "manifest").await);
        let part = listed(reader.clone(), "backups").await;
        for key in [&wal, &entry, &part] {
            assert_eq!(writer.delete(key).await.expect_err("the writer deletes").kind(), Kind::Denied, "{key}");
            assert_eq!(reader.delete(key).await.expect_err("the reader deletes").kind(), Kind::Denied, "{key}");
            let forged = Bytes::from_static(b"forged");
            assert_eq!(reader.put(key, forged).await.expect_err("the reader writes").kind(), Kind::Denied, "{key}");
        }
        for key in [&wal, &part] {
            let forged = Bytes::from_static(b"forged");
            assert_eq!(expirer.put(key, forged).await.expect_err("the expirer writes").kind(), Kind::Denied, "{key}");
        }
        assert_eq!(expirer.delete(&entry).await.expect_err("the expirer deletes an entry").kind(), Kind::Denied);
        let claims = Key::from("coverage/postgres/x.json");
        assert_eq!(expirer.delete(&claims).await.expect_err("the expirer deletes claims").kind(), Kind::Denied);
    });
}
