//! What the conformance suite cannot reach: URLs and options, broken backends, errors.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, PutMultipartOptions, PutResult, UploadPart,
};

use sha2::{Digest as _, Sha256};

use super::upload::{PART_BYTES, Source};
use super::*;
use crate::stream::sha256;

fn archive(url: &str, options: &[(&str, &str)]) -> Archive {
    let options: BTreeMap<_, _> = options.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    Archive { url: url.parse().unwrap(), spool_dir: PathBuf::new(), options }
}

fn refused(url: &str, options: &[(&str, &str)]) -> Error {
    let error = Store::open(&archive(url, options)).unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error}");
    error
}

#[test]
fn every_scheme_opens_with_its_own_options() {
    let account = [("azure_storage_account_name", "a"), ("azure_storage_account_key", "a2V5")];
    for (url, options) in [
        ("memory:///", &[][..]),
        ("s3://bucket", &[("aws_region", "eu-central-1"), ("aws_endpoint", "https://s3.example.com")]),
        ("s3://bucket/deep/folder", &[("aws_allow_http", "true"), ("timeout", "10 seconds")]),
        ("gs://bucket/folder", &[("google_skip_signature", "true")]),
        ("az://container/folder", &account),
    ] {
        let store = Store::open(&archive(url, options)).unwrap();
        assert_eq!(store.url(), url);
    }
}

#[test]
fn unknown_options_are_refused_by_name_with_the_prefix() {
    for (url, prefix) in [("s3://b", "aws_"), ("gs://b", "google_"), ("az://b", "azure_")] {
        let error = refused(url, &[("endpint", "x")]);
        assert!(error.to_string().contains("archive.options.endpint"), "{error}");
        assert!(error.hint_text().unwrap().contains(prefix));
    }
    assert!(refused("memory:///", &[("aws_region", "x")]).to_string().contains("takes no options"));
    assert!(refused("file:///tmp", &[("aws_region", "x")]).to_string().contains("archive.options.aws_region"));
    refused("s3://b", &[("aws_allow_http", "perhaps")]);
}

#[test]
fn urls_that_name_no_archive_are_refused() {
    assert!(refused("ftp://host/x", &[]).hint_text().unwrap().contains("s3://"));
    assert!(refused("s3:///folder", &[]).to_string().contains("names no bucket"));
    let error = refused("s3://key:secret@bucket", &[]);
    assert!(error.to_string().contains("credentials") && !format!("{error:?}").contains("secret@"), "{error:?}");
    assert!(refused("file://host/x", &[]).hint_text().unwrap().contains("three slashes"));
}

#[test]
fn a_disk_that_is_full_or_read_only_is_told() {
    let judged = |kind: io::ErrorKind| {
        let source = Box::new(Beneath(io::Error::from(kind)));
        fault::translate(object_store::Error::Generic { store: "disk", source }, "cannot write x".into())
    };
    let full = judged(io::ErrorKind::StorageFull);
    assert_eq!((full.kind(), full.is_transient()), (Kind::Full, true));
    assert!(full.hint_text().unwrap().contains("make room"));
    for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
        assert_eq!(judged(kind).kind(), Kind::Denied);
        assert!(judged(kind).hint_text().unwrap().contains("read-only"));
    }
    assert_eq!(judged(io::ErrorKind::ConnectionReset).kind(), Kind::Unavailable);
}

/// A layer between object_store's error and the operating system's, as object_store's own are.
#[derive(Debug)]
struct Beneath(io::Error);

impl fmt::Display for Beneath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer")
    }
}

impl std::error::Error for Beneath {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_unavailable() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let options = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_access_key_id", "k"),
        ("aws_secret_access_key", "s"),
    ];
    let store = Store::open(&archive("s3://bucket", &options)).unwrap();
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.hint_text().unwrap().contains("aws_endpoint"));
    assert!(error.to_string().contains("cannot create tidelog-probe-"), "{error}");
}

/// A server that answers every request in the same way; its port, and what it was asked.
async fn answering(answer: String) -> (u16, Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), Arc::<std::sync::Mutex<Vec<String>>>::default());
    let told = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut request, mut piece) = (String::new(), [0; 4096]);
            let is_whole = |request: &str| {
                let (head, body) = request.split_once("\r\n\r\n")?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                Some(body.len() >= length.unwrap_or(0))
            };
            while is_whole(&request) != Some(true) {
                let count = stream.read(&mut piece).await.unwrap();
                assert!(count > 0, "it breaks off: {request}");
                request.push_str(std::str::from_utf8(&piece[..count]).unwrap());
            }
            told.lock().unwrap().push(request);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (port, asked)
}

