//! What the allocator keeps: nothing that is large.
//!
//! glibc gives every thread that allocates an arena, and raises the size from which memory comes straight from the system
//! to that of the largest piece that was ever freed. Segments of 16 MiB are compressed on whatever thread is free, so
//! in the end each of a dozen arenas would hold on to as much: 340 MiB were seen where 100 are in use. With a fixed
//! threshold a large piece goes back to the system when it is freed (`mallopt(3)`, M_MMAP_THRESHOLD).

/// Blocks of records and what the encoders of columns ask for stay below; buffers of WAL and their objects do not.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 4 << 20;

/// What may lie unused at the end of an arena before it is given back; else setting the threshold would make it 128 KiB.
#[cfg(target_env = "gnu")]
const LEFT_OVER: libc::c_int = 2 << 20;

/// To be called before there is a second thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallopt is a function of C")]
pub(super) fn keep_little() {
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LEFT_OVER)] {
        // SAFETY: it takes two numbers and changes nothing but the allocator's own settings; no thread allocates meanwhile.
        let set = unsafe { libc::mallopt(parameter, bytes) };
        debug_assert_eq!(set, 1, "glibc knows the parameter {parameter}");
    }
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_little() {}
