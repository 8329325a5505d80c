//! Object stores that speak S3, two of them since each forgives what the other checks.
//!
//! | server | signatures, checksums | `If-None-Match: *` | runs as |
//! |---|---|---|---|
//! | moto_server | takes any secret | atomic | a Python process, shared |
//! | s3s-fs | checks both | look, then write: **not** atomic | in this process |

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::kafka::free_port;
use super::process::{Process, tail, temporary_directory};
use super::{parts, unique, wait_for};

const ACCESS_KEY: &str = "rig";
const SECRET_KEY: &str = "rig-secret";

/// A bucket on one of the servers, and what a client needs to reach it.
pub(crate) struct Bucket {
    /// `http://127.0.0.1:port`
    pub(crate) endpoint: String,
    pub(crate) name: String,
    server: Option<InProcess>,
    /// Where the server keeps its objects, to be removed with the bucket.
    _scratch: Option<TempDir>,
}

struct InProcess {
    runtime: Option<Runtime>,
    root: PathBuf,
}

impl Bucket {
    /// `s3://<bucket>`
    pub(crate) fn url(&self) -> String {
        format!("s3://{}", self.name)
    }

    /// The options of object_store, as `[archive.options]` takes them.
    pub(crate) fn options(&self) -> [(&'static str, String); 5] {
        [
            ("aws_endpoint", self.endpoint.clone()),
            ("aws_region", "us-east-1".into()),
            ("aws_allow_http", "true".into()),
            ("aws_access_key_id", ACCESS_KEY.into()),
            ("aws_secret_access_key", SECRET_KEY.into()),
        ]
    }

    /// Puts an object, with whatever key. Only in moto, which asks for no signature.
    pub(crate) fn put(&self, key: &str, text: &str) {
        self.ask("PUT", &percent(key), text);
    }

    /// Begins an upload in parts that nobody finishes. moto says of all of them that they were begun in 2010.
    pub(crate) fn begin_upload(&self, key: &str) {
        self.ask("POST", &format!("{}?uploads", percent(key)), "");
    }

    /// The uploads that were begun and not finished, as moto lists them.
    pub(crate) fn uploads(&self) -> String {
        self.ask("GET", "?uploads", "")
    }

    fn ask(&self, method: &str, target: &str, body: &str) -> String {
        let port = self.endpoint.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
        let answer = request(port, method, &format!("/{}/{target}", self.name), body);
        let answer = answer.unwrap_or_else(|error| panic!("moto_server: {error}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "moto_server does not {method} {target}: {answer}");
        answer
    }

    /// Where s3s-fs keeps the objects as files, for tests that damage them; `None` for moto.
    pub(crate) fn files(&self) -> Option<PathBuf> {
        self.server.as_ref().map(|server| server.root.join(&self.name))
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which tokio forbids when the test itself is async.
            runtime.shutdown_background();
        }
    }
}

/// A new bucket on the shared moto_server.
pub(crate) fn moto() -> Bucket {
    static SERVER: LazyLock<(Process, u16)> = LazyLock::new(|| start_moto(&[]));
    let name = unique("rig-bucket");
    let answer = put(SERVER.1, &format!("/{name}")).unwrap_or_else(|error| panic!("moto_server: {error}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "moto_server made no bucket {name}: {answer}");
    Bucket { endpoint: format!("http://127.0.0.1:{}", SERVER.1), name, server: None, _scratch: None }
}

/// A new bucket there with Object Lock.
pub(crate) fn locked() -> Bucket {
    let bucket = Bucket { name: unique("rig-locked"), ..moto() };
    super::python::run(include_str!("../data/s3_lock.py"), &["make", &bucket.endpoint, &bucket.name, "-"]);
    bucket
}

fn start_moto(environment: &[(&str, &str)]) -> (Process, u16) {
    let log = temporary_directory("moto").keep().join("log");
    for _ in 0..5 {
        let port = free_port();
        let mut command = Command::new(parts().python.join("bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).envs(environment.iter().copied());
        let mut process = Process::start(command, &log);
        let ready = wait_for("moto_server to answer", Duration::from_secs(120), || match process.ended() {
            Some(_) => Some(false),
            None => put(port, "/rig-ready").ok().map(|answer| answer.starts_with("HTTP/1.1 200")),
        });
        if ready {
            return (process, port);
        }
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    panic!("moto_server does not start; it said:\n{}", tail(&said, 40));
}

/// A bucket on a moto_server of its own that looks at signatures and policies, with one user for each policy.
pub(crate) struct Enforcing {
    endpoint: String,
    /// `s3://<bucket>/<folder>`
    pub(crate) url: String,
    users: Vec<(String, String)>,
    _server: Process,
}

impl Enforcing {
    /// The options of object_store for a user.
    pub(crate) fn options(&self, user: usize) -> [(&'static str, String); 6] {
        let (key, secret) = self.users[user].clone();
        [
            ("aws_endpoint", self.endpoint.clone()),
            ("aws_region", "us-east-1".into()),
            ("aws_allow_http", "true".into()),
            ("aws_access_key_id", key),
            ("aws_secret_access_key", secret),
            // A bulk delete is one request to moto, which does not look at its keys.
            ("aws_disable_bulk_delete", "true".into()),
        ]
    }
}

/// Makes it, for an archive in a folder of the bucket. Each policy is a file, in which `BUCKET/` stands for that folder, and `BUCKET` for
/// the bucket.
pub(crate) fn enforcing<const N: usize>(policies: [std::path::PathBuf; N]) -> Enforcing {
    // Users are made before it looks at anything.
    let (server, port) = start_moto(&[("INITIAL_NO_AUTH_ACTION_COUNT", "1000000")]);
    let (endpoint, bucket) = (format!("http://127.0.0.1:{port}"), unique("rights"));
    let policies = policies.map(|policy| policy.display().to_string());
    let args: Vec<&str> = [&*endpoint, &*bucket].into_iter().chain(policies.iter().map(String::as_str)).collect();
    let users = super::python::run(include_str!("../data/s3_rights.py"), &args);
    let url = format!("s3://{bucket}/archive");
    Enforcing { endpoint, url, users: serde_json::from_str(&users).expect("users"), _server: server }
}

/// A PUT without a body (moto asks for no signature); gives the answer's text.
fn put(port: u16, path: &str) -> std::io::Result<String> {
    request(port, "PUT", path, "")
}

fn percent(key: &str) -> String {
    key.bytes().map(|byte| if byte == b'/' { "/".to_owned() } else { format!("%{byte:02X}") }).collect()
}

/// A request of moto, without a signature; gives the answer's text.
fn request(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = body.len();
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A bucket on an s3s-fs server of its own, which ends with the bucket.
pub(crate) fn s3s_fs() -> Bucket {
    let directory = temporary_directory("s3s-fs");
    let name = unique("rig-bucket");
    // A bucket of s3s-fs is a directory.
    std::fs::create_dir(directory.path().join(&name)).expect("a bucket can be made");
    let bucket = s3s_fs_in(directory.path(), &name);
    Bucket { _scratch: Some(directory), ..bucket }
}

/// The directory `name` below `root` as a bucket on an s3s-fs server of its own, as are all others there. Objects are the files
/// below it.
pub(crate) fn s3s_fs_in(root: &Path, name: &str) -> Bucket {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("s3s-fs opens its root"));
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port can be had");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    runtime.spawn(serve(listener, service));
    let server = InProcess { runtime: Some(runtime), root: root.to_owned() };
    Bucket { endpoint: format!("http://127.0.0.1:{port}"), name: name.to_owned(), server: Some(server), _scratch: None }
}

async fn serve(listener: std::net::TcpListener, service: S3Service) {
    let listener = TcpListener::from_std(listener).expect("tokio takes the socket");
    let connections = auto::Builder::new(TokioExecutor::new());
    while let Ok((socket, _)) = listener.accept().await {
        let connection = connections.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(async move {
            // A client that hangs up is no business of the server.
            connection.await.ok();
        });
    }
}
