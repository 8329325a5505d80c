//! Requests about the state of a cluster: which groups there are, how far they are, who may do what.
//!
//! Those about the positions of groups go to each group's coordinator, and librdkafka 2.12.1 ends the process where one of them fails
//! at the wrong moment: by an assertion (confluentinc/librdkafka#4605, mended by #5397, which is not released), or because
//! `rd_kafka_handle_OffsetFetch` tells the group of the client that its coordinator has moved, and a client for requests has
//! none (#5040). So these must be asked by a process of their own: see [`crate::source::kafka::state`].

use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admin::{Answer, GRACE, Options, silence};
use super::batch::Queue;
use super::handle::Handle;
use super::list::Entry;
use super::{Failure, check, codes, string, sys};

/// A group as the brokers list it.
pub(crate) struct Group {
    pub(crate) name: String,
    /// As librdkafka names it; `Unknown` for one that it does not know.
    pub(crate) state: String,
    /// `Classic` or `Consumer` (KIP-848); `Unknown` of brokers before 3.8.
    pub(crate) kind: String,
    /// Nobody has ever joined it: positions were only committed.
    pub(crate) is_simple: bool,
}

/// ListConsumerGroups, asked of every broker. Groups of other kinds (of Connect's workers, share groups) are left out by librdkafka.
pub(crate) fn groups(handle: &Arc<Handle>, wait: Duration) -> Result<Vec<Group>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS, wait)?;
    let queue = Queue::new(handle);
    // SAFETY: client, options and queue live during the call.
    unsafe { sys::rd_kafka_ListConsumerGroups(handle.rk(), options.as_ptr(), queue.as_ptr()) };
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: the event is live and of this type (the queue is used for one request); everything is read within its counts
    // and copied before the event is freed.
    unsafe {
        let result = sys::rd_kafka_event_ListConsumerGroups_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let errors = sys::rd_kafka_ListConsumerGroups_result_errors(result, &raw mut count);
        if count > 0 {
            // A broker that does not answer has groups that the list would lack.
            return Err(failure_of(*errors));
        }
        let listed = sys::rd_kafka_ListConsumerGroups_result_valid(result, &raw mut count);
        Ok((0..count).map(|at| group(*listed.add(at))).collect())
    }
}

/// # Safety
/// `listed` is one of a live answer.
unsafe fn group(listed: *const sys::rd_kafka_ConsumerGroupListing_t) -> Group {
    // SAFETY: the caller promises a live listing. librdkafka maps names that it does not know to `Unknown`, so both are of their
    // enums (`rd_kafka_consumer_group_state_code`, `rd_kafka_consumer_group_type_code`).
    unsafe {
        let state = sys::rd_kafka_ConsumerGroupListing_state(listed);
        let kind = sys::rd_kafka_ConsumerGroupListing_type(listed);
        Group {
            name: string(sys::rd_kafka_ConsumerGroupListing_group_id(listed)),
            state: string(sys::rd_kafka_consumer_group_state_name(state)),
            kind: string(sys::rd_kafka_consumer_group_type_name(kind)),
            is_simple: sys::rd_kafka_ConsumerGroupListing_is_simple_consumer_group(listed) != 0,
        }
    }
}

/// # Safety
/// `error` is null or an error that lives during the call.
unsafe fn failure_of(error: *const sys::rd_kafka_error_t) -> Failure {
    // SAFETY: the caller promises it.
    unsafe { Failure { code: codes::error_code(error), text: string(sys::rd_kafka_error_string(error)) } }
}

/// A position that a group has committed.
pub(crate) struct Position {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Of the leader that appended the record before; -1 = the group's client did not say.
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: Vec<u8>,
    pub(crate) code: i32,
}

/// The positions of a group, or why they are not told.
pub(crate) type Positions = Result<Vec<Position>, Failure>;

/// So many groups are asked for at a time: answers come in the order in which brokers have them.
const ASKED_AT_ONCE: usize = 100;

