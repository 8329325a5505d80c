//! A connector brought back: made without running, told where its slot begins, told to run.
//!
//! ```text
//!   POST, STOPPED ─► PATCH offsets {"lsn": S, "ts_usec": …} ─► read back: just that ─► resume ─► RUNNING with its task
//! ```
//!
//! An offset of nothing but the position of the new slot is what Debezium goes on from without a snapshot and without a loss. With the
//! archived one it fails, or, where it lies above the slot, runs and leaves out every commit in between. A worker that knew a connector of
//! that name before still has its offsets: what is read back is what counts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::connector::Connector;
use super::journal::{Folder, Journal};
use crate::error::{Error, Kind, Result};
use crate::restore::patiently;
use crate::source::rest::Operator;
use crate::source::rest::operate::State;
use crate::stream::Lsn;

/// How long workers that are away or rebalance are waited for.
pub(super) const WORKERS: Duration = Duration::from_secs(180);

/// How long a connector may take to be where it was told to be.
const SETTLES: Duration = Duration::from_secs(180);

const LOOK: Duration = Duration::from_millis(250);

/// Refuses a connector of that name that is somebody else's, before anything is done.
///
/// # Errors
/// [`Kind::Config`] for one that is there and runs, or is there and `yes` was not said.
pub async fn may_be_made(workers: &Operator, of: &Connector, (is_ours, yes): (bool, bool)) -> Result<()> {
    if is_ours || patiently(WORKERS, || workers.config(&of.name)).await?.is_none() {
        return Ok(());
    }
    let state = patiently(WORKERS, || workers.state(&of.name)).await?;
    let is_stopped = state.as_ref().is_some_and(State::is_stopped);
    if is_stopped && yes {
        return Ok(());
    }
    let (how, hint) = match is_stopped {
        true => ("stopped", "say --yes to give it another config and another offset"),
        false => ("not stopped", "stop it (PUT …/stop), and say --yes to give it another config and another offset"),
    };
    let message = format!("there is a connector {} at {} already, and it is {how}", of.name, workers.shown());
    Err(Error::new(Kind::Config, message).hint(hint))
}

/// Makes it, and tells it where to go on, unless an earlier run has. It does not run yet.
///
/// # Errors
/// What the workers refuse, a connector of that name that has come meanwhile, and an offset that is not what it was set to.
pub async fn make(
    workers: &Operator,
    of: &Connector,
    yes: bool,
    (folder, journal): (&Folder, &mut Journal),
) -> Result<()> {
    let known = journal.connector(&of.name).clone();
    if known.has_offset {
        return mended(workers, of).await;
    }
    let slot = known.slot.ok_or_else(|| Error::new(Kind::Internal, format!("{} has no slot yet", of.name)))?;
    if !known.makes {
        // Hours may have gone by since it was looked for.
        may_be_made(workers, of, (false, yes)).await?;
        journal.connector(&of.name).makes = true;
        folder.save(journal)?;
    }
    if patiently(WORKERS, || workers.config(&of.name)).await?.is_none() {
        patiently(WORKERS, || create(workers, of)).await?;
    } else {
        patiently(WORKERS, || workers.configure(&of.name, &of.config)).await?;
    }
    settles(workers, of, "stopped", State::is_stopped).await?;
    go_on_from(workers, of, slot, journal.commit.at).await?;
    journal.connector(&of.name).has_offset = true;
    folder.save(journal)
}

/// Gives a connector that has its offset the config that was changed since, for it may have failed by that.
async fn mended(workers: &Operator, of: &Connector) -> Result<()> {
    let Some(mut its) = patiently(WORKERS, || workers.config(&of.name)).await? else {
        let message = format!("the connector {}, which was made, is gone", of.name);
        return Err(
            Error::new(Kind::Fenced, message).hint("make it again with the offset that its slot has, or begin again")
        );
    };
    if !of.config.contains_key("name") {
        its.remove("name");
    }
    if its == of.config { Ok(()) } else { patiently(WORKERS, || workers.configure(&of.name, &of.config)).await }
}

/// An answer that was lost says nothing: whoever asks again finds the name taken, by itself.
async fn create(workers: &Operator, of: &Connector) -> Result<()> {
    match workers.create_stopped(&of.name, &of.config).await {
        Err(error) if error.is_transient() && matches!(workers.config(&of.name).await, Ok(Some(_))) => Ok(()),
        made => made,
    }
}

