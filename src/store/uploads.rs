//! Uploads in parts that nobody finishes: what a process that was killed leaves in a bucket, invisible to every listing of objects,
//! and paid for.
//!
//! object_store can abort an upload and cannot list those of others, so the request is signed with its credentials
//! (`Signer::signed_url_opts`) and sent by its client.
//!
//! ```text
//!   GET ?uploads ─► key, id, when it was begun ─► a key of this archive, begun before a given time ─► DELETE <key>?uploadId=<id>
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::Request;
use object_store::aws::AmazonS3;
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use object_store::{Error, Result};
use quick_xml::Reader;
use quick_xml::events::Event;

use super::{layout, listing};

/// How long a signed request counts.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// A listing gives 1,000 at a time; what lies behind so many pages is left to the next time.
const MOST_PAGES: usize = 100;

/// The uploads in the bucket of an archive.
#[derive(Debug)]
pub(super) struct Uploads {
    pub(super) bucket: Arc<AmazonS3>,
    pub(super) client: HttpClient,
    /// Where the archive lies in the bucket.
    pub(super) root: Path,
}

/// An upload that was begun and neither finished nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Upload {
    key: String,
    id: String,
    begun: DateTime<Utc>,
}

/// What a page of the listing says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    uploads: Vec<Upload>,
    /// The key and the id behind which the next page begins; none on the last.
    next: Option<(String, String)>,
}

impl Uploads {
    /// Aborts the uploads of this archive that were begun before a time; gives their keys. Those of others in the bucket, and of keys
    /// that tidelog does not write, are left alone.
    pub(super) async fn abort(&self, before: DateTime<Utc>) -> Result<Vec<Path>> {
        let mut aborted = Vec::new();
        let mut behind = None;
        for _ in 0..MOST_PAGES {
            let page = self.page(behind.as_ref()).await?;
            for upload in page.uploads.iter().filter(|upload| upload.begun < before) {
                let Some(key) = self.own(&upload.key) else { continue };
                match self.bucket.abort_multipart(&key, &upload.id).await {
                    // Somebody else was faster.
                    Ok(()) | Err(Error::NotFound { .. }) => aborted.push(key),
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some(next) => behind = Some(next),
                None => break,
            }
        }
        Ok(aborted)
    }

    /// The key of an upload, if it is one of an object that this archive names.
    fn own(&self, key: &str) -> Option<Path> {
        let path = Path::parse(key).ok().filter(|path| path.as_ref() == key)?;
        let below = Path::from_iter(path.prefix_match(&self.root)?);
        layout::object(below.as_ref()).is_ok().then_some(path)
    }

    async fn page(&self, behind: Option<&(String, String)>) -> Result<Page> {
        let mut query = vec![("uploads".to_owned(), String::new())];
        if !self.root.is_root() {
            query.push(("prefix".into(), format!("{}/", self.root)));
        }
        if let Some((key, id)) = behind {
            query.extend([("key-marker".into(), key.clone()), ("upload-id-marker".into(), id.clone())]);
        }
        let options = SignedUrlOptions::default().with_query(query);
        let url = self.bucket.signed_url_opts(Method::GET, &Path::ROOT, SIGNED_FOR, &options).await?;
        let request = Request::get(url.as_str()).body(HttpRequestBody::empty());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let answer = self.client.execute(request).await.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        let body = listing::begin_of(answer.into_body(), listing::MOST_OF_LISTING);
        let body = body.await.map_err(|error| failed(error.to_string()))?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body[..body.len().min(1_000)]).into_owned();
            return Err(failed(format!("status code: {status}: {said}")));
        }
        page_of(&body).ok_or_else(|| failed("the answer is no listing of uploads".to_owned()))
    }
}

fn failed(why: String) -> Error {
    Error::Generic { store: "S3", source: format!("uploads cannot be listed: {why}").into() }
}

impl fmt::Display for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the uploads of {}", self.bucket)
    }
}

/// Reads a `ListMultipartUploadsResult`; none for what is none. An upload without a key, an id or a time is passed over.
fn page_of(body: &[u8]) -> Option<Page> {
    let mut reader = Reader::from_reader(body);
    let (mut page, mut names, mut text) = (Page::default(), Vec::<String>::new(), String::new());
    let (mut of_upload, mut marker, mut truncated) = (<[String; 3]>::default(), <[String; 2]>::default(), false);
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => {
                names.push(String::from_utf8(tag.local_name().as_ref().to_vec()).ok()?);
                text.clear();
            }
            Event::Text(more) => text.push_str(&more.decode().ok()?),
            Event::GeneralRef(name) => text.push_str(&listing::character(&name)?),
            Event::End(_) => {
                let name = names.pop()?;
                match (names.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), name.as_str()) {
                    ([_, "Upload"], "Key") => of_upload[0] = std::mem::take(&mut text),
                    ([_, "Upload"], "UploadId") => of_upload[1] = std::mem::take(&mut text),
                    ([_, "Upload"], "Initiated") => of_upload[2] = std::mem::take(&mut text),
                    ([_], "Upload") => page.uploads.extend(upload(std::mem::take(&mut of_upload))),
                    ([_], "NextKeyMarker") => marker[0] = std::mem::take(&mut text),
                    ([_], "NextUploadIdMarker") => marker[1] = std::mem::take(&mut text),
                    ([_], "IsTruncated") => truncated = text == "true",
                    ([], "ListMultipartUploadsResult") => {
                        let [key, id] = marker;
                        page.next = (truncated && !key.is_empty()).then_some((key, id));
                        return Some(page);
                    }
                    _ => {}
                }
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

fn upload([key, id, begun]: [String; 3]) -> Option<Upload> {
    let begun = DateTime::parse_from_rfc3339(&begun).ok()?.to_utc();
    (!key.is_empty() && !id.is_empty()).then_some(Upload { key, id, begun })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_is_read_as_s3_writes_it() {
        // Of "Sample Response" of ListMultipartUploads in the API reference of Amazon S3.
        let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Bucket>bucket</Bucket><KeyMarker></KeyMarker><UploadIdMarker/><NextKeyMarker>my-movie.m2ts</NextKeyMarker>\
            <NextUploadIdMarker>YW55IGlkZWE</NextUploadIdMarker><MaxUploads>3</MaxUploads><IsTruncated>true</IsTruncated>\
            <Upload><Key>a &amp; b</Key><UploadId>XMgbGlrZSB</UploadId><Initiator><ID>arn</ID><Key>x</Key></Initiator>\
            <StorageClass>STANDARD</StorageClass><Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>\
            <Upload><Key>no-time</Key><UploadId>b</UploadId></Upload></ListMultipartUploadsResult>";
        let page = page_of(body.as_bytes()).expect("a page");
        let begun = DateTime::from_timestamp(1_289_422_113, 0).expect("a time");
        assert_eq!(page.uploads, [Upload { key: "a & b".into(), id: "XMgbGlrZSB".into(), begun }]);
        assert_eq!(page.next, Some(("my-movie.m2ts".into(), "YW55IGlkZWE".into())));
        assert_eq!(page_of(body.replace("true", "false").as_bytes()).and_then(|page| page.next), None);
        for other in ["", "<html></html>", "<Error><Code>AccessDenied</Code></Error>", &body[..body.len() - 1]] {
            assert_eq!(page_of(other.as_bytes()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(body in "(<[A-Z]{0,2}>|</[A-Z]{0,2}>|<Upload>|</Upload>|<Key>|</Key>|&#1;|&|x){0,24}") {
            page_of(body.as_bytes());
        }
    }
}
