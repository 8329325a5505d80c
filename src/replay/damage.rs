//! Segments that cannot be read: what of a replay stops before them, and what goes on.
//!
//! A partition that has lost records must not get the ones behind them in silence, so it ends before the first that cannot
//! be read, in this generation of its topic and in later ones. Partitions beside it in the same segment are read one by one, and go
//! on if their own pages are whole. Nothing of it is written down: the marks of the partition stay where it stopped, so
//! that the same id goes on there once the object is back.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Plan;
use crate::error::{Error, Kind, Result};

/// A partition that ends before what cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The part of the plan.
    pub part: usize,
    /// The partition.
    pub partition: i32,
    /// The first offset that is missing.
    pub from: i64,
    /// Where the segment that cannot be read ends.
    pub to: i64,
    /// That segment.
    pub object: String,
    /// Why it cannot be read.
    pub why: String,
    /// What sort of failure that is.
    pub kind: Kind,
}

/// The partitions of a plan that have stopped.
#[derive(Debug, Default)]
pub(super) struct Stops {
    all: Vec<Stop>,
    targets: BTreeSet<(String, i32)>,
}

impl Stops {
    pub(super) fn add(&mut self, plan: &Plan, stop: Stop) {
        self.targets.insert((plan.parts[stop.part].target.clone(), stop.partition));
        self.all.push(stop);
    }

    /// Returns whether nothing of `part` is to be sent of the partition any more.
    pub(super) fn has(&self, plan: &Plan, part: usize, partition: i32) -> bool {
        !self.targets.is_empty() && self.targets.contains(&(plan.parts[part].target.clone(), partition))
    }

    pub(super) fn take(&mut self) -> Vec<Stop> {
        std::mem::take(&mut self.all)
    }
}

/// Returns whether a failure is the segment's own: another one may be read all the same. One that may not be read is, too: rights are given
/// by object, or by the folder of a topic.
///
/// # Errors
/// Those that are not: the store's.
pub(super) fn of_segment(error: Error) -> Result<Error> {
    match error.kind() {
        Kind::Corrupt | Kind::NotFound | Kind::Unsupported | Kind::Denied => Ok(error),
        _ if is_of_a_disk(&error) => Ok(error),
        _ => Err(error),
    }
}

/// Returns whether a disk cannot read what it has: a sector is bad, or a file of a network's disk was exchanged on its server.
fn is_of_a_disk(error: &Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let numbers = causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
    numbers.into_iter().any(|number| matches!(number, libc::EIO | libc::ESTALE))
}

/// Returns what has stopped, each segment once, as warnings.
pub fn told(plan: &Plan, stops: &[Stop]) -> Vec<String> {
    let mut objects: BTreeMap<(usize, &str), Vec<&Stop>> = BTreeMap::new();
    for stop in stops {
        objects.entry((stop.part, &stop.object)).or_default().push(stop);
    }
    let tell = |((part, object), stops): ((usize, &str), Vec<&Stop>)| {
        let missing = stops
            .iter()
            .map(|stop| format!("partition {} stops before offset {} (to {})", stop.partition, stop.from, stop.to));
        let topic = &plan.parts[part].stream.topic;
        // The reader names the segment, too: once is enough.
        let why = stops.first().map_or("", |stop| &stop.why);
        let why = why.strip_prefix(&format!("segment {object}: ")).unwrap_or(why);
        format!("{object} cannot be read ({why}): of {topic} {}", missing.collect::<Vec<_>>().join(", "))
    };
    objects.into_iter().map(tell).collect()
}

/// What the user does about it.
pub const WAY_OUT: &str = "restore the object from a copy of the archive, or the right to read it, and type the same again; what lies behind it is to be had without it: --offsets from the end of the damage on";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_sector_is_the_segment_s_own_and_an_outage_is_not() {
        let failed = |number| {
            let source = std::io::Error::from_raw_os_error(number);
            let error = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(source) };
            of_segment(Error::new(Kind::Unavailable, "cannot read it").source(error)).is_ok()
        };
        assert!(failed(libc::EIO) && failed(libc::ESTALE));
        assert!(!failed(libc::ETIMEDOUT) && !failed(libc::ECONNREFUSED));
    }
}
