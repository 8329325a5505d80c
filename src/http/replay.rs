//! The listener of a replay: its progress as a metric, for a Job that nobody watches.

use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use axum::{Router, middleware::from_fn_with_state};
use tokio::net::TcpListener;

use super::gate::{Gate, guard};
use super::metrics;
use super::refusal::{unknown_path, wrong_method};
use super::server::{self, bind};
use crate::error::Result;
use crate::replay::Counters;
use crate::telemetry::metrics::{BUILD_INFO, Exposition, REPLAY_RECORDS};
use crate::telemetry::{REVISION, VERSION, process};

/// A replay that can be watched.
pub struct ReplayListener {
    socket: TcpListener,
    shown: Arc<Shown>,
}

struct Shown {
    id: String,
    counters: Arc<Counters>,
}

impl ReplayListener {
    /// Binds `listen` for the replay `id`, whose progress `counters` tell.
    ///
    /// # Errors
    /// An address that is taken or not of this machine.
    pub async fn bind(listen: SocketAddr, id: &str, counters: Arc<Counters>) -> Result<Self> {
        let socket = bind(listen, "--metrics").await?;
        Ok(Self { socket, shown: Arc::new(Shown { id: id.to_owned(), counters }) })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self) {
        let gate = Arc::new(Gate::of(&self.socket));
        let routes = Router::new()
            .route("/metrics", get(exposed))
            .fallback(unknown_path)
            .method_not_allowed_fallback(wrong_method)
            .layer(from_fn_with_state(gate, guard))
            .with_state(self.shown);
        server::serve(self.socket, routes).await;
    }
}

fn exposed(State(shown): State<Arc<Shown>>) -> Ready<Response> {
    let mut out = Exposition::default();
    out.single(&REPLAY_RECORDS, &[("replay", &shown.id)], shown.counters.records() as f64);
    out.single(&BUILD_INFO, &[("version", VERSION), ("revision", REVISION)], 1.0);
    process::expose(&mut out);
    ready(metrics::answer(out))
}
