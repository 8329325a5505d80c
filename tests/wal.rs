//! Postgres' write-ahead log into the archive, by `tidelog run` against real servers: killed, promoted, outrun, filled up.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tidelog::manifest::{Chain, Selection};
use tidelog::segment::wal::WalReader;
use tidelog::store::Store;
use tidelog::stream::{Gap, Lsn, StreamId};

use crate::archive::on_disk;
use crate::rig::postgres::{GERMAN, Postgres, PostgresOptions, Version};
use crate::rig::process::{Process, temporary_directory};
use crate::rig::program::{self, Home, Output, Program};
use crate::rig::wait_until;

/// For a machine five times slower than an idle one.
const PATIENCE: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(40);

/// The settings of servers that are archived: small, and nothing is written that the test did not ask for.
pub(crate) const QUIET: [(&str, &str); 3] =
    [("autovacuum", "off"), ("wal_keep_size", "1GB"), ("bgwriter_delay", "10s")];

/// A directory with a configuration, an archive and a spool.
pub(crate) struct WalSite {
    pub(crate) home: Home,
    /// The process through whose mounts commands see the archive, if it has mounts of its own.
    eyes: Cell<Option<u32>>,
}

impl WalSite {
    pub(crate) fn new(url: &str, more: &str) -> Self {
        let home = Home::new();
        let path = home.path().display();
        let config = format!(
            "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n\
             [postgres]\nurl = \"{url}\"\nmax_age = \"500ms\"\n{more}"
        );
        home.write("tidelog.toml", &config);
        WalSite { home, eyes: Cell::new(None) }
    }

    pub(crate) fn of(postgres: &Postgres) -> Self {
        Self::new(&postgres.url("postgres"), "")
    }

    pub(crate) fn start(&self) -> Program {
        self.home.start(&["-c", "tidelog.toml", "run"])
    }

    /// As [`WalSite::start`], in a mount namespace of its own that `before` has prepared.
    fn start_after(&self, before: &str) -> Program {
        let command = self.home.shell(&format!("{before} && exec \"$0\" -c tidelog.toml run"));
        Program::start(command, &self.home.path().join("output")).prepared()
    }

    /// Puts the archived WAL files of a timeline into `directory`, the last one filled up with zeros, as a restore does.
    fn unpack(&self, timeline: i32, directory: &Path) {
        for (name, mut bytes) in self.files(timeline, 16 << 20) {
            bytes.resize(16 << 20, 0);
            std::fs::write(directory.join(name), bytes).expect("a WAL file can be written");
        }
    }

    pub(crate) fn tidelog(&self, args: &[&str]) -> Output {
        let config = self.home.path().join("tidelog.toml").display().to_string();
        let command = self.home.command(&[&["-c", &config], args].concat());
        let Some(id) = self.eyes.get() else { return program::run(command) };
        let mut through = Command::new("nsenter");
        through.args(["-m", "-t", &id.to_string()]).arg(command.get_program()).args(command.get_args());
        program::run(through)
    }

    /// Bytes in the files of the spool.
    fn spooled(&self) -> u64 {
        let systems = std::fs::read_dir(self.home.path().join("spool")).expect("the spool").flatten();
        let files = systems.flat_map(|system| std::fs::read_dir(system.path()).expect("its files").flatten());
        files.map(|file| file.metadata().map_or(0, |facts| facts.len())).sum()
    }

    fn store(&self) -> Store {
        let directory = self.home.path().join("archive");
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        on_disk(&directory)
    }

    /// The chain, if it has begun.
    pub(crate) fn chain(&self) -> Option<Chain> {
        let store = self.store();
        block_on(async {
            let streams = tidelog::manifest::streams(&store).await.expect("the archive can be listed");
            let system = streams.into_iter().find(|stream| matches!(stream, StreamId::Postgres { .. }))?;
            Chain::open(&store, &system).await.expect("the chain can be opened")
        })
    }

    /// Up to where each timeline is archived.
    fn ends(&self) -> BTreeMap<i32, Lsn> {
        let chain = self.chain();
        let positions = chain.iter().flat_map(Chain::positions);
        positions.map(|position| (position.partition, Lsn::at(position.end))).collect()
    }

    pub(crate) fn end(&self, timeline: i32) -> Lsn {
        self.ends().get(&timeline).copied().unwrap_or_default()
    }

    /// Waits until the slot is there, and with it the archive.
    pub(crate) fn wait_begun(&self, program: &mut Program) {
        wait_until("the archive to begin", PATIENCE, || {
            program.assert_running();
            self.chain().is_some()
        });
    }

