//! When a request to a cloud is given up: reading by progress, writing by what there is to send.
//!
//! object_store's default ends a request 30 s after it began, its body included. A part of 8 MiB on a link of 200 KB/s is
//! then never through, and its object is begun again for ever (of reading, arrow-rs-object-store#386 tells the same).
//! Here each piece of an answer is waited for by itself. A body that is sent shows no progress (object_store gives the
//! client all of it at once), so its time grows with its length; and where it was too short, the next request gets twice
//! as long, so that the slowest of links gets its objects through.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientConfigKey;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

/// How long an answer, and each piece of its body, is waited for.
const READ_STALL: &str = "30 seconds";

/// How long an answer to what was sent is waited for, beside the time for sending it.
const ANSWER: Duration = Duration::from_secs(30);

/// How many bytes a second a connection is expected to take: 158 s for a part of 8 MiB. Up to six parts of three
/// uploads share the link.
const EXPECTED: u64 = 64 * 1024;

/// The least that is ever expected: half an hour for a part of 8 MiB.
const LEAST: u64 = 4 * 1024;

/// Connects as object_store does, but for the time-outs.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let (options, connector) = (options.clone().with_timeout_disabled(), ReqwestConnector::default());
        let writing = connector.connect(&options)?;
        let reading = connector.connect(&options.with_config(ClientConfigKey::ReadTimeout, READ_STALL))?;
        Ok(HttpClient::new(Client { reading, writing, expected: AtomicU64::new(EXPECTED) }))
    }
}

#[derive(Debug)]
struct Client {
    /// Its time-out for a piece of the answer runs while the request is sent, too.
    reading: HttpClient,
    writing: HttpClient,
    /// Bytes a second.
    expected: AtomicU64,
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let length = request.body().content_length() as u64;
        if length == 0 {
            return self.reading.execute(request).await;
        }
        let expected = self.expected.load(Ordering::Relaxed);
        let time = time_for(length, expected);
        match tokio::time::timeout(time, self.writing.execute(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                // Requests that are under way together double it once.
                let slower = slower(expected);
                let changed = self.expected.compare_exchange(expected, slower, Ordering::Relaxed, Ordering::Relaxed);
                if changed.is_ok() {
                    tracing::warn!(bytes = length, after = ?time, next = ?time_for(length, slower), "the link to the store is too slow for its time-out, or stands still; the next request gets longer");
                }
                Err(HttpError::new(HttpErrorKind::Timeout, TooSlow { length, time }))
            }
        }
    }
}

/// Returns how long a request with a body of `length` may take.
fn time_for(length: u64, expected: u64) -> Duration {
    ANSWER + Duration::from_secs(length / expected.max(1))
}

/// Returns what is expected after a time that was too short.
fn slower(expected: u64) -> u64 {
    (expected / 2).max(LEAST)
}

/// A request that was given up.
#[derive(Debug)]
struct TooSlow {
    length: u64,
    time: Duration,
}

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes were not sent and answered in {} s", self.length, self.time.as_secs())
    }
}

impl std::error::Error for TooSlow {}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: u64 = 8 << 20;

    /// Returns how many requests of a part it takes until one is through a link of this speed, and how long all of them take.
    fn tries(bytes_per_second: u64) -> (u32, Duration) {
        let needs = Duration::from_secs(PART / bytes_per_second);
        let (mut expected, mut took) = (EXPECTED, Duration::ZERO);
        for tries in 1..20 {
            let time = time_for(PART, expected);
            if needs <= time {
                return (tries, took + needs);
            }
            (took, expected) = (took + time, slower(expected));
        }
        panic!("never through at {bytes_per_second} bytes a second");
    }

    #[test]
    fn a_part_gets_through_a_link_of_any_speed() {
        for (bytes_per_second, least) in [(10_000_000, 1), (500_000, 1), (80_000, 1), (30_000, 2), (5_000, 5)] {
            let (tries, took) = tries(bytes_per_second);
            assert_eq!(tries, least, "at {bytes_per_second} bytes a second");
            assert!(took < Duration::from_secs(2 * 3600), "{took:?} at {bytes_per_second} bytes a second");
        }
    }

    #[test]
    fn a_short_request_on_a_dead_link_is_given_up_soon() {
        assert_eq!(time_for(2_000, EXPECTED), ANSWER);
        assert!(time_for(2_000, LEAST) < 2 * ANSWER);
        assert_eq!(slower(LEAST), LEAST);
    }
}
