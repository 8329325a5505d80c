//! The HTTP listener: metrics for Prometheus, health for Kubernetes, a status page for people, and Kafka Connect's REST
//! shapes for tools that speak them.
//!
//! ```text
//!   Prometheus ── /metrics ──────────────┐
//!   Kubernetes ── /healthz, /readyz ─────┤                      ┌── status ── the running pipeline
//!   a browser ─── /, /api/status ────────┼──► App ──► state ────┤
//!   Connect's tools ─ /connectors … ─────┘      │               └── requests ─► pause, stop, restart, go on
//!                     PUT, POST: Authorization: Bearer ── token file
//! ```
//!
//! Reading is open to whoever reaches the listener. Changing takes the token of `http.admin_token_file`; without that
//! key nothing can be changed. Every answer is made from what the pipeline has published, so no request makes it wait; only the
//! records of a moment are read from the archive, for one request at a time, and what they hold takes the token of a reader.
//! `docs/HTTP.md` describes the answers.

mod api;
mod app;
mod auth;
mod caller;
mod connect;
mod connections;
mod gate;
mod health;
mod metrics;
mod page;
mod readers;
mod records;
mod refusal;
mod replay;
mod server;
mod store_probe;
mod trail;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use tokio::net::TcpListener;

use crate::config::{Config, Http};
use crate::error::Result;
use crate::pipeline::published::Published;
use crate::telemetry::metrics::install;
use app::App;
use auth::Token;
use gate::{Gate, guard};
use readers::Readers;
use refusal::{unknown_path, wrong_method};
pub use replay::ReplayListener;
use server::bind;
use store_probe::StoreProbe;

/// How often measurements that wait are summed up, should nobody read them.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// The listener, bound and not yet serving.
pub struct Listener {
    socket: TcpListener,
    app: Arc<App>,
}

/// Whether the listener's settings are usable: the token file, if there is one.
///
/// # Errors
/// [`Kind::Config`](crate::error::Kind::Config), naming the key and the way out.
pub fn validate(http: &Http) -> Result<()> {
    tokens(http).map(drop)
}

/// The tokens of changing calls and of readers, as far as there are any.
fn tokens(http: &Http) -> Result<[Option<Token>; 2]> {
    let open = |key, file: &Option<PathBuf>| file.as_deref().map(|file| Token::open(key, file)).transpose();
    Ok([open(auth::ADMIN, &http.admin_token_file)?, open(auth::READER, &http.reader_token_file)?])
}

impl Listener {
    /// Binds `http.listen`, and makes the process count. It must come before what is to be counted is opened.
    ///
    /// # Errors
    /// A token file that is unusable, an address that is taken or not of this machine.
    pub async fn bind(http: &Http, config: &Config, published: Arc<Published>) -> Result<Self> {
        let [token, reader] = tokens(http)?;
        let socket = bind(http.listen, "http.listen").await?;
        let port = socket.local_addr().map_or(http.listen.port(), |address| address.port());
        let worker = format!("{}:{port}", host_name());
        let (config, recorder, store) = (config.clone(), install()?, StoreProbe::default());
        let gate = Arc::new(Gate::of(&socket));
        tracing::info!(listen = %http.listen, changes = token.is_some(), records = reader.is_some(), "listening for HTTP");
        let readers = reader.map(Readers::of);
        Ok(Self { socket, app: Arc::new(App { config, published, recorder, token, readers, worker, store, gate }) })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self) {
        let Self { socket, app } = self;
        let tidy = async {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                app.recorder.tidy();
            }
        };
        tokio::join!(server::serve(socket, routes(Arc::clone(&app))), tidy);
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

fn routes(app: Arc<App>) -> Router {
    let connector = Router::new()
        .route("/", get(connect::connector))
        .route("/config", get(connect::config))
        .route("/status", get(connect::status))
        .route("/tasks", get(connect::tasks))
        .route("/tasks/{task}/status", get(connect::task_status))
        .route("/topics", get(connect::topics))
        .route("/offsets", get(connect::offsets))
        .route("/pause", put(connect::pause))
        .route("/resume", put(connect::resume))
        .route("/stop", put(connect::stop))
        .route("/restart", post(connect::restart))
        .route("/skip", post(connect::skip));
    Router::new()
        .route("/", get(page::root))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/text.js", get(page::text))
        .route("/moment.js", get(page::moment))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/api/status", get(api::status))
        .route("/api/streams/{topic}", get(api::stream))
        .route("/api/streams/{topic}/records", get(records::records))
        .route("/connectors", get(connect::connectors))
        .route("/connectors/", get(connect::connectors))
        .route("/connectors/{connector}/", get(connect::connector))
        .route("/connector-plugins", get(connect::plugins))
        .nest("/connectors/{connector}", connector)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app.gate), guard))
        .with_state(app)
}