    /// Waits until everything that the server has written by now is archived.
    pub(crate) fn wait_archived(&self, postgres: &Postgres, timeline: i32, program: &mut Program) {
        let end = flushed(postgres);
        wait_until(&format!("timeline {timeline} to be archived up to {end}"), PATIENCE, || {
            program.assert_running();
            self.end(timeline) >= end
        });
    }

    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let chain = self.chain().expect("the chain has begun");
        block_on(chain.select(&Selection::default())).expect("the chain can be read").gaps
    }

    /// The WAL files of a timeline that the archive holds whole or from their beginning, by their names.
    fn files(&self, timeline: i32, file: u64) -> BTreeMap<String, Vec<u8>> {
        let (store, chain) = (self.store(), self.chain().expect("the chain has begun"));
        let partitions = Some(BTreeMap::from([(timeline, 0..i64::MAX)]));
        block_on(async {
            let selected =
                chain.select(&Selection { timestamps: None, partitions }).await.expect("the chain can be read");
            let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            for segment in &selected.segments {
                let reader = WalReader::open(&store, segment).await.expect("a segment");
                let mut at = reader.facts().start.0;
                let bytes = reader.all().expect("its bytes");
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let content = files.entry(file_name(timeline, at, file)).or_default();
                    assert_eq!(content.len() as u64, at % file, "no hole within a file");
                    let piece = rest.len().min((file - at % file) as usize);
                    content.extend_from_slice(&rest[..piece]);
                    at += piece as u64;
                    rest = &rest[piece..];
                }
            }
            files
        })
    }

    /// The archive's files of a timeline are those in `directory`; a file whose end is not archived yet is its beginning.
    pub(crate) fn assert_same(&self, timeline: i32, directory: &Path, file: u64) -> usize {
        let files = self.files(timeline, file);
        for (name, archived) in &files {
            let own = [name.clone(), format!("{name}.partial")].map(|name| directory.join(name));
            let own = own
                .iter()
                .find(|path| path.exists())
                .unwrap_or_else(|| panic!("{name} is not in {}", directory.display()));
            let bytes = std::fs::read(own).expect("a WAL file can be read");
            let same = archived.iter().zip(&bytes).take_while(|(one, other)| one == other).count();
            assert!(same == archived.len(), "{name} differs at byte {same} of {}", archived.len());
        }
        files.len()
    }

    /// The times between which `ls` says that the database can be recovered.
    fn windows(&self) -> Vec<(String, String)> {
        let listing = self.tidelog(&["ls", "--json"]).expect(0).json();
        let text = |value: &Value| value.as_str().expect("a time").to_owned();
        let windows = listing["recoverable"].as_array().expect("windows");
        windows.iter().map(|window| (text(&window["from"]), text(&window["to"]))).collect()
    }

    /// `verify --deep` finds nothing wrong.
    pub(crate) fn assert_sound(&self) -> Value {
        self.tidelog(&["verify", "--deep", "--json"]).expect(0).json()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn file_name(timeline: i32, at: u64, file: u64) -> String {
    let (number, of_id) = (at / file, (1_u64 << 32) / file);
    format!("{timeline:08X}{:08X}{:08X}", number / of_id, number % of_id)
}

pub(crate) fn flushed(postgres: &Postgres) -> Lsn {
    postgres.psql("SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN")
}

/// `pg_receivewal` beside tidelog: what it writes is what tidelog should have.
pub(crate) struct Receivewal {
    process: Process,
    directory: tempfile::TempDir,
}

impl Receivewal {
    pub(crate) fn start(postgres: &Postgres) -> Self {
        let directory = temporary_directory("receivewal");
        let mut create = postgres.client("pg_receivewal");
        create.args(["--slot", "witness", "--create-slot", "--if-not-exists", "-D"]).arg(directory.path());
        program::run(create).expect(0);
        let mut receive: Command = postgres.client("pg_receivewal");
        receive.args(["--slot", "witness", "--synchronous", "-D"]).arg(directory.path());
        let process = Process::start(receive, &directory.path().join("log"));
        Self { process, directory }
    }

    /// Waits until it has written down all that the server has.
    pub(crate) fn wait_for(&self, postgres: &Postgres) -> &Path {
        let end = flushed(postgres);
        wait_until("pg_receivewal to be there, too", PATIENCE, || {
            let at = postgres.psql("SELECT coalesce(max(flush_lsn), '0/0') FROM pg_stat_replication WHERE application_name = 'pg_receivewal'");
            at.parse::<Lsn>().expect("an LSN") >= end
        });
        self.directory.path()
    }
}

#[test]
fn what_is_archived_is_the_servers_wal_byte_for_byte() {
    for (version, segsize) in
        [(Version::Debian, 16), (Version::V13, 1), (Version::V14, 16), (Version::V16, 16), (Version::V18, 64)]
    {
        let size = format!("--wal-segsize={segsize}");
        let config = [QUIET.as_slice(), &[("min_wal_size", "256MB")]].concat();
        let postgres =
            Postgres::start(PostgresOptions { version, config: &config, initdb: &[&size], ..Default::default() });
        let site = WalSite::of(&postgres);
        let mut program = site.start();
        // What the server writes before its log is streamed is not archived.
        site.wait_begun(&mut program);
        wait_until("the log to be streamed", PATIENCE, || {
            postgres.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").trim() == "1"
        });
        postgres.pgbench(&["-i", "-s", "2", "-q"]);
        postgres.psql("SELECT pg_switch_wal()");
        postgres.pgbench(&["-t", "50", "-c", "2"]);
        site.wait_archived(&postgres, 1, &mut program);
        assert!(site.assert_same(1, &postgres.wal_dir(), segsize << 20) >= 2);
        let committed = site.chain().expect("a chain").totals().records;
        assert!(committed >= 100, "{committed} commits were seen");
        program.terminate(STOP);
        let report = site.assert_sound();
        assert_eq!(
            (report["errors"].as_array().map(Vec::len), report["gaps"].as_array().map(Vec::len)),
            (Some(0), Some(0))
        );
    }
}

#[test]
fn killed_twenty_times_it_archives_every_byte_once() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    let mut program = site.start();
    site.wait_begun(&mut program);
    let witness = Receivewal::start(&postgres);
    postgres.pgbench(&["-i", "-s", "3", "-q"]);
    let mut load = postgres.pgbench_start(&["-T", "600", "-c", "2", "-n"]);
    for _ in 0..20 {
        let before = site.end(1);
        wait_until("more WAL to be archived", PATIENCE, || {
            program.assert_running();
            site.end(1) > before
        });
        program.kill();
        program = site.start();
    }
    load.kill();
    postgres.psql("SELECT pg_switch_wal()");
    site.wait_archived(&postgres, 1, &mut program);
    let files = site.assert_same(1, witness.wait_for(&postgres), 16 << 20);
    assert!(files > 2, "{files} files");
    program.terminate(STOP);
    drop(witness.process);
    site.assert_sound();
    assert_eq!(site.gaps(), []);
}

