//! The binary under test, run as a user runs it: in a directory, by its command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::bad_store::{self, BadStore};
use super::process::{Process, spawn, tail, temporary_directory};
use super::wait_until;

/// A command that takes longer is stuck; a busy machine included.
const COMMAND_DEADLINE: Duration = Duration::from_secs(180);

/// The program: that of this build, or another one, such as an optimised one that is to be measured.
fn binary() -> PathBuf {
    let other = std::env::var_os("RIG_PROGRAM");
    other.map_or_else(|| env!("CARGO_BIN_EXE_tidelog").into(), |path| std::path::absolute(path).expect("a path"))
}

/// A directory in which the program runs, with whatever files the test writes there.
pub(crate) struct Home {
    directory: TempDir,
    bad_store: BadStore,
}

impl Home {
    /// An empty one.
    pub(crate) fn new() -> Home {
        Home { directory: temporary_directory("home"), bad_store: BadStore::default() }
    }

    /// One with `tidelog.toml`.
    pub(crate) fn with_config(config: &str) -> Home {
        let home = Home::new();
        home.write("tidelog.toml", config);
        home
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file of it. An archive on the disk that it names is one in a bad store where that is asked for.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        let placed = bad_store::is_wanted().then(|| self.bad_store.put_behind(self.path(), text));
        std::fs::write(&path, placed.as_deref().unwrap_or(text)).expect("a file can be written");
        path
    }

    /// The program with these arguments, this directory as the working directory, and no setting from the environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.path()).env_remove("RUST_LOG").env_remove("NO_COLOR");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIDELOG") {
                command.env_remove(name);
            }
        }
        command
    }

    /// A shell with this directory as the working directory and mounts of its own, in which `$0` is the program.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let tidelog = self.command(&[]);
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-ec", script]).arg(tidelog.get_program()).current_dir(self.path());
        for (name, _) in tidelog.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        run(self.command(args))
    }

    /// Starts the program and leaves it running; what it says is [`Program::output`].
    pub(crate) fn start(&self, args: &[&str]) -> Program {
        self.start_command(self.command(args))
    }

    /// The same, and the program fails or ends at these of its steps (`tidelog::failpoint`).
    pub(crate) fn start_with_faults(&self, args: &[&str], faults: &str) -> Program {
        let mut command = self.command(args);
        command.env("TIDELOG_FAILPOINTS", faults);
        self.start_command(command)
    }

    fn start_command(&self, command: Command) -> Program {
        let log = tempfile::Builder::new().prefix("output-").tempfile_in(self.path()).expect("a file can be made");
        let (_, path) = log.keep().expect("a file can be kept");
        Program::start(command, &path)
    }
}

/// Runs a command to its end with its outputs apart, within the deadline.
pub(crate) fn run(mut command: Command) -> Output {
    let directory = temporary_directory("output");
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| directory.path().join(name));
    let create = |path: &Path| std::fs::File::create(path).expect("a file can be made");
    command.stdin(std::process::Stdio::null()).stdout(create(&stdout)).stderr(create(&stderr));
    let what = format!("{command:?}");
    let child = spawn(command).unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).expect("the output")).into_owned();
    let mut process = Process::of(child, &stderr);
    let Some(status) = process.wait(COMMAND_DEADLINE) else {
        process.kill();
        panic!(
            "{what} did not end within {} s; it said:\n{}{}",
            COMMAND_DEADLINE.as_secs(),
            read(&stdout),
            read(&stderr)
        );
    };
    Output { command: what, status: status.code(), stdout: read(&stdout), stderr: read(&stderr) }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Output {
    command: String,
    /// `None`: ended by a signal
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Panics with everything it said unless it ended with `status`.
    pub(crate) fn expect(self, status: i32) -> Output {
        assert_eq!(
            self.status,
            Some(status),
            "exit status of {}\nstdout:\n{}\nstderr:\n{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Its standard output as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{} printed no JSON document ({error}):\n{}", self.command, self.stdout))
    }

    /// Its standard output as one JSON document a line.
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{} printed a line that is no JSON ({error}): {line}", self.command))
        };
        self.stdout.lines().map(parse).collect()
    }
}

/// The program running. Dropping it kills it.
pub(crate) struct Program {
    process: Process,
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.process.ended();
            eprintln!("the program (ended: {ended:?}) said last:\n{}", tail(&self.output(), 20));
        }
    }
}

impl Program {
    /// Starts a command that says everything into the file `log`.
    pub(crate) fn start(command: Command, log: &Path) -> Program {
        Program { process: Process::start(command, log) }
    }

    /// Both its outputs so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The most memory that it has held so far, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.and_then(|kib| kib.trim().parse().ok()).expect("VmHWM in kB")
    }

    /// Whether it runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }

    /// SIGTERM, once it listens for it, and waits for a clean end.
    pub(crate) fn terminate(mut self, timeout: Duration) {
        wait_until("the program to listen for SIGTERM", COMMAND_DEADLINE, || {
            !self.is_running() || self.catches(libc::SIGTERM)
        });
        self.process.signal(libc::SIGTERM);
        let status = self.process.wait(timeout);
        let clean = status.is_some_and(|status| status.success());
        assert!(clean, "after SIGTERM: {status:?} within {} s; it said:\n{}", timeout.as_secs(), self.output());
    }

    /// Whether it has a handler for a signal, as the kernel tells.
    fn catches(&self, signal: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
    }

    /// SIGINT, as Ctrl-C sends it; how it ends is [`Program::wait`].
    pub(crate) fn interrupt(&mut self) {
        self.process.signal(libc::SIGINT);
    }

    /// SIGSTOP: it stands still until [`Program::thaw`].
    pub(crate) fn freeze(&mut self) {
        self.process.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self) {
        self.process.signal(libc::SIGCONT);
    }

    /// Waits for it to end by itself and gives its exit status.
    pub(crate) fn wait(mut self, timeout: Duration) -> i32 {
        let status = self.process.wait(timeout);
        let code = status.and_then(|status| status.code());
        code.unwrap_or_else(|| {
            panic!("no exit status within {} s ({status:?}); it said:\n{}", timeout.as_secs(), self.output())
        })
    }

    /// Waits until the shell that prepares the program's namespaces has become the program.
    pub(crate) fn prepared(mut self) -> Self {
        let comm = format!("/proc/{}/comm", self.id());
        wait_until("the program to be started where it was prepared for", COMMAND_DEADLINE, || {
            let become_it = std::fs::read_to_string(&comm).is_ok_and(|name| name.trim_end() == "tidelog");
            if !become_it {
                self.assert_running();
            }
            become_it
        });
        self
    }

    /// Panics with what it said when it does not run any more; for loops that wait for something it does.
    pub(crate) fn assert_running(&mut self) {
        let ended = self.process.ended();
        assert!(ended.is_none(), "the program ended ({ended:?}); it said:\n{}", self.output());
    }
}
