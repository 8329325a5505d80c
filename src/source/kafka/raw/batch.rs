//! Queues, and the messages that come out of them.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use super::handle::Handle;
use super::{Failure, bytes, check, millis, string, sys};
use crate::error::{Error, Kind, Result};

/// A queue of a client: of its messages, its callbacks or its answers.
pub(crate) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// The client must outlive its queues.
    handle: Arc<Handle>,
    /// Where librdkafka writes the pointers of a batch; kept, so that a poll allocates nothing.
    messages: Vec<*mut sys::rd_kafka_message_t>,
}

// SAFETY: queues are thread-safe like their client; `messages` holds pointers only while `consume`'s batch borrows self.
unsafe impl Send for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once, before the client that `handle` keeps.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

impl Queue {
    /// A new, empty queue.
    pub(crate) fn new(handle: &Arc<Handle>) -> Self {
        // SAFETY: the client is live; librdkafka aborts when it has no memory, so the answer is not null.
        let queue = unsafe { NonNull::new_unchecked(sys::rd_kafka_queue_new(handle.rk())) };
        Self { queue, handle: Arc::clone(handle), messages: Vec::new() }
    }

    /// The queue that a consumer's messages and callbacks come to.
    pub(crate) fn of_consumer(handle: &Arc<Handle>) -> Result<Self> {
        // SAFETY: the client is live; null means that it is not a member of a group.
        let queue = NonNull::new(unsafe { sys::rd_kafka_queue_get_consumer(handle.rk()) })
            .ok_or_else(|| Error::new(Kind::Internal, "the Kafka client has no consumer queue"))?;
        Ok(Self { queue, handle: Arc::clone(handle), messages: Vec::new() })
    }

    /// Starts to leave the group of a consumer with this queue; it must be served until [`Handle::is_closed`].
    pub(crate) fn close(&self) -> Result<(), Failure> {
        self.handle.begin_to_close();
        // SAFETY: client and queue live during the call; the caller serves the queue afterwards.
        unsafe { check(sys::rd_kafka_consumer_close_queue(self.handle.rk(), self.as_ptr())) }
    }

    /// Serves callbacks and takes at most `max` messages, until `wait` is over.
    pub(crate) fn consume(&mut self, max: usize, wait: Duration) -> Batch<'_> {
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

    /// For the other files of this module: it is live as long as the queue.
    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.queue.as_ptr()
    }
}

/// Messages that are freed together.
pub(crate) struct Batch<'a> {
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
    pub(crate) fn iter(&self) -> impl Iterator<Item = RawMessage<'_>> {
        self.messages.iter().map(|message| {
            // SAFETY: librdkafka gave valid messages, which live until the batch is dropped.
            RawMessage { message: unsafe { NonNull::new_unchecked(*message) }, batch: PhantomData }
        })
    }
}

/// A message or an error that stands in a message's place.
#[derive(Clone, Copy)]
pub(crate) struct RawMessage<'a> {
    message: NonNull<sys::rd_kafka_message_t>,
    batch: PhantomData<&'a ()>,
}

impl<'a> RawMessage<'a> {
    /// 0 for a record.
    pub(crate) fn code(&self) -> i32 {
        // SAFETY: the message is live; the code is read as an integer of the same size, without making an enum of it.
        unsafe { (&raw const (*self.message.as_ptr()).err).cast::<i32>().read() }
    }

    pub(crate) fn partition(&self) -> i32 {
        // SAFETY: the message is live.
        unsafe { (*self.message.as_ptr()).partition }
    }

    pub(crate) fn offset(&self) -> i64 {
        // SAFETY: the message is live.
        unsafe { (*self.message.as_ptr()).offset }
    }

    /// Returns which topic object the message refers to. Messages of one batch hold their topics, so within a batch one address
    /// means one topic; afterwards it may be freed and used again for another.
    pub(crate) fn topic_address(&self) -> usize {
        // SAFETY: the message is live.
        unsafe { (*self.message.as_ptr()).rkt.addr() }
    }

    /// The topic's name, if the message has one.
    pub(crate) fn topic(&self) -> Option<&'a [u8]> {
        // SAFETY: the message is live and holds a reference to its topic; the topic's name is a C string that lives as
        // long as the topic.
        unsafe {
            let topic = (*self.message.as_ptr()).rkt;
            (!topic.is_null()).then(|| CStr::from_ptr(sys::rd_kafka_topic_name(topic)).to_bytes())
        }
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: key and length belong together and live as long as the batch.
        unsafe { bytes((*self.message.as_ptr()).key, (*self.message.as_ptr()).key_len) }
    }

    pub(crate) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: payload and length belong together and live as long as the batch.
        unsafe { bytes((*self.message.as_ptr()).payload, (*self.message.as_ptr()).len) }
    }

    /// Milliseconds and `rd_kafka_timestamp_type_t`.
    pub(crate) fn timestamp(&self) -> (i64, u32) {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is live; librdkafka writes one of its own three values.
        let time = unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (time, kind as u32)
    }

    pub(crate) fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is live and without error (the only caller has checked).
        unsafe { sys::rd_kafka_message_leader_epoch(self.message.as_ptr()) }
    }

    /// The headers in their order. The names are C strings: librdkafka's API cuts a name at a NUL byte.
    pub(crate) fn headers(&self) -> RawHeaders<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is live; on success `headers` stays owned by the message. It is parsed at the first call,
        // which only the thread that holds the batch can make.
        let code = unsafe { sys::rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers) } as i32;
        RawHeaders { headers: if code == 0 { headers } else { ptr::null_mut() }, next: 0, batch: PhantomData }
    }

    /// The text of an error.
    pub(crate) fn failure(&self) -> Failure {
        // SAFETY: the message is live, and its error text is a C string inside it.
        Failure { code: self.code(), text: unsafe { string(sys::rd_kafka_message_errstr(self.message.as_ptr())) } }
    }
}

/// The headers of one message: (name, nullable value).
#[derive(Clone)]
pub(crate) struct RawHeaders<'a> {
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