/// ListConsumerGroupOffsets of each group. Gives them in the order of `groups`.
pub(crate) fn positions(handle: &Arc<Handle>, groups: &[CString], wait: Duration) -> Result<Vec<Positions>, Failure> {
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS;
    let options = Options::new(handle, operation, wait)?;
    let until = Instant::now() + wait + GRACE;
    let mut found: Vec<Option<Positions>> = groups.iter().map(|_| None).collect();
    let queue = Queue::new(handle);
    let mut waiting = 0;
    let mut ahead = groups.iter().enumerate();
    loop {
        while waiting < ASKED_AT_ONCE
            && let Some((index, name)) = ahead.next()
        {
            ask(handle, name, (&options, index), &queue);
            waiting += 1;
        }
        if waiting == 0 {
            return found.into_iter().map(|one| one.ok_or_else(silence)).collect();
        }
        let answer = Answer::of(&queue, until.saturating_duration_since(Instant::now()))?;
        waiting -= 1;
        // SAFETY: the event is live; its opaque is the index that `ask` gave it.
        let index = unsafe { sys::rd_kafka_event_opaque(answer.as_ptr()) }.addr();
        if let Some(one) = found.get_mut(index) {
            *one = Some(positions_in(&answer));
        }
    }
}

/// Sends one request; its answer will have `index` as its opaque.
fn ask(handle: &Arc<Handle>, group: &CStr, (options, index): (&Options, usize), queue: &Queue) {
    // SAFETY: all live during the calls; librdkafka copies the name and the options, and the request is freed after it was copied.
    unsafe {
        sys::rd_kafka_AdminOptions_set_opaque(options.as_ptr(), ptr::without_provenance_mut(index));
        let request = sys::rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), ptr::null());
        let mut all = [request];
        sys::rd_kafka_ListConsumerGroupOffsets(handle.rk(), all.as_mut_ptr(), 1, options.as_ptr(), queue.as_ptr());
        sys::rd_kafka_ListConsumerGroupOffsets_destroy(request);
    }
}

fn positions_in(answer: &Answer<'_>) -> Positions {
    answer.check()?;
    // SAFETY: the event is live and of this type (the queue is used for these requests alone); everything is read within its counts
    // and copied before the event is freed.
    unsafe {
        let result = sys::rd_kafka_event_ListConsumerGroupOffsets_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let groups = sys::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &raw mut count);
        if count == 0 {
            return Err(silence());
        }
        let error = sys::rd_kafka_group_result_error(*groups);
        if !error.is_null() {
            return Err(failure_of(error));
        }
        let list = sys::rd_kafka_group_result_partitions(*groups);
        Ok(super::list::entries(list).map(position).collect())
    }
}

fn position(entry: Entry<'_>) -> Position {
    Position {
        topic: String::from_utf8_lossy(entry.topic).into_owned(),
        partition: entry.partition,
        offset: entry.offset,
        leader_epoch: entry.leader_epoch,
        metadata: entry.metadata.to_vec(),
        code: entry.code,
    }
}

/// DescribeCluster: whether this client may describe the cluster, and so is told of all groups; none where the brokers do not tell.
pub(crate) fn may_describe(handle: &Arc<Handle>, wait: Duration) -> Result<Option<bool>, Failure> {
    const ALL: i32 = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ALL as i32;
    const DESCRIBE: i32 = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE as i32;
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER, wait)?;
    // SAFETY: the options live during the call; the answer is ours to free.
    unsafe { check(sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.as_ptr(), 1)) }?;
    let queue = Queue::new(handle);
    // SAFETY: client, options and queue live during the call.
    unsafe { sys::rd_kafka_DescribeCluster(handle.rk(), options.as_ptr(), queue.as_ptr()) };
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: as in `groups`; operations are read as the integers that they are.
    unsafe {
        let result = sys::rd_kafka_event_DescribeCluster_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let operations =
            sys::rd_kafka_DescribeCluster_result_authorized_operations(result, &raw mut count).cast::<i32>();
        let may = || (0..count).any(|at| matches!(operations.add(at).read(), ALL | DESCRIBE));
        Ok((!operations.is_null()).then(may))
    }
}
