//! The only `unsafe` code of the crate: thin, owning wrappers over librdkafka's C API (`rdkafka-sys`).
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

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka_sys as sys;

use super::error::log_line;
use crate::error::{Error, Kind, Result};

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
        #[link_name = "rd_kafka_event_error"]
        pub(super) fn event_error(event: *mut sys::rd_kafka_event_t) -> c_int;
        #[link_name = "rd_kafka_fatal_error"]
        pub(super) fn fatal_error(rk: *mut sys::rd_kafka_t, text: *mut c_char, size: usize) -> c_int;
    }
}

/// librdkafka's own codes that are told apart (`rdkafka.h`, `rd_kafka_resp_err_t`).
pub(super) mod code {
    pub(in super::super) const FATAL: i32 = -150;
    pub(in super::super) const AUTO_OFFSET_RESET: i32 = -140;
    pub(in super::super) const LOG_TRUNCATION: i32 = -139;
    pub(in super::super) const PARTITION_EOF: i32 = -191;
    pub(in super::super) const ALL_BROKERS_DOWN: i32 = -187;
    /// `RD_KAFKA_RESP_ERR__STATE`: the partition's fetcher is not running.
    pub(in super::super) const STATE: i32 = -172;
    /// `RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION`.
    pub(in super::super) const UNKNOWN_PARTITION: i32 = -190;
}

/// `RD_KAFKA_OFFSET_INVALID`: an error that carries no offset.
pub(super) const OFFSET_INVALID: i64 = -1001;

/// A failure that librdkafka or a broker named: its code and its text.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) code: i32,
    pub(super) text: String,
}

/// The text of an error code.
pub(super) fn text_of(code: i32) -> String {
    // SAFETY: err2str answers a static or thread-local C string for every integer.
    unsafe { string(codes::err2str(code)) }
}

/// The name of an error code, as librdkafka's documentation spells it without its prefix.
pub(super) fn name_of(code: i32) -> String {
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

/// What librdkafka called back with while a queue was served.
pub(super) enum Callback {
    Assigned(Vec<(String, i32)>),
    Revoked { partitions: Vec<(String, i32)>, lost: bool },
    CommitFailed(Failure),
    Error { failure: Failure, fatal: bool },
}

/// What the callbacks share with the thread that polls. librdkafka holds a pointer to it as its opaque.
#[derive(Default)]
struct Callbacks {
    noted: Mutex<Vec<Callback>>,
    /// The group is being left: nobody answers a rebalance any more, so the callback does.
    closing: AtomicBool,
}

impl Callbacks {
    fn note(&self, callback: Callback) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
    }
}

/// One librdkafka client. The C library locks for itself, so it may be used from any thread.
pub(super) struct Handle {
    rk: NonNull<sys::rd_kafka_t>,
    /// Freed after `rk`: librdkafka's threads may call back until then.
    callbacks: NonNull<Callbacks>,
}

// SAFETY: "All client instances are thread-safe" (librdkafka INTRODUCTION.md, "Threads and callbacks"); `Callbacks` is
// only reached by shared reference and is itself `Sync`.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: `rk` is destroyed once, here; queues hold an `Arc` of this handle and are gone. NO_CONSUMER_CLOSE:
        // without it, destroy waits for the group's answer and for callbacks that nobody serves any more.
        unsafe {
            sys::rd_kafka_destroy_flags(self.rk.as_ptr(), sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
            drop(Box::from_raw(self.callbacks.as_ptr()));
        }
    }
}

/// A configuration that is not yet a client.
struct Conf(*mut sys::rd_kafka_conf_t);

impl Drop for Conf {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: owned, and nulled when a client took it.
            unsafe { sys::rd_kafka_conf_destroy(self.0) };
        }
    }
}

