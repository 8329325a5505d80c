//! Who sees what records hold, and whose turn it is to look.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::auth::Token;

/// So long a request waits for the one before it.
const TURN_WITHIN: Duration = Duration::from_secs(4);

/// After a look without the token nobody else looks without it for so many times as long: whoever reaches the listener takes no more than
/// a quarter of a core from the archiver.
const RESTS: u32 = 3;

/// Those who know the token of `http.reader_token_file`, and those who do not.
pub(super) struct Readers {
    pub(super) token: Token,
    known: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn of(token: Token) -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { token, known: one(), others: one() }
    }

    /// Waits until nobody else of the same kind looks; none if that takes too long.
    pub(super) async fn turn(&self, is_reader: bool) -> Option<Turn> {
        let (turns, rests) = if is_reader { (&self.known, 0) } else { (&self.others, RESTS) };
        let permit = tokio::time::timeout(TURN_WITHIN, Arc::clone(turns).acquire_owned()).await.ok()?.ok()?;
        Some(Turn { permit: Some(permit), began: Instant::now(), rests })
    }
}

/// A look; it ends with its time of rest.
pub(super) struct Turn {
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
    rests: u32,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (permit, rest) = (self.permit.take(), self.began.elapsed() * self.rests);
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::http::auth::READER;

    #[tokio::test]
    async fn whoever_has_no_token_waits_longer_than_others_look_and_keeps_no_reader_from_it() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "0123456789abcdef").expect("it can be written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).expect("its rights");
        let readers = Readers::of(Token::open(READER, file.path()).expect("a token"));
        let looks = Duration::from_millis(100);
        let turn = readers.turn(false).await.expect("the first");
        tokio::time::sleep(looks).await;
        drop(turn);
        let ended = Instant::now();
        for _ in 0..2 {
            drop(readers.turn(true).await.expect("a reader"));
        }
        assert!(ended.elapsed() < looks, "readers wait for nobody else");
        drop(readers.turn(false).await.expect("the second"));
        assert!(ended.elapsed() >= looks * RESTS, "{:?}", ended.elapsed());
    }
}
