//! The runtime of a command.

use std::future::Future;

use crate::error::{Kind, Result, ResultExt};

/// Two threads for everything that waits; work on bytes has threads of its own.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .or_err(Kind::Unavailable, || "the runtime cannot be started".into())?;
    let result = runtime.block_on(work);
    // What still waits for a server must not keep the process.
    runtime.shutdown_background();
    result
}