impl Conf {
    /// A configuration with these properties. An error names the property, never its value.
    fn new(properties: &[(String, String)]) -> Result<Self> {
        // SAFETY: no precondition; null is only an allocation failure, which librdkafka turns into abort.
        let conf = Self(unsafe { sys::rd_kafka_conf_new() });
        for (name, value) in properties {
            let wrong = |what: &str| Error::new(Kind::Config, format!("kafka.properties.{name}: {what}"));
            let nul = |_| wrong("holds a NUL byte");
            let (c_name, c_value) =
                (CString::new(name.as_str()).map_err(nul)?, CString::new(value.as_str()).map_err(nul)?);
            let mut text = [0 as c_char; 512];
            // SAFETY: the strings and the buffer of 512 bytes live during the call.
            let result = unsafe {
                sys::rd_kafka_conf_set(conf.0, c_name.as_ptr(), c_value.as_ptr(), text.as_mut_ptr(), text.len())
            };
            match result {
                sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => {}
                sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_UNKNOWN => {
                    return Err(wrong("librdkafka has no such property").hint(
                        "see librdkafka's CONFIGURATION.md for the names; properties of the Java client differ",
                    ));
                }
                sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_INVALID => {
                    // librdkafka's text repeats the value, which may be a secret: it is shown only when it does not.
                    // SAFETY: librdkafka wrote a terminated string into the buffer.
                    let reason = unsafe { string(text.as_ptr()) };
                    let reason = if value.is_empty() || reason.contains(value.as_str()) {
                        "librdkafka does not accept this value".to_owned()
                    } else {
                        reason
                    };
                    return Err(wrong(&reason).hint("see librdkafka's CONFIGURATION.md for the values"));
                }
            }
        }
        Ok(conf)
    }

    /// A property's value; empty if it has none.
    fn get(&self, name: &CStr) -> String {
        let mut value = [0 as c_char; 256];
        let mut size = value.len();
        // SAFETY: name, buffer and size live during the call; a longer value is cut and terminated.
        unsafe {
            let result = sys::rd_kafka_conf_get(self.0, name.as_ptr(), value.as_mut_ptr(), &raw mut size);
            if result == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK { string(value.as_ptr()) } else { String::new() }
        }
    }
}

impl Handle {
    /// A member of a consumer group.
    pub(super) fn consumer(properties: &[(String, String)]) -> Result<Self> {
        let conf = Conf::new(properties)?;
        // SAFETY: the callbacks have the signatures that librdkafka calls, and `conf` is owned.
        unsafe {
            sys::rd_kafka_conf_set_rebalance_cb(conf.0, Some(on_rebalance));
            sys::rd_kafka_conf_set_offset_commit_cb(conf.0, Some(on_commit));
        }
        let handle = Self::new(sys::rd_kafka_type_t::RD_KAFKA_CONSUMER, conf)?;
        // SAFETY: a consumer with a group id, which `properties` of this crate always has; else a code is answered.
        let code = unsafe { sys::rd_kafka_poll_set_consumer(handle.rk()) } as i32;
        check_code(code).map_err(|failure| Error::new(Kind::Internal, failure.text))?;
        Ok(handle)
    }

    /// A client for requests only (librdkafka calls it a producer; it never produces).
    pub(super) fn admin(properties: &[(String, String)]) -> Result<Self> {
        Self::new(sys::rd_kafka_type_t::RD_KAFKA_PRODUCER, Conf::new(properties)?)
    }

    fn new(kind: sys::rd_kafka_type_t, mut conf: Conf) -> Result<Self> {
        let callbacks = NonNull::from(Box::leak(Box::<Callbacks>::default()));
        // Tokens are renewed on librdkafka's own thread: a client for requests is not polled.
        let oauth = conf.get(c"sasl.mechanisms").eq_ignore_ascii_case("OAUTHBEARER");
        let mut text = [0 as c_char; 512];
        // SAFETY: `conf` is owned; the callbacks live until after `rd_kafka_destroy`; the buffer lives during the call.
        let rk = unsafe {
            sys::rd_kafka_conf_set_opaque(conf.0, callbacks.as_ptr().cast());
            sys::rd_kafka_conf_set_error_cb(conf.0, Some(on_error));
            sys::rd_kafka_conf_set_log_cb(conf.0, Some(on_log));
            sys::rd_kafka_conf_enable_sasl_queue(conf.0, c_int::from(oauth));
            sys::rd_kafka_new(kind, conf.0, text.as_mut_ptr(), text.len())
        };
        let Some(rk) = NonNull::new(rk) else {
            // SAFETY: rd_kafka_new failed, so nothing refers to the callbacks, and `text` holds its reason.
            let reason = unsafe {
                drop(Box::from_raw(callbacks.as_ptr()));
                string(text.as_ptr())
            };
            return Err(Error::new(Kind::Config, format!("kafka.properties: {reason}")));
        };
        conf.0 = ptr::null_mut(); // rd_kafka_new took it
        let handle = Self { rk, callbacks };
        if oauth {
            // SAFETY: the client is live and has a SASL queue; the answer is ours to free.
            unsafe { check(sys::rd_kafka_sasl_background_callbacks_enable(handle.rk())) }
                .map_err(|failure| Error::new(Kind::Internal, failure.text))?;
        }
        Ok(handle)
    }

