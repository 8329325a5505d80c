//! How long requests take and how they fail, for `/metrics`. One handle an operation, taken when the store is opened.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use metrics::Histogram;

use crate::error::{Error, Kind, Result};
use crate::telemetry::metrics::{STORE_ERRORS, STORE_REQUEST_SECONDS};

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Create,
    Put,
    Upload,
    Get,
    Head,
    List,
    Delete,
}

impl Operation {
    /// All of them, in the order of their declaration.
    const ALL: [Self; 7] = [Self::Create, Self::Put, Self::Upload, Self::Get, Self::Head, Self::List, Self::Delete];

    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Put => "put",
            Self::Upload => "upload",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// The failures that an operator waits for: their series are there before the first one happens.
const EXPECTED: [Kind; 3] = [Kind::Unavailable, Kind::Denied, Kind::Full];

/// Measures the requests of one store.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    seconds: Arc<[Histogram; Operation::ALL.len()]>,
}

impl Meter {
    pub(super) fn new() -> Self {
        for operation in Operation::ALL {
            for kind in EXPECTED {
                failed(operation, kind, 0);
            }
        }
        let seconds = Operation::ALL.map(|op| STORE_REQUEST_SECONDS.histogram(&[("operation", op.name())]));
        Self { seconds: Arc::new(seconds) }
    }

    /// Does `work` and measures it.
    pub(super) async fn time<T>(&self, operation: Operation, work: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = work.await;
        self.seconds[operation as usize].record(start.elapsed());
        if let Err(error) = &result {
            failed(operation, Error::kind(error), 1);
        }
        result
    }
}

fn failed(operation: Operation, kind: Kind, times: u64) {
    STORE_ERRORS.counter(&[("operation", operation.name()), ("kind", kind.name())]).increment(times);
}