/// Whoever answers at the endpoint can have others asked. docs/SECURITY.md says what they get.
#[tokio::test]
async fn another_host_to_which_the_endpoint_redirects_gets_no_signature_and_no_content() {
    let (other, asked) = answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nLast-Modified: Sun, 22 Nov 2026 16:00:00 GMT\r\nETag: \"e\"\r\n\
         Connection: close\r\n\r\nelse"
            .to_owned(),
    )
    .await;
    let (port, _) = answering(format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:{other}/bucket/k\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    ))
    .await;
    let endpoint = format!("http://127.0.0.1:{port}");
    let options = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_access_key_id", "the-key-id"),
        ("aws_secret_access_key", "the-secret"),
        ("aws_session_token", "the-token"),
    ];
    let store = Store::open(&archive("s3://bucket", &options)).unwrap();
    assert_eq!(store.get(&Path::from("k")).await.unwrap().unwrap(), "else");
    // It is tried again for a while.
    let (key, content) = (Path::from("k"), Bytes::from_static(b"the content"));
    let put = tokio::time::timeout(std::time::Duration::from_secs(1), store.put(&key, content)).await;
    assert!(!matches!(put, Ok(Ok(()))), "{put:?}");
    let asked = asked.lock().unwrap().join("\n").to_ascii_lowercase();
    assert!(asked.starts_with("get /bucket/k") && asked.contains("x-amz-security-token: the-token"), "{asked}");
    for kept in ["authorization", "the-key-id", "the-secret", "the content"] {
        assert!(!asked.contains(kept), "{kept}: {asked}");
    }
}

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrong {
    IgnoresConditions,
    HasNoConditions,
    KeepsDeleted,
    GivesBackSomethingElse,
    /// This part of an upload fails.
    FailsPart(u32),
    /// This part of an upload is taken and lost.
    LosesPart(u32),
}

#[derive(Debug)]
struct Broken<S> {
    inner: S,
    wrong: Wrong,
}

impl<S> fmt::Display for Broken<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.wrong)
    }
}

