//! Expires the versions of state that retention lets go, at the start and every ten minutes, beside the keeping of new ones.
//!
//! An entry of the chain expires them, made under a writer's id of its own; their objects are deleted an hour later. Aborted at
//! any point it leaves nothing half done. Replicas do this side by side: of two entries for the same versions one is written.

use std::time::Duration;

use crate::error::Result;
use crate::maintenance::state::{now, tidy};
use crate::manifest;
use crate::pipeline::published::Opened;
use crate::stream::{StateKind, StateOf, StreamId};
use crate::tasks::Reporter;
use crate::tasks::backoff::Backoff;

/// How often it is looked whether something is to be done.
const EVERY: Duration = Duration::from_secs(600);

/// Works until it is aborted. What fails is reported, and tried again in the next round.
pub(in crate::pipeline) async fn run((streams, kept): (Vec<StateOf>, Duration), opened: Opened, reporter: Reporter) {
    let mut backoff = Backoff::new(reporter);
    loop {
        match round(&opened, &streams, kept).await {
            Ok(Ok(())) => {
                backoff.succeeded();
                tokio::time::sleep(EVERY).await;
            }
            // The rest was looked at: what is damaged is no reason to ask for all of it sooner.
            Ok(Err(error)) => backoff.wait_at_least(EVERY, PUT_OFF, error).await,
            Err(error) => backoff.wait_after(PUT_OFF, error).await,
        }
    }
}

const PUT_OFF: &str = "the maintenance of the state of Kafka is put off";

/// Looks at each stream of state. Within is the first error of one of them, which keeps none of the others; the store's
/// own are errors.
async fn round(opened: &Opened, streams: &[StateOf], kept: Duration) -> Result<Result<()>> {
    let (store, writer) = (&opened.store, format!("{}e", opened.writer));
    let now = now(store).await?;
    let mut failed = Ok(());
    // Which system's slots are kept says the archive alone.
    let slots = manifest::state_streams(store, StateKind::Slots).await?;
    for of in streams.iter().chain(&slots) {
        let stream = StreamId::State(of.clone());
        failed = failed.and(manifest::isolated(store, tidy(store, &stream, (kept, now), &writer).await).await?);
    }
    Ok(failed)
}
