//! The `unsafe` code of the consumer and of the admin view (the replay's producer has its own): thin, owning wrappers over librdkafka's C API (`rdkafka-sys`).
//!
//! The safe `rdkafka` crate drops what an archive needs: the topic and the next offset of an end-of-partition, leader
//! epochs, topic ids, and batches. Nothing in here decides anything; it turns pointers into borrowed or owned Rust
//! values and frees what librdkafka gave.
//!
//! ```text
//! Handle (rd_kafka_t) ◄── Arc ── Queue ── consume ──► Batch ──► RawMessage (borrows the batch)
//!    └─ Callbacks (opaque): rebalances and errors are noted, and taken by the thread that polls
//! ```
//!
//! Error codes are read as plain `i32`: a newer broker may send a code that the generated `enum` does not have, and a
//! value outside an `enum` is undefined behaviour in Rust.
#![allow(unsafe_code, reason = "librdkafka is a C library; every block says why it is sound")]

mod acls;
mod admin;
mod batch;
mod group;
mod handle;
mod list;
mod settings;
mod state;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;

use rdkafka_sys as sys;

pub(crate) use acls::{Acl, NewAcl, acls, create_acls};
pub(crate) use admin::{Described, Rights, cluster_id, controller, describe_topics, list_offsets, metadata};
pub(crate) use batch::{Queue, RawHeaders, RawMessage};
pub(crate) use group::{Member, commit, describe_group, members};
pub(crate) use handle::{Callback, Handle};
pub(crate) use list::List;
pub(crate) use settings::{Resource, Setting, Settings, Source, alter_topic, describe_configs};
pub(crate) use state::{Group, Position, Positions, groups, may_describe, positions};

/// The same C functions as in `rdkafka_sys`, with codes as integers (see the module's story).
mod codes {
    use super::{c_char, c_int, sys};

    unsafe extern "C" {
        #[link_name = "rd_kafka_err2str"]
        pub(super) fn err2str(code: c_int) -> *const c_char;
        #[link_name = "rd_kafka_err2name"]
        pub(super) fn err2name(code: c_int) -> *const c_char;
        #[link_name = "rd_kafka_error_code"]
        pub(super) fn error_code(error: *const sys::rd_kafka_error_t) -> c_int;
        #[link_name = "rd_kafka_ConfigEntry_source"]
        pub(super) fn setting_source(entry: *const sys::rd_kafka_ConfigEntry_t) -> c_int;
        #[link_name = "rd_kafka_AclBinding_restype"]
        pub(super) fn acl_resource(acl: *const sys::rd_kafka_AclBinding_t) -> c_int;
        #[link_name = "rd_kafka_AclBinding_resource_pattern_type"]
        pub(super) fn acl_pattern(acl: *const sys::rd_kafka_AclBinding_t) -> c_int;
        #[link_name = "rd_kafka_AclBinding_operation"]
        pub(super) fn acl_operation(acl: *const sys::rd_kafka_AclBinding_t) -> c_int;
        #[link_name = "rd_kafka_AclBinding_permission_type"]
        pub(super) fn acl_permission(acl: *const sys::rd_kafka_AclBinding_t) -> c_int;
        #[link_name = "rd_kafka_AclBinding_new"]
        pub(super) fn acl_new(
            resource: c_int,
            name: *const c_char,
            pattern: c_int,
            principal: *const c_char,
            host: *const c_char,
            operation: c_int,
            permission: c_int,
            text: *mut c_char,
            size: usize,
        ) -> *mut sys::rd_kafka_AclBinding_t;
        #[link_name = "rd_kafka_event_error"]
        pub(super) fn event_error(event: *mut sys::rd_kafka_event_t) -> c_int;
        #[link_name = "rd_kafka_fatal_error"]
        pub(super) fn fatal_error(rk: *mut sys::rd_kafka_t, text: *mut c_char, size: usize) -> c_int;
    }
}

/// librdkafka's own codes that are told apart (`rdkafka.h`, `rd_kafka_resp_err_t`).
pub(crate) mod code {
    use super::sys::rd_kafka_resp_err_t as Code;

    pub(crate) const FATAL: i32 = Code::RD_KAFKA_RESP_ERR__FATAL as i32;
    pub(crate) const AUTO_OFFSET_RESET: i32 = Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET as i32;
    pub(crate) const LOG_TRUNCATION: i32 = Code::RD_KAFKA_RESP_ERR__LOG_TRUNCATION as i32;
    pub(crate) const BAD_MSG: i32 = Code::RD_KAFKA_RESP_ERR__BAD_MSG as i32;
    pub(crate) const BAD_COMPRESSION: i32 = Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION as i32;
    /// Of a partition: a batch of a format that librdkafka does not know.
    pub(crate) const NOT_IMPLEMENTED: i32 = Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED as i32;
    /// The broker finds the log damaged.
    pub(crate) const CORRUPT_MESSAGE: i32 = Code::RD_KAFKA_RESP_ERR_INVALID_MSG as i32;
    pub(crate) const MSG_SIZE_TOO_LARGE: i32 = Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as i32;
    pub(crate) const PARTITION_EOF: i32 = Code::RD_KAFKA_RESP_ERR__PARTITION_EOF as i32;
    pub(crate) const TIMED_OUT: i32 = Code::RD_KAFKA_RESP_ERR__TIMED_OUT as i32;
    pub(crate) const INVALID_ARG: i32 = Code::RD_KAFKA_RESP_ERR__INVALID_ARG as i32;
    pub(crate) const ALL_BROKERS_DOWN: i32 = Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN as i32;
    /// The partition's fetcher is not running.
    pub(crate) const STATE: i32 = Code::RD_KAFKA_RESP_ERR__STATE as i32;
    pub(crate) const UNKNOWN_PARTITION: i32 = Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION as i32;
}

/// `RD_KAFKA_OFFSET_INVALID`: an error that carries no offset.
pub(crate) const OFFSET_INVALID: i64 = -1001;

/// A failure that librdkafka or a broker named: its code and its text.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) text: String,
}

/// The text of an error code.
pub(crate) fn text_of(code: i32) -> String {
    // SAFETY: err2str answers a static or thread-local C string for every integer.
    unsafe { string(codes::err2str(code)) }
}

/// The name of an error code, as librdkafka's documentation spells it without its prefix.
pub(crate) fn name_of(code: i32) -> String {
    // SAFETY: err2name answers a static or thread-local C string for every integer.
    unsafe { string(codes::err2name(code)) }
}

/// Copies a C string; null gives an empty one.
///
/// # Safety
/// `text` is null or points to a C string that lives during the call.
unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises a C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Borrows `size` bytes; null gives `None`, so that null and empty stay apart.
///
/// # Safety
/// `data` is null or points to `size` bytes that live and do not change during `'a`.
unsafe fn bytes<'a>(data: *const c_void, size: usize) -> Option<&'a [u8]> {
    // SAFETY: not null here, and the caller promises the rest.
    (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) })
}

/// Takes an error object; null is success.
///
/// # Safety
/// `error` is null or an error object that the caller owns.
unsafe fn check(error: *mut sys::rd_kafka_error_t) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller owns it; it is read, then freed once.
    unsafe {
        let failure = Failure { code: codes::error_code(error), text: string(sys::rd_kafka_error_string(error)) };
        sys::rd_kafka_error_destroy(error);
        Err(failure)
    }
}

fn check_code(code: i32) -> Result<(), Failure> {
    if code == 0 { Ok(()) } else { Err(Failure { code, text: text_of(code) }) }
}

fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}
