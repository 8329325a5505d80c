//! What a restored server inherits: nothing of the server that it comes from is touched, and nothing of it stands in the way.
//!
//! ```text
//!   production, running ─► base backup with all that its configuration says ─► restore-postgres ─► a server beside it
//!        └──────────── its directories, hashed before and after ────────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::tail;
use crate::rig::program;
use crate::rig::wait_until;

const VERSIONS: [Version; 3] = [Version::V13, Version::Debian, Version::V18];

/// Production waits for no standby itself, and writes no page between two looks at its files.
const STILL: [(&str, &str); 3] =
    [("synchronous_commit", "local"), ("bgwriter_lru_maxpages", "0"), ("checkpoint_timeout", "1d")];

/// The sha256 of every file below a directory; what a new connection caches there is left out.
fn hashes(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if !path.ends_with("pg_internal.init") {
                let digest = Sha256::digest(std::fs::read(&path).expect("a file"));
                found.insert(path, digest.iter().map(|byte| format!("{byte:02x}")).collect());
            }
        }
    }
    found
}

/// All that an operator may have written there, in a file that is included.
fn configured(version: Version, data: &Path, outside: &Path, port: u16) -> String {
    let (outside, data) = (outside.display(), data.display());
    let mut text = format!(
        "data_directory = '{data}'\n\
         hba_file = '{outside}/pg_hba.conf'\n\
         external_pid_file = '{outside}/production.pid'\n\
         log_directory = '{outside}/log'\n\
         include_if_exists '{outside}/more.conf'\n\
         archive_mode = on\n\
         archive_command = 'pwd >> {outside}/pushed'\n\
         archive_cleanup_command = 'touch {outside}/cleaned'\n\
         recovery_end_command = 'touch {outside}/ended'\n\
         restore_command = 'touch {outside}/asked; false'\n\
         recovery_target = 'immediate'\n\
         recovery_target_timeline = '1'\n\
         recovery_target_action = 'shutdown'\n\
         recovery_min_apply_delay = '1h'\n\
         primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'\n\
         primary_slot_name = 'taken'\n\
         synchronous_standby_names = '*'\n\
         cron.launch_active_jobs = on\n"
    );
    if version == Version::V13 {
        text += &format!("stats_temp_directory = '{outside}/stats'\n");
    }
    if version == Version::V18 {
        text += "synchronized_standby_slots = 'taken'\nsync_replication_slots = on\n";
    } else {
        text += &format!("promote_trigger_file = '{outside}/promote'\n");
    }
    text
}

/// Another server beside production. What it logs goes where its configuration says.
fn beside(data: &Path, version: Version) -> Postgres {
    let config = [("logging_collector", "on")];
    Postgres::adopt(data, PostgresOptions { version, config: &config, ..PostgresOptions::default() })
}