    fn rk(&self) -> *mut sys::rd_kafka_t {
        self.rk.as_ptr()
    }

    fn callbacks(&self) -> &Callbacks {
        // SAFETY: allocated by `new`, freed only by `drop`, never borrowed mutably.
        unsafe { self.callbacks.as_ref() }
    }

    /// What was called back since the last call.
    pub(super) fn take_callbacks(&self, into: &mut Vec<Callback>) {
        into.append(&mut self.callbacks().noted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Serves the callbacks of a client that has no consumer queue, and takes them.
    pub(super) fn serve(&self, into: &mut Vec<Callback>) {
        // SAFETY: the client is live; a timeout of 0 only serves what is there.
        unsafe { sys::rd_kafka_poll(self.rk(), 0) };
        self.take_callbacks(into);
    }

    pub(super) fn subscribe(&self, topics: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list.
        check_code(unsafe { sys::rd_kafka_subscribe(self.rk(), topics.0.as_ptr()) } as i32)
    }

    /// Whether the group moves single partitions (cooperative, KIP-848) or all of them (eager).
    pub(super) fn is_cooperative(&self) -> bool {
        is_cooperative(self.rk())
    }

    /// `rd_kafka_assign`: replaces all that is assigned. An empty list is an assignment of nothing.
    pub(super) fn assign(&self, all: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list.
        check_code(unsafe { sys::rd_kafka_assign(self.rk(), all.0.as_ptr()) } as i32)
    }

    /// `rd_kafka_assign(NULL)`: the answer to an eager revocation.
    pub(super) fn unassign_all(&self) -> Result<(), Failure> {
        // SAFETY: null is allowed and means that nothing stays assigned.
        check_code(unsafe { sys::rd_kafka_assign(self.rk(), ptr::null()) } as i32)
    }

    pub(super) fn incremental_assign(&self, added: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list; the answer is ours to free.
        unsafe { check(sys::rd_kafka_incremental_assign(self.rk(), added.0.as_ptr())) }
    }

    pub(super) fn incremental_unassign(&self, removed: &List) -> Result<(), Failure> {
        // SAFETY: as above.
        unsafe { check(sys::rd_kafka_incremental_unassign(self.rk(), removed.0.as_ptr())) }
    }

    /// Waits until every partition has answered; each entry's own code is then in the list.
    pub(super) fn seek(&self, to: &mut List, wait: Duration) -> Result<(), Failure> {
        // SAFETY: the list is not shared and lives during the call; the answer is ours to free.
        unsafe { check(sys::rd_kafka_seek_partitions(self.rk(), to.0.as_ptr(), millis(wait))) }
    }

    pub(super) fn pause(&self, partitions: &mut List) -> Result<(), Failure> {
        // SAFETY: the list is not shared and lives during the call.
        check_code(unsafe { sys::rd_kafka_pause_partitions(self.rk(), partitions.0.as_ptr()) } as i32)
    }

    pub(super) fn resume(&self, partitions: &mut List) -> Result<(), Failure> {
        // SAFETY: the list is not shared and lives during the call.
        check_code(unsafe { sys::rd_kafka_resume_partitions(self.rk(), partitions.0.as_ptr()) } as i32)
    }

    /// Sends the commit; its answer is not waited for.
    pub(super) fn commit(&self, offsets: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list.
        check_code(unsafe { sys::rd_kafka_commit(self.rk(), offsets.0.as_ptr(), 1) } as i32)
    }

    /// Starts to leave the group; `queue` must be served until [`Handle::is_closed`].
    pub(super) fn close(&self, queue: &Queue) -> Result<(), Failure> {
        self.callbacks().closing.store(true, Ordering::Release);
        // SAFETY: both live during the call; the caller serves the queue afterwards.
        unsafe { check(sys::rd_kafka_consumer_close_queue(self.rk(), queue.queue.as_ptr())) }
    }

    pub(super) fn is_closed(&self) -> bool {
        // SAFETY: reads an atomic flag of a live client.
        unsafe { sys::rd_kafka_consumer_closed(self.rk()) == 1 }
    }

    /// The broker to ask about topics: the controller, or any broker where none is named (librdkafka's mock cluster
    /// names one that does not exist, and a request to it would wait until it times out).
    fn controller(&self, wait: Duration) -> Result<i32, Failure> {
        let mut metadata: *const sys::rd_kafka_metadata_t = ptr::null();
        // SAFETY: on success the answer is ours; it is read within its counts, then freed once. Without all topics and
        // without a topic of this client it is only the brokers.
        unsafe {
            check_code(sys::rd_kafka_metadata(self.rk(), 0, ptr::null_mut(), &raw mut metadata, millis(wait)) as i32)?;
            let count = usize::try_from((*metadata).broker_cnt).unwrap_or(0);
            let brokers: Vec<i32> = (0..count).map(|index| (*(*metadata).brokers.add(index)).id).collect();
            sys::rd_kafka_metadata_destroy(metadata);
            let controller = sys::rd_kafka_controllerid(self.rk(), 0);
            brokers.iter().find(|id| **id == controller).or(brokers.first()).copied().ok_or_else(silence)
        }
    }

    /// Topics and brokers, asked for now: `(brokers, (topic, partitions, error code))`.
    pub(super) fn metadata(&self, wait: Duration) -> Result<(usize, Vec<(String, i32, i32)>), Failure> {
        let mut metadata: *const sys::rd_kafka_metadata_t = ptr::null();
        // SAFETY: on success the answer is ours; it is read within its counts, then freed once.
        unsafe {
            let code = sys::rd_kafka_metadata(self.rk(), 1, ptr::null_mut(), &raw mut metadata, millis(wait)) as i32;
            check_code(code)?;
            let count = usize::try_from((*metadata).topic_cnt).unwrap_or(0);
            let topics = (0..count).map(|index| {
                let topic = (*metadata).topics.add(index);
                (string((*topic).topic), (*topic).partition_cnt, (&raw const (*topic).err).cast::<i32>().read())
            });
            let answer = (usize::try_from((*metadata).broker_cnt).unwrap_or(0), topics.collect());
            sys::rd_kafka_metadata_destroy(metadata);
            Ok(answer)
        }
    }
}

fn is_cooperative(rk: *mut sys::rd_kafka_t) -> bool {
    // SAFETY: `rk` is live at both call sites; the answer is a static C string.
    unsafe { string(sys::rd_kafka_rebalance_protocol(rk)) == "COOPERATIVE" }
}

/// Runs inside [`Queue::consume`], on the thread that polls. It must not call `rd_kafka_yield`:
/// `rd_kafka_q_serve_rkmessages` (rdkafka_queue.c) would then drop the message that follows the rebalance.
///
/// An assignment is answered here, with nothing: librdkafka holds all other partitions still until it has its answer,
/// and the positions of the new ones must be looked up first. They are added when they are known. A revocation is
/// answered later, when the archive has what was read.
unsafe extern "C" fn on_rebalance(
    rk: *mut sys::rd_kafka_t,
    error: sys::rd_kafka_resp_err_t,
    partitions: *mut sys::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka passes back the opaque that `Handle::new` set; it lives until the client is destroyed.
    let callbacks = unsafe { &*opaque.cast::<Callbacks>() };
    if callbacks.closing.load(Ordering::Acquire) {
        // SAFETY: `rk` is live inside its callback. While a group terminates, every assign is an unassign
        // (rd_kafka_cgrp_handle_assign_op), whatever the protocol.
        unsafe { sys::rd_kafka_assign(rk, ptr::null()) };
        return;
    }
    // SAFETY: the list lives during the callback.
    let list: Vec<_> = unsafe { entries(partitions) }
        .map(|entry| (String::from_utf8_lossy(entry.topic).into_owned(), entry.partition))
        .collect();
    if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
        let nothing = List::new();
        // SAFETY: `rk` is live inside its callback; librdkafka copies the list; the answer is ours to free.
        let answer = unsafe {
            if is_cooperative(rk) {
                check(sys::rd_kafka_incremental_assign(rk, nothing.0.as_ptr()))
            } else {
                check_code(sys::rd_kafka_assign(rk, nothing.0.as_ptr()) as i32)
            }
        };
        if let Err(failure) = answer {
            callbacks.note(Callback::Error { failure, fatal: false });
        }
        callbacks.note(Callback::Assigned(list));
    } else {
        // SAFETY: `rk` is live inside its callback; reads an atomic flag.
        let lost = unsafe { sys::rd_kafka_assignment_lost(rk) } != 0;
        callbacks.note(Callback::Revoked { partitions: list, lost });
    }
}

unsafe extern "C" fn on_commit(
    _: *mut sys::rd_kafka_t,
    error: sys::rd_kafka_resp_err_t,
    offsets: *mut sys::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka passes back the opaque that `Handle::new` set, and a list that lives during the callback.
    let (callbacks, mut codes) = unsafe { (&*opaque.cast::<Callbacks>(), entries(offsets).map(|entry| entry.code)) };
    let failed = Some(error as i32).filter(|code| *code != 0).or_else(|| codes.find(|code| *code != 0));
    if let Some(code) = failed {
        callbacks.note(Callback::CommitFailed(Failure { code, text: text_of(code) }));
    }
}

unsafe extern "C" fn on_error(rk: *mut sys::rd_kafka_t, code: c_int, text: *const c_char, opaque: *mut c_void) {
    // SAFETY: librdkafka passes back the opaque that `Handle::new` set, and a C string that lives during the callback.
    let (callbacks, text) = unsafe { (&*opaque.cast::<Callbacks>(), string(text)) };
    if code != code::FATAL {
        callbacks.note(Callback::Error { failure: Failure { code, text }, fatal: false });
        return;
    }
    let mut cause = [0 as c_char; 512];
    // SAFETY: `rk` is live inside its callback, and the buffer lives during the call.
    let (code, cause) = unsafe {
        let code = codes::fatal_error(rk, cause.as_mut_ptr(), cause.len());
        (code, string(cause.as_ptr()))
    };
    callbacks.note(Callback::Error { failure: Failure { code, text: cause }, fatal: true });
}

unsafe extern "C" fn on_log(_: *const sys::rd_kafka_t, level: c_int, facility: *const c_char, text: *const c_char) {
    // SAFETY: both are C strings that live during the callback.
    let (facility, text) = unsafe { (string(facility), string(text)) };
    log_line(level, &facility, &text);
}

/// Topics, partitions and offsets, as librdkafka takes and gives them.
pub(super) struct List(NonNull<sys::rd_kafka_topic_partition_list_t>);

/// One entry of a [`List`].
pub(super) struct Entry<'a> {
    pub(super) topic: &'a [u8],
    pub(super) partition: i32,
    pub(super) code: i32,
}

