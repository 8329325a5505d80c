//! `tidelog drill`: it passes over a sound archive and touches nothing else, finds what is damaged, and leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tidelog::tasks::Task;

use crate::loops::is_told;
use crate::postgres_restore::{PATIENCE, Place};
use crate::rig::http::Server;
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program::{self, Output, Program};
use crate::rig::topics::{Codec, Message};
use crate::rig::{kafka, unique, wait_for, wait_until};

/// As no root: PostgreSQL refuses that, and who drills in Kubernetes is none.
pub(crate) fn as_user(command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--user", "--map-user=65534", "--map-group=65534"]).arg(command.get_program());
    wrapped.args(command.get_args()).current_dir(command.get_current_dir().expect("a directory"));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// Where PostgreSQL's programs of a version are.
pub(crate) fn programs(version: Version) -> String {
    version.program("postgres").parent().expect("a directory").display().to_string()
}

fn scratch(place: &Place) -> PathBuf {
    let scratch = place.home.path().join("scratch");
    fs::create_dir_all(&scratch).expect("a directory");
    scratch
}

fn drill_command(place: &Place, version: Version, more: &[&str]) -> Command {
    let (bin_dir, scratch) = (programs(version), scratch(place).display().to_string());
    let args = ["-c", "tidelog.toml", "drill", "corruption", "--bin-dir", &bin_dir, "--scratch", &scratch, "--json"];
    as_user(&place.home.command(&[&args[..], more].concat()))
}

fn drill(place: &Place, version: Version, more: &[&str]) -> Output {
    program::run(drill_command(place, version, more))
}

/// Every file below a directory, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
    found
}

/// The processes that stand below a directory: a server stands in its data directory.
fn standing_in(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let stands = |entry: &fs::DirEntry| fs::read_link(entry.path().join("cwd")).is_ok_and(|at| at.starts_with(folder));
    processes.filter(stands).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a directory").next().is_none()
}

/// A database that a drill has trouble with if it believes what the server was set to.
fn hostile(place: &Place, version: Version) {
    let sql = |statement: &str| drop(place.postgres.psql(statement));
    let fast = place.home.path().join("fast");
    fs::create_dir(&fast).expect("a directory");
    sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    sql("CREATE DATABASE shop");
    sql("ALTER DATABASE shop SET default_transaction_read_only = on");
    sql("ALTER DATABASE shop SET statement_timeout = '1ms'");
    sql("CREATE TABLE placed TABLESPACE fast AS SELECT generate_series(1, 3000) AS x");
    sql("CREATE INDEX ON placed(x)");
    sql("CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS x");
    sql("CREATE TABLE \"Odd \"\"name\"\"\"(\"select\" text)");
    sql("INSERT INTO \"Odd \"\"name\"\"\" SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) AS i");
    sql("CREATE MATERIALIZED VIEW never AS SELECT 1 AS x WITH NO DATA");
    sql("CREATE TABLE parts(x int) PARTITION BY RANGE (x)");
    sql("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)");
    sql("INSERT INTO parts VALUES (1), (2)");
    sql(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it was run'; END $$",
    );
    sql("CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION refuse()");
    let touched = place.home.path().join("touched");
    let mut settings = vec![
        ("archive_mode", "on".to_owned()),
        ("archive_command", format!("touch {}", touched.display())),
        ("shared_preload_libraries", "not_there".to_owned()),
        ("shared_buffers", "900GB".to_owned()),
        ("huge_pages", "on".to_owned()),
        ("listen_addresses", "*".to_owned()),
        ("unix_socket_directories", "/nowhere".to_owned()),
        ("ssl", "on".to_owned()),
        ("log_directory", place.home.path().join("logs").display().to_string()),
        ("logging_collector", "on".to_owned()),
        ("external_pid_file", touched.display().to_string()),
        ("zero_damaged_pages", "on".to_owned()),
        ("ignore_checksum_failure", "on".to_owned()),
        ("max_connections", "300".to_owned()),
        ("max_wal_senders", "40".to_owned()),
        ("wal_level", "logical".to_owned()),
        ("primary_conninfo", "host=127.0.0.1 port=1".to_owned()),
        ("max_logical_replication_workers", "4".to_owned()),
    ];
    if version == Version::V18 {
        // Built without it, and says so.
        settings.retain(|(name, _)| *name != "ssl");
    }
    settings.iter().for_each(|(name, value)| sql(&format!("ALTER SYSTEM SET {name} = '{value}'")));
}

