//! No core dumps: they would hold the secrets and records that are in memory, in a file of which nobody thinks.

/// To be called before any secret is read. A limit that cannot be set is left as it is.
#[expect(unsafe_code, reason = "setrlimit is a function of C")]
pub(super) fn switch_off() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it reads the structure that it is given, and changes nothing but the limit.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    debug_assert_eq!(set, 0, "a limit can always be lowered");
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn nothing_is_dumped() {
        super::switch_off();
        let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    }
}