#[async_trait::async_trait]
impl<S: ObjectStore> ObjectStore for Broken<S> {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let create = matches!(opts.mode, PutMode::Create);
        match self.wrong {
            Wrong::IgnoresConditions => opts.mode = PutMode::Overwrite,
            Wrong::HasNoConditions if create => {
                return Err(object_store::Error::NotImplemented { operation: "x".into(), implementer: "y".into() });
            }
            _ => {}
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        let (Wrong::FailsPart(part) | Wrong::LosesPart(part)) = self.wrong else { return Ok(inner) };
        let fails = self.wrong == Wrong::FailsPart(part);
        Ok(Box::new(BrokenUpload { inner, part, fails, parts: AtomicU32::new(0) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.wrong {
            Wrong::GivesBackSomethingElse => {
                let other = InMemory::new();
                other.put(location, "something else".into()).await?;
                other.get_opts(location, options).await
            }
            _ => self.inner.get_opts(location, options).await,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        if self.wrong == Wrong::KeepsDeleted { locations } else { self.inner.delete_stream(locations) }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct BrokenUpload {
    inner: Box<dyn MultipartUpload>,
    part: u32,
    fails: bool,
    parts: AtomicU32,
}

#[async_trait::async_trait]
impl MultipartUpload for BrokenUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if self.parts.fetch_add(1, Ordering::Relaxed) == self.part {
            let reset = || object_store::Error::Generic { store: "broken", source: "reset".into() };
            let answer = if self.fails { Err(reset()) } else { Ok(()) };
            return Box::pin(async { answer });
        }
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.inner.abort().await
    }
}

#[tokio::test]
async fn the_probe_finds_what_a_store_cannot_do() {
    for (wrong, kind, says) in [
        (Wrong::IgnoresConditions, Kind::Unsupported, "does not support conditional puts"),
        (Wrong::HasNoConditions, Kind::Unsupported, "cannot create"),
        (Wrong::KeepsDeleted, Kind::Unsupported, "keeps an object that was deleted"),
        (Wrong::GivesBackSomethingElse, Kind::Corrupt, "does not give back what was written"),
    ] {
        let store = Store::over(Arc::new(Broken { inner: InMemory::new(), wrong }), "s3://bucket");
        let error = store.probe().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("segment");
    std::fs::write(&file, vec![1; 5 * PART_BYTES as usize / 2]).unwrap();
    let hash = sha256(&std::fs::read(&file).unwrap());
    for fails in 0..3 {
        let root = directory.path().join(format!("archive-{fails}"));
        std::fs::create_dir(&root).unwrap();
        let inner = LocalFileSystem::new_with_prefix(&root).unwrap();
        let store = Store::over(Arc::new(Broken { inner, wrong: Wrong::FailsPart(fails) }), "file:///archive");
        let error = store.upload(&Path::from("key"), &file, &hash).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "no staged file is left");
    }
}

#[tokio::test]
async fn an_upload_that_is_put_together_wrongly_is_not_taken_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("segment");
    std::fs::write(&file, vec![1; 5 * PART_BYTES as usize / 2]).unwrap();
    let hash = sha256(&std::fs::read(&file).unwrap());
    for lost in 0..3 {
        let store =
            Store::over(Arc::new(Broken { inner: InMemory::new(), wrong: Wrong::LosesPart(lost) }), "s3://bucket");
        let error = store.upload(&Path::from("key"), &file, &hash).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("of its 20971520 bytes"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_uploaded_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(10).unwrap();
    let mut source = Source { file: Arc::new(file), hash: Sha256::new() };
    assert!(source.read(5, 6).await.is_err());
}

#[tokio::test]
async fn what_a_disk_made_of_a_segment_is_not_archived() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("segment");
    for size in [1, PART_BYTES as usize, 5 * PART_BYTES as usize / 2] {
        let mut bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let written = sha256(&bytes);
        std::fs::write(&file, &bytes).unwrap();
        let root = directory.path().join(format!("archive-{size}"));
        std::fs::create_dir(&root).unwrap();
        let store = Store::over(Arc::new(LocalFileSystem::new_with_prefix(&root).unwrap()), "file:///archive");
        store.upload(&Path::from("sound"), &file, &written).await.unwrap();
        bytes[size / 2] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let error = store.upload(&Path::from("damaged"), &file, &written).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Corrupt, false), "{error}");
        assert!(error.hint_text().unwrap().contains("archive.spool_dir"));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1, "nothing but the sound one is there");
    }
}

#[test]
fn an_archive_that_is_only_looked_at_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/archive", directory.path().display());
    Store::validate(&archive(&url, &[])).unwrap();
    assert!(!directory.path().join("archive").exists());
    for (url, options) in [(url.as_str(), &[("aws_region", "r")][..]), ("s3://bucket", &[("aws_nonsense", "x")])] {
        assert_eq!(Store::validate(&archive(url, options)).unwrap_err().kind(), Kind::Config, "{url}");
    }
}

#[test]
fn the_last_answer_decides_whether_a_request_is_made_again() {
    let error = |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
    let answer = |retries: &str, status: &str, code: &str| {
        error(&format!(
            "Error performing GET http://h/b/k in 1s{retries} - Server returned non-2xx status code: {status}: <Error>\
             <Code>{code}</Code></Error>"
        ))
    };
    let retried = ", after 1 retries, max_retries: 7, retry_timeout: 20s ";
    for retries in ["", retried] {
        assert!(fault::passes_untried(&answer(retries, "400 Bad Request", "ExpiredToken")), "{retries:?}");
        assert!(!fault::passes_untried(&answer(retries, "400 Bad Request", "AuthorizationHeaderMalformed")));
        assert!(!fault::passes_untried(&answer(retries, "503 Service Unavailable", "SlowDown")));
        assert!(!fault::passes_untried(&answer(retries, "403 Forbidden", "AccessDenied")));
    }
    assert!(fault::passes_untried(&error("HTTP error: connection reset")));
    assert!(!fault::passes_untried(&error(&format!("Error performing GET in 20s{retried} - HTTP error: refused"))));
}

/// object_store follows none with content, and keeps the address to itself.
#[test]
fn a_redirect_is_named_with_the_way_out_and_ends_a_service_only_where_it_stays() {
    for (status, kind) in [
        ("301 Moved Permanently", Kind::Config),
        ("302 Found", Kind::Unavailable),
        ("307 Temporary Redirect", Kind::Unavailable),
        ("308 Permanent Redirect", Kind::Config),
    ] {
        let text = format!("Error performing PUT http://h/b/k in 1s - Server returned non-2xx status code: {status}: ");
        let error = object_store::Error::Generic { store: "S3", source: text.into() };
        let translated = fault::translate(error, "cannot write k".to_owned());
        assert_eq!(translated.kind(), kind, "{status}");
        assert!(translated.hint_text().unwrap().contains("redirects to another address"), "{status}");
    }
}
