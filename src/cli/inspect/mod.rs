//! The commands that look at the archive and change nothing: `ls`, `files`, `cat`, `diff`, `verify`.

mod against;
mod cat;
mod commits;
mod files;
mod ls;
mod state;
mod verify;

use std::ops::Range;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub(crate) use cat::{Args as CatArgs, run as cat};
pub(crate) use files::{Args as FilesArgs, run as files};
pub(crate) use ls::{Args as LsArgs, run as ls};
pub(crate) use state::{DiffArgs, diff};
pub(crate) use verify::{Args as VerifyArgs, run as verify};

use crate::cli::output::report;
use crate::config::{Config, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::replay::topic_pattern;
use crate::stream::{Lsn, StreamId};
use crate::time;

/// A range of times, of which one end may be left out: the archive's beginning, or now. None if both are.
pub(super) fn times(from: Option<&str>, to: Option<&str>, now: DateTime<Utc>) -> Result<Option<Range<i64>>> {
    if from.is_none() && to.is_none() {
        return Ok(None);
    }
    let start = from.map_or(Ok(i64::MIN), |text| time::parse(text, now).map_err(|error| error.context("--from")))?;
    let end =
        to.map_or(Ok(now.timestamp_millis()), |text| time::parse(text, now).map_err(|error| error.context("--to")))?;
    if start >= end {
        return Err(Error::new(
            Kind::Config,
            format!("--from {} does not lie before --to {}", time::rfc3339(start), time::rfc3339(end)),
        )
        .hint("records are taken with from <= timestamp < to"));
    }
    Ok(Some(start..end))
}

/// The cluster that the configuration names; without one every cluster of the archive is meant.
pub(super) fn cluster(config: &Config) -> Option<&str> {
    config.kafka.as_ref().map(|kafka| kafka.cluster.as_str())
}

/// A position in a stream, as JSON has it: an offset is a number, an LSN a text.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Place {
    Offset(i64),
    Lsn(Lsn),
}

impl Place {
    pub(super) fn of(stream: &StreamId, position: i64) -> Self {
        match stream {
            StreamId::Kafka(_) | StreamId::State(_) => Self::Offset(position),
            StreamId::Postgres { .. } => Self::Lsn(Lsn::at(position)),
        }
    }
}

/// A stream as a user names it: a topic, `^` and a regex, `postgres`, `state`, or a stream as `ls` prints it, with or without the
/// number of its generation.
pub(super) enum Named {
    Topic(TopicPattern),
    Stream(String),
}

impl Named {
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.contains('/') { Ok(Self::Stream(text.to_owned())) } else { topic_pattern(text).map(Self::Topic) }
    }

    pub(super) fn matches(&self, stream: &StreamId) -> bool {
        match self {
            // A topic may have that name, too: then both are meant.
            Self::Topic(TopicPattern::Name(name)) if name == "postgres" && is_postgres(stream) => true,
            Self::Topic(TopicPattern::Name(name)) if name == "state" && stream.state().is_some() => true,
            Self::Topic(pattern) => stream.topic().is_some_and(|generation| pattern.matches(&generation.topic)),
            Self::Stream(name) => {
                let every_generation =
                    stream.topic().map(|generation| format!("kafka/{}/{}", generation.cluster, generation.topic));
                *name == stream.to_string() || every_generation.as_ref() == Some(name)
            }
        }
    }
}

fn is_postgres(stream: &StreamId) -> bool {
    matches!(stream, StreamId::Postgres { .. })
}

/// The streams of the archive that `names` name; all of them if there are none.
pub(super) fn chosen(archive: Vec<StreamId>, names: &[String]) -> Result<Vec<StreamId>> {
    if names.is_empty() {
        return Ok(archive);
    }
    let named: Vec<Named> = names.iter().map(|name| Named::parse(name)).collect::<Result<_>>()?;
    if let Some(unknown) = named.iter().zip(names).find(|(named, _)| !archive.iter().any(|id| named.matches(id))) {
        return Err(Error::new(Kind::NotFound, format!("the archive has no stream {:?}", unknown.1))
            .hint("`tidelog ls` prints the streams; name a topic, ^ and a regex, or kafka/<cluster>/<topic>"));
    }
    Ok(archive.into_iter().filter(|id| named.iter().any(|named| named.matches(id))).collect())
}

/// A stream that cannot be read, as JSON has it.
#[derive(Debug, Serialize)]
pub(super) struct ErrorRow {
    stream: String,
    kind: &'static str,
    detail: String,
}

pub(super) fn errors(damaged: &[(StreamId, Error)]) -> Vec<ErrorRow> {
    let row = |(stream, error): &(StreamId, Error)| ErrorRow {
        stream: stream.to_string(),
        kind: error.kind().name(),
        detail: error.to_string(),
    };
    damaged.iter().map(row).collect()
}

/// Names every stream that could not be read, once, and with it the way out.
///
/// # Errors
/// `Kind::Incomplete` if there is one: what was printed before is not all that was asked for.
pub(in crate::cli) fn all_read(damaged: &[(StreamId, Error)]) -> Result<()> {
    if damaged.is_empty() {
        return Ok(());
    }
    for (stream, error) in damaged {
        report(&format!("{stream} cannot be read: "), error, "  do   ");
    }
    let streams = crate::cli::human::many(damaged.len() as u64, "stream");
    Err(Error::new(Kind::Incomplete, format!("{streams} could not be read; what else was asked for is whole")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::TopicGeneration;

    #[test]
    fn one_end_of_a_range_may_be_left_out() {
        let now = DateTime::from_timestamp_millis(10_000).expect("a time");
        assert_eq!(times(None, None, now).expect("none"), None);
        assert_eq!(times(Some("-5s"), None, now).expect("from"), Some(5_000..10_000));
        assert_eq!(times(None, Some("-5s"), now).expect("to"), Some(i64::MIN..5_000));
        for (from, to) in [("now", "-1s"), ("now", "now"), ("x", "now"), ("-1s", "x")] {
            assert_eq!(times(Some(from), Some(to), now).expect_err(from).exit_code(), 2);
        }
    }

    #[test]
    fn streams_are_named_in_many_ways() {
        let archive = || {
            vec![
                TopicGeneration::new("main", "cdc.users", 0).stream(),
                TopicGeneration::new("main", "cdc.users", 1).stream(),
                TopicGeneration::new("main", "orders", 0).stream(),
                StreamId::Postgres { system_id: 7291 },
                "state/topics/main".parse().expect("a stream"),
            ]
        };
        let count = |name: &str| chosen(archive(), &[name.to_owned()]).map(|streams| streams.len());
        assert_eq!(count("cdc.users").expect("topic"), 2);
        assert_eq!(count("^o").expect("regex"), 1);
        assert_eq!(count("kafka/main/cdc.users").expect("all generations"), 2);
        assert_eq!(count("kafka/main/cdc.users.1").expect("one generation"), 1);
        assert!(count("user").is_err() && count("kafka/other/orders").is_err());
        assert_eq!(count("postgres/7291").expect("a system"), 1);
        assert_eq!(count("postgres").expect("every system"), 1);
        assert_eq!(count("state").expect("all state"), 1);
        assert_eq!(count("state/topics/main").expect("one"), 1);
        assert_eq!(chosen(archive(), &[]).expect("all").len(), 5);
    }
}
