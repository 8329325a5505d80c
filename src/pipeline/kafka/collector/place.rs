//! Where a partition that the group has given to this process stands. That it stands somewhere is the collector's invariant:
//! what is assigned is read, or waits for something that has a name.

use crate::pipeline::kafka::segmenter::Wait;

/// What the collector knows of a partition that it owns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The consumer was told to read it.
    pub(super) reading: bool,
    /// The topic's present segmenter carries it, and what it waits for.
    pub(super) carried: Option<Option<Wait>>,
    /// Its position is being looked up.
    pub(super) resolving: bool,
    /// The topic moves to another generation, and takes all its partitions along.
    pub(super) ending: bool,
    /// It is being given back to the group.
    pub(super) leaving: bool,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Read,
    Waits(Wait),
    Resolving,
    Ending,
    Leaving,
    /// It is not read and waits for nothing.
    Nowhere,
}

/// The one answer to where a partition stands; what speaks against reading comes first.
pub(super) fn place(facts: Facts) -> Place {
    match facts {
        Facts { leaving: true, .. } => Place::Leaving,
        Facts { ending: true, .. } => Place::Ending,
        Facts { resolving: true, .. } => Place::Resolving,
        Facts { reading: true, carried: Some(Some(wait)), .. } => Place::Waits(wait),
        Facts { reading: true, carried: Some(None), .. } => Place::Read,
        Facts { .. } => Place::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_segmenter_carries_is_nowhere_unless_it_waits() {
        let lost = Facts { reading: true, ..Facts::default() };
        assert_eq!(place(lost), Place::Nowhere, "the consumer reads it and nobody takes its records");
        assert_eq!(place(Facts { resolving: true, ..lost }), Place::Resolving);
        assert_eq!(place(Facts { ending: true, ..lost }), Place::Ending);
        assert_eq!(place(Facts { leaving: true, ..lost }), Place::Leaving);
    }

    #[test]
    fn what_the_consumer_does_not_read_is_nowhere_though_a_segmenter_carries_it() {
        for carried in [None, Some(None), Some(Some(Wait::OutOfRange))] {
            assert_eq!(place(Facts { carried, ..Facts::default() }), Place::Nowhere);
        }
        assert_eq!(place(Facts { reading: true, carried: Some(None), ..Facts::default() }), Place::Read);
        let waits = Facts { reading: true, carried: Some(Some(Wait::Truncated)), ..Facts::default() };
        assert_eq!(place(waits), Place::Waits(Wait::Truncated));
    }
}