#[test]
fn it_passes_over_a_sound_archive_and_touches_nothing_else() {
    for version in [Version::V13, Version::Debian, Version::V17, Version::V18] {
        let place = Place::with(version, &[("max_connections", "120")]);
        hostile(&place, version);
        place.mark(1);
        place.back_up();
        place.mark(2);
        let (_, time) = place.mark(3);
        place.wait_complete(&time);
        place.stop_archiving();
        // Whoever connects to the server of the configuration is seen.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it can be asked");
        let port = listener.local_addr().expect("an address").port();
        let path = place.home.path().display();
        let config = format!(
            "[archive]\nurl = \"file://{path}/archive\"\n[postgres]\nurl = \"postgres://x@127.0.0.1:{port}/x\"\n"
        );
        place.home.write("tidelog.toml", &config);
        let archive = place.home.path().join("archive");
        let before = files(&archive);
        let report = drill(&place, version, &["--seed", "7"]).expect(0).json();
        assert_eq!(
            (&report["ok"], &report["outcome"], &report["findings"]),
            (&json!(true), &json!("passed"), &json!([]))
        );
        let mut after = files(&archive);
        let result = after.remove(&archive.join("drills/corruption.json")).expect("the result is kept");
        assert!(before == after, "{version:?}: the archive has changed");
        let result: Value = serde_json::from_slice(&result).expect("JSON");
        assert_eq!((&result["outcome"], &result["last_success"]), (&json!("passed"), &result["finished"]), "{result}");
        assert!(listener.accept().is_err(), "{version:?}: it has connected to the live server");
        assert!(!place.home.path().join("touched").exists() && is_empty(&scratch(&place)), "{version:?}");
        assert_eq!(standing_in(place.home.path()), [""; 0], "{version:?}");

        let restored = &report["restored"][0];
        let databases = restored["databases"].as_array().expect("databases");
        let names: Vec<&str> = databases.iter().filter_map(|database| database["name"].as_str()).collect();
        assert_eq!(names, ["postgres", "shop", "template1"], "{restored}");
        let tables: BTreeMap<&str, u64> = databases[0]["tables"]
            .as_array()
            .expect("tables")
            .iter()
            .filter_map(|table| Some((table["name"].as_str()?, table["rows"].as_u64()?)))
            .collect();
        for (name, rows) in
            [("public.placed", 3000), ("public.\"Odd \"\"name\"\"\"", 1), ("public.parts_1", 2), ("public.unlogged", 0)]
        {
            assert_eq!(tables.get(name), Some(&rows), "{version:?}: {name} in {tables:?}");
        }
        assert!(!tables.contains_key("public.never") && !tables.contains_key("pg_catalog.pg_class"), "{tables:?}");
        let has_amcheck = version != Version::V13;
        let amcheck = restored["amcheck"].as_str().expect("words");
        assert!(
            if has_amcheck { amcheck == "passed" } else { amcheck.starts_with("left out:") },
            "{version:?}: {amcheck}"
        );

        // The same seed is the same moment; a position is one, too.
        let again = drill(&place, version, &["--seed", "7"]).expect(0).json();
        assert_eq!(again["restored"][0]["at"], restored["at"]);
        assert_eq!(again["restored"][0]["reached"], restored["reached"]);
    }
}

