//! Clients, their configuration, and what librdkafka calls back with.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::list::{List, entries};
use super::{Failure, check, check_code, code, codes, millis, string, sys, text_of};
use crate::error::{Error, Kind, Result};
use crate::source::kafka::error::log_line;

/// What librdkafka called back with while a queue was served.
pub(crate) enum Callback {
    Assigned(Vec<(String, i32)>),
    Revoked { partitions: Vec<(String, i32)>, lost: bool },
    CommitFailed(Failure),
    Error { failure: Failure, fatal: bool },
}

/// What the callbacks share with the thread that polls. librdkafka holds a pointer to it as its opaque.
#[derive(Default)]
struct Callbacks {
    noted: Mutex<Vec<Callback>>,
    /// Lines of librdkafka's log, for a client that listens to them.
    heard: Option<Mutex<Vec<String>>>,
    /// The group is being left: nobody answers a rebalance any more, so the callback does.
    closing: AtomicBool,
}

impl Callbacks {
    fn note(&self, callback: Callback) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
    }
}

/// One librdkafka client. The C library locks for itself, so it may be used from any thread.
pub(crate) struct Handle {
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
    /// A consumer that keeps the lines of its log for [`Handle::take_heard`].
    pub(crate) fn listening_consumer(properties: &[(String, String)]) -> Result<Self> {
        Self::consumer_with(properties, Callbacks { heard: Some(Mutex::default()), ..Callbacks::default() })
    }

    /// A member of a consumer group.
    pub(crate) fn consumer(properties: &[(String, String)]) -> Result<Self> {
        Self::consumer_with(properties, Callbacks::default())
    }

    fn consumer_with(properties: &[(String, String)], callbacks: Callbacks) -> Result<Self> {
        let conf = Conf::new(properties)?;
        // SAFETY: the callbacks have the signatures that librdkafka calls, and `conf` is owned.
        unsafe {
            sys::rd_kafka_conf_set_rebalance_cb(conf.0, Some(on_rebalance));
            sys::rd_kafka_conf_set_offset_commit_cb(conf.0, Some(on_commit));
        }
        let handle = Self::new(sys::rd_kafka_type_t::RD_KAFKA_CONSUMER, conf, callbacks)?;
        // SAFETY: a consumer with a group id, which `properties` of this crate always has; else a code is answered.
        let code = unsafe { sys::rd_kafka_poll_set_consumer(handle.rk()) } as i32;
        check_code(code).map_err(|failure| Error::new(Kind::Internal, failure.text))?;
        Ok(handle)
    }

    /// A client for requests only (librdkafka calls it a producer; it never produces).
    pub(crate) fn admin(properties: &[(String, String)]) -> Result<Self> {
        Self::new(sys::rd_kafka_type_t::RD_KAFKA_PRODUCER, Conf::new(properties)?, Callbacks::default())
    }

