//! Records out of the archive: a pure plan, then a sink.
//!
//! ```text
//! Query ─► select ─► Plan ─► preflight ─► feed (decode, merge, pace) ─► bounded channel ─► sink: Kafka or JSON lines
//! ```
//! A plan is worked out from checkpoints alone, so that it can be shown before anything moves. Decoding runs on the
//! runtime's threads, the sink on a thread of its own; [`STEPS_IN_FLIGHT`] bounds what lies between them.

mod archived;
mod damage;
mod feed;
mod holding;
pub mod journal;
mod json;
pub mod kafka;
mod matching;
mod pace;
mod plan;
mod select;
mod stdout;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::Store;

pub use archived::{Archived, Known, archived};
pub use damage::{Stop, WAY_OUT, told};
pub use holding::Holding;
pub use matching::PlannedPartition;
pub use pace::{Rate, Speed};
pub use plan::{Mark, Marks, Part, Plan, Rename};
pub use select::{Found, Offsets, Partitions, Query, Source, expired, shortfalls, sources, sources_of, topic_pattern};

/// Runs of records between the decoder and the sink: enough that neither waits for the other's hiccup, few enough that
/// they hold a megabyte or so.
const STEPS_IN_FLIGHT: usize = 8;

/// How fast records go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tempo {
    /// At most so much a second.
    pub rate: Option<Rate>,
    /// In the rhythm in which the records were written, so many times faster.
    pub speed: Option<Speed>,
}

impl Tempo {
    /// How long it makes `plan` take at the least; none where it holds nothing up.
    pub fn least_time(&self, plan: &Plan) -> Option<std::time::Duration> {
        pace::least_time(self, (plan.records().0, plan.bytes()), plan.span())
    }
}

/// What went out so far, for a progress bar on another thread.
#[derive(Debug, Default)]
pub struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Records sent.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes of their keys, values and headers.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn show(&self, tally: &Tally) {
        self.records.store(tally.records, Ordering::Relaxed);
        self.bytes.store(tally.bytes, Ordering::Relaxed);
    }
}

/// What went out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Bytes of their keys, values and headers.
    pub bytes: u64,
    /// Records whose timestamp, 0, the target's client cannot send: they carry 1.
    pub moved_timestamps: u64,
    /// Whether that was the whole plan.
    pub complete: bool,
    /// The partitions that ended before what cannot be read.
    pub stops: Vec<Stop>,
    /// By part of the plan and partition: first offset, offset after the last, records.
    pub partitions: BTreeMap<(usize, i32), (i64, i64, u64)>,
}

impl Tally {
    fn add(&mut self, part: usize, partition: i32, offset: i64, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
        let (_, end, records) = self.partitions.entry((part, partition)).or_insert((offset, offset, 0));
        *end = offset + 1;
        *records += 1;
    }
}

/// Writes the plan's records as JSON lines to `out`, at most `limit` of them, until `stop` is done.
///
/// # Errors
/// What the archive cannot give or `out` cannot take; a reader of `out` that went away is none.
pub async fn to_lines<W: Write + Send + 'static>(
    store: &Store,
    plan: &Arc<Plan>,
    tempo: Tempo,
    limit: Option<u64>,
    mut out: W,
    counters: &Arc<Counters>,
    stop: impl Future<Output = ()>,
) -> Result<Tally> {
    let (plan_of_sink, counters) = (Arc::clone(plan), Arc::clone(counters));
    let sink = move |steps| stdout::write(steps, &plan_of_sink, limit, &mut out, &counters);
    run(store, plan, tempo, sink, stop).await
}

/// Sends the plan's records through a channel to `sink`, which runs on a thread of its own, until all are sent or `stop`
/// is done; either way the sink finishes what it was given.
async fn run<T: Send + 'static>(
    store: &Store,
    plan: &Arc<Plan>,
    tempo: Tempo,
    sink: impl FnOnce(mpsc::Receiver<feed::Step>) -> Result<T> + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Result<T> {
    let (sender, steps) = mpsc::channel(STEPS_IN_FLIGHT);
    let sink = tokio::task::spawn_blocking(move || sink(steps));
    let feed = feed::Feed::new(store, plan, tempo.speed.is_some());
    let pump = feed::pump(feed, pace::Pace::new(tempo.rate, tempo.speed, Instant::now()), sender);
    // A task of its own, so that decoding does not share a thread with whoever waits here.
    let mut pump = tokio::spawn(pump);
    let pumped = tokio::select! {
        pumped = &mut pump => Some(pumped.or_err(Kind::Internal, || "the reader of the archive failed".to_owned())?),
        () = stop => {
            pump.abort();
            None
        }
    };
    let sent = sink.await.or_err(Kind::Internal, || "the writer of the replay failed".to_owned())?;
    // A sink that failed closes the channel, and the pump then ends without an error of its own.
    let sent = sent?;
    pumped.unwrap_or(Ok(())).map_err(interrupted_read)?;
    Ok(sent)
}

fn interrupted_read(error: Error) -> Error {
    error.context("the replay stopped at what it could not read")
}
