//! Write-ahead log and base backups: every byte of the log is archived once, whichever step the archiver ends at.

use super::{Fault, Met, Plan, live, shuffled};
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::records::Random;
use crate::wal::{QUIET, Receivewal, WalSite, flushed};

/// What an archiver of WAL and a base backup pass.
pub(super) const STEPS: &[&str] = &[
    "wal.spool",
    "wal.sync",
    "wal_segment.put",
    "wal_segment.answer",
    "wal_checkpoint.put",
    "wal_checkpoint.answer",
    "backup_part.put",
    "backup_part.answer",
    "backup_commit.put",
    "backup_commit.answer",
    "backups.entry",
];

fn life(site: &WalSite, postgres: &Postgres, fault: &Fault, met: &Met) {
    let before = flushed(postgres);
    postgres.psql("INSERT INTO work SELECT n, repeat('x', 200) FROM generate_series(1, 2000) n");
    let is_backup = fault.step.starts_with("backup");
    let args: &[&str] = if is_backup { &["-c", "tidelog.toml", "backup"] } else { &["-c", "tidelog.toml", "run"] };
    let end = flushed(postgres);
    assert!(end > before);
    live(&site.home, args, fault, met, || !is_backup && !fault.ends && site.end(1) >= end);
}

#[test]
fn whichever_step_the_archiver_of_wal_ends_at_every_byte_is_archived_once() {
    let plan = Plan::from_environment();
    plan.run(STEPS, |seed, met| {
        println!("crashes of Postgres: seed {seed}");
        let mut random = Random::new(seed);
        let postgres = Postgres::start(PostgresOptions { config: &QUIET, ..Default::default() });
        let site = WalSite::of(&postgres);
        let mut program = site.start();
        site.wait_begun(&mut program);
        let witness = Receivewal::start(&postgres);
        postgres.psql("CREATE TABLE work (n int, filler text)");
        site.wait_archived(&postgres, 1, &mut program);
        program.kill();
        for step in shuffled(STEPS, &mut random) {
            let fault = match plan.is_long {
                true => Fault::draw(step, &mut random),
                false => Fault::kill(step),
            };
            life(&site, &postgres, &fault, met);
        }
        let mut program = site.start();
        postgres.psql("SELECT pg_switch_wal()");
        site.wait_archived(&postgres, 1, &mut program);
        assert!(site.assert_same(1, witness.wait_for(&postgres), 16 << 20) >= 1);
        site.tidelog(&["backup"]).expect(0);
        program.terminate(std::time::Duration::from_secs(40));
        let report = site.assert_sound();
        assert_eq!(report["errors"], serde_json::json!([]), "{report}");
        assert_eq!(site.gaps(), []);
    });
}
