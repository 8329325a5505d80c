//! What a cloud answers to a listing, without the objects that would end it.
//!
//! object_store turns all keys of an answer into paths, and gives up the whole listing at the first one that it does not take
//! (`TryFrom<ListResponse> for ListResult` in its `client/s3.rs`): one object `manifest//x`, or with a line feed in its key,
//! would keep every reader and writer from everything beside it. So such elements are taken out of the XML before
//! object_store reads it.
//!
//! ```text
//!   object_store ──GET ?list-type=2, ?comp=list──► Sound ──► deadline::Connector or object_store's own ──► the cloud
//!                ◄─ the answer without <Contents>, <CommonPrefixes>, <Blob>, <BlobPrefix> of such a key ─┘
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::path::Path;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::passed_over::PassedOver;

/// Connects as another does, for whoever lists.
#[derive(Debug)]
pub(super) struct Sound {
    inner: Box<dyn HttpConnector>,
    passed_over: PassedOver,
    last: Last,
}

/// The client that was connected last: of a store that is opened, the one that it asks with.
pub(super) type Last = Arc<Mutex<Option<HttpClient>>>;

impl Sound {
    pub(super) fn new(inner: Box<dyn HttpConnector>) -> Self {
        Self { inner, passed_over: PassedOver::default(), last: Last::default() }
    }

    /// Returns where the client stands that is connected last.
    pub(super) fn last(&self) -> Last {
        Arc::clone(&self.last)
    }
}

impl HttpConnector for Sound {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = self.inner.connect(options)?;
        let client = HttpClient::new(Client { inner, passed_over: self.passed_over.clone() });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }
}

#[derive(Debug)]
struct Client {
    inner: HttpClient,
    passed_over: PassedOver,
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let query = request.uri().query().filter(|query| is_listing(query)).map(str::to_owned);
        let answer = self.inner.execute(request).await?;
        let (parts, body) = answer.into_parts();
        let Some(query) = query.filter(|_| parts.status.is_success()) else {
            // Of an error only its beginning is read, whatever comes.
            let is_error = parts.status.is_client_error() || parts.status.is_server_error();
            let body = if is_error { begin_of(body, MOST_OF_ERROR).await?.into() } else { body };
            return Ok(HttpResponse::from_parts(parts, body));
        };
        let body = begin_of(body, MOST_OF_LISTING).await?;
        if !is_a_listing(&body) {
            return Err(HttpError::new(HttpErrorKind::Decode, NoListing::of(&body)));
        }
        if comes_again(&query, &body) {
            return Err(HttpError::new(
                HttpErrorKind::Decode,
                NoListing { begin: "it ends where it began".to_owned() },
            ));
        }
        let refused = refused(&body);
        for (_, key) in &refused {
            self.passed_over.tell(key, "its key is none that the client for stores takes");
        }
        Ok(HttpResponse::from_parts(parts, without(body, refused).into()))
    }
}

/// Returns whether a request lists objects: S3 and Google's XML interface, and Azure.
fn is_listing(query: &str) -> bool {
    query.split('&').any(|pair| pair == "list-type=2" || pair == "comp=list")
}

/// The most that is read of an error, and of a page of a listing: 1,000 keys of 1,024 bytes, each byte as a reference, and what
/// Azure says of 5,000.
const MOST_OF_ERROR: usize = 64 << 10;
pub(super) const MOST_OF_LISTING: usize = 32 << 20;

/// The beginning of a body. What is longer is cut there, and is no listing any more.
pub(super) async fn begin_of(body: HttpResponseBody, most: usize) -> Result<Bytes, HttpError> {
    let (mut begin, mut pieces) = (Vec::new(), body.bytes_stream());
    while let Some(piece) = pieces.try_next().await? {
        let room = most - begin.len();
        begin.extend_from_slice(&piece[..piece.len().min(room)]);
        if begin.len() == most {
            break;
        }
    }
    Ok(begin.into())
}

/// Returns whether an answer says that it goes on where the request began: it would be asked for for ever.
fn comes_again(query: &str, body: &[u8]) -> bool {
    let mut asked = url::form_urlencoded::parse(query.as_bytes());
    let Some((_, asked)) = asked.find(|(name, _)| name == "continuation-token" || name == "marker") else {
        return false;
    };
    !asked.is_empty() && next_of(body).is_some_and(|next| next == asked)
}

