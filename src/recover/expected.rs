//! How long a recovery takes, as far as its sizes tell.
//!
//! ```text
//!   seconds of a step = what it takes whatever its size + bytes / what goes in a second + records · what each takes
//! ```
//!
//! The rates are estimates for two cores with everything on one local disk, the servers beside each other (docs/PERFORMANCE.md, "A pipeline
//! of 1 GiB"). A slower store, link or server takes longer, and none of it is known before: so it is a hint, which says what the long steps
//! are.

use super::step::Step;

/// What has to be moved, as far as the archive tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Bytes of the base backup as it is unpacked; of a server that is there already it is not known.
    pub(super) base: u64,
    /// Bytes of log that are replayed.
    pub(super) log: u64,
    /// Bytes of log that are passed.
    pub(super) raised: u64,
    /// Versions of subjects.
    pub(super) versions: u64,
    /// Archived records that are judged.
    pub(super) records: u64,
    /// Bytes of their keys and values.
    pub(super) bytes: u64,
    /// How many of them are sent.
    pub(super) sent: u64,
    /// Connectors.
    pub(super) connectors: u64,
}

/// Bytes in a second.
const MIB: f64 = 1_048_576.0;

/// Returns how many seconds a step takes.
pub(super) fn seconds(step: Step, of: &Sizes) -> f64 {
    let by = |bytes: u64, mib: f64| of_count(bytes) / (mib * MIB);
    let each = |count: u64, seconds: f64| of_count(count) * seconds;
    match step {
        Step::Postgres => 2.0 + by(of.base, 100.0) + by(of.log, 50.0),
        Step::Raise => 0.2 + by(of.raised, 128.0),
        Step::Slots => 0.5 + each(of.connectors, 0.5) + by(of.base, 60.0),
        Step::Open => 2.0,
        Step::Acls => 1.0,
        Step::Registry => 0.5 + each(of.versions, 0.02),
        Step::Topics => 2.0 + by(of.bytes, 100.0) + each(of.records, 0.000_002) + each(of.sent, 0.000_010),
        Step::Connectors => 1.0 + each(of.connectors, 3.0),
        Step::Marker => 1.0 + each(of.connectors, 5.0),
        Step::Fold => 1.0 + by(of.bytes, 50.0) + each(of.sent, 0.000_005),
    }
}

/// Counts and bytes are far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "a hint")]
fn of_count(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> impl Strategy<Value = [u64; 8]> {
        prop::array::uniform8(0_u64..1 << 50)
    }

    fn of([base, log, raised, versions, records, bytes, sent, connectors]: [u64; 8]) -> Sizes {
        Sizes { base, log, raised, versions, records, bytes, sent, connectors }
    }

    proptest! {
        #[test]
        fn whatever_grows_no_step_takes_less_and_one_takes_more(sizes in sizes(), which in 0_usize..8, more in 1_u64..1 << 50) {
            let mut larger = sizes;
            larger[which] += more;
            let (before, after) = (of(sizes), of(larger));
            for step in Step::ALL {
                prop_assert!(seconds(step, &before) <= seconds(step, &after), "{step:?}");
                prop_assert!(seconds(step, &before) > 0.0);
            }
            let total = |of: &Sizes| Step::ALL.into_iter().map(|step| seconds(step, of)).sum::<f64>();
            // A byte of a pebibyte is less than a float tells.
            if more > 1 << 20 {
                prop_assert!(total(&before) < total(&after));
            }
        }
    }
}
