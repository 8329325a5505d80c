//! The records of a plan, shown to whoever judges them.

use std::sync::Arc;

use super::damage::Stop;
use super::feed::Feed;
use super::plan::{Part, Plan};
use crate::error::Result;
use crate::record::Record;
use crate::store::Store;

/// Shows every record of `plan`, those of a partition in the order of their offsets, with its part and partition. Says where a
/// partition ended before something that cannot be read.
///
/// # Errors
/// The store's own.
pub async fn look_through(
    store: &Store,
    plan: &Arc<Plan>,
    mut show: impl FnMut(&Part, i32, &Record<'_>),
) -> Result<Vec<Stop>> {
    let mut feed = Feed::new(store, plan, false);
    while let Some(run) = feed.next().await? {
        let partition = run.block.partition();
        for record in run.records() {
            show(&plan.parts[run.part], partition, &record);
        }
        tokio::task::yield_now().await;
    }
    Ok(feed.ended().stops)
}
