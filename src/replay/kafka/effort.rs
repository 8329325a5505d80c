//! How much a transaction is asked to carry and how long it may take: less of the one and more of the other after each
//! that ended by a time-out.
//!
//! A transaction that does not end in time leaves nothing in the target but what was committed before. Over a link or under
//! a quota that is slower than the usual window allows for, or with one record that alone takes longer than a minute, the
//! next would end just so. So the next is smaller and may take longer, as far as the brokers allow, until some were tried in
//! vain: then the link is to blame, and it is said.

use std::time::Duration;

/// Where the window of bytes on their way begins, and what it does not fall below: 20 kB/s take it in 13 s.
const WINDOW: u64 = 256 * 1024;
/// What it is not made smaller than: a batch that small costs as much for its request as for its records.
const LEAST_WINDOW: u64 = 16 * 1024;
/// How long a transaction may last at first.
const TRANSACTION: Duration = Duration::from_secs(60);
/// The brokers' own limit where they do not tell (`transaction.max.timeout.ms`).
const LONGEST: Duration = Duration::from_secs(900);
/// How many may end by a time-out one after the other without anything committed between them.
const TRIES: u32 = 5;

/// What is asked of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effort {
    /// Bytes on their way that a run begins with.
    pub(super) window: u64,
    /// How long a transaction may last.
    pub(super) transaction: Duration,
    longest: Duration,
    in_vain: u32,
}

impl Effort {
    /// The first, of brokers that let a transaction last for `longest` milliseconds, if they tell.
    pub(super) fn first(longest: Option<u64>) -> Self {
        let longest = longest.map_or(LONGEST, Duration::from_millis);
        Self { window: WINDOW, transaction: TRANSACTION.min(longest), longest, in_vain: 0 }
    }

    /// The next, after one that ended by a time-out; none where there were enough. `moved`: something was committed
    /// since the last one.
    pub(super) fn after(self, moved: bool) -> Option<Self> {
        let in_vain = if moved { 1 } else { self.in_vain + 1 };
        let next = Self {
            window: (self.window / 4).max(LEAST_WINDOW),
            transaction: (self.transaction * 2).min(self.longest),
            in_vain,
            ..self
        };
        (in_vain < TRIES).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efforts_become_smaller_and_longer_and_end() {
        let mut effort = Effort::first(None);
        let mut all = vec![effort];
        while let Some(next) = effort.after(false) {
            effort = next;
            all.push(effort);
        }
        assert_eq!(all.iter().map(|one| one.window / 1024).collect::<Vec<_>>(), [256, 64, 16, 16, 16]);
        assert_eq!(all.iter().map(|one| one.transaction.as_secs()).collect::<Vec<_>>(), [60, 120, 240, 480, 900]);
        // What moves goes on, though never for longer than the brokers allow.
        let mut effort = Effort::first(Some(30_000));
        for _ in 0..100 {
            effort = effort.after(true).expect("it moves");
        }
        assert_eq!(effort.transaction, Duration::from_secs(30));
    }
}
