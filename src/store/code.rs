//! What a store's error code means: the word in `<Code>` of an answer, which the status alone does not tell.
//!
//! S3 and what speaks its protocol, Google's XML interface and Azure answer an error with XML that names a code. One
//! status stands for many things: 400 is a wrong region and an expired token, 403 a missing right and a clock that is
//! wrong, 409 a key that is taken and a request that came too early. Sources: "Error responses" in the API reference of
//! Amazon S3, "HTTP status and error codes for XML" of Google Cloud Storage, "Common REST API error codes" and "Blob
//! service error codes" of Azure.

use crate::error::Kind;

/// The code in an answer of a store, as far as the text of an error holds it.
pub(super) fn of(text: &str) -> Option<&str> {
    let within = |before: &str, after: char| {
        let code = text.split_once(before)?.1.split(after).next()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (!code.is_empty() && code.len() <= 64 && code.bytes().all(plain)).then_some(code)
    };
    // The second form is object_store's, for one key of a DeleteObjects request.
    within("<Code>", '<').or_else(|| within("(code: ", ')'))
}

/// Returns what a code that is known stands for, and what to do about it.
pub(super) fn judge(code: &str) -> Option<(Kind, &'static str)> {
    Some(match code {
        // The store or something on the way to it is busy, or the bytes did not arrive as they were sent.
        "RequestTimeout"
        | "OperationTimedOut"
        | "InternalError"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "TransactionInProgress"
        | "IncompleteBody"
        | "BadDigest"
        | "Md5Mismatch"
        | "Crc64Mismatch"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "InvalidPart"
        | "NoSuchUpload"
        | "XMinioServerNotInitialized" => (Kind::Unavailable, "it passes by itself, and the request is sent again"),
        "SlowDown"
        | "Busy"
        | "ServerBusy"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "PriorRequestNotComplete"
        | "KMS.ThrottlingException"
        | "DownloadQpsLimitExceeded"
        | "UploadQpsLimitExceeded" => {
            (Kind::Unavailable, "the store asks for fewer requests: it passes by itself, and the request is sent again")
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" => (
            Kind::Unavailable,
            "the credentials have expired. Those of a role are fetched again by themselves; fixed ones \
             (aws_session_token, AWS_SESSION_TOKEN) must be replaced, and tidelog restarted",
        ),
        "RequestTimeTooSkewed" => {
            (Kind::Unavailable, "this machine's clock and the store's differ by more than 15 minutes: set the clock")
        }
        "QuotaExceeded"
        | "StorageQuotaExceeded"
        | "TotalQuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "InsufficientCapacity" => {
            (Kind::Full, "make room in the store or raise its quota; archiving goes on by itself")
        }
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "InvalidSecurity"
        | "AuthenticationFailed"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation"
        | "NotSignedUp" => (
            Kind::Denied,
            "the store does not know these credentials: check the access key, its secret and the session token \
             (AWS_PROFILE and ~/.aws are not read)",
        ),
        "AccessDenied"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "AccountIsDisabled"
        | "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "UserSuspended"
        | "UserProjectAccessDenied"
        | "KMS.AccessDeniedException"
        | "KMS.DisabledException"
        | "KMS.NotFoundException"
        | "KMS.InvalidStateException" => (
            Kind::Denied,
            "check what these credentials may do: tidelog needs to read, write, list and delete objects (without the \
             right to list, S3 answers 403 for an object that does not exist), and to use the bucket's KMS key if it \
             has one",
        ),
        "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "PermanentRedirect"
        | "InvalidRegionName"
        | "InvalidBucketName"
        | "InvalidURI"
        | "InvalidHostHeader"
        | "AccountRequiresHttps"
        | "MissingSecurityHeader"
        | "InvalidEncryptionAlgorithmError"
        | "InvalidStorageClass" => {
            (Kind::Config, "check the region, the endpoint and the bucket in archive.url and [archive.options]")
        }
        "InvalidRequest" | "MissingContentMD5" | "InvalidDigest" => (
            Kind::Config,
            "if the bucket has Object Lock, it wants a checksum with every object: set aws_checksum_algorithm = \
             \"sha256\" in [archive.options]",
        ),
        // What an object lacks now it will lack in a moment, too.
        "InvalidRange" => {
            (Kind::Corrupt, "the object is shorter than what names it says: restore it from a copy of the archive")
        }
        "NotImplemented" | "UnsupportedHeader" => {
            (Kind::Unsupported, "the archive needs a store with conditional puts (`If-None-Match: *`)")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_what_a_store_answers() {
        let s3 = "Generic S3 error: Error performing PUT http://h/b/k in 3ms - Server returned non-2xx status code: 400 \
                  Bad Request: <?xml version=\"1.0\"?>\n<Error><Code>ExpiredToken</Code><Message>x</Message></Error>";
        assert_eq!(of(s3), Some("ExpiredToken"));
        assert_eq!(of("DeleteObjects request failed for key a: slow down (code: SlowDown)"), Some("SlowDown"));
        for none in ["", "<html>400</html>", "<Code></Code>", "<Code>a b</Code>", "<Code>\u{1b}[31m</Code>", "<Code>x"]
        {
            assert_eq!(of(none).filter(|code| *code != "x"), None, "{none:?}");
        }
    }

    #[test]
    fn one_status_stands_for_many_things() {
        let kind = |code| judge(code).map(|(kind, _)| kind);
        for passes in
            ["ExpiredToken", "RequestTimeout", "SlowDown", "RequestTimeTooSkewed", "ConditionalRequestConflict"]
        {
            assert_eq!(kind(passes), Some(Kind::Unavailable), "{passes}");
        }
        assert_eq!(kind("AuthorizationHeaderMalformed"), Some(Kind::Config));
        assert_eq!(kind("AccessDenied"), Some(Kind::Denied));
        assert_eq!(kind("InvalidRange"), Some(Kind::Corrupt));
        assert_eq!(kind("QuotaExceeded"), Some(Kind::Full));
        assert_eq!(kind("NoSuchKey"), None);
    }
}
