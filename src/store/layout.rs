//! The keys of the archive: the only place that builds and takes apart the name of an object.
//!
//! ```text
//! manifest/<stream>/<number, 20 digits>.json     an entry of a chain
//! manifest/<stream>/pages/<sha256>.json.zst      a page of a snapshot
//! manifest/<stream>/packs/<first, 20 digits>.zst entries that have no objects of their own any more, and their pages
//! manifest/<stream>/aside/<number>-<sha256>.json an entry that a repair has put aside
//!     where a stream is kafka/<cluster>/<topic>.<generation>, postgres/<system id> or state/<kind>/<cluster>
//! segments/kafka/cluster=…/topic=…/generation=…/date=YYYY-MM-DD/<HHMMSS>-<writer>-<n>.<parquet|avro>
//! segments/postgres/system=<id>/timeline=<8 hex>/<start, 16 hex>-<end, 16 hex>-<writer>-<n>.wal.zst
//! segments/postgres/system=<id>/history/<8 hex>.history                      where a timeline left its parent
//! segments/postgres/system=<id>/history/<8 hex>-<generation>.history               the same, after the timeline was abandoned
//! segments/state/<kind>/scope=<cluster>/<version, 20 digits>-<writer>-<n>.json.zst   a version of a state document
//! coverage/kafka/<cluster>/<writer>.json                                     what an archiver knows to be complete
//! coverage/postgres/<system id>/<writer>.json
//! backups/postgres/system=<id>/<name>/…                                      base backups, see `restore`
//! holds/postgres/<system id>/<name>.json                                     what a restore still needs
//! holds/kafka/<cluster>/<name>.json                                         what a replay reads
//! holds/state/clock                                                          the store's time, as retention asked for it
//! replays/<id>/{topics,plan,progress,finished}.json                          what a replay is and how far it is
//! replays/<id>/map/<number, 20 digits>.json                                  which offsets its records have in the target
//! replays/<id>/map/open-<token>.json                                         the same of a transaction that may not be committed
//! replays/<id>/groups.json                                                   which positions of consumer groups it sets
//! ```
//!
//! Segments of records lie in folders as Hive names them, so that DuckDB, Spark and Trino see cluster, topic,
//! generation and date as columns. Entries sort by their numbers, segments of WAL by timeline and LSN.

mod keys;
mod name;

pub use self::keys::*;
pub use self::name::{Name, backup_name, is_archive, is_backup_name, is_backup_object, object, segment_of};
