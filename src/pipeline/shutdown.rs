//! The wait for a stop, of the process or of a part of it.

use tokio::sync::watch;

/// Waits until `stop` turns true. Where nobody is left to ask for it, it goes on.
pub(super) async fn requested(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}
