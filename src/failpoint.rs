//! Named steps at which a test lets the program die, fail or stand still. A build without debug assertions has none of them.
//!
//! ```text
//!   TIDELOG_FAILPOINTS="segment.put=kill@2,checkpoint.answer=error@1..3"
//!        the process ends at once ────┘  │                     │   └ the first three passings
//!        the second time it comes there ─┘                     └ the step fails, as by a store that does not answer
//! ```
//!
//! A step of the store has three names: `.put` before an object is written, `.answer` when it is written and nobody has been told,
//! `.delete` before it goes. To fail at `.put` is a refusal without effect, to fail at `.answer` an answer that was lost. The crash
//! tests (`tests/crashes.rs`) pass each name; what they hold the program to is in docs/RELIABILITY.md.

/// Fails, ends or delays the process if the environment says so. Builds without debug assertions have nothing in its place.
macro_rules! failpoint {
    ($($name:tt)*) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::pass($($name)*)?;
    };
}
pub(crate) use failpoint;

#[cfg(debug_assertions)]
pub use armed::{POINTS, STORED, pass};

#[cfg(debug_assertions)]
mod armed {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use crate::error::{Error, Kind, Result};

    /// The variable of the environment.
    const VARIABLE: &str = "TIDELOG_FAILPOINTS";

    /// The objects of a store, each with the steps `.put`, `.answer` and `.delete`.
    pub const STORED: [&str; 16] = [
        "segment",
        "wal_segment",
        "state_version",
        "begin",
        "checkpoint",
        "wal_checkpoint",
        "state_checkpoint",
        "snapshot",
        "page",
        "pack",
        "history",
        "backup_part",
        "backup_commit",
        "hold",
        "coverage",
        "journal",
    ];

    /// All other steps.
    pub const POINTS: [&str; 13] = [
        "segment.bytes",
        "segment.seal",
        "group.commit",
        "group.revoke",
        "merge.entry",
        "expire.entry",
        "backups.entry",
        "replay.produce",
        "replay.commit",
        "replay.committed",
        "wal.spool",
        "wal.sync",
        "recover.save",
    ];

    /// What happens at a step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        /// The process ends, and nothing is tidied up.
        Kill,
        /// The step fails.
        Error,
        /// The thread stands still for so long.
        Delay(Duration),
    }

    /// A fault, and from and to which passing it happens.
    #[derive(Debug)]
    struct Armed {
        fault: Fault,
        first: u64,
        last: u64,
        passed: AtomicU64,
    }

    static ARMED: LazyLock<BTreeMap<String, Armed>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        // A test that names a step wrongly would pass without having tried anything.
        parse(&text).unwrap_or_else(|problem| panic!("{VARIABLE}: {problem}"))
    });

    fn is_known(name: &str) -> bool {
        let stored = name.rsplit_once('.').filter(|(_, step)| ["put", "answer", "delete"].contains(step));
        POINTS.contains(&name) || stored.is_some_and(|(object, _)| STORED.contains(&object))
    }

    fn parse(text: &str) -> Result<BTreeMap<String, Armed>, String> {
        text.split(',').filter(|one| !one.is_empty()).map(parse_one).collect()
    }

    fn parse_one(text: &str) -> Result<(String, Armed), String> {
        let wrong = || format!("{text:?} is not NAME=kill@N, NAME=error@N..M or NAME=MILLISECONDS@N..M");
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (fault, passings) = rest.split_once('@').ok_or_else(wrong)?;
        if !is_known(name) {
            return Err(format!("there is no step {name:?}"));
        }
        let fault = match fault {
            "kill" => Fault::Kill,
            "error" => Fault::Error,
            pause => Fault::Delay(Duration::from_millis(pause.parse().map_err(|_| wrong())?)),
        };
        let (first, last) = passings.split_once("..").unwrap_or((passings, passings));
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        Ok((name.to_owned(), Armed { fault, first, last, passed: AtomicU64::new(0) }))
    }

    /// Passes a step.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] where the environment says that the step fails.
    #[expect(clippy::print_stderr, reason = "a process that ends here has no time for its log")]
    pub fn pass(name: &str) -> Result<()> {
        let Some(armed) = ARMED.get(name) else { return Ok(()) };
        let passing = armed.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if passing < armed.first || armed.last < passing {
            return Ok(());
        }
        eprintln!("failpoint {name}: {:?} at passing {passing}", armed.fault);
        match armed.fault {
            Fault::Kill => std::process::abort(),
            Fault::Error => Err(Error::new(Kind::Unavailable, format!("failpoint {name}, passing {passing}"))),
            Fault::Delay(pause) => {
                std::thread::sleep(pause);
                Ok(())
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn steps_are_read_as_they_are_written_and_wrong_ones_are_refused() {
            let armed = parse("segment.put=kill@2,wal.sync=error@1..3,page.answer=250@4").expect("it is right");
            let told: Vec<_> = armed.iter().map(|(name, at)| (name.as_str(), at.fault, at.first, at.last)).collect();
            let delay = Fault::Delay(Duration::from_millis(250));
            let expected =
                [("page.answer", delay, 4, 4), ("segment.put", Fault::Kill, 2, 2), ("wal.sync", Fault::Error, 1, 3)];
            assert_eq!(told, expected);
            for wrong in
                ["segment.put", "segment.put=kill", "segments.put=kill@1", "segment.get=kill@1", "wal.sync=soon@1"]
            {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
        }
    }
}