/// # Safety
/// `list` is null or a list that lives and does not change during `'a`.
unsafe fn entries<'a>(list: *const sys::rd_kafka_topic_partition_list_t) -> impl Iterator<Item = Entry<'a>> {
    // SAFETY: the caller promises a live list; `cnt` of its `elems` are set.
    let all = unsafe { list.as_ref() }.map_or(&[][..], |list| {
        let count = usize::try_from(list.cnt).unwrap_or(0);
        // SAFETY: as above; an empty list may have a null array.
        if count == 0 {
            &[][..]
        } else {
            unsafe { std::slice::from_raw_parts(list.elems.cast::<EntryLayout>(), count) }
        }
    });
    all.iter().map(|entry| Entry {
        // SAFETY: every entry has its topic's name, a C string that lives as long as the list.
        topic: unsafe { CStr::from_ptr(entry.topic) }.to_bytes(),
        partition: entry.partition,
        code: entry.err,
    })
}

/// `rd_kafka_topic_partition_t` with its code as an integer.
#[repr(C)]
struct EntryLayout {
    topic: *mut c_char,
    partition: i32,
    offset: i64,
    metadata: *mut c_void,
    metadata_size: usize,
    opaque: *mut c_void,
    err: i32,
    private: *mut c_void,
}

const _: () = assert!(size_of::<EntryLayout>() == size_of::<sys::rd_kafka_topic_partition_t>());
const _: () = assert!(
    std::mem::offset_of!(EntryLayout, err) == std::mem::offset_of!(sys::rd_kafka_topic_partition_t, err)
        && std::mem::offset_of!(EntryLayout, offset) == std::mem::offset_of!(sys::rd_kafka_topic_partition_t, offset)
);

