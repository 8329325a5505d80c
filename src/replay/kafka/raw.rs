//! One record into librdkafka's queue: the only `unsafe` code of the replay.
//!
//! rdkafka's own `send` takes a header's name as `&str`, but Kafka's names are bytes (KIP-82 says UTF-8, brokers do not
//! check), and it looks the topic up by name for every record. This calls `rd_kafka_produceva` with a topic handle and
//! the bytes as they are.

use std::ffi::CString;
use std::os::raw::{c_char, c_void};
use std::ptr::{self, NonNull};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka_sys as ffi;
use rdkafka_sys::rd_kafka_vtype_t as Tag;

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::record::Record;

/// The size that every value of librdkafka's argument list is padded to (`rd_kafka_vu_t` in rdkafka.h).
type Value = ffi::rd_kafka_vu_s__bindgen_ty_1;

/// A topic of one producer.
pub(super) struct Topic {
    handle: NonNull<ffi::rd_kafka_topic_t>,
}

// SAFETY: librdkafka's topic handles are counted references with a lock of their own; any thread may use or drop them
// (INTRODUCTION.md, "Threads and callbacks").
#[allow(unsafe_code)]
unsafe impl Send for Topic {}

impl Topic {
    /// The topic `name` of `producer`, which has to outlive it.
    #[allow(unsafe_code)]
    pub(super) fn new<C: ProducerContext>(producer: &BaseProducer<C>, name: &str) -> Result<Self> {
        let text = CString::new(name).or_err(Kind::Config, || format!("{name:?} is no topic name"))?;
        // SAFETY: the client is alive while `producer` is borrowed, `text` ends in NUL and is copied, and a null
        // configuration asks for the default one.
        let handle = unsafe { ffi::rd_kafka_topic_new(producer.client().native_ptr(), text.as_ptr(), ptr::null_mut()) };
        let handle =
            NonNull::new(handle).ok_or_else(|| Error::new(Kind::Config, format!("{name:?} is no topic name")))?;
        Ok(Self { handle })
    }
}

impl Drop for Topic {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_topic_new and is given back once.
        unsafe { ffi::rd_kafka_topic_destroy(self.handle.as_ptr()) }
    }
}

/// Headers on their way to a message; freed unless librdkafka took them.
struct Headers(NonNull<ffi::rd_kafka_headers_t>);

impl Headers {
    #[allow(unsafe_code)]
    fn of(record: &Record<'_>) -> Option<Self> {
        let count = record.header_count();
        if count == 0 {
            return None;
        }
        // SAFETY: a plain allocation.
        let headers = Self(NonNull::new(unsafe { ffi::rd_kafka_headers_new(count) })?);
        for header in record.headers() {
            let (value, size) = pointer(header.value);
            // SAFETY: the list is alive; name and value are copied by the call with the lengths given. The name is
            // never null (an empty slice has a dangling, non-null pointer and the length 0); a null value is a null
            // header value, and an empty one is not null (rdkafka_header.c, rd_kafka_header_add). The call never fails.
            unsafe {
                ffi::rd_kafka_header_add(
                    headers.0.as_ptr(),
                    header.name.as_ptr().cast::<c_char>(),
                    header.name.len().cast_signed(),
                    value,
                    size.cast_signed(),
                );
            }
        }
        Some(headers)
    }
}

impl Drop for Headers {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the list is ours: `produce` forgets this owner once librdkafka took the list.
        unsafe { ffi::rd_kafka_headers_destroy(self.0.as_ptr()) }
    }
}

/// Null stays null, and empty is not null.
fn pointer(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), bytes.len()))
}

/// Puts `record` into the producer's queue; key, value and headers are copied. A failure to deliver it later comes to the
/// producer's context with the record's offset.
#[allow(unsafe_code)]
pub(super) fn produce<C: ProducerContext<DeliveryOpaque = usize>>(
    producer: &BaseProducer<C>,
    topic: &Topic,
    partition: i32,
    timestamp: i64,
    record: &Record<'_>,
) -> Result<(), RDKafkaErrorCode> {
    let bytes = |bytes| {
        let (start, size) = pointer(bytes);
        Value { mem: ffi::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: start.cast_mut(), size } }
    };
    let opaque = ptr::without_provenance_mut(usize::try_from(record.offset).unwrap_or(usize::MAX));
    let headers = Headers::of(record);
    let list = headers.as_ref().map_or(ptr::null_mut(), |headers| headers.0.as_ptr());
    let arguments = [
        (Tag::RD_KAFKA_VTYPE_RKT, Value { rkt: topic.handle.as_ptr() }),
        (Tag::RD_KAFKA_VTYPE_PARTITION, Value { i32_: partition }),
        (Tag::RD_KAFKA_VTYPE_MSGFLAGS, Value { i: ffi::RD_KAFKA_MSG_F_COPY }),
        (Tag::RD_KAFKA_VTYPE_TIMESTAMP, Value { i64_: timestamp }),
        (Tag::RD_KAFKA_VTYPE_OPAQUE, Value { ptr: opaque }),
        (Tag::RD_KAFKA_VTYPE_VALUE, bytes(record.value)),
        (Tag::RD_KAFKA_VTYPE_KEY, bytes(record.key)),
        (Tag::RD_KAFKA_VTYPE_HEADERS, Value { headers: list }),
    ]
    .map(|(vtype, u)| ffi::rd_kafka_vu_t { vtype, u });
    // SAFETY: each value stands under the tag that its union member belongs to; the topic belongs to this producer;
    // with F_COPY key and value are read only during the call. A null header list counts as none.
    let error = unsafe { ffi::rd_kafka_produceva(producer.client().native_ptr(), arguments.as_ptr(), arguments.len()) };
    if error.is_null() {
        std::mem::forget(headers);
        return Ok(());
    }
    // SAFETY: a non-null result is an error object that is ours to read and to free; the headers stay ours.
    let code = unsafe {
        let code = ffi::rd_kafka_error_code(error);
        ffi::rd_kafka_error_destroy(error);
        code
    };
    Err(code.into())
}