#[test]
fn it_restores_to_the_moment_that_was_asked_for() {
    let place = Place::new(Version::Debian);
    // What the log needs stands in a configuration that the drill does not read.
    let conf = place.postgres.data_dir().join("postgresql.conf");
    let old = fs::read_to_string(&conf).expect("a configuration");
    fs::write(&conf, old + "\nmax_connections = 250\n").expect("written");
    place.postgres.restart();
    place.mark(1);
    place.back_up();
    let (lsn, time) = place.mark(2);
    place.mark(3);
    place.postgres.psql("UPDATE pg_database SET datcollversion = 'of another machine' WHERE datname = 'template1'");
    let (_, last) = place.mark(4);
    place.wait_complete(&last);
    let rows = |at: &str| {
        let report = drill(&place, Version::Debian, &["--at", at]).expect(0).json();
        let tables = report["restored"][0]["databases"][0]["tables"].as_array().expect("tables").clone();
        let markers =
            tables.iter().find(|table| table["name"] == "public.markers").expect("it is there")["rows"].clone();
        (markers, report["restored"][0]["notes"].to_string())
    };
    assert_eq!(rows(&time), (json!(2), "[]".to_owned()));
    assert_eq!(rows(&lsn.to_string()).0, json!(2));
    let (markers, notes) = rows(&last);
    assert_eq!(markers, json!(4));
    assert!(
        notes.contains("the indexes of the database template1 were not checked")
            && notes.contains("of another machine"),
        "{notes}"
    );
    // What the log needs may grow behind the base backup.
    place.postgres.psql("ALTER SYSTEM SET max_connections = 321");
    place.postgres.restart();
    let (_, later) = place.mark(5);
    place.wait_complete(&later);
    assert_eq!(rows(&later).0, json!(5));
    let outside = drill(&place, Version::Debian, &["--at", "2001-01-01T00:00:00Z"]);
    assert!(outside.status == Some(1) && is_empty(&scratch(&place)), "{}", outside.stderr);
    let kept: Value =
        serde_json::from_slice(&fs::read(place.home.path().join("archive/drills/corruption.json")).expect("kept"))
            .expect("JSON");
    assert_eq!(kept["outcome"], "failed", "{kept}");
    assert!(kept["last_success"].as_str() < kept["finished"].as_str(), "{kept}");
}

/// An object of the archive whose key has all of these.
fn object(archive: &Path, parts: &[&str]) -> PathBuf {
    let all = files(archive);
    let is = |path: &&PathBuf| parts.iter().all(|part| path.to_string_lossy().contains(part));
    all.keys().rfind(is).unwrap_or_else(|| panic!("no object with {parts:?} in {:?}", all.keys())).clone()
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    let place = Place::new(Version::V17);
    let (topic, group) = (unique("drill"), unique("drill-group"));
    let cluster = kafka::shared();
    cluster.create_topic(&topic, 1, &[]);
    let messages: Vec<Message> = (0..200).map(|n| Message::new(0, &n.to_string(), "value")).collect();
    cluster.produce(&topic, Codec::None, &messages);
    let bootstrap = cluster.bootstrap();
    let more = format!(
        "[state]\nevery = \"1s\"\n[kafka]\nbootstrap_servers = \"{bootstrap}\"\ntopics = [\"{topic}\"]\ngroup_id = \"{group}\"\n\
         [kafka.segment]\nmax_age = \"1s\"\n"
    );
    place.archive(&place.postgres, &more);
    place.mark(1);
    place.back_up();
    place.postgres.psql("SELECT pg_switch_wal()");
    let (_, time) = place.mark(2);
    let archive = place.home.path().join("archive");
    wait_until("records and state to be archived", PATIENCE, || {
        let files = files(&archive);
        let has = |part: &str| files.keys().any(|path| path.to_string_lossy().contains(part));
        has("segments/kafka/") && has("segments/state/slots/")
    });
    wait_until("the log to be complete", PATIENCE, || {
        let listing = place.tidelog(&["ls", "--json"]).expect(0).json();
        let streams = listing["streams"].as_array().expect("streams");
        let log = streams.iter().find(|stream| stream["kind"] == "postgres").expect("the log");
        log["complete_through"].as_str().is_some_and(|through| through >= &time[..time.len() - 4])
    });
    place.stop_archiving();
    let sound = drill(&place, Version::V17, &["--at", &time]).expect(0).json();
    assert!(sound["archive"]["records"].as_u64() >= Some(200) && sound["archive"]["backups"] == 1, "{sound}");

    let damaged: [(&[&str], &[&str]); 4] = [
        (&["segments/kafka/", &topic], &["archive"]),
        (&["segments/postgres/", ".wal.zst"], &["archive"]),
        (&["backups/postgres/", "base.tar."], &["archive", "restore"]),
        (&["segments/state/slots/", ".json.zst"], &["archive"]),
    ];
    for (parts, found_in) in damaged {
        let object = object(&archive, parts);
        let sound = fs::read(&object).expect("an object");
        let mut flipped = sound.clone();
        let at = flipped.len() / 2;
        flipped[at] ^= 1;
        fs::write(&object, flipped).expect("damage can be done");
        let said = drill(&place, Version::V17, &["--at", &time]).expect(3);
        let report = said.json();
        let findings = report["findings"].as_array().expect("findings");
        let key = object.strip_prefix(&archive).expect("below it").display().to_string();
        assert!(findings.iter().any(|one| one["about"] == key.as_str() && one["part"] == "archive"), "{key}: {report}");
        for part in found_in {
            assert!(findings.iter().any(|one| one["part"] == *part), "{key} in {part}: {report}");
        }
        assert!(said.stderr.contains("finding") && report["outcome"] == "found", "{}", said.stderr);
        assert!(is_empty(&scratch(&place)) && standing_in(place.home.path()).is_empty());
        fs::write(&object, sound).expect("it is mended");
    }
    drill(&place, Version::V17, &["--at", &time]).expect(0);
}

