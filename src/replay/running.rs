//! A replay at work: the reader of the archive beside the sink.

use std::future::Future;
use std::io::Write;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::feed;
use super::pace::Pace;
use super::plan::Plan;
use super::stdout::{self, Only};
use super::tally::{Counters, Tally};
use super::tempo::Tempo;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::Store;

/// Runs of records between the decoder and the sink: enough that neither waits for the other's hiccup, few enough that
/// they hold a megabyte or so.
pub(super) const STEPS_IN_FLIGHT: usize = 8;

/// Writes the plan's records, or `only` some of them, as JSON lines to `out`, until `stop` is done.
///
/// # Errors
/// What the archive cannot give or `out` cannot take; a reader of `out` that went away is none.
pub async fn to_lines<W: Write + Send + 'static>(
    store: &Store,
    plan: &Arc<Plan>,
    tempo: Tempo,
    only: Only,
    mut out: W,
    counters: &Arc<Counters>,
    stop: impl Future<Output = ()>,
) -> Result<Tally> {
    let (plan_of_sink, counters) = (Arc::clone(plan), Arc::clone(counters));
    let sink = move |steps| stdout::write(steps, &plan_of_sink, &only, &mut out, &counters);
    run(store, plan, tempo, sink, stop).await
}

/// Sends the plan's records through a channel to `sink`, which runs on a thread of its own, until all are sent or `stop`
/// is done; either way the sink finishes what it was given.
pub(super) async fn run<T: Send + 'static>(
    store: &Store,
    plan: &Arc<Plan>,
    tempo: Tempo,
    sink: impl FnOnce(mpsc::Receiver<feed::Step>) -> Result<T> + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Result<T> {
    let (sender, steps) = mpsc::channel(STEPS_IN_FLIGHT);
    let sink = tokio::task::spawn_blocking(move || sink(steps));
    let feed = feed::Feed::new(store, plan, tempo.speed.is_some());
    let pump = feed::pump(feed, Pace::new(tempo.rate, tempo.speed, Instant::now()), sender);
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
