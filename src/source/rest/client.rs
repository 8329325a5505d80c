//! One question over HTTP, bounded in size and time.
//!
//! A redirect is not followed: credentials would go where nobody has said that they belong. Answers are not compressed (no decoder is
//! built in), so that none unpacks to more than it was.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::config::Server;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::escape;
use crate::secret;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take. Connect itself waits 90 s for its leader and its topics (`RestServerConfig`), which a poll does not.
const ANSWER: Duration = Duration::from_secs(45);

/// How long the answer to a change may take: longer than Connect itself waits, which then says what it waited for.
const CHANGED: Duration = Duration::from_secs(100);

/// The most bytes of a message that a server sends with an error.
const MOST_OF_MESSAGE: usize = 300;

/// What was answered.
#[derive(Debug)]
pub(super) enum Reply<T> {
    /// It is there.
    Found(T),
    /// There is no such thing (404), or no such path.
    Missing,
    /// The server is busy with something that passes by itself (409): Connect rebalances.
    Busy(String),
    /// The server says why it cannot tell it.
    Failed(Error),
}

/// An answer in the middle of several: the error ends the poll, and may say that there is nothing to do but to wait.
pub(super) enum Ended {
    Busy(String),
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) type Found<T> = std::result::Result<T, Ended>;

/// What of a reply is there.
pub(super) fn there<T>(reply: Reply<T>) -> Found<Option<T>> {
    match reply {
        Reply::Found(found) => Ok(Some(found)),
        Reply::Missing => Ok(None),
        Reply::Busy(text) => Err(Ended::Busy(text)),
        Reply::Failed(error) => Err(Ended::Failed(error)),
    }
}

/// What is there, for whoever asks once; `missing` says what a 404 means.
pub(super) fn found<T>(reply: Reply<T>, missing: impl FnOnce() -> Error) -> Result<T> {
    match reply {
        Reply::Found(found) => Ok(found),
        Reply::Missing => Err(missing()),
        Reply::Busy(text) => {
            Err(Error::new(Kind::Unavailable, format!("the server is busy: {text}")).hint("try again in a minute"))
        }
        Reply::Failed(error) => Err(error),
    }
}

/// A server, and who asks it.
pub(super) struct Client {
    http: reqwest::Client,
    server: Server,
    /// The section of the configuration that says how it is asked.
    section: &'static str,
    /// Which of its addresses answered last.
    last: AtomicUsize,
}

impl Client {
    /// # Errors
    /// [`Kind::Config`] for authorities that cannot be read.
    pub(super) fn new(server: &Server, section: &'static str) -> Result<Self> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .redirect(Policy::none())
            .user_agent(concat!("tidelog/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &server.access.ca_file {
            let shown = || format!("{section}.ca_file: {} cannot be read as certificates in PEM", path.display());
            let text = std::fs::read(path).or_err(Kind::Config, shown)?;
            let authorities = Certificate::from_pem_bundle(&text).or_err(Kind::Config, shown)?;
            if authorities.is_empty() {
                return Err(Error::new(Kind::Config, shown()).hint("it holds no certificate"));
            }
            http = http.tls_certs_only(authorities);
        }
        let http = http.build().or_err(Kind::Internal, || "cannot make an HTTP client".to_owned())?;
        Ok(Self { http, server: server.clone(), section, last: AtomicUsize::new(0) })
    }

    /// The address that is asked next, as messages have it.
    pub(super) fn shown(&self) -> &str {
        self.server.urls[self.last.load(Ordering::Relaxed) % self.server.urls.len()].as_str()
    }

    /// Asks for the JSON of a path, of `most` bytes at the most. The segments are names, and are encoded.
    ///
    /// # Errors
    /// [`Kind::Denied`] where the credentials do not do; [`Kind::Unavailable`] where no address answers,
    /// or what it says cannot be read; [`Kind::Unsupported`] for a redirect and an answer that is too large.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &str,
        most: usize,
    ) -> Result<Reply<T>> {
        let (urls, first) = (&self.server.urls, self.last.load(Ordering::Relaxed));
        let mut failed = None;
        for turn in 0..urls.len() {
            let at = (first + turn) % urls.len();
            let url = below(&urls[at], segments, query);
            match self.ask_at((Method::GET, &url), None, most).await {
                Ok(Reply::Failed(error)) if turn + 1 < urls.len() && error.is_transient() => failed = Some(error),
                Err(error) if turn + 1 < urls.len() && error.is_transient() => failed = Some(error),
                Err(error) => return Err(failed.filter(|_| error.is_transient()).unwrap_or(error)),
                Ok(reply) => {
                    self.last.store(at, Ordering::Relaxed);
                    return Ok(reply);
                }
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(Kind::Internal, "a server without an address")))
    }