/// Tells a stopped connector where to go on, and reads it back.
///
/// # Errors
/// What the workers refuse, and an offset that is not what it was set to.
pub(super) async fn go_on_from(workers: &Operator, of: &Connector, lsn: Lsn, at: i64) -> Result<()> {
    let (partition, offset) = position(of, lsn, at);
    patiently(WORKERS, || workers.set_offset(&of.name, &partition, &offset)).await?;
    is_at(workers, of, (&partition, &offset)).await
}

/// Gives a stopped connector an offset that it had before, and reads it back.
///
/// # Errors
/// As those of [`go_on_from`].
pub(super) async fn put_offset(workers: &Operator, of: &Connector, offset: &Value) -> Result<()> {
    let partition = json!({ "server": of.prefixes.1 });
    patiently(WORKERS, || workers.set_offset(&of.name, &partition, offset)).await?;
    is_at(workers, of, (&partition, offset)).await
}

/// Stops it, and waits until its tasks have ended.
///
/// # Errors
/// Workers that do not answer.
pub(super) async fn stop(workers: &Operator, of: &Connector) -> Result<()> {
    patiently(WORKERS, || workers.stop(&of.name)).await?;
    settles(workers, of, "stopped", State::is_stopped).await
}

/// The key and the value of an offset (`PostgresPartition`, `PostgresOffsetContext`).
pub(super) fn position(of: &Connector, slot: Lsn, at: i64) -> (Value, Value) {
    (json!({ "server": of.prefixes.1 }), json!({ "lsn": slot.0, "ts_usec": at }))
}

/// Reads back where the connector goes on.
async fn is_at(workers: &Operator, of: &Connector, (partition, offset): (&Value, &Value)) -> Result<()> {
    let begun = Instant::now();
    loop {
        let found = patiently(WORKERS, || workers.offsets(&of.name)).await?;
        let its = found.iter().find(|one| one.partition == *partition).map(|one| &one.offset);
        if its == Some(offset) {
            return Ok(());
        }
        if begun.elapsed() > SETTLES {
            let its = its.map_or_else(|| "nowhere".to_owned(), Value::to_string);
            let message = format!("the connector {} was told to go on from {offset}, and says {its}", of.name);
            return Err(Error::new(Kind::Unsupported, message).hint(
                "it was not started: it would lose changes, or make a snapshot; look at the offsets topic of the workers",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Lets it run, and waits until it and its task do.
///
/// # Errors
/// [`Kind::Unsupported`] with what it has failed with.
pub async fn run(workers: &Operator, of: &Connector) -> Result<()> {
    let state = patiently(WORKERS, || workers.state(&of.name)).await?;
    // One that has failed with an earlier run is not begun again by resume.
    if state.is_some_and(|state| state.has_failed()) {
        stop(workers, of).await?;
    }
    patiently(WORKERS, || workers.resume(&of.name)).await?;
    settles(workers, of, "running", State::is_running).await
}

async fn settles(workers: &Operator, of: &Connector, what: &str, is: impl Fn(&State) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let state = patiently(WORKERS, || workers.state(&of.name)).await?;
        match &state {
            Some(state) if is(state) => return Ok(()),
            // One that was taken over may have failed before.
            Some(state) if state.has_failed() && begun.elapsed() > Duration::from_secs(10) => {
                let why = state.failed_with.clone().unwrap_or_default();
                let message = format!("the connector {} has failed: {why}", of.name);
                return Err(Error::new(Kind::Unsupported, message)
                    .hint("mend its config at the target (GET …/status has the whole trace), and run this again"));
            }
            _ => {}
        }
        if begun.elapsed() > SETTLES {
            let state = state.map_or_else(|| "unknown".to_owned(), |state| state.connector);
            let message = format!("the connector {} is not {what} after {} s, but {state}", of.name, SETTLES.as_secs());
            return Err(Error::new(Kind::Unavailable, message).hint("look at its workers, and run this again"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_offset_is_of_the_prefix_at_the_target_and_has_nothing_but_the_slot() {
        let of = Connector {
            name: "a".to_owned(),
            config: BTreeMap::new(),
            archived: BTreeMap::new(),
            prefixes: ("old".to_owned(), "new".to_owned()),
            marker: None,
            has_failover: false,
        };
        let (partition, offset) = position(&of, Lsn(0x30B_5FE8), 1_795_822_031_976_178);
        assert_eq!(partition, json!({ "server": "new" }));
        assert_eq!(offset, json!({ "lsn": 51_077_096, "ts_usec": 1_795_822_031_976_178_i64 }));
    }
}
