//! What a drill makes on servers that are not its own, written down in the archive before it is made.
//!
//! ```text
//!   guards ─► drills/made/<name>.json ─► made, tried, removed ─► the same object, empty        killed in between: the next drill removes it
//! ```

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::manifest::drills::{self, Made};
use crate::store::Store;
use crate::stream::FORMAT_VERSION;
use crate::time;

/// How long a drill on another machine is taken to be at work: nobody can ask that machine.
const LASTS: TimeDelta = TimeDelta::hours(6);

/// Writes down what will be made, or that all of it is gone; gives what is to be known where the archive may not be written.
///
/// # Errors
/// A store that is away.
pub(super) async fn write<T: Serialize>(store: &Store, name: &str, made: Option<T>) -> Result<Option<String>> {
    let made = Made { format: FORMAT_VERSION, host: host(), pid: std::process::id(), at: Some(time::now()), made };
    match made.write(store, name).await {
        Ok(()) => Ok(None),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => Ok(Some(format!(
            "what the drill makes is not written down in the archive ({error}): if it is killed, remove that by hand"
        ))),
    }
}

/// Reads what an earlier drill has left.
///
/// # Errors
/// [`Kind::Config`] while that drill still runs on this machine.
pub(super) async fn read<T: DeserializeOwned>(store: &Store, name: &str) -> Result<Option<T>> {
    let Some(found) = drills::made::<T>(store, name).await? else { return Ok(None) };
    if found.host == host() && found.pid != std::process::id() && runs(found.pid) {
        let message = format!("another drill of this kind is at work on this machine: process {}", found.pid);
        return Err(Error::new(Kind::Config, message).hint("wait for its end"));
    }
    if found.made.is_some() && found.host != host() {
        let until = found.at.map_or(DateTime::<Utc>::MIN_UTC, |at| at + LASTS);
        if time::now() < until {
            let message = format!("another drill of this kind may be at work on {}", found.host);
            return Err(Error::new(Kind::Config, message).hint(format!(
                "wait for its end; if it was killed, what it made is removed by the first drill after {}",
                time::utc(until)
            )));
        }
    }
    Ok(found.made)
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Whether a process is this program's. Numbers come again.
fn runs(pid: u32) -> bool {
    let name = |of: &str| std::fs::read_to_string(format!("/proc/{of}/comm")).ok();
    name(&pid.to_string()).is_some_and(|its| Some(its) == name("self"))
}
