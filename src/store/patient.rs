//! A store that sends again what may succeed later: the one policy for every reader and writer.
//!
//! object_store sends a request again after a status of 5xx, 408 or 429 and after a broken connection. It takes any other
//! status for final, although an answer of 400 can be a slow link (`RequestTimeout`) or a token that was exchanged at
//! this moment (`ExpiredToken`). Here such a request is made again from the start, with a signature and credentials of
//! its own, for as long as object_store goes on with one.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::time::Instant;

use super::fault;

/// After this time no request is sent again.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(20);

/// The first pause; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How often a part of an upload is begun again: its object is sent as a whole where that does not help.
const PART_ATTEMPTS: usize = 4;

/// A cloud's objects.
#[derive(Debug)]
pub(super) struct Patient<S> {
    inner: Arc<S>,
}

impl<S: ObjectStore> Patient<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Returns what it wraps.
    pub(super) fn inner(&self) -> Arc<S> {
        Arc::clone(&self.inner)
    }
}

/// Makes `attempt` until it succeeds, fails for good, or the time is up.
async fn again<T, F: Future<Output = Result<T>>>(may: impl Fn(&Error) -> bool, attempt: impl Fn() -> F) -> Result<T> {
    let (start, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        match attempt().await {
            Err(error) if may(&error) && start.elapsed() + pause < RETRY_FOR => {
                tracing::info!(%error, retry_in = ?pause, "a request to the store is sent again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            done => return done,
        }
    }
}

impl<S: ObjectStore> fmt::Display for Patient<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Patient<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let creates = matches!(opts.mode, PutMode::Create);
        // That a create is refused is for the caller to judge, who reads what is there.
        let may =
            |error: &Error| fault::passes_untried(error) && !(creates && matches!(error, Error::AlreadyExists { .. }));
        again(may, || self.inner.put_opts(location, payload.clone(), opts.clone())).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let opts = opts.with_retry_policy(Arc::new(Parts));
        again(fault::passes_untried, || self.inner.put_multipart_opts(at, opts.clone())).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        again(fault::passes_untried, || self.inner.get_opts(location, options.clone())).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        again(fault::passes_untried, || self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let inner = Arc::clone(&self.inner);
        let one = move |location: Result<Path>| {
            let inner = Arc::clone(&inner);
            async move {
                let location = location?;
                let delete = || async {
                    let mut deleted = inner.delete_stream(stream::iter([Ok(location.clone())]).boxed());
                    deleted.try_next().await
                };
                again(fault::passes_untried, delete).await.map(|_| location.clone())
            }
        };
        locations.map(one).buffered(16).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        listing(Arc::clone(&self.inner), prefix.cloned(), None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        listing(Arc::clone(&self.inner), prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        again(fault::passes_untried, || self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        again(fault::passes_untried, || self.inner.copy_opts(from, to, options.clone())).await
    }
}

/// A listing that goes on behind the last key it gave; clouds list in the order of the keys.
fn listing<S: ObjectStore>(
    store: Arc<S>,
    prefix: Option<Path>,
    after: Option<Path>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    struct Listing<S> {
        store: Arc<S>,
        prefix: Option<Path>,
        after: Option<Path>,
        under_way: Option<BoxStream<'static, Result<ObjectMeta>>>,
        failing: Option<(Instant, Duration)>,
    }
    let begin = Listing { store, prefix, after, under_way: None, failing: None };
    let step = |mut at: Listing<S>| async move {
        loop {
            let mut listed = match (at.under_way.take(), &at.after) {
                (Some(listed), _) => listed,
                (None, Some(after)) => at.store.list_with_offset(at.prefix.as_ref(), after),
                (None, None) => at.store.list(at.prefix.as_ref()),
            };
            match listed.try_next().await {
                Ok(None) => return Ok(None),
                Ok(Some(object)) => {
                    (at.after, at.under_way, at.failing) = (Some(object.location.clone()), Some(listed), None);
                    return Ok(Some((object, at)));
                }
                Err(error) => {
                    let (since, pause) = at.failing.unwrap_or((Instant::now(), FIRST_PAUSE));
                    if !fault::passes_untried(&error) || since.elapsed() + pause >= RETRY_FOR {
                        return Err(error);
                    }
                    tracing::info!(%error, retry_in = ?pause, "a listing of the store goes on where it broke off");
                    tokio::time::sleep(pause).await;
                    at.failing = Some((since, pause * 2));
                }
            }
        }
    };
    stream::try_unfold(begin, step).boxed()
}

/// When a part of an upload is begun again. It is told the status only, and no code.
#[derive(Debug)]
struct Parts;

#[async_trait]
impl RetryPolicy for Parts {
    async fn retry(&self, context: RetryContext) -> bool {
        let may = match context.failure {
            RetryFailure::Status(status) => matches!(status.as_u16(), 400 | 403 | 409 | 500..),
            RetryFailure::Transport(_) => true,
            _ => false,
        };
        if !may || context.attempt >= PART_ATTEMPTS {
            return false;
        }
        let pause = FIRST_PAUSE * (1 << context.attempt.min(4));
        tracing::info!(failure = ?context.failure, retry_in = ?pause, "a part of an upload is sent again");
        tokio::time::sleep(pause).await;
        true
    }
}