#[test]
fn two_promotions_are_followed_from_timeline_to_timeline() {
    let first = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let second = first.standby(PostgresOptions { config: &QUIET, ..Default::default() });
    // The first host of the URL that takes writes: failover needs no new configuration.
    let third = second.standby(PostgresOptions { config: &QUIET, ..Default::default() });
    let hosts: Vec<String> = [&first, &second, &third].iter().map(|at| format!("127.0.0.1:{}", at.port())).collect();
    let url = format!("postgres://postgres@{}/postgres?target_session_attrs=read-write", hosts.join(","));
    let site = WalSite::new(&url, "");
    let mut program = site.start();
    first.pgbench(&["-i", "-s", "1", "-q"]);
    site.wait_archived(&first, 1, &mut program);
    let reached = |standby: &Postgres, end: Lsn| {
        wait_until("the standby to have everything", PATIENCE, || {
            standby.psql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().expect("an LSN") >= end
        });
    };
    let promotions = [(2, &first, &second, vec![&second, &third]), (3, &second, &third, vec![&third])];
    for (timeline, old, new, later) in promotions {
        let end = flushed(old);
        later.iter().for_each(|standby| reached(standby, end));
        old.kill();
        new.promote();
        new.psql(&format!("CREATE TABLE on_timeline_{timeline} (n int)"));
        new.pgbench(&["-t", "30", "-n"]);
        site.wait_archived(new, timeline, &mut program);
        site.assert_same(timeline - 1, &new.wal_dir(), 16 << 20);
    }
    assert_eq!(site.ends().keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    site.assert_same(3, &third.wal_dir(), 16 << 20);
    program.terminate(STOP);
    site.assert_sound();
    let histories = site.home.path().join("archive/segments/postgres");
    let system = std::fs::read_dir(histories).expect("the system's folder").flatten().next().expect("one").path();
    for timeline in [2, 3] {
        let name = format!("{timeline:08X}.history");
        let archived = std::fs::read(system.join("history").join(&name)).expect("an archived history");
        assert_eq!(archived, std::fs::read(third.wal_dir().join(&name)).expect("the server's"));
    }
}

#[test]
fn wal_that_the_server_removed_is_a_recorded_gap() {
    let config =
        [GERMAN, ("autovacuum", "off"), ("wal_keep_size", "0"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")];
    let postgres = Postgres::start(PostgresOptions { config: &config, ..Default::default() });
    let site = WalSite::of(&postgres);
    let mut program = site.start();
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    site.wait_archived(&postgres, 1, &mut program);
    assert!(site.tidelog(&["ls"]).expect(0).stdout.contains("recoverable: nothing yet"));
    site.tidelog(&["backup"]).expect(0);
    postgres.psql("INSERT INTO t SELECT generate_series(1, 1000)");
    site.wait_archived(&postgres, 1, &mut program);
    program.terminate(STOP);
    assert_eq!(site.windows().len(), 1);
    let before = site.end(1);
    postgres.psql("SELECT pg_drop_replication_slot('tidelog')");
    for _ in 0..4 {
        postgres.psql("INSERT INTO t SELECT generate_series(1, 1000)");
        postgres.psql("SELECT pg_switch_wal()");
        postgres.psql("CHECKPOINT");
    }
    let gone = postgres.wal_dir().join(file_name(1, before.0, 16 << 20));
    assert!(!gone.exists(), "the server has removed the file");
    let mut program = site.start();
    site.wait_archived(&postgres, 1, &mut program);
    assert!(program.output().contains("WAL is lost"), "{}", program.output());
    postgres.assert_german("wurde schon entfernt");
    let gaps = site.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].partition, Lsn::at(gaps[0].start), gaps[0].reason.name()), (1, before, "server_removed_wal"));
    // Nothing behind the gap can be recovered from the backup before it: a new one is taken without being asked for.
    wait_until("a new base backup, and the WAL that it needs", PATIENCE, || {
        program.assert_running();
        // When the lost transactions were committed is known from the first one behind the gap.
        postgres.psql("INSERT INTO t VALUES (1)");
        site.windows().len() == 2
    });
    let windows = site.windows();
    assert!(windows[0].0 <= windows[0].1 && windows[0].1 < windows[1].0, "{windows:?}");
    program.terminate(STOP);
    let report = site.assert_sound();
    assert_eq!(report["gaps"][0]["start"], before.to_string());
    let listing = site.tidelog(&["ls", "--json"]).expect(0).json();
    assert_eq!(listing["streams"][0]["gaps"][0]["reason"], "server_removed_wal");
    let said = site.tidelog(&["ls"]).expect(0).stdout;
    assert!(said.contains("lost: the server removed the WAL") && said.contains("gaps: 1 between them"), "{said}");
}

