//! Admin requests: asked on a queue of their own, whose one answer is waited for.

use std::ffi::{CString, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use super::batch::Queue;
use super::handle::Handle;
use super::list::{EntryLayout, List};
use super::{Failure, check, check_code, code, codes, millis, string, sys};

/// One answer to an admin request.
pub(super) struct Answer<'a> {
    event: NonNull<sys::rd_kafka_event_t>,
    queue: PhantomData<&'a Queue>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.event.as_ptr()) };
    }
}

impl<'a> Answer<'a> {
    /// Waits for the answer.
    pub(super) fn of(queue: &'a Queue, wait: Duration) -> Result<Self, Failure> {
        // SAFETY: queue and client are live; the answer is owned.
        let event = NonNull::new(unsafe { sys::rd_kafka_queue_poll(queue.as_ptr(), millis(wait)) });
        Ok(Self { event: event.ok_or_else(silence)?, queue: PhantomData })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_event_t {
        self.event.as_ptr()
    }

    pub(super) fn check(&self) -> Result<(), Failure> {
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
pub(super) struct Options(NonNull<sys::rd_kafka_AdminOptions_t>);

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0.as_ptr()) };
    }
}

impl Options {
    pub(super) fn new(handle: &Handle, operation: sys::rd_kafka_admin_op_t, wait: Duration) -> Result<Self, Failure> {
        let options = NonNull::new(
            // SAFETY: the client is live; null means an operation that it does not know.
            unsafe { sys::rd_kafka_AdminOptions_new(handle.rk(), operation) },
        );
        let options = Self(options.ok_or_else(|| Failure {
            code: code::INVALID_ARG,
            text: "librdkafka does not know this request".to_owned(),
        })?);
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

    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_AdminOptions_t {
        self.0.as_ptr()
    }

    /// Which broker is asked.
    pub(super) fn ask(&self, broker: i32) -> Result<(), Failure> {
        let mut text = [0 as c_char; 512];
        // SAFETY: options and buffer live during the call.
        let code =
            unsafe { sys::rd_kafka_AdminOptions_set_broker(self.0.as_ptr(), broker, text.as_mut_ptr(), text.len()) };
        check_code(code as i32)
    }
}

/// No answer came in time, although librdkafka always gives one after the request's own timeout.
pub(super) fn silence() -> Failure {
    Failure { code: code::TIMED_OUT, text: "the brokers did not answer in time".to_owned() }
}

/// How much longer than the request itself its answer is waited for.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The cluster's id (`rd_kafka_clusterid` waits until a broker has told it).
pub(crate) fn cluster_id(handle: &Arc<Handle>, wait: Duration) -> Result<String, Failure> {
    // SAFETY: the client is live; the answer is null or a C string that is ours to free, with librdkafka's own function.
    unsafe {
        let id = sys::rd_kafka_clusterid(handle.rk(), millis(wait));
        if id.is_null() {
            return Err(silence());
        }
        let text = string(id);
        sys::rd_kafka_mem_free(handle.rk(), id.cast());
        Ok(text)
    }
}

/// The broker to ask about topics: the controller, or any broker where none is named (librdkafka's mock cluster
/// names one that does not exist, and a request to it would wait until it times out).
pub(crate) fn controller(handle: &Handle, wait: Duration) -> Result<i32, Failure> {
    let mut metadata: *const sys::rd_kafka_metadata_t = ptr::null();
    // SAFETY: on success the answer is ours; it is read within its counts, then freed once. Without all topics and
    // without a topic of this client it is only the brokers.
    unsafe {
        check_code(sys::rd_kafka_metadata(handle.rk(), 0, ptr::null_mut(), &raw mut metadata, millis(wait)) as i32)?;
        let count = usize::try_from((*metadata).broker_cnt).unwrap_or(0);
        let brokers: Vec<i32> = (0..count).map(|index| (*(*metadata).brokers.add(index)).id).collect();
        sys::rd_kafka_metadata_destroy(metadata);
        let controller = sys::rd_kafka_controllerid(handle.rk(), 0);
        brokers.iter().find(|id| **id == controller).or(brokers.first()).copied().ok_or_else(silence)
    }
}

/// What a metadata request answers.
pub(crate) struct Metadata {
    pub(crate) brokers: usize,
    /// Names of topics, and their error codes.
    pub(crate) topics: Vec<(String, i32)>,
}

/// All brokers and topics, asked for now.
pub(crate) fn metadata(handle: &Handle, wait: Duration) -> Result<Metadata, Failure> {
    let mut metadata: *const sys::rd_kafka_metadata_t = ptr::null();
    // SAFETY: on success the answer is ours; it is read within its counts, then freed once.
    unsafe {
        check_code(sys::rd_kafka_metadata(handle.rk(), 1, ptr::null_mut(), &raw mut metadata, millis(wait)) as i32)?;
        let count = usize::try_from((*metadata).topic_cnt).unwrap_or(0);
        let topics = (0..count).map(|index| {
            let topic = (*metadata).topics.add(index);
            (string((*topic).topic), (&raw const (*topic).err).cast::<i32>().read())
        });
        let topics = topics.collect();
        let brokers = usize::try_from((*metadata).broker_cnt).unwrap_or(0);
        sys::rd_kafka_metadata_destroy(metadata);
        Ok(Metadata { brokers, topics })
    }
}

/// What a client may do with a topic.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// A topic as DescribeTopics tells it.
pub(crate) struct Described {
    pub(crate) name: String,
    /// The topic id's 16 bytes; all zero when the brokers have none.
    pub(crate) id: [u8; 16],
    pub(crate) partitions: usize,
    /// How many replicas its first partition has; 0 if it has none.
    pub(crate) replicas: usize,
    /// What this client may do with it; none where it was not asked for or the brokers do not tell (before 2.3).
    pub(crate) rights: Option<Rights>,
    /// 0 when the topic is there.
    pub(crate) failure: Failure,
}

/// DescribeTopics. Topics that do not exist are in the answer, with their code.
pub(crate) fn describe_topics(
    handle: &Arc<Handle>,
    topics: &[CString],
    with_rights: bool,
    wait: Duration,
) -> Result<Vec<Described>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait)?;
    let rights = c_int::from(with_rights);
    // SAFETY: the options live during the call; the answer is ours to free.
    unsafe { check(sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.as_ptr(), rights)) }?;
    options.ask(controller(handle, wait)?)?;
    let queue = Queue::new(handle);
    let mut names: Vec<*const c_char> = topics.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: names, options and queue live during the calls; librdkafka copies what it keeps; the collection is freed.
    unsafe {
        let collection = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(handle.rk(), collection, options.0.as_ptr(), queue.as_ptr());
        sys::rd_kafka_TopicCollection_destroy(collection);
    }
    let answer = Answer::of(&queue, wait + GRACE)?;
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

