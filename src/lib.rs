//! tidelog archives a change-data pipeline continuously and gives back any time range.
//!
//! A module uses only modules above it in this table; `docs/DESIGN.md` tells more of each, and `cargo test --test house` holds
//! both against the code.
//!
//! | module | owns |
//! |---|---|
//! | [`escape`] | text from outside, made safe for a terminal, a log and JSON |
//! | [`secret`] | secrets in the settings of other programs: which they are, and what is shown in their place |
//! | [`error`] | the one error type: kind, operation, hint, source; what is retried; exit codes |
//! | [`failpoint`] | steps at which a crash test ends the program; none in a release |
//! | [`time`] | times as people write them and as records have them |
//! | [`stream`] | the algebra of progress: streams, ranges, checkpoints, the rules of a chain |
//! | [`telemetry`] | the log and the metrics |
//! | [`config`] | the file and the environment → a validated, immutable [`Config`](config::Config) |
//! | [`record`] | a Kafka record, and the block that carries many of one partition |
//! | [`store`] | objects on disk or in a cloud; the names of all keys |
//! | [`segment`] | the bytes of segments: Parquet, Avro and WAL, written and read |
//! | [`manifest`] | the chain of checkpoints: commit, merge, expire, select; what is complete and recoverable |
//! | [`source::told`] | what a server tells of a part of its state, and what it refuses to tell |
//! | [`source::kafka`] | the consumer, the admin calls and the state of a cluster |
//! | [`source::postgres`] | the replication protocol, base backups, slots |
//! | [`source::rest`] | servers that tell their state over HTTP: Kafka Connect, a schema registry |
//! | [`replay`] | a range of records into Kafka or to standard output |
//! | [`restore`] | base backups unpacked and WAL delivered |
//! | [`verify`] | whether the archive is what its checkpoints say |
//! | [`recover`] | the whole pipeline at one commit, and the proof that the archive leads there |
//! | [`tasks`] | the tasks of a process, what fails of them, and the waits between attempts |
//! | [`maintenance`] | merges, retention and deletion: what keeps an archive in order |
//! | [`backup`] | base backups, taken |
//! | [`pipeline`] | the running service |
//! | [`http`] | metrics, health, the status page, Connect's REST shapes |
//! | [`cli`] | commands, tables, progress bars, the demo |
//!
//! # Example
//! A chain is what an archive is made of. Each commit moves the positions of its partitions and is durable when it returns:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use tidelog::config::Config;
//! use tidelog::manifest::{self, Chain};
//! use tidelog::store::Store;
//! use tidelog::stream::{Begin, Change, PartitionRange, StreamId, TopicGeneration};
//!
//! # #[tokio::main]
//! # async fn main() -> tidelog::error::Result<()> {
//! let text = "[archive]\nurl = \"memory://\"\n[kafka]\nbootstrap_servers = \"localhost:9092\"\ntopics = [\"orders\"]\n";
//! let config = Config::parse(text, "tidelog.toml", &BTreeMap::new())?;
//! let store = Store::open(&config.archive)?;
//! let now = chrono::DateTime::UNIX_EPOCH;
//!
//! // The first entry of a chain says what the stream is of.
//! let orders = StreamId::Kafka(TopicGeneration::new("main", "orders", 0));
//! let mut chain = Chain::begin(&store, &orders, Begin::topic(None, vec![Some(0)]), "writer", now).await?;
//!
//! // Offsets 0 to 9 of partition 0 were read, and hold no record: an aborted transaction, say.
//! let range = PartitionRange { partition: 0, start: 0, end: 10, records: 0, min_timestamp: None, max_timestamp: None };
//! let read = Change { empty: vec![range], ..Change::default() };
//! chain.commit(&read, "writer", now).await?;
//! assert_eq!(chain.reached(0), Some(10));
//!
//! // Whoever opens the archive finds the stream, and where it ended.
//! assert_eq!(manifest::streams(&store).await?, [orders.clone()]);
//! let again = Chain::open(&store, &orders).await?.expect("it has begun");
//! assert_eq!(again.reached(0), Some(10));
//! # Ok(())
//! # }
//! ```

// What is printed goes through `cli::output`, which escapes it.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod backup;
pub mod cli;
pub mod config;
pub mod error;
pub mod escape;
pub mod failpoint;
pub mod http;
pub mod maintenance;
pub mod manifest;
pub mod pipeline;
pub mod record;
pub mod recover;
pub mod replay;
pub mod restore;
pub mod secret;
pub mod segment;
pub mod source;
pub mod store;
pub mod stream;
pub mod tasks;
pub mod telemetry;
pub mod time;
pub mod verify;