/// In every version the server says it in other words, and in its own language.
#[test]
fn a_slot_that_the_server_gave_up_is_made_anew() {
    for version in [Version::V13, Version::Debian, Version::V18] {
        a_slot_that_the_server_gave_up(version);
    }
}

fn a_slot_that_the_server_gave_up(version: Version) {
    let config = [
        GERMAN,
        ("autovacuum", "off"),
        ("wal_keep_size", "0"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
        ("max_slot_wal_keep_size", "16MB"),
        ("wal_sender_timeout", "5s"),
    ];
    let postgres = Postgres::start(PostgresOptions { version, config: &config, ..Default::default() });
    let site = WalSite::of(&postgres);
    let mut program = site.start();
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    site.wait_archived(&postgres, 1, &mut program);
    // A server waits for the connection of a slot that it gives up; one that nobody uses goes at once.
    program.kill();
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'tidelog'";
    wait_until("the slot to be lost", PATIENCE, || {
        postgres.psql("INSERT INTO t SELECT generate_series(1, 100000)");
        postgres.psql("SELECT pg_switch_wal()");
        postgres.psql("CHECKPOINT");
        postgres.psql(status) == "lost"
    });
    let mut program = site.start();
    site.wait_archived(&postgres, 1, &mut program);
    let said = program.output();
    assert!(said.contains("the lost slot was created again") && said.contains("WAL is lost"), "{said}");
    // It may be lost again the moment after, and is made again as soon as the connection has ended.
    wait_until("the slot to be there", PATIENCE, || {
        program.assert_running();
        postgres.psql(status) != "lost"
    });
    // With a slow store it may have been lost more than once on the way. Each time is a gap, and is told once that is stored.
    let first = site.gaps();
    assert!(!first.is_empty(), "{}", program.output());
    wait_told(&program, &first);

    // A slot that is in use goes too, when whoever uses it does not keep up.
    let archived = site.end(1);
    program.freeze();
    // Ended by a signal, it would wait until it has told its client why, and so would whoever gives up the slot.
    wait_until("the server to end the connection", PATIENCE, || {
        postgres.psql("INSERT INTO t SELECT generate_series(1, 1000)");
        // A base backup that was asked for may stand still beside it.
        postgres.psql("SELECT active FROM pg_replication_slots WHERE slot_name = 'tidelog'") == "f"
    });
    wait_until("the slot to be lost once more", PATIENCE, || {
        postgres.psql("INSERT INTO t SELECT generate_series(1, 100000)");
        postgres.psql("SELECT pg_switch_wal()");
        postgres.psql("CHECKPOINT");
        postgres.psql(status) == "lost"
    });
    program.thaw();
    site.wait_archived(&postgres, 1, &mut program);
    let (all, said) = (site.gaps(), program.output());
    assert!(all.len() > first.len() && all.starts_with(&first), "{all:?} {first:?} {said}");
    assert!(all[first.len()].start >= archived.position(), "{all:?}");
    wait_told(&program, &all);
    wait_until("the slot to be there", PATIENCE, || {
        program.assert_running();
        postgres.psql(status) != "lost"
    });
    program.terminate(STOP);
    site.assert_sound();
    let last = site.gaps();
    assert!(last.starts_with(&all), "{last:?} {all:?}");
    let listed = site.tidelog(&["ls", "--json"]).expect(0).json()["streams"][0]["gaps"].as_array().map(Vec::len);
    assert_eq!(listed, Some(last.len()));
    assert_recoverable_over_no_gap(&site, &last);
    if version == Version::Debian {
        postgres.assert_german("Replikations-Slot");
    }
}

/// Each gap is told.
fn wait_told(program: &Program, gaps: &[Gap]) {
    let what = format!("{} gaps to be told", gaps.len());
    wait_until(&what, PATIENCE, || program.output().matches("WAL is lost").count() >= gaps.len());
}

/// What each base backup reaches lies between two gaps.
fn assert_recoverable_over_no_gap(site: &WalSite, gaps: &[Gap]) {
    let listing = site.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    for backup in listing["backups"].as_array().expect("backups") {
        let at = |end: &str| backup["reaches"][end].as_str().and_then(|at| at.parse::<Lsn>().ok());
        // One that was taken of what is lost now reaches nothing.
        let Some((start, end)) = at("start").zip(at("end")).filter(|(start, end)| start < end) else { continue };
        for gap in gaps {
            assert!(end.position() <= gap.start || gap.end <= start.position(), "{gap:?}: {backup}");
        }
    }
}

#[test]
fn retention_keeps_what_the_time_needs_and_expires_the_rest() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    let mut program = site.start();
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    for _ in 0..2 {
        site.wait_archived(&postgres, 1, &mut program);
        site.tidelog(&["backup"]).expect(0);
        postgres.psql("INSERT INTO t SELECT generate_series(1, 100000)");
        postgres.psql("SELECT pg_switch_wal()");
        postgres.psql("INSERT INTO t VALUES (1)");
    }
    site.wait_archived(&postgres, 1, &mut program);
    let first = site.windows();
    assert_eq!(first.len(), 1);
    program.terminate(STOP);
    let config = std::fs::read_to_string(site.home.path().join("tidelog.toml")).expect("a configuration");
    site.home.write("tidelog.toml", &format!("{config}[retention]\npostgres = \"1s\"\n"));
    let oldest = || site.tidelog(&["ls", "--json"]).expect(0).json()["streams"][0]["min_time"].clone();
    let began = oldest();
    let expire = |args: &[&str]| site.tidelog(&[&["expire", "--json"], args].concat()).expect(0).json();
    // The second backup has to be a second old.
    wait_until("the first backup not to be needed", PATIENCE, || expire(&["--dry-run"])["backups"] == 1);
    let dry = expire(&["--dry-run"]);
    assert!(dry["segments"].as_u64() > Some(0), "{dry}");
    assert_eq!(site.windows(), first, "a dry run changes nothing");
    let done = expire(&[]);
    assert_eq!((&done["segments"], &done["backups"]), (&dry["segments"], &dry["backups"]));
    assert_eq!(expire(&[])["segments"], 0);
    assert!(began.as_str() < oldest().as_str(), "FROM is that of what is left");
    let then = site.windows();
    assert!(then.len() == 1 && first[0].0 < then[0].0 && then[0].1 == first[0].1, "{first:?} {then:?}");
    site.assert_sound();
    assert!(site.tidelog(&["ls"]).expect(0).stdout.contains("gaps: none\n"));
}