    fn new(kind: sys::rd_kafka_type_t, mut conf: Conf, callbacks: Callbacks) -> Result<Self> {
        let callbacks = NonNull::from(Box::leak(Box::new(callbacks)));
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

    /// The value of a property as the client has it, its default included; empty if there is none.
    pub(crate) fn property(&self, name: &CStr) -> String {
        let mut value = [0 as c_char; 256];
        let mut size = value.len();
        // SAFETY: the client's configuration lives as long as the client; name, buffer and size live during the call, and
        // a longer value is cut and terminated.
        unsafe {
            let conf = sys::rd_kafka_conf(self.rk());
            let result = sys::rd_kafka_conf_get(conf, name.as_ptr(), value.as_mut_ptr(), &raw mut size);
            if result == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK { string(value.as_ptr()) } else { String::new() }
        }
    }

    /// For the other files of this module: it is live as long as the handle.
    pub(super) fn rk(&self) -> *mut sys::rd_kafka_t {
        self.rk.as_ptr()
    }

    fn callbacks(&self) -> &Callbacks {
        // SAFETY: allocated by `new`, freed only by `drop`, never borrowed mutably.
        unsafe { self.callbacks.as_ref() }
    }

    /// What was called back since the last call.
    pub(crate) fn take_callbacks(&self, into: &mut Vec<Callback>) {
        into.append(&mut self.callbacks().noted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns what a client that listens has logged since the last call.
    pub(crate) fn take_heard(&self) -> Vec<String> {
        let heard = self.callbacks().heard.as_ref();
        heard
            .map(|heard| std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner)))
            .unwrap_or_default()
    }

    /// Serves the callbacks of a client that has no consumer queue, and takes them.
    pub(crate) fn serve(&self, into: &mut Vec<Callback>) {
        // SAFETY: the client is live; a timeout of 0 only serves what is there.
        unsafe { sys::rd_kafka_poll(self.rk(), 0) };
        self.take_callbacks(into);
    }

    pub(crate) fn subscribe(&self, topics: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list.
        check_code(unsafe { sys::rd_kafka_subscribe(self.rk(), topics.as_ptr()) } as i32)
    }

    /// Gives everything back and leaves the group; a revocation of what is assigned is called back first.
    pub(crate) fn unsubscribe(&self) -> Result<(), Failure> {
        // SAFETY: the client is live.
        check_code(unsafe { sys::rd_kafka_unsubscribe(self.rk()) } as i32)
    }

    /// Returns whether the group moves single partitions (cooperative, KIP-848) or all of them (eager).
    pub(crate) fn is_cooperative(&self) -> bool {
        is_cooperative(self.rk())
    }

    /// `rd_kafka_assign`: replaces all that is assigned. An empty list is an assignment of nothing.
    pub(crate) fn assign(&self, all: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list.
        check_code(unsafe { sys::rd_kafka_assign(self.rk(), all.as_ptr()) } as i32)
    }

    /// `rd_kafka_assign(NULL)`: the answer to an eager revocation.
    pub(crate) fn unassign_all(&self) -> Result<(), Failure> {
        // SAFETY: null is allowed and means that nothing stays assigned.
        check_code(unsafe { sys::rd_kafka_assign(self.rk(), ptr::null()) } as i32)
    }

    pub(crate) fn incremental_assign(&self, added: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list; the answer is ours to free.
        unsafe { check(sys::rd_kafka_incremental_assign(self.rk(), added.as_ptr())) }
    }

    pub(crate) fn incremental_unassign(&self, removed: &List) -> Result<(), Failure> {
        // SAFETY: as above.
        unsafe { check(sys::rd_kafka_incremental_unassign(self.rk(), removed.as_ptr())) }
    }

    /// Waits until every partition has answered; each entry's own code is then in the list.
    pub(crate) fn seek(&self, to: &mut List, wait: Duration) -> Result<(), Failure> {
        // SAFETY: the list is not shared and lives during the call; the answer is ours to free.
        unsafe { check(sys::rd_kafka_seek_partitions(self.rk(), to.as_ptr(), millis(wait))) }
    }

    pub(crate) fn pause(&self, partitions: &mut List) -> Result<(), Failure> {
        // SAFETY: the list is not shared and lives during the call.
        check_code(unsafe { sys::rd_kafka_pause_partitions(self.rk(), partitions.as_ptr()) } as i32)
    }

    pub(crate) fn resume(&self, partitions: &mut List) -> Result<(), Failure> {
        // SAFETY: the list is not shared and lives during the call.
        check_code(unsafe { sys::rd_kafka_resume_partitions(self.rk(), partitions.as_ptr()) } as i32)
    }

    /// Sends the commit; its answer is not waited for.
    pub(crate) fn commit(&self, offsets: &List) -> Result<(), Failure> {
        // SAFETY: both live during the call; librdkafka copies the list.
        check_code(unsafe { sys::rd_kafka_commit(self.rk(), offsets.as_ptr(), 1) } as i32)
    }

    /// The callback answers rebalances from now on: the group is being left.
    pub(super) fn begin_to_close(&self) {
        self.callbacks().closing.store(true, Ordering::Release);
    }

    /// The fatal error that the client has raised, if it has.
    pub(crate) fn fatal_error(&self) -> Option<Failure> {
        let mut text = [0 as c_char; 512];
        // SAFETY: the client is live, and the buffer lives during the call; librdkafka terminates what it writes.
        unsafe {
            let code = codes::fatal_error(self.rk(), text.as_mut_ptr(), text.len());
            (code != 0).then(|| Failure { code, text: string(text.as_ptr()) })
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        // SAFETY: reads an atomic flag of a live client.
        unsafe { sys::rd_kafka_consumer_closed(self.rk()) == 1 }
    }
}

fn is_cooperative(rk: *mut sys::rd_kafka_t) -> bool {
    // SAFETY: `rk` is live at both call sites; the answer is a static C string.
    unsafe { string(sys::rd_kafka_rebalance_protocol(rk)) == "COOPERATIVE" }
}

/// Runs inside `Queue::consume`, on the thread that polls. It must not call `rd_kafka_yield`:
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
                check(sys::rd_kafka_incremental_assign(rk, nothing.as_ptr()))
            } else {
                check_code(sys::rd_kafka_assign(rk, nothing.as_ptr()) as i32)
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

unsafe extern "C" fn on_log(rk: *const sys::rd_kafka_t, level: c_int, facility: *const c_char, text: *const c_char) {
    // SAFETY: both are C strings that live during the callback; `rk` is live, and its opaque is the one that `Handle::new` set.
    let (facility, text, callbacks) =
        unsafe { (string(facility), string(text), sys::rd_kafka_opaque(rk).cast::<Callbacks>().as_ref()) };
    match callbacks.and_then(|callbacks| callbacks.heard.as_ref()) {
        Some(heard) => heard.lock().unwrap_or_else(PoisonError::into_inner).push(text),
        None => log_line(level, &facility, &text),
    }
}
