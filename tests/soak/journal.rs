//! What happened when, and what was found wrong first.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The schedule as it went, for who has to find out what led to a fault.
pub(super) struct Journal {
    pub(super) seed: u64,
    began: Instant,
    lines: Mutex<Vec<String>>,
    faults: Mutex<Vec<String>>,
}

impl Journal {
    pub(super) fn new(seed: u64) -> Journal {
        Journal { seed, began: Instant::now(), lines: Mutex::default(), faults: Mutex::default() }
    }

    /// Notes what happens now. It is shown at once, where the test's output is.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        let line = format!(
            "{:7.1} s  {}  {}",
            self.began.elapsed().as_secs_f64(),
            tidelog::time::now().format("%H:%M:%S%.3f"),
            text.as_ref()
        );
        eprintln!("soak: {line}");
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Notes that a promise is broken.
    pub(super) fn fault(&self, text: impl AsRef<str>) {
        self.note(format!("FAULT: {}", text.as_ref()));
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text.as_ref().to_owned());
    }

    /// Whether something is wrong.
    pub(super) fn is_faulty(&self) -> bool {
        !self.faults().is_empty()
    }

    /// What is wrong.
    pub(super) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All lines so far.
    pub(super) fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}
