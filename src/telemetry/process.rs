//! What the system knows of this process: `/proc/self`, proc(5).

use std::fs;

use super::metrics::{
    Exposition, PROCESS_CPU, PROCESS_FDS, PROCESS_MAX_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_VIRTUAL,
};

/// The unit of times in `/proc/<pid>/stat`. `sysconf(_SC_CLK_TCK)` is 100 on every architecture that Linux and Rust have
/// in common with us; the kernel's own tick does not show through (`USER_HZ`, include/asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

/// The size of a page is told by the kernel in `/proc/self/status` in kB, which saves us from asking for it.
const KIB: f64 = 1024.0;

/// Adds the metrics that every Prometheus client has. What cannot be read is left out.
pub fn expose(out: &mut Exposition) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some((cpu, since_boot)) = times(&stat) {
        out.single(&PROCESS_CPU, &[], cpu);
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
            out.single(&PROCESS_START, &[], boot + since_boot);
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (metric, name) in [(&PROCESS_RESIDENT, "VmRSS:"), (&PROCESS_VIRTUAL, "VmSize:")] {
        if let Some(kib) = number_after(&status, name) {
            out.single(metric, &[], kib * KIB);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory itself was open while it was read.
        out.single(&PROCESS_FDS, &[], open.count().saturating_sub(1) as f64);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(most) = number_after(&limits, "Max open files") {
        out.single(&PROCESS_MAX_FDS, &[], most);
    }
}

/// Seconds of CPU, and seconds between the machine's start and the process's: fields 14, 15 and 22 of proc(5). The second
/// field is the program's name in parentheses and may hold anything.
fn times(stat: &str) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some(((ticks(14)? + ticks(15)?) / TICKS_PER_SECOND, ticks(22)? / TICKS_PER_SECOND))
}

fn boot_time(stat: &str) -> Option<f64> {
    number_after(stat, "btime")
}

/// The number after `name` at the start of a line.
fn number_after(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read_as_they_are() {
        let stat = "42 (a) b) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 12345 1000 10";
        assert_eq!(times(stat), Some((3.0, 123.45)));
        assert_eq!(times("nonsense"), None);
        assert_eq!(boot_time("cpu  1 2\nbtime 1763800000\nprocesses 5\n"), Some(1_763_800_000.0));
        assert_eq!(number_after("Max open files            1024   4096   files\n", "Max open files"), Some(1024.0));
        assert_eq!(number_after("Max open files            unlimited\n", "Max open files"), None);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let mut out = Exposition::default();
        expose(&mut out);
        let text = out.finish();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse::<f64>().expect("a number")
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = crate::time::now().timestamp() as f64;
        assert!((now - value("process_start_time_seconds")).abs() < 86_400.0, "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