#[test]
fn another_system_is_refused_by_name() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    let mut program = site.start();
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    site.wait_archived(&postgres, 1, &mut program);
    program.terminate(STOP);
    let other = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let config = std::fs::read_to_string(site.home.path().join("tidelog.toml")).expect("the configuration");
    site.home.write("tidelog.toml", &config.replace(&postgres.url("postgres"), &other.url("postgres")));
    let refused = site.tidelog(&["run"]).expect(2);
    let id = |of: &Postgres| of.psql("SELECT system_identifier FROM pg_control_system()");
    assert!(refused.stderr.contains(&id(&postgres)) && refused.stderr.contains(&id(&other)), "{}", refused.stderr);
    assert!(refused.stderr.contains("point postgres.url at the right server"), "{}", refused.stderr);
}

/// What a session of `psql` has been told, row by row.
struct Client {
    process: Process,
    said: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Client {
    /// Inserts the numbers from 1 on, each in a transaction of its own.
    pub(crate) fn start(postgres: &Postgres) -> Self {
        let directory = temporary_directory("client");
        let script: String = (1..200_000).map(|n| format!("INSERT INTO marks VALUES ({n}) RETURNING n;\n")).collect();
        let (file, said) = (directory.path().join("script"), directory.path().join("said"));
        std::fs::write(&file, script).expect("a script can be written");
        let mut psql = postgres.client("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file);
        let process = Process::start(psql, &said);
        Self { process, said, _directory: directory }
    }

    /// The last number whose commit it was told of.
    fn last(&self) -> u64 {
        let said = std::fs::read_to_string(&self.said).unwrap_or_default();
        // A line that is not whole yet is none.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or(0)
    }
}

#[test]
fn as_a_synchronous_standby_it_has_every_commit_that_a_client_saw() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    postgres.psql("CREATE TABLE marks (n bigint)");
    let site = WalSite::new(&postgres.url("postgres"), "ack = \"spool\"\n");
    let mut program = site.start();
    wait_until("tidelog to stream", PATIENCE, || {
        program.assert_running();
        postgres
            .psql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'tidelog' AND state = 'streaming'")
            == "1"
    });
    let backup = temporary_directory("backup");
    let data = backup.path().join("data");
    program::run({
        let mut take = postgres.client("pg_basebackup");
        take.args(["-c", "fast", "-X", "none", "--no-sync", "-D"]).arg(&data);
        take
    })
    .expect(0);
    postgres.psql("ALTER SYSTEM SET synchronous_standby_names = 'tidelog'");
    postgres.reload();
    wait_until("tidelog to be the synchronous standby", PATIENCE, || {
        postgres.psql("SELECT sync_state FROM pg_stat_replication WHERE application_name = 'tidelog'") == "sync"
    });
    let client = Client::start(&postgres);
    wait_until("the client to have committed", PATIENCE, || client.last() > 500);
    // Both die, tidelog last: what it had acknowledged is in the spool and not in the archive yet.
    postgres.kill();
    program.kill();
    drop(client.process);
    let directory = &client.said;
    let seen = {
        let said = std::fs::read_to_string(directory).expect("what the client was told");
        said.lines().filter_map(|line| line.parse::<u64>().ok()).next_back().expect("commits")
    };
    let spooled = site.end(1);
    // The server is gone for good; what is in the spool is archived all the same.
    let mut program = site.start();
    wait_until("the spool to be archived", PATIENCE, || {
        program.assert_running();
        let spool = std::fs::read_dir(site.home.path().join("spool"))
            .expect("the spool")
            .flatten()
            .find(|at| at.file_name().to_string_lossy().starts_with("postgres-"))
            .expect("it");
        let end = std::fs::read_dir(spool.path()).expect("its files").flatten().filter_map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            let start = u64::from_str_radix(name.strip_suffix(".wal")?.split_once('-')?.1, 16).ok()?;
            // A file that was made ready in advance ends where its zeros begin.
            let bytes = std::fs::read(file.path()).ok()?;
            Some(start + bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1))
        });
        site.end(1) >= Lsn(end.max().expect("a file"))
    });
    assert!(site.end(1) >= spooled);
    program.terminate(STOP);
    let wal = temporary_directory("wal");
    site.unpack(1, wal.path());
    std::fs::write(data.join("recovery.signal"), "").expect("a signal can be left");
    let restore = format!("cp {}/%f %p", wal.path().display());
    let restored =
        Postgres::adopt(&data, PostgresOptions { config: &[("restore_command", &restore)], ..Default::default() });
    restored.wait_ready();
    wait_until("recovery to end", PATIENCE, || restored.psql("SELECT pg_is_in_recovery()") == "f");
    let count: u64 = restored.psql("SELECT count(*) FROM marks").parse().expect("a number");
    assert!(count >= seen, "the client saw {seen} commits, and {count} are there");
    // At most the one that was on its way came besides.
    assert!(count <= seen + 1 && restored.psql("SELECT max(n) FROM marks") == count.to_string());
    site.assert_sound();
}

