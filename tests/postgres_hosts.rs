//! Several servers in `postgres.url`: what one of them has removed is asked of each, before anything is given up.
//!
//! ```text
//!   primary   ──── removed ────┤ has it ──►        the slot was lost
//!   standby   ── has it (wal_keep_size) ──►        received from here, without a slot, as far as the primary lacks it
//! ```

use crate::postgres_restore::{PATIENCE, Place};
use crate::rig::http::Server;
use crate::rig::kafka::free_port;
use crate::rig::postgres::{Postgres, Version};
use crate::rig::wait_until;
use tidelog::stream::Lsn;

/// Archives both servers from now on, as one configuration names them.
fn archive_both(place: &Place, other: &Postgres) -> Server {
    let file = place.home.path().join("tidelog.toml");
    let config = std::fs::read_to_string(&file).expect("the configuration");
    let (first, second) = (format!("127.0.0.1:{}", place.postgres.port()), format!("127.0.0.1:{}", other.port()));
    let address = format!("127.0.0.1:{}", free_port());
    let own = config.split("[http]").next().expect("the sections before");
    let both = if own.contains(&second) { own.to_owned() } else { own.replace(&first, &format!("{first},{second}")) };
    assert!(both.contains(&second));
    place.home.write("tidelog.toml", &format!("{both}[http]\nlisten = \"{address}\"\n"));
    *place.program() = Some(place.home.start(&["-c", "tidelog.toml", "run"]));
    Server::new(address)
}

/// Writes until the primary has given the slot up, with the standby close behind; `also` happens after each round.
fn lose_the_slot(place: &Place, standby: &Postgres, also: impl Fn()) {
    let primary = &place.postgres;
    primary.psql("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'");
    primary.reload();
    wait_until("the slot to be lost", PATIENCE, || {
        primary.psql(
            "INSERT INTO markers SELECT (SELECT max(id) FROM markers) + n, repeat('x', 200) FROM generate_series(1, 20000) n",
        );
        primary.psql("SELECT pg_switch_wal()");
        let end = primary.psql("SELECT pg_current_wal_flush_lsn()");
        wait_until("the standby to have it", PATIENCE, || {
            standby.psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) == "t"
        });
        primary.psql("CHECKPOINT");
        also();
        primary.psql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'tidelog'") == "lost"
    });
    // The next one is not to be lost before anything is received.
    primary.psql("ALTER SYSTEM RESET max_slot_wal_keep_size");
    primary.reload();
}

fn gaps(place: &Place) -> u64 {
    place.chain().expect("a chain").totals().gaps
}

#[test]
fn wal_that_one_server_has_removed_is_received_from_another_one() {
    for version in [Version::V13, Version::V18] {
        let place = Place::with(version, &[("wal_keep_size", "0"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")]);
        let standby = place.standby();
        standby.psql("ALTER SYSTEM SET wal_keep_size = '2GB'");
        standby.reload();
        place.mark(1);
        let before = place.wait_archived();
        // A server waits for the connection of a slot that it gives up; one that nobody uses goes at once.
        place.program().take().expect("it archives").kill();
        lose_the_slot(&place, &standby, || drop(standby.psql("CHECKPOINT")));
        standby.stop();

        let server = archive_both(&place, &standby);
        let words = format!("127.0.0.1:{}, which may still have it, cannot be asked", standby.port());
        wait_until("it to wait for the standby", PATIENCE, || {
            place.program().as_mut().expect("it archives").assert_running();
            let answer = server.is_up().then(|| server.get("/readyz"));
            answer.is_some_and(|answer| answer.status == 503 && answer.body.contains(&words))
        });
        assert_eq!((gaps(&place), place.end(1)), (0, before), "nothing is given up before everybody was asked");
        standby.restart();
        place.wait_archived();
        let said = place.program().as_ref().expect("it archives").output();
        assert!(said.contains("it is received from there"), "{said}");
        assert_eq!(gaps(&place), 0);
        assert_eq!(standby.psql("SELECT count(*) FROM pg_replication_slots"), "0", "it keeps nothing for us");
        place.tidelog(&["verify", "--deep"]).expect(0);

        // When nobody has it any more, it is a gap.
        place.program().take().expect("it archives").kill();
        standby.psql("ALTER SYSTEM SET wal_keep_size = 0");
        standby.reload();
        let (end, oldest) = (place.end(1), || -> Lsn {
            let file = standby.psql("SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'");
            format!("{}/{}000000", &file[8..16], &file[22..]).parse().expect("an LSN")
        });
        lose_the_slot(&place, &standby, || drop(standby.psql("CHECKPOINT")));
        wait_until("the standby to have removed it, too", PATIENCE, || {
            place.postgres.psql("CHECKPOINT");
            standby.psql("CHECKPOINT");
            oldest() > end
        });
        archive_both(&place, &standby);
        place.wait_archived();
        assert_eq!(gaps(&place), 1);
    }
}