#[test]
fn a_server_with_every_setting_at_once_is_restored_beside_its_production() {
    for version in VERSIONS {
        let place = Place::with(version, &STILL);
        let (production, home) = (&place.postgres, place.home.path());
        let (fast, outside) = (home.join("fast"), home.join("outside"));
        for folder in [&fast, &outside, &outside.join("log"), &outside.join("stats")] {
            std::fs::create_dir(folder).expect("a directory");
        }
        production.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
        production.psql("CREATE TABLE placed TABLESPACE fast AS SELECT generate_series(1, 10000) AS x");
        production
            .psql("CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false)");
        production.psql("ALTER SUBSCRIPTION s ENABLE");
        let data = production.data_dir();
        std::fs::copy(data.join("pg_hba.conf"), outside.join("pg_hba.conf")).expect("copied");
        std::fs::write(data.join("extra.conf"), configured(version, data, &outside, production.port()))
            .expect("written");
        let main = std::fs::read_to_string(data.join("postgresql.conf")).expect("a configuration");
        std::fs::write(data.join("postgresql.conf"), main + "include 'extra.conf'\n").expect("written");
        // What an earlier restore has left.
        production.psql("ALTER SYSTEM SET recovery_target_inclusive = off");
        place.mark(1);
        place.back_up();
        // Raised after the backup: what is replayed needs more than what comes back says.
        for (name, value) in [("max_connections", 250), ("max_prepared_transactions", 7), ("max_worker_processes", 12)]
        {
            production.psql(&format!("ALTER SYSTEM SET {name} = {value}"));
        }
        production.restart();
        place.mark(2);
        production.psql("INSERT INTO placed SELECT generate_series(1, 5000); CHECKPOINT");
        place.wait_archived();
        place.stop_archiving();

        let untouched = || {
            [data.join("base"), data.join("global"), fast.clone(), outside.join("log"), outside.join("stats")]
                .map(|folder| hashes(&folder))
        };
        let pid = || std::fs::read_to_string(outside.join("production.pid")).expect("written by production");
        let (before, pid_before) = (untouched(), pid());
        let moved = format!("{}={}", fast.display(), home.join("restored-fast").display());
        let into = home.join("restored");
        let shown = into.display().to_string();
        // Nobody said where the tablespace goes: not where production has it.
        let said = place.tidelog(&["restore-postgres", "--into", &shown]).expect(2).stderr;
        assert!(said.contains(&format!("--tablespace {}=NEW", fast.display())) && !into.exists(), "{said}");
        let said = place.tidelog(&["restore-postgres", "--into", &shown, "--tablespace", &moved]).expect(0).stdout;
        for part in
            ["hba_file is kept", "more.conf, which is not on this machine", "tablespace at ", "tidelog.restored.conf"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }

        let restored = beside(&into, version);
        wait_recovered(&restored);
        assert_eq!(markers(&restored), "2|2", "{version:?}");
        restored.psql("SET statement_timeout = '20s'; INSERT INTO markers VALUES (3, 'here'); DELETE FROM placed WHERE x > 10; CHECKPOINT");
        restored.psql("SELECT pg_switch_wal()");
        let settings = "SELECT current_setting('archive_mode'), current_setting('synchronous_standby_names'), \
             current_setting('primary_conninfo'), current_setting('cron.launch_active_jobs'), \
             current_setting('max_connections'), current_setting('data_directory')";
        assert_eq!(restored.psql(settings), format!("off|||off|250|{shown}"), "{version:?}");
        let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'";
        assert_eq!(restored.psql(workers), "0", "{version:?}: it subscribes to nothing");
        assert_eq!(restored.psql("SELECT count(*) FROM pg_subscription WHERE subenabled"), "1");
        wait_until("the recovery's own files to go", PATIENCE, || !into.join("tidelog.recovery.conf").exists());
        for gone in ["tidelog.recovery.conf", "tidelog.recovery.toml", "recovery.signal", "pg_wal/.tidelog"] {
            assert!(!into.join(gone).exists(), "{version:?}: {gone}");
        }
        assert_eq!(untouched(), before, "{version:?}: production's files are as they were");
        assert_eq!(pid(), pid_before);
        assert!(std::fs::read_dir(into.join("log")).expect("its own logs").next().is_some());
        let pushed = std::fs::read_to_string(outside.join("pushed")).unwrap_or_default();
        assert!(!pushed.contains(&shown), "{version:?}: {pushed}");
        for never in ["cleaned", "ended", "asked"] {
            assert!(!outside.join(never).exists(), "{version:?}: {never}");
        }
        assert_eq!(production.psql("SELECT count(*) FROM placed"), "15000");

        // `pg_basebackup` would put the standby's tablespace where that of this server is.
        restored.psql("DROP TABLE placed");
        restored.psql("DROP TABLESPACE fast");
        // A standby of it comes up and follows, and it starts again without an archive.
        // What another version's `pg_basebackup -R` writes an old server may not understand.
        let primary = restored.url("postgres");
        let config = [("primary_conninfo", primary.as_str())];
        let standby = restored.standby(PostgresOptions { config: &config, ..PostgresOptions::default() });
        restored.psql("INSERT INTO markers VALUES (4, 'followed')");
        wait_until("the standby to follow", PATIENCE, || markers(&standby) == "4|4");
        assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t", "{version:?}");
        drop(standby);
        restored.restart();
        assert_eq!(markers(&restored), "4|4");
        let recovery = "SELECT current_setting('restore_command') || current_setting('recovery_target_timeline')";
        assert_eq!(restored.psql(recovery), "latest", "{version:?}");
        // Whoever puts it in production's place takes one file away.
        std::fs::remove_file(into.join("tidelog.restored.conf")).expect("removed");
        restored.restart();
        assert_eq!(
            restored.psql("SELECT current_setting('archive_mode'), current_setting('synchronous_standby_names')"),
            "on|*"
        );
    }
}