/// Whether this machine lets a test mount a disk of its own; says so if not.
pub(crate) fn may_mount() -> bool {
    let mut mount = Command::new("unshare");
    mount.args(["-m", "sh", "-ec", "mount -t tmpfs -o size=1m tmpfs /mnt"]);
    let output = program::run(mount);
    if output.status != Some(0) {
        eprintln!("SKIPPED: a disk that is full needs the right to mount one: {}", output.stderr);
    }
    output.status == Some(0)
}

#[test]
fn an_archive_disk_that_is_full_is_waited_for_while_wal_goes_on_coming() {
    if !may_mount() {
        return;
    }
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    let archive = site.home.path().join("archive");
    std::fs::create_dir(&archive).expect("a directory can be made");
    let mut program =
        site.start_after("mount -t tmpfs -o size=40m tmpfs archive && head -c 39M /dev/zero > archive/ballast");
    wait_until("WAL to be received", PATIENCE, || {
        program.assert_running();
        program.output().contains("receiving WAL")
    });
    site.eyes.set(Some(program.id()));
    let archived = || {
        let listing = site.tidelog(&["ls", "--json"]).expect(0).json();
        let end = listing["streams"][0]["partitions"][0]["end"].as_str().map(str::parse::<Lsn>);
        end.map_or(Lsn(0), |end| end.expect("an LSN"))
    };
    postgres.psql("CREATE TABLE t AS SELECT md5(random()::text) FROM generate_series(1, 200000)");
    wait_until("the archive to be full", PATIENCE, || {
        program.assert_running();
        program.output().contains("a segment of WAL cannot be uploaded")
    });
    let said = program.output();
    assert!(said.contains("No space left") && said.contains("make room on the archive's disk"), "{said}");
    // What comes meanwhile is received and safe in the spool.
    postgres.psql("INSERT INTO t SELECT md5(random()::text) FROM generate_series(1, 1000)");
    let end = flushed(&postgres);
    wait_until("WAL to come in all the same", PATIENCE, || {
        let at = "SELECT coalesce(max(write_lsn), '0/0') FROM pg_stat_replication WHERE application_name = 'tidelog'";
        postgres.psql(at).parse::<Lsn>().expect("an LSN") >= end
    });
    assert!(archived() < end);
    let ballast = format!("/proc/{}/root{}/ballast", program.id(), archive.display());
    std::fs::remove_file(ballast).expect("the ballast can be removed");
    wait_until("all of it to be archived", PATIENCE, || {
        program.assert_running();
        archived() >= end
    });
    assert_eq!(site.assert_sound()["errors"], serde_json::json!([]));
    program.terminate(STOP);
}