const OPERATION_ALL: i32 = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ALL as i32;
const OPERATION_READ: i32 = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ as i32;
const OPERATION_WRITE: i32 = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE as i32;

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
        let described = sys::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        let mut replicas = 0;
        if partitions > 0 {
            sys::rd_kafka_TopicPartitionInfo_replicas(*described, &raw mut replicas);
        }
        let mut id = [0; 16];
        let uuid = sys::rd_kafka_TopicDescription_topic_id(topic);
        if !uuid.is_null() {
            id[..8].copy_from_slice(&sys::rd_kafka_Uuid_most_significant_bits(uuid).to_be_bytes());
            id[8..].copy_from_slice(&sys::rd_kafka_Uuid_least_significant_bits(uuid).to_be_bytes());
        }
        let mut count = 0;
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count).cast::<i32>();
        let may = |wanted: i32| (0..count).any(|at| [OPERATION_ALL, wanted].contains(&operations.add(at).read()));
        let rights = (!operations.is_null()).then(|| Rights { read: may(OPERATION_READ), write: may(OPERATION_WRITE) });
        Described {
            name: string(sys::rd_kafka_TopicDescription_name(topic)),
            id,
            partitions,
            replicas,
            rights,
            failure,
        }
    }
}

/// An offset as ListOffsets tells it.
pub(crate) struct Listed {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// 0 when `offset` is an answer.
    pub(crate) code: i32,
}

/// ListOffsets: the offset of each entry of `partitions` is a timestamp (ms) or one of `rd_kafka_OffsetSpec_t`.
pub(crate) fn list_offsets(
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
        sys::rd_kafka_ListOffsets(handle.rk(), partitions.as_ptr(), options.0.as_ptr(), queue.as_ptr());
    }
    let answer = Answer::of(&queue, wait + GRACE)?;
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
