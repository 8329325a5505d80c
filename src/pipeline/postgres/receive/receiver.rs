//! The receiver and what its sessions end with.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::config;
use crate::pipeline::postgres::shared::Shared;
use crate::source::postgres::Server;
use crate::stream::Lsn;
use crate::tasks::backoff::Backoff;

/// A server that says nothing for this long, although it is asked, is gone.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(30);

/// What receives.
pub(in crate::pipeline::postgres) struct Receiver {
    pub(super) server: Server,
    pub(super) config: config::Postgres,
    pub(super) shared: Arc<Shared>,
    /// The runtime of everything else: the store's connections belong to it.
    pub(super) others: Handle,
    /// Whether a session got as far as streaming: what is wrong later is no mistake of the configuration.
    pub(super) streamed: bool,
    pub(super) backoff: Backoff,
    /// Another server that still has what the usual one has removed.
    pub(super) detour: Option<Detour>,
}

/// Why a session ended without an error.
pub(super) enum Ended {
    Stopped,
    /// The next one goes on with what the server has.
    GoOn,
}

/// Another server to receive from for a while, without a slot.
pub(super) struct Detour {
    pub(super) server: Server,
    /// From here on the usual one has it.
    pub(super) until: Lsn,
}
