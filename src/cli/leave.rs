//! The end of the process.

use std::io::Write;

use super::output;

/// Ends the process with an exit code, at once. Clients of Kafka may still be at work on threads of their own, for nobody waits for
/// what a server does not answer; and what the C library calls when a process exits, OpenSSL's cleanup among it, would take from
/// them what they use: a clean stop ended with SIGSEGV.
#[expect(unsafe_code, reason = "_exit is a function of C")]
pub(super) fn leave(code: u8) -> ! {
    // Nobody is left to be told that nobody listens.
    drop(output::standard().flush());
    // SAFETY: it does not return, and nothing of this process is used afterwards.
    unsafe { libc::_exit(code.into()) }
}
