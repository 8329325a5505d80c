//! Requests about a consumer group: who takes part, whether this client may.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::admin::{Answer, GRACE, Options, silence};
use super::batch::Queue;
use super::handle::Handle;
use super::list::{List, entries};
use super::{Failure, check_code, codes, millis, string, sys};

/// A member as the group's coordinator tells it.
pub(crate) struct Member {
    pub(crate) client_id: String,
    pub(crate) host: String,
    /// What it has, and what it is to have as soon as others have given it back (KIP-848).
    pub(crate) assigned: Vec<(String, i32)>,
}

/// DescribeConsumerGroups of one group; librdkafka asks in the group's own protocol, classic or KIP-848. A group that is not
/// there has no members.
pub(crate) fn describe_group(handle: &Arc<Handle>, group: &CStr, wait: Duration) -> Result<Vec<Member>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, wait)?;
    let queue = Queue::new(handle);
    let mut names = [group.as_ptr()];
    // SAFETY: names, options and queue live during the call; librdkafka copies what it keeps.
    unsafe {
        sys::rd_kafka_DescribeConsumerGroups(handle.rk(), names.as_mut_ptr(), 1, options.as_ptr(), queue.as_ptr());
    }
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: the event is live and of this type (the queue is used for one request); everything is read within its counts
    // and copied before the event is freed.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let groups = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
        if count == 0 {
            return Err(silence());
        }
        let group = *groups;
        let error = sys::rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() {
            let failure = Failure { code: codes::error_code(error), text: string(sys::rd_kafka_error_string(error)) };
            return if failure.code == GROUP_ID_NOT_FOUND { Ok(Vec::new()) } else { Err(failure) };
        }
        let members = 0..sys::rd_kafka_ConsumerGroupDescription_member_count(group);
        Ok(members.map(|at| describe_member(sys::rd_kafka_ConsumerGroupDescription_member(group, at))).collect())
    }
}

const GROUP_ID_NOT_FOUND: i32 = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND as i32;

/// # Safety
/// `member` is a description inside a live answer.
unsafe fn describe_member(member: *const sys::rd_kafka_MemberDescription_t) -> Member {
    // SAFETY: the caller promises a live description; its strings and lists live as long.
    unsafe {
        let assignments = [
            sys::rd_kafka_MemberDescription_assignment(member),
            sys::rd_kafka_MemberDescription_target_assignment(member),
        ];
        let mut assigned = Vec::new();
        for assignment in assignments.into_iter().filter(|assignment| !assignment.is_null()) {
            let list = entries(sys::rd_kafka_MemberAssignment_partitions(assignment));
            assigned.extend(list.map(|entry| (String::from_utf8_lossy(entry.topic).into_owned(), entry.partition)));
        }
        assigned.sort_unstable();
        assigned.dedup();
        Member {
            client_id: string(sys::rd_kafka_MemberDescription_client_id(member)),
            host: string(sys::rd_kafka_MemberDescription_host(member)),
            assigned,
        }
    }
}

/// What `rd_kafka_list_groups` gives.
struct Groups(NonNull<sys::rd_kafka_group_list>);

impl Drop for Groups {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_group_list_destroy(self.0.as_ptr()) };
    }
}

/// The members of a group of the classic protocol; none if no broker has such a group, or the one that has it does not answer.
///
/// Not an admin request: librdkafka 2.12.1 aborts the process (`rd_kafka_enq_once_del_source_return`: `eonce->refcnt > 0`) where one to a
/// coordinator fails or is sent after its time-out, for then it frees what its answer is about to use. A broker that goes away while
/// it is asked now and then brings that about (confluentinc/librdkafka#4605, and #5397, which mends it).
pub(crate) fn members(handle: &Arc<Handle>, group: &CStr, wait: Duration) -> Result<Option<Vec<Member>>, Failure> {
    let mut listed: *const sys::rd_kafka_group_list = std::ptr::null();
    // SAFETY: client and name live during the call; the answer is ours to free, and there where nothing is wrong or some brokers have
    // not answered.
    let code = unsafe { sys::rd_kafka_list_groups(handle.rk(), group.as_ptr(), &raw mut listed, millis(wait)) } as i32;
    let groups = NonNull::new(listed.cast_mut()).map(Groups);
    check_code(code)?;
    let Some(groups) = groups else { return Ok(None) };
    // SAFETY: the list is live; everything is read within its counts and copied before it is freed.
    unsafe {
        let list = groups.0.as_ref();
        let mut all = (0..usize::try_from(list.group_cnt).unwrap_or(0)).map(|at| &*list.groups.add(at));
        let is_it = |one: &&sys::rd_kafka_group_info| {
            (&raw const one.err).cast::<i32>().read() == 0
                && string(one.protocol_type) == "consumer"
                && string(one.group).as_bytes() == group.to_bytes()
        };
        Ok(all.find(is_it).map(|group| {
            let members = (0..usize::try_from(group.member_cnt).unwrap_or(0)).map(|at| &*group.members.add(at));
            members.map(|member| listed_member(member)).collect()
        }))
    }
}

