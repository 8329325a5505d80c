//! What a store's error means to us: its kind, and what the reader can do about it.

use std::error::Error as StdError;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

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

/// Whether it is the bucket (S3: `NoSuchBucket`, Azure: `ContainerNotFound`) that was not found, not the object.
pub(super) fn is_missing_bucket(error: &object_store::Error) -> bool {
    let text = error.to_string();
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"].iter().any(|name| text.contains(name))
}

fn judge(error: &object_store::Error) -> (Kind, Option<&'static str>) {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => (Kind::NotFound, Some("check that the bucket in archive.url exists")),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => (
            Kind::Denied,
            Some(
                "check the credentials and their rights: tidelog needs to read, write, list and delete objects (without \
                 the right to list, S3 answers 403 for an object that does not exist)",
            ),
        ),
        E::NotImplemented { .. } | E::NotSupported { .. } => {
            (Kind::Unsupported, Some("the archive needs a store with conditional puts (`If-None-Match: *`)"))
        }
        E::UnknownConfigurationKey { .. } | E::InvalidPath { .. } => (Kind::Config, None),
        E::JoinError { .. } => (Kind::Internal, None),
        other => beneath(other),
    }
}

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
        _ => (Kind::Unavailable, None),
    }
}

fn of_status(text: &str) -> (Kind, Option<&'static str>) {
    if text.contains("status code: 501") {
        (Kind::Unsupported, Some("the archive needs a store with conditional puts (`If-None-Match: *`)"))
    } else if text.contains("status code: 507") || text.contains("QuotaExceeded") {
        (Kind::Full, Some("make room in the store or raise its quota; archiving goes on by itself"))
    } else if text.contains("status code: 400") || text.contains("redirect without LOCATION") {
        (Kind::Config, Some("check the region, the endpoint and the bucket in archive.url and [archive.options]"))
    } else {
        (Kind::Unavailable, None)
    }
}
