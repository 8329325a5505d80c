//! `tidelog run`: the service, from its start to a stop by signal.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::http::Listener;
use crate::pipeline::{self, published::Published};

/// Archives until SIGTERM or SIGINT. A second signal ends at once: killing is a correct way to stop, only dearer.
pub(super) async fn run(config: &Config) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let published = Published::new(config);
    if let Some(http) = &config.http {
        let listener = Listener::bind(http, config, Arc::clone(&published)).await?;
        published.tasks().spawn("http", listener.serve());
    }
    let mut service = Box::pin(pipeline::run(config, published, stopped));
    loop {
        tokio::select! {
            result = &mut service => return result,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.send_replace(true) {
            return Err(Error::new(Kind::Interrupted, "stopped before the last segments were committed")
                .hint("nothing is lost: they are read from Kafka again at the next start"));
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|source| Error::io(source, "cannot listen for signals"))
}