#[test]
fn a_tablespace_that_was_made_after_the_backup_is_never_written_to() {
    for version in VERSIONS {
        let place = Place::with(version, &STILL);
        place.mark(1);
        place.back_up();
        let (before, _) = place.mark(2);
        place.wait_archived();
        let open = place.restore("open", &[]);
        let late = place.home.path().join("late");
        std::fs::create_dir(&late).expect("a directory");
        place.postgres.psql(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display()));
        place.postgres.psql("CREATE TABLE placed TABLESPACE late AS SELECT generate_series(1, 10000) AS x; CHECKPOINT");
        place.wait_archived();
        let as_it_was = hashes(&late);
        assert!(!as_it_was.is_empty());

        let into = place.home.path().join("refused").display().to_string();
        let refused =
            |more: &[&str]| place.tidelog(&[&["restore-postgres", "--into", &into], more].concat()).expect(2).stderr;
        let said = refused(&[]);
        assert!(said.contains(&late.display().to_string()) && said.contains("--tablespaces-at-old-places"), "{said}");
        let said = refused(&["--tablespaces-at-old-places"]);
        assert!(said.contains("is not empty"), "{version:?}: {said}");
        assert!(!Path::new(&into).exists(), "nothing was begun");
        let postgres = place.adopt(&place.restore("early", &["--to-lsn", &before.to_string()]), version);
        wait_recovered(&postgres);
        assert_eq!(markers(&postgres), "2|2");
        drop(postgres);

        // One that was planned before goes no further than it was looked through.
        let postgres = place.adopt(&open, version);
        let ended = postgres.wait_ended(PATIENCE);
        assert!(ended.is_some_and(|status| !status.success()), "{version:?}: {}", tail(&postgres.log(), 20));
        assert!(postgres.log().contains("a tablespace was made at"), "{}", tail(&postgres.log(), 20));
        assert_eq!(hashes(&late), as_it_was, "{version:?}");
        assert_eq!(place.postgres.psql("SELECT count(*) FROM placed"), "10000");
    }
}

#[test]
fn fetching_wal_needs_no_other_secret_and_no_environment() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    place.stop_archiving();
    // As an operator has it who keeps the address of the archive in the environment, and secrets where others cannot read them.
    let archive = format!("file://{}/archive", place.home.path().display());
    place.home.write(
        "tidelog.toml",
        "[archive]\nurl = \"file:///nowhere\"\n[kafka]\nbootstrap_servers = \"localhost:1\"\ntopics = [\"a\"]\n\
         [kafka.properties]\n\"sasl.password\" = { file = \"/nowhere/password\" }\n",
    );
    let into = place.home.path().join("restored");
    let mut command =
        place.home.command(&["-c", "tidelog.toml", "restore-postgres", "--into", &into.display().to_string()]);
    command.env("TIDELOG__ARCHIVE__URL", &archive);
    program::run(command).expect(0);
    let own = into.join("tidelog.recovery.toml");
    assert_eq!(std::fs::metadata(&own).expect("written").permissions().mode() & 0o777, 0o600);
    std::fs::remove_file(place.home.path().join("tidelog.toml")).expect("removed");
    let postgres = place.adopt(&into, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), "2|2");
}