    /// Changes something, at the address that answered last. Whether it was changed is not known after an error that passes.
    ///
    /// # Errors
    /// As those of [`Client::get`].
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        segments: &[&str],
        body: Option<&serde_json::Value>,
        most: usize,
    ) -> Result<Reply<T>> {
        self.send_with(method, (segments, ""), body, most).await
    }

    /// The same, with a query.
    ///
    /// # Errors
    /// As those of [`Client::get`].
    pub(super) async fn send_with<T: DeserializeOwned>(
        &self,
        method: Method,
        (segments, query): (&[&str], &str),
        body: Option<&serde_json::Value>,
        most: usize,
    ) -> Result<Reply<T>> {
        let at = self.last.load(Ordering::Relaxed) % self.server.urls.len();
        let url = below(&self.server.urls[at], segments, query);
        self.ask_at((method, &url), body, most).await
    }

    async fn ask_at<T: DeserializeOwned>(
        &self,
        (method, url): (Method, &Url),
        body: Option<&serde_json::Value>,
        most: usize,
    ) -> Result<Reply<T>> {
        let access = &self.server.access;
        let is_change = method != Method::GET;
        let mut request = self.http.request(method, url.clone()).header(ACCEPT, "application/json");
        if is_change {
            request = request.timeout(CHANGED);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        if let Some(user) = &access.user {
            request = request.basic_auth(user, access.password.as_ref().map(crate::config::Hidden::reveal));
        }
        let response = request.send().await.map_err(|error| self.away(url, error))?;
        let (status, to) = (response.status(), response.headers().get(LOCATION).cloned());
        let mut body = self.body(url, response, most).await?;
        if status == StatusCode::OK || (is_change && status.is_success()) {
            // Some changes are answered with nothing.
            if body.is_empty() && is_change {
                body.extend_from_slice(b"null");
            }
            // What serde says of it may repeat a value, and the value may be a secret.
            return serde_json::from_slice(&body).map(Reply::Found).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                let message =
                    format!("the answer of {url} is not what this version reads: line {line}, column {column}");
                // A page of a proxy in its place passes by itself.
                Error::new(Kind::Unavailable, message)
                    .hint(format!("check that {}_url names a server of the right kind", self.section))
            });
        }
        if status.is_redirection() {
            let to = to.as_ref().and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            let message = format!("{url} answers with a redirect to {}", escape::name(to));
            let hint =
                "credentials are sent to no address but the one that is configured: configure the one that answers";
            return Err(Error::new(Kind::Unsupported, message).hint(hint));
        }
        match status {
            StatusCode::NOT_FOUND => Ok(Reply::Missing),
            StatusCode::CONFLICT => Ok(Reply::Busy(message(&body))),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied(url, (status, is_change))),
            _ => {
                let kind = if is_passing(status, &body) { Kind::Unavailable } else { Kind::Unsupported };
                Ok(Reply::Failed(Error::new(kind, format!("{url} answers {status}: {}", message(&body)))))
            }
        }
    }

    /// All that comes with an answer, if it is not too much.
    async fn body(&self, url: &Url, mut response: Response, most: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.away(url, error))? {
            if body.len() + chunk.len() > most {
                let message = format!("the answer of {url} has more than {most} bytes");
                return Err(Error::new(Kind::Unsupported, message)
                    .hint("nothing is kept of it; report it: such a state was not thought of"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn away(&self, url: &Url, error: reqwest::Error) -> Error {
        let error = error.without_url();
        let hint = format!("check that it runs and that {} reaches it; what was kept of it stays", self.section);
        Error::new(Kind::Unavailable, format!("no answer of {url}")).source(error).hint(hint)
    }

    fn denied(&self, url: &Url, (status, is_change): (StatusCode, bool)) -> Error {
        let hint = match (&self.server.access.user, status) {
            (None, StatusCode::UNAUTHORIZED) => format!("set user and password of [{}]", self.section),
            (Some(_), StatusCode::UNAUTHORIZED) => format!("check user and password of [{}]", self.section),
            _ if is_change => format!("the user of [{}] needs the right to change it", self.section),
            _ => format!("the user of [{}] needs the right to read it", self.section),
        };
        Error::new(Kind::Denied, format!("{url} answers {status}")).hint(hint)
    }
}

/// Whether another attempt may be answered otherwise. Connect says 500 also when its own wait has ended (`HerderRequestHandler`,
/// `ConnectorsResource`), and, of what it does not forward, while it rebalances (`RebalanceNeededException`); nothing but its words tells
/// these from others.
fn is_passing(status: StatusCode, body: &[u8]) -> bool {
    let text = message(body).to_lowercase();
    status == StatusCode::TOO_MANY_REQUESTS
        || matches!(status.as_u16(), 502..=504)
        || status.is_server_error()
            && ["timed out", "timeout", "a rebalance is expected"].iter().any(|words| text.contains(words))
}

/// The message of an error, as Connect and registries write it.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    let said = serde_json::from_slice::<Said>(body).map(|said| said.message);
    let text = said.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    escape::shortened(escape::one_line(&secret::within(&text)), MOST_OF_MESSAGE).into_owned()
}

fn below(base: &Url, segments: &[&str], query: &str) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url.set_query(Some(query).filter(|query| !query.is_empty()));
    url
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;

    /// A server that says the same to everybody, and how often it was asked.
    async fn saying(text: String) -> (Url, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let read = socket.read(&mut [0; 4096]).await;
                drop(read);
                // Whoever asked may be gone.
                drop(socket.write_all(text.as_bytes()).await);
            }
        });
        (Url::parse(&url).expect("a URL"), asked)
    }

    fn client(url: &Url) -> Client {
        let text = format!(
            "[archive]\nurl = \"file:///a\"\n[kafka]\nbootstrap_servers = \"b:1\"\ntopics = [\"a\"]\n[state]\n\
             connect_url = \"{url}\"\n[state.connect]\nuser = \"me\"\npassword = \"hunter2\"\n"
        );
        let state = Config::parse(&text, "t", &Default::default()).expect("valid").state.expect("a section");
        Client::new(&state.connect[0], "state.connect").expect("a client")
    }

    async fn get(url: &Url) -> Result<Reply<serde_json::Value>> {
        client(url).get(&["a"], "", 1000).await
    }

    #[tokio::test]
    async fn no_redirect_is_followed_and_no_answer_is_longer_than_it_may_be() {
        let (elsewhere, asked) = saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".into()).await;
        assert!(matches!(get(&elsewhere).await, Ok(Reply::Found(_))));
        asked.store(0, Ordering::Relaxed);
        for code in [301, 302, 307, 308] {
            let head = format!("HTTP/1.1 {code} X\r\nLocation: {elsewhere}a\r\nContent-Length: 0\r\n\r\n");
            let (url, _) = saying(head).await;
            let error = get(&url).await.expect_err("a redirect");
            assert!(error.to_string().contains("answers with a redirect to http://127.0.0.1:"), "{error}");
            assert_eq!(error.kind(), Kind::Unsupported);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0, "credentials went to another address");

        // By what it says beforehand, in chunks, and without an end.
        let large = "x".repeat(1001);
        for head in ["Content-Length: 1001\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n3e9\r\n", "\r\n"] {
            let (url, _) = saying(format!("HTTP/1.1 200 OK\r\n{head}{large}")).await;
            let error = get(&url).await.expect_err("it is too large");
            assert!(error.to_string().contains("has more than 1000 bytes"), "{error}");
        }
        // Half of it is none.
        let (url, _) = saying("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{}".into()).await;
        let error = get(&url).await.expect_err("half an answer");
        assert!(error.is_transient() && !format!("{error:?}").contains("hunter2"), "{error:?}");
    }

    #[test]
    fn names_are_encoded_below_the_path_of_the_address() {
        let url = |base: &str, segments: &[&str], query: &str| {
            below(&Url::parse(base).expect("a URL"), segments, query).to_string()
        };
        assert_eq!(url("http://a:1", &["connectors"], "expand=info"), "http://a:1/connectors?expand=info");
        assert_eq!(url("http://a:1/p/", &["subjects"], ""), "http://a:1/p/subjects");
        assert_eq!(
            url("http://a:1/p", &["connectors", "a/b ?#%é..", "offsets"], ""),
            "http://a:1/p/connectors/a%2Fb%20%3F%23%25%C3%A9../offsets"
        );
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (status, body, passing) in [
            (500, r#"{"error_code":500,"message":"Request timed out. The worker is currently ..."}"#, true),
            (
                500,
                r#"{"error_code":500,"message":"Request cannot be completed because a rebalance is expected"}"#,
                true,
            ),
            (500, r#"{"error_code":500,"message":"Failed to find any class"}"#, false),
            (503, "", true),
            (429, "", true),
            (400, r#"{"message":"timed out"}"#, false),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(is_passing(status, body.as_bytes()), passing, "{status} {body}");
        }
        assert_eq!(message(br#"{"error_code":500,"message":"a\nb"}"#), "a\\nb");
        assert!(message(&[b'x'; 10_000]).len() < 400);
    }
}
