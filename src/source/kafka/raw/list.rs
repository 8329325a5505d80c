//! Lists of partitions.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{self, NonNull};

use super::sys;
use crate::error::{Error, Kind, Result};

/// Topics, partitions and offsets, as librdkafka takes and gives them.
pub(crate) struct List(NonNull<sys::rd_kafka_topic_partition_list_t>);

/// One entry of a [`List`].
pub(crate) struct Entry<'a> {
    pub(crate) topic: &'a [u8],
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// -1 where it is not known.
    pub(crate) leader_epoch: i32,
    /// What a group's client noted beside its position.
    pub(crate) metadata: &'a [u8],
    pub(crate) code: i32,
}

/// # Safety
/// `list` is null or a list that lives and does not change during `'a`.
pub(super) unsafe fn entries<'a>(list: *const sys::rd_kafka_topic_partition_list_t) -> impl Iterator<Item = Entry<'a>> {
    // SAFETY: the caller promises a live list.
    let all = unsafe { list.as_ref() }.map_or(&[][..], |list| match usize::try_from(list.cnt) {
        // SAFETY: `cnt` entries are set, and a list that has any has an array; they have the layout asserted below.
        Ok(count) if count > 0 => unsafe { std::slice::from_raw_parts(list.elems.cast::<EntryLayout>(), count) },
        _ => &[],
    });
    all.iter().map(|entry| Entry {
        // SAFETY: every entry has its topic's name, a C string that lives as long as the list.
        topic: unsafe { CStr::from_ptr(entry.topic) }.to_bytes(),
        partition: entry.partition,
        offset: entry.offset,
        // SAFETY: the entry has the layout of the type that it is read as; the call only reads it.
        leader_epoch: unsafe { sys::rd_kafka_topic_partition_get_leader_epoch(ptr::from_ref(entry).cast()) },
        // SAFETY: librdkafka sets the size with the bytes, which live as long as the list.
        metadata: unsafe { super::bytes(entry.metadata, entry.metadata_size) }.unwrap_or_default(),
        code: entry.err,
    })
}

/// `rd_kafka_topic_partition_t` with its code as an integer.
#[repr(C)]
pub(super) struct EntryLayout {
    pub(super) topic: *mut c_char,
    pub(super) partition: i32,
    pub(super) offset: i64,
    metadata: *mut c_void,
    metadata_size: usize,
    opaque: *mut c_void,
    pub(super) err: i32,
    private: *mut c_void,
}

const _: () = assert!(size_of::<EntryLayout>() == size_of::<sys::rd_kafka_topic_partition_t>());
const _: () = assert!(
    std::mem::offset_of!(EntryLayout, err) == std::mem::offset_of!(sys::rd_kafka_topic_partition_t, err)
        && std::mem::offset_of!(EntryLayout, offset) == std::mem::offset_of!(sys::rd_kafka_topic_partition_t, offset)
);

impl List {
    pub(crate) fn new() -> Self {
        // SAFETY: no precondition; librdkafka aborts when it has no memory, so the answer is not null.
        Self(unsafe { NonNull::new_unchecked(sys::rd_kafka_topic_partition_list_new(0)) })
    }

    pub(crate) fn add(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        self.add_with_epoch(topic, partition, offset, -1)
    }

    /// `leader_epoch`: of the leader that appended the record before `offset`; -1 = not known.
    pub(crate) fn add_with_epoch(&mut self, topic: &str, partition: i32, offset: i64, leader_epoch: i32) -> Result<()> {
        let name =
            CString::new(topic).map_err(|_| Error::new(Kind::Config, format!("topic {topic:?} holds a NUL byte")))?;
        // SAFETY: the list is owned; librdkafka copies the name and answers the new entry, valid until the next add.
        unsafe {
            let entry = sys::rd_kafka_topic_partition_list_add(self.0.as_ptr(), name.as_ptr(), partition);
            (*entry).offset = offset;
            sys::rd_kafka_topic_partition_set_leader_epoch(entry, leader_epoch);
        }
        Ok(())
    }

    /// For the other files of this module: it is live as long as the list.
    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_topic_partition_list_t {
        self.0.as_ptr()
    }

    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: the list is owned and live.
        unsafe { self.0.as_ref() }.cnt == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
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
