//! Byte ranges of one object: single ones on demand, or a planned run of them with the next request under way.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::fault;

/// A planned run asks for about this much at once: enough that a request's latency is small beside its transfer, little
/// enough that the two requests that may be held do not matter to a memory budget.
const REQUEST: u64 = 4 << 20;
/// Bytes between two wanted ranges that are cheaper to read than to leave out with another request.
const HOLE: u64 = 128 << 10;

/// An object of a known size.
#[derive(Clone)]
pub(super) struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

impl Object {
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path, size: u64) -> Self {
        Self { store, path, size }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of a range.
    pub(super) async fn get(&self, range: Range<u64>) -> Result<Bytes> {
        self.check(&range)?;
        let wanted = range.end - range.start;
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        match self.store.get_range(&self.path, range).await {
            Ok(bytes) if bytes.len() as u64 == wanted => Ok(bytes),
            Ok(_) => Err(self.failed(None).await),
            Err(error) => Err(self.failed(Some(error)).await),
        }
    }

    /// Only ranges inside the object are asked for, whatever a damaged file says.
    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start <= range.end && range.end <= self.size {
            return Ok(());
        }
        let message = format!("it points to its bytes {}..{}, but has {}", range.start, range.end, self.size);
        Err(Error::new(Kind::Corrupt, message))
    }

    /// Returns why a request failed. A range that the store does not have means an object that is shorter than it should be.
    async fn failed(&self, error: Option<object_store::Error>) -> Error {
        let doing = format!("cannot read {}", self.path);
        match self.store.head(&self.path).await {
            Ok(found) if found.size != self.size => {
                let message = format!("it has {} bytes, its checkpoint says {}", found.size, self.size);
                Error::new(Kind::Corrupt, message)
            }
            Err(missing @ object_store::Error::NotFound { .. }) => Error::new(Kind::NotFound, doing).source(missing),
            _ => match error {
                Some(error) => fault::translate(error, doing),
                None => Error::new(Kind::Unavailable, doing).context("the store gave fewer bytes than asked for"),
            },
        }
    }
}

/// Ranges of an object in ascending order, each decoded by itself, read with few requests and one request ahead.
pub(super) struct Run {
    object: Object,
    requests: VecDeque<Request>,
    /// The request under way; dropping it stops it.
    ahead: JoinSet<Result<Bytes>>,
    /// The bytes of the request whose ranges are being given out.
    current: Option<(Request, Bytes)>,
}

struct Request {
    bytes: Range<u64>,
    parts: VecDeque<Range<u64>>,
}

impl Run {
    pub(super) fn new(object: Object, ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut requests: VecDeque<Request> = VecDeque::new();
        for range in ranges {
            match requests.back_mut() {
                Some(last)
                    if range.start >= last.bytes.end
                        && range.start - last.bytes.end <= HOLE
                        && range.end.saturating_sub(last.bytes.start) <= REQUEST =>
                {
                    last.bytes.end = range.end;
                    last.parts.push_back(range);
                }
                _ => requests.push_back(Request { bytes: range.clone(), parts: VecDeque::from([range]) }),
            }
        }
        Self { object, requests, ahead: JoinSet::new(), current: None }
    }

    /// The bytes of the next range; none after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some((request, bytes)) = &mut self.current
                && let Some(part) = request.parts.pop_front()
            {
                let start = (part.start - request.bytes.start) as usize;
                return Ok(Some(bytes.slice(start..start + (part.end - part.start) as usize)));
            }
            self.current = None;
            let Some(request) = self.requests.pop_front() else { return Ok(None) };
            if self.ahead.is_empty() {
                self.ask(request.bytes.clone());
            }
            let bytes = match self.ahead.join_next().await {
                Some(done) => done.or_err(Kind::Internal, || "a request for bytes was stopped".into())??,
                None => return Err(Error::new(Kind::Internal, "a request for bytes was lost")),
            };
            if let Some(next) = self.requests.front() {
                self.ask(next.bytes.clone());
            }
            self.current = Some((request, bytes));
        }
    }

    fn ask(&mut self, range: Range<u64>) {
        let object = self.object.clone();
        self.ahead.spawn(async move { object.get(range).await });
    }
}
