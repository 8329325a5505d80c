//! Whether a replay has done what it was asked for.

use super::damage::{Stop, WAY_OUT};
use super::journal::Settings;
use super::kafka::Afterwards;
use super::plan::Plan;
use super::tally::Tally;
use crate::error::{Error, Kind, Result};
use crate::stream::TopicGeneration;

/// So many partitions that stopped are named.
const MOST_NAMED: usize = 5;

/// A replay that ended before something that it could not read.
///
/// # Errors
/// [`Kind::Incomplete`] that names the partitions.
pub fn all_decoded(plan: &Plan, tally: &Tally) -> Result<()> {
    if tally.stops.is_empty() {
        return Ok(());
    }
    let at = |stop: &Stop| {
        format!("{} partition {} from offset {} on", plan.parts[stop.part].stream.topic, stop.partition, stop.from)
    };
    let (shown, more) = (tally.stops.iter().take(MOST_NAMED).map(at), tally.stops.len().saturating_sub(MOST_NAMED));
    let mut missing: Vec<String> = shown.collect();
    missing.extend((more > 0).then(|| format!("{more} more partitions")));
    let message = format!("all is replayed but {}: segments cannot be read (see the warnings)", missing.join(", "));
    Err(Error::new(Kind::Incomplete, message).hint(WAY_OUT))
}

/// A replay that has ended without everything that it was asked for.
///
/// # Errors
/// [`Kind::Incomplete`] that names the topics.
pub fn nothing_left_out(left_out: &[TopicGeneration]) -> Result<()> {
    if left_out.is_empty() {
        return Ok(());
    }
    let mut topics: Vec<&str> = left_out.iter().map(|generation| generation.topic.as_str()).collect();
    topics.dedup();
    let topics = topics.join(", ");
    let message = format!("all is replayed but {topics}: the archive of it is damaged (see the warnings)");
    Err(Error::new(Kind::Incomplete, message)
        .hint("restore the damaged object, then replay what was left out alone: --topics and an --id of its own"))
}

/// What was left out as a whole is told, too, where the end of what was sent is incomplete as well.
///
/// # Errors
/// That of `sent`, or what [`nothing_left_out`] says.
pub fn also_left_out(sent: Result<()>, left_out: &[TopicGeneration]) -> Result<()> {
    match (sent, nothing_left_out(left_out)) {
        (Err(error), Err(also)) if error.kind() == Kind::Incomplete => Err(error.context(also.to_string())),
        (sent, left_out) => sent.and(left_out),
    }
}

/// A replay that was to set its topics as archived, and could not.
pub(super) fn as_asked(asked: Option<Settings>, all: &[Afterwards]) -> Result<()> {
    let left: Vec<&str> = all.iter().filter(|one| !one.left.is_empty()).map(|one| one.topic.as_str()).collect();
    if asked != Some(Settings::Archived) || left.is_empty() {
        return Ok(());
    }
    let message = format!("all is replayed, but the target does not let {} be set as archived", left.join(", "));
    Err(Error::new(Kind::Incomplete, message).hint("the reasons and the commands are printed above"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asked_for_it_hears_of_what_is_left_as_of_a_failure() {
        let left = [("retention.ms".to_owned(), None)].into();
        let all = [Afterwards { topic: "orders".to_owned(), left, ..Afterwards::default() }];
        assert!(as_asked(None, &all).is_ok() && as_asked(Some(Settings::Safe), &all).is_ok());
        assert_eq!(as_asked(Some(Settings::Archived), &all).expect_err("left").exit_code(), 3);
    }
}