#[test]
fn a_base_backup_or_a_restore_without_room_says_so_and_leaves_nothing_that_counts() {
    if !may_mount() {
        return;
    }
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    let mut program = site.start();
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    site.wait_archived(&postgres, 1, &mut program);
    // Only the backup sees this disk. It waits, counts for nothing, and goes on when there is room.
    std::fs::create_dir(site.home.path().join("archive/backups")).expect("a directory can be made");
    let script = "mount -t tmpfs -o size=1m tmpfs archive/backups
                  \"$0\" -c tidelog.toml backup
                  find archive/backups -name backup.json";
    let mut backup = Program::start(site.home.shell(script), &site.home.path().join("backup-output"));
    wait_until("the backup to find no room", PATIENCE, || {
        backup.assert_running();
        backup.output().contains("a part of a base backup cannot be stored")
    });
    let said = backup.output();
    assert!(said.contains("No space left") && said.contains("make room on the archive's disk"), "{said}");
    site.eyes.set(Some(backup.id()));
    assert_eq!(site.windows(), []);
    site.eyes.set(None);
    let mut more = Command::new("nsenter");
    more.args(["-m", "-t", &backup.id().to_string(), "mount", "-o", "remount,size=64m"]);
    more.arg(site.home.path().join("archive/backups"));
    program::run(more).expect(0);
    assert_eq!(backup.wait(PATIENCE), 0);
    let said = std::fs::read_to_string(site.home.path().join("backup-output")).expect("what it said");
    assert!(said.contains("/backup.json\n"), "{said}");
    site.tidelog(&["backup"]).expect(0);
    let script = "mkdir restored && mount -t tmpfs -o size=4m tmpfs restored
                  \"$0\" -c tidelog.toml restore-postgres --into restored || { code=$?; ls restored; exit $code; }";
    let failed = program::run(site.home.shell(script)).expect(1);
    assert!(failed.stderr.contains("No space left") && failed.stderr.contains("/restored/"), "{}", failed.stderr);
    assert!(failed.stderr.contains("make room on that disk, and run the same command again"), "{}", failed.stderr);
    assert!(!failed.stdout.contains("recovery.signal"), "{}", failed.stdout);
    program.terminate(STOP);
    // The disk of the first one went with its process, and the chain knows what was there.
    let report = site.tidelog(&["verify", "--deep", "--json"]).expect(3).json();
    let errors = report["errors"].as_array().expect("errors");
    assert_eq!((errors.len(), &errors[0]["kind"]), (1, &"missing".into()), "{report}");
    assert!(errors[0]["object"].as_str().is_some_and(|object| said.contains(object)), "{report}");
}