#[test]
fn a_page_that_the_live_server_has_lost_is_found_although_the_archive_is_sound() {
    let place = Place::new(Version::Debian);
    place.postgres.psql("CREATE TABLE hurt AS SELECT generate_series(1, 5000) AS x");
    place.postgres.psql("ALTER SYSTEM SET zero_damaged_pages = on");
    place.postgres.psql("CHECKPOINT");
    let file = place.postgres.psql("SELECT pg_relation_filepath('hurt')");
    let opened = fs::File::options().write(true).open(place.postgres.data_dir().join(file)).expect("a table");
    std::os::unix::fs::FileExt::write_all_at(&opened, &[0x5a; 64], 8_192).expect("it is overwritten");
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    let report = drill(&place, Version::Debian, &["--at", &time]).expect(3).json();
    let findings = report["findings"].as_array().expect("findings");
    let of = |part: &str| findings.iter().find(|one| one["part"] == part).unwrap_or_else(|| panic!("{part}: {report}"));
    assert!(
        of("tables")["about"] == "postgres: public.hurt" && of("tables")["detail"].to_string().contains("invalid page"),
        "{report}"
    );
    assert!(of("amcheck").to_string().contains("hurt"), "{report}");
    assert!(findings.iter().all(|one| one["part"] != "archive"), "{report}");
}

#[test]
fn a_server_that_does_not_open_is_a_finding_with_the_end_of_its_log() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    let said = drill(&place, Version::Debian, &["--preload", "not_there"]).expect(3);
    let finding = said.json()["findings"][0].clone();
    assert!(finding["part"] == "open" && finding["detail"].to_string().contains("could not access file"), "{finding}");
    assert!(is_empty(&scratch(&place)));
    // Programs of another version, and none.
    for (bin_dir, why) in
        [(programs(Version::V17), "is of PostgreSQL 17"), ("/nowhere".to_owned(), "no program postgres")]
    {
        let scratch = scratch(&place).display().to_string();
        let args = ["-c", "tidelog.toml", "drill", "corruption", "--bin-dir", &bin_dir, "--scratch", &scratch];
        let said = program::run(as_user(&place.home.command(&args))).expect(2);
        assert!(said.stderr.contains(why) && said.stderr.contains("--bin-dir"), "{}", said.stderr);
    }
}

/// The scratch server's process, once it takes connections.
fn server_of(place: &Place, program: &mut Program) -> String {
    let file = scratch(place).join("tidelog-drill/data/postmaster.pid");
    wait_for("the scratch server", PATIENCE, || {
        program.assert_running();
        let text = fs::read_to_string(&file).ok()?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        (lines.get(7) == Some(&"ready")).then(|| lines[0].to_owned())
    })
}

#[test]
fn a_drill_that_is_killed_leaves_no_server_and_the_next_one_clears_up() {
    let place = Place::new(Version::Debian);
    // Long enough to be caught while it reads.
    place
        .postgres
        .psql("CREATE TABLE large AS SELECT i, repeat('x', 200) AS filler FROM generate_series(1, 300000) AS i");
    place.postgres.psql("CREATE INDEX ON large(i)");
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    let log = place.home.path().join("drill.log");
    let start = || Program::start(drill_command(&place, Version::Debian, &[]), &log);
    let mut killed = start();
    let server = server_of(&place, &mut killed);
    killed.freeze();
    assert!(standing_in(&scratch(&place)).contains(&server));
    killed.kill();
    wait_until("the server to be gone", Duration::from_secs(30), || standing_in(&scratch(&place)).is_empty());
    assert!(scratch(&place).join("tidelog-drill/data").exists(), "nobody could remove it");

    // Stopped, it clears up itself.
    let mut stopped = start();
    server_of(&place, &mut stopped);
    let beside = drill(&place, Version::Debian, &[]).expect(2);
    assert!(beside.stderr.contains("another drill works in"), "{}", beside.stderr);
    stopped.interrupt();
    assert_eq!(stopped.wait(PATIENCE), 1);
    assert!(is_empty(&scratch(&place)) && standing_in(&scratch(&place)).is_empty());
    drill(&place, Version::Debian, &[]).expect(0);
    assert!(is_empty(&scratch(&place)));
}

