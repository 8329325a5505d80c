//! Files of WAL of a gigabyte: what is held of them in memory does not grow with their size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::postgres_restore::Place;
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::program;

/// Address space for the program: less than a file has. So that its threads do not reserve as much, they share two arenas.
const KIB: u32 = 900_000;

/// Reads both to their ends.
fn are_same(one: &Path, other: &Path) -> bool {
    let [mut one, mut other] = [one, other].map(|path| File::open(path).expect("a file"));
    let [mut left, mut right] = [(); 2].map(|()| vec![0; 8 << 20]);
    loop {
        let read = one.read(&mut left).expect("read");
        other.read_exact(&mut right[..read]).expect("as long");
        if left[..read] != right[..read] {
            return false;
        }
        if read == 0 {
            return other.read(&mut right).expect("read") == 0;
        }
    }
}

#[test]
fn a_wal_file_of_a_gigabyte_is_fetched_within_less_memory() {
    let config = [("min_wal_size", "2GB"), ("max_wal_size", "4GB"), ("autovacuum", "off")];
    let options = PostgresOptions { config: &config, initdb: &["--wal-segsize=1024"], ..PostgresOptions::default() };
    let place = Place::of(Postgres::start(options));
    let file = place.postgres.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    place.postgres.psql("CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 200000) AS n");
    // Its rest is zeros, and all of it is archived.
    place.postgres.psql("SELECT pg_switch_wal()");
    place.mark(1);
    place.wait_archived();
    let script =
        format!("export MALLOC_ARENA_MAX=2; ulimit -v {KIB}; exec \"$0\" -c tidelog.toml wal-fetch {file} fetched");
    program::run(place.home.shell(&script)).expect(0);
    let fetched = place.home.path().join("fetched");
    assert_eq!(fetched.metadata().expect("a file").len(), 1 << 30);
    assert!(are_same(&fetched, &place.postgres.wal_dir().join(&file)));
}
