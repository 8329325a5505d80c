//! Work of the producer that blocks, on a thread for that.

use crate::error::{Kind, Result, ResultExt as _};

/// Runs what blocks on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.or_err(Kind::Internal, || "the replay's producer failed".to_owned())?
}
