//! What the allocator keeps: nothing that is large, and little of the rest.
//!
//! glibc gives every thread that allocates an arena, and raises the size from which memory comes straight from the system
//! to that of the largest piece that was ever freed. Segments of 16 MiB are compressed on whatever thread is free, so
//! in the end each of a dozen arenas would hold on to as much: 340 MiB were seen where 100 are in use. With a fixed
//! threshold a large piece goes back to the system when it is freed (`mallopt(3)`, M_MMAP_THRESHOLD).
//!
//! What lies unused at the end of an arena is given back, too, and is faulted in again page by page when the arena grows. The batches
//! that librdkafka unpacks come and go by megabytes: with 2 MiB left and an arena a thread, archiving 300,000 records of 1 KB took
//! 111,000 page faults. With 8 MiB left and an arena a core it takes 61,000 at the same peak, and 3 to 8 % less CPU; the process's
//! own growth is 50,000 of them.

/// Blocks of records and what the encoders of columns ask for stay below; buffers of WAL and their objects do not.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 4 << 20;

/// What may lie unused at the end of an arena before it is given back; else setting the threshold would make it 128 KiB.
#[cfg(target_env = "gnu")]
const LEFT_OVER: libc::c_int = 8 << 20;

/// The fewest and the most arenas. Between them it is one a core: glibc makes eight.
#[cfg(target_env = "gnu")]
const ARENAS: (usize, usize) = (2, 8);

/// To be called before there is a second thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallopt is a function of C")]
pub(super) fn keep_little() {
    let cores = std::thread::available_parallelism().map_or(ARENAS.0, std::num::NonZero::get);
    let arenas = cores.clamp(ARENAS.0, ARENAS.1) as libc::c_int;
    let wanted = [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LEFT_OVER), (libc::M_ARENA_MAX, arenas)];
    for (parameter, value) in wanted {
        // SAFETY: it takes two numbers and changes nothing but the allocator's own settings; no thread allocates meanwhile.
        let set = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(set, 1, "glibc knows the parameter {parameter}");
    }
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_little() {}
