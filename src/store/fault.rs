//! What a store's error means to us: its kind, and what the reader can do about it.

use std::error::Error as StdError;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use super::code;
use super::disk::NoFile;
use crate::error::{Error, Kind};

/// Turns a store's error into ours; `doing` says what could not be done.
pub(crate) fn translate(error: object_store::Error, doing: String) -> Error {
    let (kind, hint) = judge(&error);
    let translated = Error::new(kind, doing).source(error);
    match hint {
        Some(hint) => translated.hint(hint),
        None => translated,
    }
}

/// Returns whether it is the bucket (S3: `NoSuchBucket`, Azure: `ContainerNotFound`) that was not found, not the object.
pub(super) fn is_missing_bucket(error: &object_store::Error) -> bool {
    let text = error.to_string();
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"].iter().any(|name| text.contains(name))
}

/// Returns whether the same request may succeed later, and object_store has not sent it again by itself, as it does after a
/// status of 5xx, 408 and 429 and where no connection came about.
pub(super) fn passes_untried(error: &object_store::Error) -> bool {
    let text = error.to_string();
    // The last answer decides: an expired token may come after a busy store.
    let tried = if text.contains("status code: ") {
        ["status code: 5", "status code: 408", "status code: 429"].iter().any(|said| text.contains(said))
    } else {
        text.contains("max_retries")
    };
    judge(error).0 == Kind::Unavailable && !tried
}

fn judge(error: &object_store::Error) -> (Kind, Option<String>) {
    use object_store::Error as E;
    let text = error.to_string();
    if let Some(code) = code::of(&text)
        && let Some((kind, hint)) = code::judge(code)
    {
        return (kind, Some(format!("the store says {code}: {}", more(kind, &text).unwrap_or(hint))));
    }
    let (kind, hint) = match error {
        E::NotFound { .. } => (Kind::NotFound, Some("check that the bucket in archive.url exists")),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => (
            Kind::Denied,
            Some(
                "check the credentials and their rights: tidelog needs to read, write, list and delete objects (without \
                 the right to list, S3 answers 403 for an object that does not exist; AWS_PROFILE and ~/.aws are not read)",
            ),
        ),
        E::NotImplemented { .. } | E::NotSupported { .. } => (Kind::Unsupported, Some(NO_CONDITIONS)),
        E::UnknownConfigurationKey { .. } | E::InvalidPath { .. } => (Kind::Config, None),
        E::JoinError { .. } => (Kind::Internal, None),
        other => beneath(other),
    };
    (kind, hint.map(str::to_owned))
}

const NO_CONDITIONS: &str = "the archive needs a store with conditional puts (`If-None-Match: *`)";

/// Returns what the request tells beyond the code.
fn more(kind: Kind, text: &str) -> Option<&'static str> {
    // object_store deletes by POST <bucket>?delete, which some stores do not have.
    (kind == Kind::Unsupported && text.contains("?delete")).then_some(NO_BULK_DELETE)
}

const NO_BULK_DELETE: &str = "the store cannot delete several objects by one request: set aws_disable_bulk_delete = \"true\" in [archive.options]";

/// Looks through the layers of an error that object_store does not sort itself.
fn beneath(error: &object_store::Error) -> (Kind, Option<&'static str>) {
    let mut layer: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = layer {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let Some(judged) = of_io(error)
        {
            return judged;
        }
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return of_http(error.kind());
        }
        layer = error.source();
    }
    // object_store keeps its type for answers with an error status to itself; its text holds the status.
    of_status(&error.to_string())
}

fn of_io(error: &io::Error) -> Option<(Kind, Option<&'static str>)> {
    if error.get_ref().is_some_and(|inner| inner.is::<NoFile>()) {
        return Some((
            Kind::Corrupt,
            Some("restore the object from a copy of the archive; one that tidelog did not write can be deleted"),
        ));
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some((
            Kind::Denied,
            Some(
                "the archive is read-only for this user: check the mount and the owner of the directory in archive.url",
            ),
        )),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Some((Kind::Full, Some("make room on the archive's disk or raise its quota; archiving goes on by itself")))
        }
        // object_store's layers wrap an error of the network in an io::Error of their own now and then: look deeper.
        io::ErrorKind::Other => None,
        _ => Some((Kind::Unavailable, None)),
    }
}

fn of_http(kind: HttpErrorKind) -> (Kind, Option<&'static str>) {
    match kind {
        HttpErrorKind::Connect => {
            (Kind::Unavailable, Some("check that the store is up, and its address (aws_endpoint in [archive.options])"))
        }
        HttpErrorKind::Timeout => (
            Kind::Unavailable,
            Some(
                "the store or the link to it stands still. If `timeout` is set in [archive.options], a part of 8 MiB has \
                 to be through within it: leave it out, and only standing still counts",
            ),
        ),
        _ => (Kind::Unavailable, None),
    }
}

/// A request with content is not sent to another address.
const REDIRECTED: &str = "the store redirects to another address, and nothing is written to an address that is not in the configuration: \
                          set aws_endpoint in [archive.options], or the bucket's region, to where the bucket is (S3 redirects for \
                          hours after a bucket was made)";

fn of_status(text: &str) -> (Kind, Option<&'static str>) {
    if text.contains("status code: 501") {
        (Kind::Unsupported, Some(more(Kind::Unsupported, text).unwrap_or(NO_CONDITIONS)))
    } else if text.contains("status code: 507") {
        (Kind::Full, Some("make room in the store or raise its quota; archiving goes on by itself"))
    } else if text.contains("redirect without LOCATION") {
        (Kind::Config, Some("check the region, the endpoint and the bucket in archive.url and [archive.options]"))
    } else if ["status code: 301", "status code: 308"].iter().any(|status| text.contains(status)) {
        (Kind::Config, Some(REDIRECTED))
    } else if text.contains("status code: 30") {
        // S3 itself does so for a while after a bucket was made.
        (Kind::Unavailable, Some(REDIRECTED))
    } else if text.contains("status code: 400") {
        // Without a code that we know it may be anything, also what passes: a request that is sent again costs less than a
        // service that ends for good.
        (
            Kind::Unavailable,
            Some(
                "if it stays, check the region, the endpoint and the bucket in archive.url and [archive.options], and what \
                 lies between tidelog and the store",
            ),
        )
    } else {
        (Kind::Unavailable, None)
    }
}