impl List {
    pub(super) fn new() -> Self {
        // SAFETY: no precondition; librdkafka aborts when it has no memory, so the answer is not null.
        Self(unsafe { NonNull::new_unchecked(sys::rd_kafka_topic_partition_list_new(0)) })
    }

    pub(super) fn add(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let name =
            CString::new(topic).map_err(|_| Error::new(Kind::Config, format!("topic {topic:?} holds a NUL byte")))?;
        // SAFETY: the list is owned; librdkafka copies the name and answers the new entry, valid until the next add.
        unsafe { (*sys::rd_kafka_topic_partition_list_add(self.0.as_ptr(), name.as_ptr(), partition)).offset = offset };
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        // SAFETY: the list is owned and live.
        unsafe { self.0.as_ref() }.cnt == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        // SAFETY: the list is borrowed as long as the iterator.
        unsafe { entries(self.0.as_ptr()) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.0.as_ptr()) };
    }
}

/// A queue of a client: of its messages, its callbacks or its answers.
pub(super) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// The client must outlive its queues.
    _handle: Arc<Handle>,
    /// Where librdkafka writes the pointers of a batch; kept, so that a poll allocates nothing.
    messages: Vec<*mut sys::rd_kafka_message_t>,
}

// SAFETY: queues are thread-safe like their client; `messages` holds pointers only while `consume`'s batch borrows self.
unsafe impl Send for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once, before the client that `_handle` keeps.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

