//! A look at the server's replication slots, of every client and not only ours: one that falls behind keeps WAL on the
//! server's disk, until the server takes it away and the client has lost its place.

use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::status::{SlotStatus, Status};
use crate::error::Result;
use crate::source::postgres::{Rate, Server, Slot};
use crate::tasks::Task;

/// How often the slots are looked at.
const EVERY: Duration = Duration::from_secs(10);

/// The rate of the server's log is that of the last minutes: a burst of seconds says nothing about the next hour.
const WINDOW: Duration = Duration::from_secs(300);

/// A slot that comes nearer to its loss than this is told of.
const WARN_BEFORE: f64 = 3_600.0;

/// Watches until it is aborted. A look that fails is left out.
pub(super) async fn run(server: Server, status: Arc<Status>) {
    let began = Instant::now();
    let mut rate = Rate::new(WINDOW);
    let reporter = status.tasks.reporter(Task::WalSlots, "");
    let mut warned: Vec<String> = Vec::new();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match look(&server).await {
            Ok((current, slots)) => {
                reporter.succeeded();
                rate.observe(began.elapsed(), current);
                let slots: Vec<SlotStatus> = slots
                    .into_iter()
                    .map(|slot| SlotStatus { seconds_to_loss: rate.seconds_to_loss(&slot), slot })
                    .collect();
                warn(&slots, &mut warned);
                status.note(|now| (now.slots, now.slots_at) = (slots, Some(crate::time::now())));
            }
            Err(error) => {
                tracing::debug!(%error, "the replication slots cannot be looked at");
                reporter.failed("the replication slots cannot be looked at", &error, Some(EVERY));
            }
        }
    }
}

/// On a connection of its own: a smart shutdown of the server waits for every client that stays, and no message tells a client of it.
async fn look(server: &Server) -> Result<(crate::stream::Lsn, Vec<Slot>)> {
    let found = server.sql().await?.slots().await?;
    Ok((found.current, found.slots))
}

/// Tells once of each slot that is lost or will be soon, and again when it has recovered in between.
fn warn(slots: &[SlotStatus], warned: &mut Vec<String>) {
    let endangered =
        |slot: &SlotStatus| slot.slot.is_lost() || slot.seconds_to_loss.is_some_and(|left| left < WARN_BEFORE);
    warned.retain(|name| slots.iter().any(|slot| slot.slot.name == *name && endangered(slot)));
    for status in slots.iter().filter(|slot| endangered(slot)) {
        let slot = &status.slot;
        if warned.contains(&slot.name) {
            continue;
        }
        warned.push(slot.name.clone());
        if slot.is_lost() {
            tracing::error!(
                slot = slot.name,
                reason = slot.invalidation_reason,
                "a replication slot is lost: its client has to begin again"
            );
        } else {
            tracing::warn!(
                slot = slot.name,
                seconds_to_loss = status.seconds_to_loss,
                retained_bytes = slot.retained_bytes,
                "the server will soon remove WAL that a replication slot needs"
            );
        }
    }
}