/// Returns where the next page of a listing begins, as its answer says.
fn next_of(body: &[u8]) -> Option<String> {
    let mut reader = Reader::from_reader(body);
    let (mut depth, mut next) = (0_usize, None::<String>);
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => {
                let name = tag.local_name();
                if depth == 1 && (name.as_ref() == b"NextContinuationToken" || name.as_ref() == b"NextMarker") {
                    next = Some(String::new());
                }
                depth += 1;
            }
            Event::Text(text) => {
                if let Some(next) = &mut next {
                    next.push_str(&text.decode().ok()?);
                }
            }
            Event::GeneralRef(name) => {
                if let Some(next) = &mut next {
                    next.push_str(&character(&name)?);
                }
            }
            Event::End(_) if next.is_some() => return next,
            Event::End(_) => depth = depth.saturating_sub(1),
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// Returns whether an answer is a listing, and not what a proxy says, or an error with the status of a success. object_store takes any XML
/// for one of nothing, and an archive would seem to be empty. A listing says whether it is all (S3 and Google: `IsTruncated`;
/// Azure: `NextMarker`).
fn is_a_listing(body: &[u8]) -> bool {
    let mut reader = Reader::from_reader(body);
    let (mut depth, mut end, mut says) = (0_usize, "", false);
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) => {
                match (depth, tag.local_name().as_ref()) {
                    (0, b"ListBucketResult") => end = "IsTruncated",
                    (0, b"EnumerationResults") => end = "NextMarker",
                    (0, _) => return false,
                    (1, name) => says |= name == end.as_bytes(),
                    _ => {}
                }
                depth += 1;
            }
            Ok(Event::Empty(tag)) => says |= depth == 1 && tag.local_name().as_ref() == end.as_bytes(),
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            Ok(Event::Eof) => return says && depth == 0,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// An answer to a listing that is none.
#[derive(Debug)]
struct NoListing {
    /// How it begins.
    begin: String,
}

impl NoListing {
    fn of(body: &[u8]) -> Self {
        Self { begin: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned() }
    }
}

impl fmt::Display for NoListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer is no listing, whatever its status: {}", self.begin)
    }
}

impl std::error::Error for NoListing {}

/// The body without what lies there.
fn without(body: Bytes, refused: Vec<(Range<usize>, String)>) -> Bytes {
    if refused.is_empty() {
        return body;
    }
    let (mut sound, mut from) = (Vec::with_capacity(body.len()), 0);
    for (place, _) in refused {
        sound.extend_from_slice(&body[from..place.start]);
        from = place.end;
    }
    sound.extend_from_slice(&body[from..]);
    sound.into()
}

/// The elements of a listing that name what object_store would not take, in their order, each with its key as far as it is
/// text. Of an answer that is no XML there is none: that is object_store's to tell.
fn refused(body: &[u8]) -> Vec<(Range<usize>, String)> {
    let mut reader = Reader::from_reader(body);
    let (mut found, mut at) = (Vec::new(), 0);
    let mut element: Option<Element> = None;
    // By depth, not by name: what is no XML is not followed for ever.
    loop {
        let event = match reader.read_event() {
            Ok(Event::Eof) | Err(_) => return found,
            Ok(event) => event,
        };
        let end = usize::try_from(reader.buffer_position()).unwrap_or(body.len()).min(body.len());
        match (&mut element, event) {
            (None, Event::Start(tag)) => element = Element::begun(tag.local_name().as_ref(), at),
            (None, _) => {}
            (Some(open), event) => {
                open.take(&event);
                if open.depth == 0
                    && let Some(done) = element.take()
                    && !done.is_sound()
                {
                    found.push((done.start..end, done.key));
                }
            }
        }
        at = end;
    }
}

/// An object or a folder in a listing, as far as it was read.
struct Element {
    start: usize,
    /// Of the element that holds the key.
    key_name: &'static [u8],
    key: String,
    /// Whether all of the key was text.
    is_text: bool,
    in_key: bool,
    depth: usize,
}

impl Element {
    fn begun(name: &[u8], start: usize) -> Option<Self> {
        let key_name: &[u8] = match name {
            b"Contents" => b"Key",
            b"CommonPrefixes" => b"Prefix",
            b"Blob" | b"BlobPrefix" => b"Name",
            _ => return None,
        };
        Some(Self { start, key_name, key: String::new(), is_text: true, in_key: false, depth: 1 })
    }