#[test]
fn a_spool_that_is_full_is_waited_for_and_nothing_is_lost() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    std::fs::create_dir(site.home.path().join("spool")).expect("a directory can be made");
    let mut program =
        site.start_after("mount -t tmpfs -o size=40m tmpfs spool && head -c 38M /dev/zero > spool/ballast");
    wait_until("the program to start", PATIENCE, || {
        let output = program.output();
        let refused = output.contains("ermission") || output.contains("not permitted");
        refused || {
            program.assert_running();
            output.contains("receiving WAL")
        }
    });
    if !program.output().contains("receiving WAL") {
        eprintln!("SKIPPED: a disk that is full needs the right to mount one: {}", program.output());
        return;
    }
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 200000) n");
    wait_until("the spool to be full", PATIENCE, || {
        program.assert_running();
        program.output().contains("the spool is full")
    });
    // The connection is kept all the while.
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'tidelog'";
    assert_eq!(postgres.psql(active), "t");
    let ballast = format!("/proc/{}/root{}/spool/ballast", program.id(), site.home.path().display());
    std::fs::remove_file(ballast).expect("the ballast can be removed");
    site.wait_archived(&postgres, 1, &mut program);
    assert!(program.output().contains("the spool has room again"), "{}", program.output());
    site.assert_same(1, &postgres.wal_dir(), 16 << 20);
    program.terminate(STOP);
    site.assert_sound();
}

/// 20 MiB of log with random digits, which compression makes half as long at the best.
const FILL: &str = "INSERT INTO filled SELECT n, string_agg(md5(random()::text), '') FROM generate_series(1, 20000) AS n, \
                    generate_series(1, 30) AS part GROUP BY n";

/// Leaves the server 320 MiB ahead of the archive.
fn fall_behind(site: &WalSite, postgres: &Postgres) {
    let mut program = site.start();
    postgres.psql("CREATE TABLE filled (n int, content text)");
    site.wait_archived(postgres, 1, &mut program);
    program.kill();
    let begun = site.end(1);
    while flushed(postgres) - begun < 320 << 20 {
        postgres.psql(FILL);
    }
}

#[test]
fn far_behind_it_catches_up_through_memory_however_often_it_is_killed() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    fall_behind(&site, &postgres);
    let mut program = site.start();
    for _ in 0..4 {
        let before = site.end(1);
        wait_until("more WAL to be archived", PATIENCE, || {
            program.assert_running();
            site.end(1) > before
        });
        program.kill();
        // What the server has whole stays off the disk.
        assert!(site.spooled() <= 32 << 20, "{} bytes are in the spool", site.spooled());
        program = site.start();
    }
    program.kill();
    // A store that is away holds up the receiving, and not the connection.
    let (segments, aside) = (site.home.path().join("archive/segments"), site.home.path().join("archive/aside"));
    std::fs::rename(&segments, &aside).expect("the segments can be moved");
    site.home.write("archive/segments", "no directory");
    let away = site.end(1);
    let mut program = site.start();
    wait_until("an upload to fail", PATIENCE, || {
        program.assert_running();
        program.output().contains("a segment of WAL cannot be uploaded")
    });
    assert_eq!(postgres.psql("SELECT active FROM pg_replication_slots WHERE slot_name = 'tidelog'"), "t");
    assert_eq!(site.end(1), away);
    std::fs::remove_file(&segments).expect("it is a file");
    std::fs::rename(&aside, &segments).expect("the segments can be moved");
    site.wait_archived(&postgres, 1, &mut program);
    let peak = program.peak_kib();
    assert!(peak <= 128 << 10, "peak RSS is {peak} KiB");
    assert!(site.assert_same(1, &postgres.wal_dir(), 16 << 20) >= 20);
    program.terminate(STOP);
    site.assert_sound();
    assert_eq!(site.gaps(), []);
}

#[test]
fn of_two_that_catch_up_the_slower_one_receives_again() {
    let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
    let site = WalSite::of(&postgres);
    fall_behind(&site, &postgres);
    let config = std::fs::read_to_string(site.home.path().join("tidelog.toml")).expect("a configuration");
    let other = config.replace("/spool\"", "/other\"").replace("[postgres]\n", "[postgres]\nslot = \"other\"\n");
    site.home.write("other.toml", &other);
    let mut programs = [site.start(), site.home.start(&["-c", "other.toml", "run"])];
    for program in &mut programs {
        site.wait_archived(&postgres, 1, program);
    }
    wait_until("one to be overtaken", PATIENCE, || {
        programs.iter().any(|program| program.output().contains("another process has archived this WAL"))
    });
    // Both go on.
    postgres.psql("INSERT INTO filled VALUES (0, 'both')");
    for program in &mut programs {
        site.wait_archived(&postgres, 1, program);
    }
    assert!(site.assert_same(1, &postgres.wal_dir(), 16 << 20) >= 20);
    for program in programs {
        program.terminate(STOP);
    }
    site.assert_sound();
    assert_eq!(site.gaps(), []);
}