/// # Safety
/// `member` is one of a live list.
unsafe fn listed_member(member: &sys::rd_kafka_group_member_info) -> Member {
    // SAFETY: the caller promises a live member; its strings and its assignment live as long.
    unsafe {
        let size = usize::try_from(member.member_assignment_size).unwrap_or(0);
        let assignment = member.member_assignment.cast::<u8>();
        let bytes: &[u8] = if assignment.is_null() { &[] } else { std::slice::from_raw_parts(assignment, size) };
        Member {
            client_id: string(member.client_id),
            host: string(member.client_host),
            assigned: assigned(bytes).unwrap_or_default(),
        }
    }
}

/// Returns what a member's assignment names (ConsumerProtocolAssignment.json, any version: what newer ones add comes behind). None if it is
/// damaged.
fn assigned(mut bytes: &[u8]) -> Option<Vec<(String, i32)>> {
    fn number<const SIZE: usize>(bytes: &mut &[u8]) -> Option<[u8; SIZE]> {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*number)
    }
    let bytes = &mut bytes;
    let _version = i16::from_be_bytes(number(bytes)?);
    let mut assigned = Vec::new();
    for _ in 0..i32::from_be_bytes(number(bytes)?) {
        let size = usize::try_from(i16::from_be_bytes(number(bytes)?)).ok()?;
        let (name, rest) = bytes.split_at_checked(size)?;
        *bytes = rest;
        let name = String::from_utf8_lossy(name);
        for _ in 0..i32::from_be_bytes(number(bytes)?) {
            assigned.push((name.to_string(), i32::from_be_bytes(number(bytes)?)));
        }
    }
    Some(assigned)
}

/// What is to be committed.
struct Offsets(NonNull<sys::rd_kafka_AlterConsumerGroupOffsets_t>);

impl Drop for Offsets {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_AlterConsumerGroupOffsets_destroy(self.0.as_ptr()) };
    }
}

/// Commits an offset of partitions, and gives the code of the first.
pub(crate) fn commit(handle: &Arc<Handle>, group: &CStr, offsets: &List, wait: Duration) -> Result<(), Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS, wait)?;
    let queue = Queue::new(handle);
    // SAFETY: all live during the calls; librdkafka copies the name and the list, and what it was given.
    unsafe {
        let offsets = sys::rd_kafka_AlterConsumerGroupOffsets_new(group.as_ptr(), offsets.as_ptr());
        let offsets = Offsets(NonNull::new(offsets).ok_or_else(silence)?);
        let mut all = [offsets.0.as_ptr()];
        sys::rd_kafka_AlterConsumerGroupOffsets(handle.rk(), all.as_mut_ptr(), 1, options.as_ptr(), queue.as_ptr());
    }
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: as in `describe_group`.
    unsafe {
        let result = sys::rd_kafka_event_AlterConsumerGroupOffsets_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let groups = sys::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &raw mut count);
        if count == 0 {
            return Err(silence());
        }
        let error = sys::rd_kafka_group_result_error(*groups);
        if !error.is_null() {
            return Err(Failure { code: codes::error_code(error), text: string(sys::rd_kafka_error_string(error)) });
        }
        let partitions = sys::rd_kafka_group_result_partitions(*groups);
        check_code(entries(partitions).map(|entry| entry.code).find(|code| *code != 0).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assignment(topics: &[(String, Vec<i32>)], behind: &[u8]) -> Vec<u8> {
        let mut bytes = 1_i16.to_be_bytes().to_vec();
        bytes.extend((topics.len() as i32).to_be_bytes());
        for (topic, partitions) in topics {
            bytes.extend((topic.len() as i16).to_be_bytes());
            bytes.extend(topic.as_bytes());
            bytes.extend((partitions.len() as i32).to_be_bytes());
            partitions.iter().for_each(|partition| bytes.extend(partition.to_be_bytes()));
        }
        bytes.extend(behind);
        bytes
    }

    proptest! {
        #[test]
        fn an_assignment_is_read_whole_or_not_at_all(
            topics in prop::collection::vec(("[a-z.]{0,20}", prop::collection::vec(any::<i32>(), 0..5)), 0..5),
            behind in prop::collection::vec(any::<u8>(), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let flat: Vec<(String, i32)> =
                topics.iter().flat_map(|(topic, all)| all.iter().map(move |at| (topic.clone(), *at))).collect();
            prop_assert_eq!(assigned(&assignment(&topics, &behind)), Some(flat));
            let whole = assignment(&topics, &[]);
            prop_assert_eq!(assigned(&whole[..cut.index(whole.len())]), None);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            assigned(&bytes);
        }
    }
}
