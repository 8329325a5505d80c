//! What an archiver is to do and what it is doing. The desired state stands until it is replaced, so a request is never lost and
//! never queues: the archiver applies it when it polls.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an archiver is to do, as somebody asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DesiredState {
    /// Archive.
    #[default]
    Run,
    /// Keep everything that it owns, and read no more of it.
    Pause,
    /// Give back what it owns, and own nothing.
    Stop,
}

/// What an archiver is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// It has no connection, or the group has not taken it in.
    #[default]
    Connecting,
    /// It archives.
    Running,
    /// It keeps what it owns and reads nothing.
    Paused,
    /// It has given back what it owned, or is doing so.
    Stopped,
    /// It gives back what it owns, to begin again.
    Restarting,
    /// The process is ending.
    Ending,
}

impl State {
    /// The state as status documents and log lines write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Ending => "ending",
        }
    }
}

/// The desired state of an archiver, shared with whoever requests another one.
#[derive(Debug, Default)]
pub struct Control(Mutex<Desired>);

/// The desired state as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) state: DesiredState,
    /// How often a restart was asked for.
    pub(super) restarts: u64,
}

impl Control {
    /// Requests `state`.
    pub fn request(&self, state: DesiredState) {
        self.lock().state = state;
    }

    /// Requests that everything is given back and begun again.
    pub fn restart(&self) {
        self.lock().restarts += 1;
    }

    pub(super) fn read(&self) -> Desired {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Desired> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_request_stands_and_restarts_are_counted() {
        let control = Control::default();
        assert_eq!(control.read(), Desired { state: DesiredState::Run, restarts: 0 });
        control.request(DesiredState::Pause);
        control.request(DesiredState::Stop);
        control.restart();
        control.restart();
        assert_eq!(control.read(), Desired { state: DesiredState::Stop, restarts: 2 });
    }
}
