//! What every answer is made from.

use std::sync::Arc;

use axum::extract::State;

use super::auth::Token;
use super::gate::Gate;
use super::readers::Readers;
use super::store_probe::StoreProbe;
use crate::config::Config;
use crate::pipeline::published::Published;
use crate::telemetry::metrics::Recorder;

/// What every answer is made from.
pub(super) struct App {
    pub(super) config: Config,
    pub(super) published: Arc<Published>,
    pub(super) recorder: Recorder,
    pub(super) token: Option<Token>,
    /// Who sees records; none without a token for it.
    pub(super) readers: Option<Readers>,
    /// This process as Connect's tools name a worker.
    pub(super) worker: String,
    pub(super) store: StoreProbe,
    pub(super) gate: Arc<Gate>,
}

/// What the handlers take.
pub(super) type AppState = State<Arc<App>>;
