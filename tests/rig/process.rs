//! Child processes that never outlive the test run, and the one directory that holds their files.
//!
//! Three nets, since a JVM that stays behind eats the machine of everybody:
//! 1. [`Process`] kills on drop, which a panicking test does too;
//! 2. an `atexit` hook kills what statics still hold and removes the scratch directory: statics are never dropped;
//! 3. the kernel kills the children of a test run that was itself killed (`PR_SET_PDEATHSIG`, prctl(2)). That signal
//!    follows the **thread** that forked, and a test's thread ends with its test, so one thread that never ends
//!    forks for all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A child process. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Process {
        let open = || File::options().create(true).append(true).open(log).expect("the log file can be opened");
        command.stdin(Stdio::null()).stdout(open()).stderr(open());
        let what = format!("{command:?}");
        let child = spawn(command).unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        Process::of(child, log)
    }

    /// A child of [`spawn`] that writes to `log`.
    pub(crate) fn of(child: Child, log: &Path) -> Process {
        Process { child, log: log.to_owned() }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal of libc's numbers; nothing happens when the process has ended.
    pub(crate) fn signal(&mut self, signal: i32) {
        if self.ended().is_none() {
            send_signal(self.child.id(), signal);
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("a child can be waited for");
        if status.is_some() {
            live().remove(&self.child.id());
        }
        status
    }

    /// Waits for the end; `None` when it still runs after `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            let status = self.ended();
            if status.is_some() || start.elapsed() >= timeout {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.signal(libc::SIGKILL);
        let status = self.child.wait().expect("a child can be waited for");
        live().remove(&self.child.id());
        status
    }

    /// All that it has said so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Starts a command whose outputs are already set, by the thread that never ends.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Sender<Job>> = LazyLock::new(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name("rig-spawner".into())
            .spawn(move || {
                for (mut command, reply) in jobs {
                    let child = command.spawn();
                    if let Ok(child) = &child {
                        live().insert(child.id());
                    }
                    reply.send(child).expect("whoever asked for a child waits for it");
                }
            })
            .expect("a thread can be started");
        sender
    });
    scratch(); // before the first child: its exit hook is what kills the children
    die_with_parent(&mut command);
    let (reply, answer) = channel();
    SPAWNER.send((command, reply)).expect("the spawner never ends");
    answer.recv().expect("the spawner never ends")
}

/// A new empty directory, removed when the handle drops or the process ends.
pub(crate) fn temporary_directory(name: &str) -> TempDir {
    tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(scratch()).expect("a directory can be made")
}

const SCRATCH_PREFIX: &str = "tidelog-rig-";

/// The one directory of this test run. A run that was killed leaves its own behind; the next run finds that nobody
/// holds the lock in it, and removes it.
fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<(PathBuf, File)> = OnceLock::new();
    let (path, _lock) = SCRATCH.get_or_init(|| {
        remove_abandoned();
        let path = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir().expect("a directory can be made").keep();
        // Locked before it has its name: nobody can see a lock file that is not held.
        let unnamed = path.join("lock.new");
        let lock = File::create(&unnamed).expect("the lock file can be made");
        lock.lock().expect("the lock file can be locked");
        std::fs::rename(&unnamed, path.join("lock")).expect("the lock file can be named");
        at_exit();
        (path, lock)
    });
    path
}

fn remove_abandoned() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            remove(&entry.path());
        }
    }
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        eprintln!("rig: {} stays behind: {error}", directory.display());
    }
}

/// The children that run.
fn live() -> std::sync::MutexGuard<'static, BTreeSet<u32>> {
    static LIVE: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(unsafe_code, reason = "signals, exit hooks and prctl have no safe interface in std")]
mod system {
    use super::{BTreeSet, Command, CommandExt, io, live, remove, scratch};

    pub(super) fn send_signal(process: u32, signal: i32) {
        let process = i32::try_from(process).expect("a process id fits");
        // SAFETY: kill(2) touches no memory; the caller holds the child unreaped, so the id is still its own.
        unsafe { libc::kill(process, signal) };
    }

    pub(super) fn die_with_parent(command: &mut Command) {
        let parent = std::process::id();
        let set = move || {
            #[cfg(target_os = "linux")]
            // SAFETY: prctl(2) and getppid(2) are plain system calls without pointers here.
            unsafe {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the signal was set.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::Error::other("the test run has ended"));
                }
            }
            Ok(())
        };
        // SAFETY: the closure makes two system calls that signal-safety(7) allows between fork and exec, and allocates nothing
        // unless it fails.
        unsafe { command.pre_exec(set) };
    }

    pub(super) fn at_exit() {
        extern "C" fn end() {
            for process in std::mem::take::<BTreeSet<u32>>(&mut live()) {
                send_signal(process, libc::SIGKILL);
                // SAFETY: waitpid(2) without a place for the status; the child is ours.
                unsafe { libc::waitpid(process.cast_signed(), std::ptr::null_mut(), 0) };
            }
            remove(scratch());
        }
        // SAFETY: `end` is a function without captures and does not unwind.
        let answer = unsafe { libc::atexit(end) };
        assert_eq!(answer, 0, "an exit hook can be set");
    }
}
use system::{at_exit, die_with_parent, send_signal};