/// A session of the scratch server that waits for a table.
fn reading_session(folder: &Path) -> Option<i32> {
    let reads = |id: &String| {
        let line = fs::read(Path::new("/proc").join(id).join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("[local] SELECT waiting")
    };
    standing_in(folder).into_iter().find(reads)?.parse().ok()
}

#[test]
fn a_session_that_crashes_over_a_table_is_a_finding_and_the_others_are_read() {
    let place = Place::with(Version::Debian, &[("max_prepared_transactions", "5")]);
    // Whoever reads this one waits for the prepared transaction.
    place.postgres.psql("CREATE TABLE held AS SELECT 1 AS x");
    place.postgres.psql("BEGIN; LOCK TABLE held; PREPARE TRANSACTION 'open'");
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    let log = place.home.path().join("drill.log");
    let mut program = Program::start(drill_command(&place, Version::Debian, &["--at", &time]), &log);
    let session = wait_for("a session that reads", PATIENCE, || {
        program.assert_running();
        reading_session(&scratch(&place))
    });
    let killed = Command::new("kill").args(["-KILL", &session.to_string()]).status();
    assert!(killed.expect("it runs").success());
    assert_eq!(program.wait(PATIENCE), 3);
    let said = fs::read_to_string(&log).expect("the report");
    let report =
        said.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(|one| one["drill"].is_string()));
    let report = report.unwrap_or_else(|| panic!("no report in {said}"));
    assert!(report["findings"].as_array().is_some_and(|all| all.iter().any(|one| one["part"] == "tables")), "{report}");
    let databases = report["restored"][0]["databases"].as_array().expect("databases");
    let names: Vec<&str> = databases.iter().filter_map(|database| database["name"].as_str()).collect();
    assert_eq!(names, ["postgres", "template1"], "{report}");
    assert!(is_empty(&scratch(&place)) && standing_in(&scratch(&place)).is_empty());
}

#[test]
fn a_chain_of_backups_and_what_was_left_open_are_drilled_like_any_other() {
    let place = Place::with(Version::V17, &[("summarize_wal", "on"), ("max_prepared_transactions", "5")]);
    place.mark(1);
    place.back_up();
    place.postgres.psql("CREATE TABLE grown AS SELECT generate_series(1, 50000) AS x");
    place.mark(2);
    let taken = place.tidelog(&["backup", "--incremental", "--json"]).expect(0).json();
    // What a session or a subscriber has left open.
    place.postgres.psql("BEGIN; CREATE TABLE prepared AS SELECT 1 AS x; PREPARE TRANSACTION 'open'");
    place.postgres.psql(
        "CREATE SUBSCRIPTION from_nowhere CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false)",
    );
    place.postgres.psql("ALTER SUBSCRIPTION from_nowhere ENABLE");
    let (_, time) = place.mark(3);
    place.wait_complete(&time);
    let report = drill(&place, Version::V17, &["--at", &time]).expect(0).json();
    let restored = &report["restored"][0];
    assert_eq!(restored["backup"], taken["name"], "{report}");
    let rows = |name: &str| {
        let tables = restored["databases"][0]["tables"].as_array().expect("tables");
        tables.iter().find(|table| table["name"] == name).map(|table| table["rows"].clone())
    };
    assert_eq!((rows("public.grown"), rows("public.markers")), (Some(json!(50_000)), Some(json!(3))), "{report}");
    assert_eq!(rows("public.prepared"), None, "it was never committed");
    assert_eq!(restored["timeline"], 2, "the scratch server has one of its own");
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    let script = format!(
        "mkdir small && mount -t tmpfs -o size=8m tmpfs small && exec unshare --user --map-user=65534 --map-group=65534 \
         \"$0\" -c tidelog.toml drill corruption --bin-dir {} --scratch small",
        programs(Version::Debian)
    );
    let said = program::run(place.home.shell(&script)).expect(1);
    assert!(
        said.stderr.contains("the drill needs")
            && said.stderr.contains("MiB are free")
            && said.stderr.contains("--scratch"),
        "{}",
        said.stderr
    );
    assert!(!said.stderr.contains("No space left"), "{}", said.stderr);
}

