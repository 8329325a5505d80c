//! What a disk still takes.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The directory in which a place is, or will be.
pub fn existing(place: &Path) -> &Path {
    place.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"))
}

fn path_of_c(place: &Path) -> std::io::Result<CString> {
    CString::new(place.as_os_str().as_bytes()).map_err(std::io::Error::other)
}

/// Returns how many bytes a process without rights of its own may still write.
///
/// # Errors
/// Those of statvfs(2).
#[expect(unsafe_code, reason = "statvfs is a function of C")]
pub fn free(place: &Path) -> std::io::Result<u64> {
    let path = path_of_c(place)?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero, and the structure is one to be filled.
    if unsafe { libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call filled it.
    let facts = unsafe { facts.assume_init() };
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// Returns whether a file system may compress what is written: ZFS, Btrfs, bcachefs (their `f_type`, statfs(2)).
///
/// # Errors
/// Those of statfs(2).
#[expect(unsafe_code, reason = "statfs is a function of C")]
pub fn compresses(place: &Path) -> std::io::Result<bool> {
    let path = path_of_c(place)?;
    let mut facts = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends with a zero, and the structure is one to be filled.
    if unsafe { libc::statfs(path.as_ptr(), facts.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call filled it.
    let facts = unsafe { facts.assume_init() };
    Ok([0x2fc1_2fc1, 0x9123_683e, 0xca45_1a4e].contains(&facts.f_type))
}
