//! Objects that a listing meets and no tidelog can have written: keys that object_store does not take (`Path::parse`: ASCII
//! controls, empty parts, `.` and `..`), names of files that are no text. They are in nobody's way: named once, and left alone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// How many of them are named; whoever makes a million of them does not fill the log.
const NAMED: usize = 20;

/// What was named. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct PassedOver {
    named: Arc<Mutex<BTreeSet<String>>>,
}

impl PassedOver {
    /// Names an object in the log if it was not named before.
    pub(super) fn tell(&self, key: &str, why: &str) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() > NAMED || named.contains(key) {
            return;
        }
        named.insert(key.to_owned());
        if named.len() > NAMED {
            tracing::warn!("more such objects are passed over, and not named");
            return;
        }
        tracing::warn!(
            key,
            why,
            hint = "no tidelog has written it: whoever may write to the archive did. Delete it with the store's own tools; \
                    see docs/SECURITY.md",
            "an object that cannot be one of this archive is passed over"
        );
    }

    #[cfg(test)]
    pub(super) fn named(&self) -> Vec<String> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_of_them_fill_no_log() {
        let passed_over = PassedOver::default();
        for n in 0..1_000 {
            passed_over.tell(&format!("a//{}", n % 500), "x");
        }
        assert_eq!(passed_over.named().len(), NAMED + 1);
    }
}
