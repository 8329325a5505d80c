//! Python with duckdb, pyarrow, fastavro and confluent-kafka: the readers that are not ours.

use std::process::Command;

use super::parts;

/// The venv's interpreter.
pub(crate) fn command() -> Command {
    let mut command = Command::new(parts().python.join("bin/python"));
    command.env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    command
}

/// Runs `script` (the text of it, mostly by `include_str!`) with `args` in `sys.argv[1:]` and gives what it printed.
/// Panics with its error output when it fails.
pub(crate) fn run(script: &str, args: &[&str]) -> String {
    let output = command().arg("-c").arg(script).args(args).output().expect("the venv's python can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "python failed ({}) with {args:?}:\n{error}", output.status);
    String::from_utf8(output.stdout).expect("python prints UTF-8")
}