#[test]
fn an_archive_without_a_base_backup_does_not_pass() {
    let place = Place::new(Version::Debian);
    let (_, time) = place.mark(1);
    place.wait_complete(&time);
    let said = drill(&place, Version::Debian, &[]).expect(3);
    assert!(
        said.json()["findings"][0]["detail"].to_string().contains("no base backup with its WAL"),
        "{}",
        said.stdout
    );
    // One without Postgres has nothing to restore.
    let other = crate::rig::program::Home::with_config("[archive]\nurl = \"file:///proc/self/cwd/archive\"\n");
    fs::create_dir(other.path().join("archive")).expect("a directory");
    let said = program::run(as_user(&other.command(&["-c", "tidelog.toml", "drill", "corruption", "--scratch", "."])))
        .expect(0);
    assert!(said.stdout.contains("left out: restore: the archive holds no Postgres"), "{}", said.stdout);
}

#[test]
fn what_the_last_drill_has_found_is_a_metric_and_what_cannot_be_read_is_told() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    let metrics = |is: &dyn Fn(&Server, &str) -> bool| {
        let server = Server::new(format!("127.0.0.1:{}", kafka::free_port()));
        place.archive(&place.postgres, &format!("[http]\nlisten = \"{}\"\n", server.address));
        wait_for("the metrics", PATIENCE, || {
            place.program().as_mut().expect("it archives").assert_running();
            let body = if server.is_up() { server.get("/metrics").body } else { return None };
            is(&server, &body).then_some(body)
        })
    };
    let ready = |_: &Server, body: &str| body.contains("tidelog_ready 1");
    assert!(!metrics(&ready).contains("tidelog_drill_passed{"), "there was none");
    drill(&place, Version::Debian, &[]).expect(0);
    let of = |metric: &str, body: &str| {
        let series = format!("{metric}{{drill=\"corruption\"}} ");
        body.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    let [success, passed] = ["tidelog_drill_last_success_timestamp_seconds", "tidelog_drill_passed"];
    let told = metrics(&|_, body| of(passed, body).is_some());
    let at = of(success, &told).expect("when it passed");
    let now = tidelog::time::now().timestamp() as f64;
    assert!(of(passed, &told) == Some(1.0) && (now - 300.0..=now + 1.0).contains(&at), "{at}, {now}");
    drill(&place, Version::Debian, &["--preload", "not_there"]).expect(3);
    let told = metrics(&|_, body| of(passed, body) == Some(0.0));
    assert_eq!(of(success, &told), Some(at), "when the last one passed stays");

    fs::write(place.home.path().join("archive/drills/corruption.json"), "nonsense").expect("written");
    let told = metrics(&|server, _| is_told(server, Task::Drills, "cannot be read"));
    assert!(of(passed, &told).is_none() && told.contains("tidelog_ready 1"), "{told}");
}

#[test]
fn as_root_it_runs_the_server_as_another_user() {
    let is_root = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").expect("it runs")) == 0;
    if !is_root {
        eprintln!("SKIPPED: this is not root");
        return;
    }
    let place = Place::of(Postgres::start(PostgresOptions::default()));
    // As on Debian, where the configuration lies elsewhere.
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::remove_file(place.postgres.data_dir().join(name)).expect("it is there");
    }
    place.mark(1);
    place.back_up();
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    // The other user has to get to the archive, and to this program.
    let program = place.home.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_tidelog"), &program).expect("copied");
    let open = |path: &Path| {
        let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(path).status();
        assert!(opened.expect("it runs").success());
    };
    open(place.home.path());
    let scratch = tempfile::tempdir_in("/var/tmp").expect("a directory");
    open(scratch.path());
    let mut command = Command::new(&program);
    command.args(["-c", "tidelog.toml", "drill", "corruption", "--json", "--scratch"]).arg(scratch.path());
    command.args(["--bin-dir", "/usr/lib/postgresql/15/bin"]).current_dir(place.home.path());
    let report = program::run(command).expect(0).json();
    assert_eq!(report["ok"], true, "{report}");
    assert!(is_empty(scratch.path()));
}