impl Queue {
    /// A new, empty queue.
    pub(super) fn new(handle: &Arc<Handle>) -> Self {
        // SAFETY: the client is live; librdkafka aborts when it has no memory, so the answer is not null.
        let queue = unsafe { NonNull::new_unchecked(sys::rd_kafka_queue_new(handle.rk())) };
        Self { queue, _handle: Arc::clone(handle), messages: Vec::new() }
    }

    /// The queue that a consumer's messages and callbacks come to.
    pub(super) fn of_consumer(handle: &Arc<Handle>) -> Result<Self> {
        // SAFETY: the client is live; null means that it is not a member of a group.
        let queue = NonNull::new(unsafe { sys::rd_kafka_queue_get_consumer(handle.rk()) })
            .ok_or_else(|| Error::new(Kind::Internal, "the Kafka client has no consumer queue"))?;
        Ok(Self { queue, _handle: Arc::clone(handle), messages: Vec::new() })
    }

    /// Serves callbacks and takes at most `max` messages, until `wait` is over.
    pub(super) fn consume(&mut self, max: usize, wait: Duration) -> Batch<'_> {
        self.messages.clear();
        self.messages.reserve(max);
        // SAFETY: the buffer has room for `max` pointers; librdkafka writes as many as it answers, each owned by us.
        unsafe {
            let count =
                sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), millis(wait), self.messages.as_mut_ptr(), max);
            self.messages.set_len(usize::try_from(count).unwrap_or(0));
        }
        Batch { messages: &mut self.messages }
    }

    /// Waits for one answer.
    fn answer(&self, wait: Duration) -> Option<Answer<'_>> {
        // SAFETY: queue and client are live; the answer is owned.
        let event = NonNull::new(unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), millis(wait)) })?;
        Some(Answer { event, queue: PhantomData })
    }
}

/// Messages that are freed together.
pub(super) struct Batch<'a> {
    messages: &'a mut Vec<*mut sys::rd_kafka_message_t>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for message in self.messages.drain(..) {
            // SAFETY: each message of the batch is owned and destroyed once.
            unsafe { sys::rd_kafka_message_destroy(message) };
        }
    }
}

impl Batch<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = RawMessage<'_>> {
        // SAFETY: librdkafka gave valid messages, which live until the batch is dropped.
        self.messages
            .iter()
            .map(|message| RawMessage { message: unsafe { NonNull::new_unchecked(*message) }, batch: PhantomData })
    }
}

/// A message or an error that stands in a message's place.
#[derive(Clone, Copy)]
pub(super) struct RawMessage<'a> {
    message: NonNull<sys::rd_kafka_message_t>,
    batch: PhantomData<&'a ()>,
}

impl<'a> RawMessage<'a> {
    /// 0 for a record.
    pub(super) fn code(&self) -> i32 {
        // SAFETY: the message is live; the code is read as an integer of the same size, without making an enum of it.
        unsafe { (&raw const (*self.message.as_ptr()).err).cast::<i32>().read() }
    }

    pub(super) fn partition(&self) -> i32 {
        // SAFETY: the message is live.
        unsafe { (*self.message.as_ptr()).partition }
    }

    pub(super) fn offset(&self) -> i64 {
        // SAFETY: the message is live.
        unsafe { (*self.message.as_ptr()).offset }
    }

    /// Which topic object the message refers to. Messages of one batch hold their topics, so within a batch one address
    /// means one topic; afterwards it may be freed and used again for another.
    pub(super) fn topic_address(&self) -> usize {
        // SAFETY: the message is live.
        unsafe { (*self.message.as_ptr()).rkt.addr() }
    }