    fn take(&mut self, event: &Event<'_>) {
        let text = match event {
            Event::Start(tag) => {
                self.in_key = self.depth == 1 && tag.local_name().as_ref() == self.key_name;
                self.depth += 1;
                return;
            }
            Event::End(_) => {
                self.in_key = false;
                self.depth -= 1;
                return;
            }
            _ if !self.in_key => return,
            Event::Text(text) => text.decode().ok().map(|text| text.into_owned()),
            Event::CData(text) => text.decode().ok().map(|text| text.into_owned()),
            Event::GeneralRef(name) => character(name),
            _ => return,
        };
        match text {
            Some(text) => self.key.push_str(&text),
            None => self.is_text = false,
        }
    }

    /// Returns whether object_store takes the key. Its reader of XML leaves out blanks at both ends, and makes another key of it.
    fn is_sound(&self) -> bool {
        self.is_text && Path::parse(&self.key).is_ok() && self.key.trim() == self.key
    }
}

/// Returns what a reference stands for, such as `amp` or `#x1`.
pub(super) fn character(name: &quick_xml::events::BytesRef<'_>) -> Option<String> {
    if let Ok(Some(c)) = name.resolve_char_ref() {
        return Some(c.to_string());
    }
    let known = quick_xml::escape::resolve_predefined_entity(&name.decode().ok()?)?;
    Some(known.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(body: &str) -> Vec<String> {
        refused(body.as_bytes()).into_iter().map(|(_, key)| key).collect()
    }

    fn sound(body: &str) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let refused = refused(&body);
        String::from_utf8(without(body, refused).to_vec()).expect("text")
    }

    #[test]
    fn what_object_store_refuses_is_taken_out_and_nothing_else() {
        let object = |key: &str| {
            format!("<Contents><Key>{key}</Key><Owner><ID>a//b</ID><Key>..</Key></Owner><Size>1</Size></Contents>")
        };
        let folder = |key: &str| format!("<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>");
        let head = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Prefix>a//b</Prefix>\n";
        let all = |parts: &[String]| format!("{head}{}</ListBucketResult>", parts.join("\n"));
        let good = ["a/b", "a/b/", "a &amp; b", "a&#x2F;b", "\u{9b}2J", "%2E%2E", "x.json", "/a", "..."];
        let bad = [
            "a//b",
            "a/../b",
            "..",
            "a/&#46;",
            "a\u{1}b",
            "a&#1;b",
            "a&#x0;b",
            "a&#10;b",
            "a\nb",
            "&unknown;",
            " a",
            "a&#9;",
            "<![CDATA[a//b]]>",
        ];
        let good: Vec<String> = good.iter().flat_map(|key| [object(key), folder(key)]).collect();
        assert_eq!(sound(&all(&good)), all(&good));
        for key in bad {
            for bad in [object(key), folder(key)] {
                let mixed = [good.clone(), vec![bad], good.clone()].concat();
                assert_eq!(sound(&all(&mixed)), all(&mixed).replace(&mixed[good.len()], ""), "{key:?}");
            }
        }
        assert_eq!(keys(&all(&[object("a&#1;b"), folder("a//")])), ["a\u{1}b", "a//"]);
    }

    #[test]
    fn azure_s_names_are_looked_at_too() {
        let body = "<EnumerationResults><Prefix/><Blobs><Blob><Name>a//b</Name><Properties><Name>x</Name></Properties>\
                    </Blob><Blob><Name>a/b</Name></Blob><BlobPrefix><Name>..</Name></BlobPrefix></Blobs><NextMarker/>\
                    </EnumerationResults>";
        let left = "<EnumerationResults><Prefix/><Blobs><Blob><Name>a/b</Name></Blob></Blobs><NextMarker/></EnumerationResults>";
        assert_eq!(sound(body), left);
    }

    #[test]
    fn an_answer_that_is_no_listing_is_not_taken_for_an_empty_archive() {
        for listing in [
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>\n",
            "<s3:ListBucketResult xmlns:s3=\"x\"><s3:IsTruncated>false</s3:IsTruncated></s3:ListBucketResult>",
            "\u{feff}<?xml version=\"1.0\"?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>",
            "<EnumerationResults><Blobs></Blobs><NextMarker>x</NextMarker></EnumerationResults>",
        ] {
            assert!(is_a_listing(listing.as_bytes()), "{listing}");
        }
        for other in [
            "",
            "<html><body>login</body></html>",
            "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><IsTruncated>false</IsTruncated></Error>",
            "<ListBucketResult></ListBucketResult>",
            "<ListBucketResult/>",
            "<ListBucketResult><Contents><IsTruncated/></Contents></ListBucketResult>",
            "<ListBucketResult><IsTruncated>false</IsTruncated>",
            "<ListBucketResult><NextMarker/></ListBucketResult>",
            "not XML",
        ] {
            assert!(!is_a_listing(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_page_that_is_followed_by_itself_is_seen() {
        let body = b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a</Key></Contents>\
            <NextContinuationToken>x &amp; y</NextContinuationToken></ListBucketResult>";
        assert!(comes_again("continuation-token=x+%26+y&list-type=2", body));
        assert!(!comes_again("continuation-token=w&list-type=2", body) && !comes_again("list-type=2", body));
        assert!(comes_again(
            "comp=list&marker=m",
            b"<EnumerationResults><NextMarker>m</NextMarker></EnumerationResults>"
        ));
        assert!(!comes_again("comp=list&marker=m", b"<EnumerationResults><NextMarker/></EnumerationResults>"));
    }

    #[tokio::test]
    async fn of_a_body_without_end_only_the_beginning_is_read() {
        let body = HttpResponseBody::from(vec![b'x'; 3 * MOST_OF_ERROR]);
        assert_eq!(begin_of(body, MOST_OF_ERROR).await.expect("bytes").len(), MOST_OF_ERROR);
        let body = HttpResponseBody::from(vec![b'x'; 10]);
        assert_eq!(begin_of(body, MOST_OF_ERROR).await.expect("bytes").len(), 10);
    }

    /// A cloud that answers one thing.
    #[derive(Debug)]
    struct Says(u16, Vec<u8>);

    #[async_trait]
    impl HttpService for Says {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            let answer = hyper::Response::builder().status(self.0).body(self.1.clone().into());
            Ok(answer.expect("an answer"))
        }
    }

    async fn asked(query: &str, (status, body): (u16, &[u8])) -> Result<Bytes, HttpError> {
        let inner = HttpClient::new(Says(status, body.to_vec()));
        let client = Client { inner, passed_over: PassedOver::default() };
        let request = hyper::Request::get(format!("http://store/bucket?{query}"));
        let request = request.body(object_store::client::HttpRequestBody::empty()).expect("a request");
        client.call(request).await?.into_body().bytes().await
    }

    #[tokio::test]
    async fn what_a_cloud_answers_is_looked_at_before_it_is_believed() {
        let page = |key: &str, next: &str| {
            format!(
                "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>{key}</Key></Contents>\
                 <NextContinuationToken>{next}</NextContinuationToken></ListBucketResult>"
            )
            .into_bytes()
        };
        let query = "list-type=2&continuation-token=here";
        let list = |body: Vec<u8>| async move { asked(query, (200, &body)).await };
        assert_eq!(list(page("a", "there")).await.expect("a listing"), page("a", "there"));
        assert!(!String::from_utf8_lossy(&list(page("a//b", "there")).await.expect("a listing")).contains("a//b"));
        for (body, why) in [
            (page("a", "here"), "ends where it began"),
            (b"<Error><Code>SlowDown</Code></Error>".to_vec(), "is no listing"),
            (page(&"k".repeat(MOST_OF_LISTING), "there"), "is no listing"),
        ] {
            let error = list(body).await.expect_err("it is not believed");
            let said = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            assert!(said.contains(why), "{why}: {said:.300}");
        }
        let long = vec![b'x'; 3 * MOST_OF_ERROR];
        for asks in [query, "", "uploads="] {
            assert_eq!(asked(asks, (503, &long)).await.expect("an error").len(), MOST_OF_ERROR, "{asks}");
        }
        assert_eq!(asked("", (200, &long)).await.expect("an object").len(), long.len());
    }

    #[test]
    fn only_listings_are_looked_at() {
        assert!(is_listing("continuation-token=x&list-type=2&prefix=a"));
        assert!(is_listing("restype=container&comp=list"));
        assert!(!is_listing("prefix=list-type=2"));
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(body in prop_oneof![
            any::<Vec<u8>>(),
            "(<Contents>|</Contents>|<Key>|</Key>|<Key/>|a//b|&#1;|&|<|>|<!\\[CDATA\\[|\\]\\]>|<!--|-->){0,24}"
                .prop_map(String::into_bytes),
        ]) {
            let body = Bytes::from(body);
            let found = refused(&body);
            prop_assert!(found.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start));
            prop_assert!(without(body.clone(), found).len() <= body.len());
        }
    }
}
