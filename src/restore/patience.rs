//! A restore waits for a store that is away: what it has unpacked by then took hours.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Kind, Result};

/// How long a store that does not answer is asked again: as long as a base backup waits for it.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The first pause, which doubles, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// Makes `attempt` until it succeeds, fails for good, or the store has been away for `patience`.
///
/// # Errors
/// That of the last attempt.
pub async fn patiently<T, F: Future<Output = Result<T>>>(patience: Duration, attempt: impl Fn() -> F) -> Result<T> {
    let (begun, [mut pause, longest]) = (Instant::now(), PAUSES);
    loop {
        match attempt().await {
            // A full disk is the restore's own.
            Err(error) if error.kind() == Kind::Unavailable && begun.elapsed() + pause < patience => {
                let waits = patience.saturating_sub(begun.elapsed());
                tracing::warn!(%error, hint = error.hint_text(), retry_in = ?pause, "the store does not answer; it is waited for up to {} s more", waits.as_secs());
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error::Error;

    #[tokio::test]
    async fn a_store_that_comes_back_is_waited_for_and_one_that_refuses_is_not() {
        let tries = AtomicU32::new(0);
        let fails = |until: u32, kind| {
            let tries = &tries;
            move || async move {
                let number = tries.fetch_add(1, Ordering::Relaxed);
                if number < until { Err(Error::new(kind, "away")) } else { Ok(number) }
            }
        };
        assert_eq!(patiently(PATIENCE, fails(2, Kind::Unavailable)).await.expect("it comes back"), 2);
        for (patience, kind) in [(PATIENCE, Kind::Denied), (PATIENCE, Kind::Full), (PAUSES[0], Kind::Unavailable)] {
            tries.store(0, Ordering::Relaxed);
            let error = patiently(patience, fails(1, kind)).await.expect_err("nobody waits");
            assert_eq!((error.kind(), tries.load(Ordering::Relaxed)), (kind, 1));
        }
    }
}