    /// The topic's name, if the message has one.
    pub(super) fn topic(&self) -> Option<&'a [u8]> {
        // SAFETY: the message is live and holds a reference to its topic; the topic's name is a C string that lives as
        // long as the topic.
        unsafe {
            let topic = (*self.message.as_ptr()).rkt;
            (!topic.is_null()).then(|| CStr::from_ptr(sys::rd_kafka_topic_name(topic)).to_bytes())
        }
    }

    pub(super) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: key and length belong together and live as long as the batch.
        unsafe { bytes((*self.message.as_ptr()).key, (*self.message.as_ptr()).key_len) }
    }

    pub(super) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: payload and length belong together and live as long as the batch.
        unsafe { bytes((*self.message.as_ptr()).payload, (*self.message.as_ptr()).len) }
    }

    /// Milliseconds and `rd_kafka_timestamp_type_t`.
    pub(super) fn timestamp(&self) -> (i64, u32) {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is live; librdkafka writes one of its own three values.
        let time = unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (time, kind as u32)
    }

    pub(super) fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is live and without error (the only caller has checked).
        unsafe { sys::rd_kafka_message_leader_epoch(self.message.as_ptr()) }
    }

    /// The headers in their order. The names are C strings: librdkafka's API cuts a name at a NUL byte.
    pub(super) fn headers(&self) -> RawHeaders<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is live; on success `headers` stays owned by the message. It is parsed at the first call,
        // which only the thread that holds the batch can make.
        let code = unsafe { sys::rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers) } as i32;
        RawHeaders { headers: if code == 0 { headers } else { ptr::null_mut() }, next: 0, batch: PhantomData }
    }

    /// The text of an error.
    pub(super) fn failure(&self) -> Failure {
        // SAFETY: the message is live, and its error text is a C string inside it.
        Failure { code: self.code(), text: unsafe { string(sys::rd_kafka_message_errstr(self.message.as_ptr())) } }
    }
}

/// The headers of one message: (name, nullable value).
#[derive(Clone)]
pub(super) struct RawHeaders<'a> {
    headers: *mut sys::rd_kafka_headers_t,
    next: usize,
    batch: PhantomData<&'a ()>,
}

impl<'a> Iterator for RawHeaders<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.headers.is_null() {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers live as long as their message; on success the three are set, pointing into the headers.
        unsafe {
            let code =
                sys::rd_kafka_header_get_all(self.headers, self.next, &raw mut name, &raw mut value, &raw mut size)
                    as i32;
            if code != 0 {
                return None;
            }
            self.next += 1;
            Some((CStr::from_ptr(name).to_bytes(), bytes(value, size)))
        }
    }
}

/// One answer to an admin request.
struct Answer<'a> {
    event: NonNull<sys::rd_kafka_event_t>,
    queue: PhantomData<&'a Queue>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.event.as_ptr()) };
    }
}

impl Answer<'_> {
    fn check(&self) -> Result<(), Failure> {
        // SAFETY: the event is live; its text is a C string inside it.
        unsafe {
            let code = codes::event_error(self.event.as_ptr());
            if code == 0 {
                return Ok(());
            }
            Err(Failure { code, text: string(sys::rd_kafka_event_error_string(self.event.as_ptr())) })
        }
    }
}

/// The options of one admin request.
struct Options(NonNull<sys::rd_kafka_AdminOptions_t>);

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0.as_ptr()) };
    }
}

impl Options {
    fn new(handle: &Handle, operation: sys::rd_kafka_admin_op_t, wait: Duration) -> Result<Self, Failure> {
        let options = NonNull::new(
            // SAFETY: the client is live; null means an operation that it does not know.
            unsafe { sys::rd_kafka_AdminOptions_new(handle.rk(), operation) },
        );
        let options =
            Self(options.ok_or_else(|| Failure { code: 0, text: "librdkafka does not know this request".to_owned() })?);
        let mut text = [0 as c_char; 512];
        // SAFETY: options and buffer live during the call.
        let code = unsafe {
            sys::rd_kafka_AdminOptions_set_request_timeout(
                options.0.as_ptr(),
                millis(wait),
                text.as_mut_ptr(),
                text.len(),
            )
        } as i32;
        check_code(code)?;
        Ok(options)
    }
}

