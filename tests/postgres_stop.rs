//! Stops while the store answers nothing of use: of the service, and of the server that it archives.
//!
//! ```text
//!   store away ─► SIGTERM          ─► exit 0 within what systemd and Kubernetes grant (30 s), the rest after the next start
//!              ─► pg_ctl stop -m fast ─► down in seconds, and the service goes on
//!   store away, the spool's disk is full ─► SIGTERM ─► the same
//! ```

use std::time::{Duration, Instant};

use crate::postgres_again::s3_with;
use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::Version;
use crate::rig::program::Program;
use crate::rig::s3::Bucket;
use crate::rig::s3_proxy::{Fault, Proxy, Rule};
use crate::rig::wait_until;
use crate::store_faults::in_bucket;
use crate::wal::may_mount;

/// `TimeoutStopSec` and `terminationGracePeriodSeconds` of `deploy/`.
const GRANTED: Duration = Duration::from_secs(30);

#[test]
fn while_the_store_refuses_both_stop_in_time_and_nothing_is_lost() {
    both_stop_in_time(Version::V18, &Fault::Answer(503, "SlowDown"));
}

#[test]
fn while_the_store_does_not_answer_both_stop_in_time_and_nothing_is_lost() {
    both_stop_in_time(Version::V13, &Fault::Delay(Duration::from_secs(300)));
}

#[test]
fn while_the_store_is_slow_both_stop_in_time_and_nothing_is_lost() {
    both_stop_in_time(Version::Debian, &Fault::BytesPerSecond(20));
}

fn both_stop_in_time(version: Version, fault: &Fault) {
    let place = Place::new(version);
    place.mark(1);
    place.back_up();
    place.wait_archived();
    place.stop_archiving();
    let mut bucket = s3_with(&place.home.path().join("archive"));
    let proxy = Proxy::before(&mut bucket);
    let url = place.postgres.url("postgres");
    let config = format!("{}[postgres]\nurl = \"{url}\"\nmax_age = \"300ms\"\n", in_bucket(&bucket, &place.home));
    place.home.write("tidelog.toml", &config);
    archive(&place);

    // The service is stopped beside a server that goes on.
    let met = proxy.add(Rule::new("PUT", "", fault.clone()));
    place.mark(2);
    wait_until("the store to be asked", PATIENCE, || met.met() > 0);
    let begun = Instant::now();
    place.program().take().expect("it archives").terminate(GRANTED);
    eprintln!("{version:?}, {fault:?}: the service ended after {:?}", begun.elapsed());
    proxy.clear();

    // The server is stopped beside a service that goes on.
    archive(&place);
    let met = proxy.add(Rule::new("PUT", "", fault.clone()));
    place.mark(3);
    wait_until("the store to be asked", PATIENCE, || met.met() > 0);
    let begun = Instant::now();
    place.postgres.stop();
    eprintln!("{version:?}, {fault:?}: the server ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    place.program().as_mut().expect("it archives").assert_running();
    place.program().take().expect("it archives").kill();
    proxy.clear();

    place.postgres.restart();
    archive(&place);
    place.mark(4);
    catches_up(&place);
    let restored = place.adopt(&place.restore("restored", &[]), version);
    wait_recovered(&restored);
    assert_eq!(markers(&restored), "4|4");
}

/// Waits until all is archived, and stops: nothing is missing.
fn catches_up(place: &Place) {
    let end = place.postgres.psql("SELECT pg_current_wal_flush_lsn()");
    wait_until("all of it to be archived", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        let archived = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{end}'");
        place.postgres.psql(&archived) == "1"
    });
    place.stop_archiving();
    let listing = place.tidelog(&["ls", "--json"]).expect(0).json();
    assert_eq!(listing["streams"][0]["gaps"], serde_json::json!([]), "{listing}");
}

/// A store that keeps every request that writes, and the archiver's configuration for it.
fn kept_waiting(place: &Place) -> (Bucket, Proxy) {
    place.mark(1);
    place.wait_archived();
    place.stop_archiving();
    let mut bucket = s3_with(&place.home.path().join("archive"));
    let proxy = Proxy::before(&mut bucket);
    let url = place.postgres.url("postgres");
    let config = format!("{}[postgres]\nurl = \"{url}\"\nmax_age = \"300ms\"\n", in_bucket(&bucket, &place.home));
    place.home.write("tidelog.toml", &config);
    proxy.add(Rule::new("PUT", "segments/", Fault::Delay(Duration::from_secs(300))));
    (bucket, proxy)
}

/// Stops the archiver beside its full spool, and starts it again with a store that answers: nothing is lost.
fn stops_and_goes_on(place: &Place, proxy: &Proxy, program: Program) {
    let begun = Instant::now();
    program.terminate(GRANTED);
    eprintln!("the service ended after {:?}", begun.elapsed());
    proxy.clear();
    archive(place);
    catches_up(place);
}

#[test]
fn beside_a_disk_that_is_full_a_session_stops_in_time() {
    if !may_mount() {
        return;
    }
    let place = Place::new(Version::Debian);
    let (_bucket, proxy) = kept_waiting(&place);
    let script = "mount -t tmpfs -o size=8m tmpfs spool && exec \"$0\" -c tidelog.toml run";
    let program = Program::start(place.home.shell(script), &place.home.path().join("output"));
    let mut program = program.prepared();
    wait_until("the archiver to stream", PATIENCE, || {
        program.assert_running();
        place.postgres.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    place.postgres.psql("SELECT pg_logical_emit_message(false, 'long', repeat('x', 30000000))");
    wait_until("the spool to be full", PATIENCE, || {
        program.assert_running();
        program.output().contains("the spool is full: receiving waits")
    });
    stops_and_goes_on(&place, &proxy, program);
}

fn archive(place: &Place) {
    *place.program() = Some(place.home.start(&["-c", "tidelog.toml", "run"]));
    wait_until("the archiver to stream", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        place.postgres.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
}
