//! What others may do with the files that are made: the archive on a disk, restored files, fetched WAL.

/// What holds where the process was started with a umask that lets everybody write, as some supervisors have it (0).
const SET: libc::mode_t = 0o022;

/// The right of others to write.
const OTHERS_WRITE: libc::mode_t = 0o002;

/// To be called before the first file is made and the first thread is started. A umask that keeps others from writing stays.
#[expect(unsafe_code, reason = "umask is a function of C")]
pub(super) fn keep_others_from_writing() {
    // SAFETY: it changes nothing but the process's umask, and gives what it was: there is no other way to read it.
    let was = unsafe { libc::umask(SET) };
    if was & OTHERS_WRITE != 0 {
        // SAFETY: as above.
        unsafe { libc::umask(was) };
    }
}