impl Options {
    /// Which broker is asked.
    fn ask(&self, broker: i32) -> Result<(), Failure> {
        let mut text = [0 as c_char; 512];
        // SAFETY: options and buffer live during the call.
        let code =
            unsafe { sys::rd_kafka_AdminOptions_set_broker(self.0.as_ptr(), broker, text.as_mut_ptr(), text.len()) };
        check_code(code as i32)
    }
}

/// No answer came in time, although librdkafka always gives one after the request's own timeout.
fn silence() -> Failure {
    Failure { code: -185, text: "the brokers did not answer in time".to_owned() }
}

/// How much longer than the request itself its answer is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// A topic as DescribeTopics tells it.
pub(super) struct Described {
    pub(super) name: String,
    /// The topic id's 16 bytes; all zero when the brokers have none.
    pub(super) id: [u8; 16],
    pub(super) partitions: usize,
    /// 0 when the topic is there.
    pub(super) failure: Failure,
}

/// DescribeTopics. Topics that do not exist are in the answer, with their code.
pub(super) fn describe_topics(
    handle: &Arc<Handle>,
    topics: &[CString],
    wait: Duration,
) -> Result<Vec<Described>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait)?;
    options.ask(handle.controller(wait)?)?;
    let queue = Queue::new(handle);
    let mut names: Vec<*const c_char> = topics.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: names, options and queue live during the calls; librdkafka copies what it keeps; the collection is freed.
    unsafe {
        let collection = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(handle.rk(), collection, options.0.as_ptr(), queue.queue.as_ptr());
        sys::rd_kafka_TopicCollection_destroy(collection);
    }
    let answer = queue.answer(wait + GRACE).ok_or_else(silence)?;
    answer.check()?;
    // SAFETY: the event is live and of this type (the queue is used for one request); everything is read within its
    // counts and copied before the event is freed.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(answer.event.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok((0..count).map(|index| describe_topic(*described.add(index))).collect())
    }
}

/// # Safety
/// `topic` is a description inside a live answer.
unsafe fn describe_topic(topic: *const sys::rd_kafka_TopicDescription_t) -> Described {
    // SAFETY: the caller promises a live description; name, id and error live as long.
    unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let failure = if error.is_null() {
            Failure { code: 0, text: String::new() }
        } else {
            Failure { code: codes::error_code(error), text: string(sys::rd_kafka_error_string(error)) }
        };
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        let mut id = [0; 16];
        let uuid = sys::rd_kafka_TopicDescription_topic_id(topic);
        if !uuid.is_null() {
            id[..8].copy_from_slice(&sys::rd_kafka_Uuid_most_significant_bits(uuid).to_be_bytes());
            id[8..].copy_from_slice(&sys::rd_kafka_Uuid_least_significant_bits(uuid).to_be_bytes());
        }
        Described { name: string(sys::rd_kafka_TopicDescription_name(topic)), id, partitions, failure }
    }
}

/// An offset as ListOffsets tells it.
pub(super) struct Listed {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// 0 when `offset` is an answer.
    pub(super) code: i32,
}

/// ListOffsets: the offset of each entry of `partitions` is a timestamp (ms) or one of `rd_kafka_OffsetSpec_t`.
pub(super) fn list_offsets(
    handle: &Arc<Handle>,
    partitions: &mut List,
    committed: bool,
    wait: Duration,
) -> Result<Vec<Listed>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, wait)?;
    let queue = Queue::new(handle);
    let isolation = if committed {
        sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED
    } else {
        sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED
    };
    // SAFETY: all live during the calls; librdkafka copies the list; the answer of the first is ours to free.
    unsafe {
        check(sys::rd_kafka_AdminOptions_set_isolation_level(options.0.as_ptr(), isolation))?;
        sys::rd_kafka_ListOffsets(handle.rk(), partitions.0.as_ptr(), options.0.as_ptr(), queue.queue.as_ptr());
    }
    let answer = queue.answer(wait + GRACE).ok_or_else(silence)?;
    answer.check()?;
    // SAFETY: as in `describe_topics`; an info's partition has the layout that `EntryLayout` asserts.
    unsafe {
        let result = sys::rd_kafka_event_ListOffsets_result(answer.event.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        let listed = (0..count).map(|index| {
            let entry = sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index)).cast::<EntryLayout>();
            Listed {
                topic: string((*entry).topic),
                partition: (*entry).partition,
                offset: (*entry).offset,
                code: (*entry).err,
            }
        });
        Ok(listed.collect())
    }
}
