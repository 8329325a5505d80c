//! A proxy before an S3 server that answers, cuts, delays and throttles single requests as rules say.
//!
//! ```text
//!   tidelog ──► Proxy ──► moto_server or s3s-fs        Rule: method, key, how many to skip, how many to take ─► Fault
//! ```
//!
//! `Host` stays as the client sent it, so signatures hold. The first rule that fits a request is applied; one without a
//! rule goes through, or meets what [`bad_store::draw`] draws for it. Conditional puts reach the server one after the other: s3s-fs
//! looks, then writes.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use regex::Regex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::bad_store;
use super::records::Random;
use super::s3::Bucket;

/// What happens to a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It is answered with this status and code; the server never sees it.
    Answer(u16, &'static str),
    /// The server does what is asked, and the client is told this.
    AnswerAfter(u16, &'static str),
    /// The server does what is asked, and the connection is cut before the answer.
    LoseAnswer,
    /// The answer breaks off after so many bytes.
    CutAnswer(usize),
    /// It is held for so long, then goes through.
    Delay(Duration),
    /// All requests with this rule share a link that carries so many bytes a second, both ways.
    BytesPerSecond(u64),
    /// The server does what is asked, and the client gets this `ETag`.
    ForeignTag(&'static str),
    /// A listing without the newest objects: keys that match are left out of it.
    HideKeys(Regex),
}

/// Which requests a fault meets.
#[derive(Debug)]
pub(crate) struct Rule {
    method: &'static str,
    key: Regex,
    without_header: Option<&'static str>,
    skip: u64,
    times: u64,
    every: u64,
    fault: Fault,
    seen: AtomicU64,
    met: AtomicU64,
    /// When the link of the rule is free.
    free: Mutex<Option<Instant>>,
}

impl Rule {
    /// Requests with this method (empty: any) whose path and query match.
    pub(crate) fn new(method: &'static str, key: &str, fault: Fault) -> Rule {
        Rule {
            method,
            key: Regex::new(key).expect("a regex"),
            without_header: None,
            skip: 0,
            times: u64::MAX,
            every: 1,
            fault,
            seen: AtomicU64::new(0),
            met: AtomicU64::new(0),
            free: Mutex::default(),
        }
    }

    /// The first `skip` of them go through.
    pub(crate) fn skip(self, skip: u64) -> Rule {
        Rule { skip, ..self }
    }

    /// Only so many of them meet the fault.
    pub(crate) fn times(self, times: u64) -> Rule {
        Rule { times, ..self }
    }

    /// Only each `every`th of them, the last of so many.
    pub(crate) fn every(self, every: u64) -> Rule {
        Rule { every, ..self }
    }

    /// Only those without this header.
    pub(crate) fn without_header(self, name: &'static str) -> Rule {
        Rule { without_header: Some(name), ..self }
    }

    fn meets(&self, request: &Request<Incoming>) -> bool {
        let at = request.uri().path_and_query().map_or("/", |at| at.as_str());
        if !(self.method.is_empty() || request.method() == self.method)
            || !self.key.is_match(at)
            || self.without_header.is_some_and(|name| request.headers().contains_key(name))
        {
            return false;
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        let meets = seen >= self.skip && seen - self.skip < self.times && (seen + 1).is_multiple_of(self.every);
        self.met.fetch_add(u64::from(meets), Ordering::Relaxed);
        meets
    }

    /// Waits until the link has carried `bytes`.
    async fn carry(&self, bytes: usize) {
        let Fault::BytesPerSecond(rate) = self.fault else { return };
        let until = {
            let mut free = self.free.lock().expect("no test panics within");
            let from = free.unwrap_or_else(Instant::now).max(Instant::now());
            *free.insert(from + Duration::from_secs_f64(bytes as f64 / rate as f64))
        };
        tokio::time::sleep_until(until.into()).await;
    }
}

/// A rule that was added, to see how often it was met.
pub(crate) struct Added(Arc<Rule>);

impl Added {
    /// How many requests met the fault.
    pub(crate) fn met(&self) -> u64 {
        self.0.met.load(Ordering::Relaxed)
    }
}

struct Shared {
    /// Where the server listens.
    server: String,
    rules: Mutex<Vec<Arc<Rule>>>,
    /// From which faults are drawn for what no rule fits.
    random: Mutex<Option<Random>>,
    /// How many were drawn.
    disturbed: AtomicU64,
    /// Held by the conditional put that is at the server.
    conditional: tokio::sync::Mutex<()>,
    /// Method, path and query of all that came.
    log: Mutex<Vec<String>>,
}

impl Shared {
    fn drawn(&self, request: &Request<Incoming>, creates: bool) -> Option<Arc<Rule>> {
        let mut random = self.random.lock().expect("no test panics within");
        let fault = bad_store::draw(random.as_mut()?, request.method().as_str(), creates)?;
        self.disturbed.fetch_add(1, Ordering::Relaxed);
        Some(Arc::new(Rule::new("", "", fault)))
    }
}

/// The proxy; it ends with this value.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Stands before the bucket's server from now on: clients that take the bucket's options come through here.
    pub(crate) fn before(bucket: &mut Bucket) -> Proxy {
        let server = bucket.endpoint.trim_start_matches("http://").to_owned();
        let shared = Shared {
            server,
            rules: Mutex::default(),
            random: Mutex::default(),
            disturbed: AtomicU64::new(0),
            conditional: tokio::sync::Mutex::default(),
            log: Mutex::default(),
        };
        let shared = Arc::new(shared);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port can be had");
        // What the system holds for a connection would hide a slow link.
        socket2::SockRef::from(&listener).set_recv_buffer_size(64 << 10).expect("a small buffer");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        runtime.spawn(serve(listener, Arc::clone(&shared)));
        bucket.endpoint = format!("http://127.0.0.1:{port}");
        Proxy { shared, runtime: Some(runtime) }
    }

    /// Adds a rule behind those that are there.
    pub(crate) fn add(&self, rule: Rule) -> Added {
        let rule = Arc::new(rule);
        self.shared.rules.lock().expect("no test panics within").push(Arc::clone(&rule));
        Added(rule)
    }

    /// Draws a fault for some of the requests from now on.
    pub(crate) fn disturb(&self, seed: u64) {
        *self.shared.random.lock().expect("no test panics within") = Some(Random::new(seed));
    }

    /// How many requests met a fault that was drawn.
    pub(crate) fn disturbed(&self) -> u64 {
        self.shared.disturbed.load(Ordering::Relaxed)
    }

    /// Lets everything through again that a rule kept.
    pub(crate) fn clear(&self) {
        self.shared.rules.lock().expect("no test panics within").clear();
    }

    /// How many requests came whose `METHOD /path?query` matches.
    pub(crate) fn came(&self, pattern: &str) -> usize {
        let pattern = Regex::new(pattern).expect("a regex");
        self.shared.log.lock().expect("no test panics within").iter().filter(|line| pattern.is_match(line)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which tokio forbids when the test itself is async.
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("tokio takes the socket");
    while let Ok((socket, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let answer = service_fn(move |request| answer(Arc::clone(&shared), request));
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).max_buf_size(64 << 10);
        tokio::spawn(server.serve_connection(TokioIo::new(socket), answer));
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// An error cuts the connection.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Answer> {
    let at = request.uri().path_and_query().map_or("/", |at| at.as_str());
    shared.log.lock().expect("no test panics within").push(format!("{} {at}", request.method()));
    let rules = shared.rules.lock().expect("no test panics within").clone();
    let creates = request.headers().contains_key("if-none-match");
    let rule = rules.into_iter().find(|rule| rule.meets(&request)).or_else(|| shared.drawn(&request, creates));
    let fault = rule.as_ref().map(|rule| rule.fault.clone());
    let (parts, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let data = frame.map_err(io::Error::other)?.into_data().unwrap_or_default();
        if let Some(rule) = &rule {
            rule.carry(data.len()).await;
        }
        body.extend_from_slice(&data);
    }
    match &fault {
        Some(Fault::Answer(status, code)) => return Ok(error(*status, code)),
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let got = {
        let _one = if creates { Some(shared.conditional.lock().await) } else { None };
        forward(&shared.server, Request::from_parts(parts, Full::new(Bytes::from(body)))).await?
    };
    let (mut parts, bytes) = got.into_parts();
    match fault {
        Some(Fault::AnswerAfter(status, code)) => Ok(error(status, code)),
        Some(Fault::LoseAnswer) => Err(io::Error::other("a rule cuts the connection")),
        Some(Fault::CutAnswer(at)) if at < bytes.len() => {
            let pieces = [Ok(Frame::data(bytes.slice(..at))), Err(io::Error::other("a rule cuts the answer"))];
            let body = StreamBody::new(futures::stream::iter(pieces));
            Ok(Response::from_parts(parts, BodyExt::boxed_unsync(body)))
        }
        Some(Fault::ForeignTag(tag)) => {
            parts.headers.insert("etag", hyper::header::HeaderValue::from_bytes(tag.as_bytes()).expect("a header"));
            Ok(Response::from_parts(parts, whole(bytes)))
        }
        Some(Fault::HideKeys(hidden)) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let entry = Regex::new("(?s)<Contents>.*?</Contents>").expect("a regex");
            let left =
                entry.replace_all(
                    &text,
                    |found: &regex::Captures<'_>| {
                        if hidden.is_match(&found[0]) { String::new() } else { found[0].to_owned() }
                    },
                );
            parts.headers.remove("content-length");
            Ok(Response::from_parts(parts, whole(Bytes::from(left.into_owned()))))
        }
        Some(Fault::BytesPerSecond(_)) => Ok(Response::from_parts(parts, trickle(rule, bytes))),
        _ => Ok(Response::from_parts(parts, whole(bytes))),
    }
}

/// Sends the request to the server, over a connection of its own.
async fn forward(server: &str, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>> {
    let socket = TcpStream::connect(server).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Response::from_parts(parts, bytes))
}

/// The bytes as the link of the rule carries them, piece by piece.
fn trickle(rule: Option<Arc<Rule>>, bytes: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    let pieces = futures::stream::unfold((rule, bytes), |(rule, mut left)| async move {
        let piece = left.split_to(left.len().min(16 << 10));
        if piece.is_empty() {
            return None;
        }
        if let Some(rule) = &rule {
            rule.carry(piece.len()).await;
        }
        Some((Ok(Frame::data(piece)), (rule, left)))
    });
    BodyExt::boxed_unsync(StreamBody::new(pieces))
}

fn whole(bytes: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    BodyExt::boxed_unsync(Full::new(bytes).map_err(|never: Infallible| match never {}))
}

fn error(status: u16, code: &str) -> Answer {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>by the rule of a test</Message></Error>"
    );
    let body = if code.is_empty() { String::new() } else { text };
    let answer = Response::builder().status(status).header("content-type", "application/xml");
    answer.body(whole(Bytes::from(body))).expect("an answer")
}
