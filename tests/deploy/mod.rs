//! `deploy/`: what is written there is what the tools of its reader take, and what the program does.
//!
//! ```text
//!   deploy/kubernetes ─► kubectl kustomize ─► manifests.py (schemas) ─► JSON ─┬─► rules of this file
//!                                                                             └─► the program, run as the container runs it
//!   prometheusrule.yaml ─► promtool      tidelog.json ─► promtool     Dockerfile ─► hadolint
//!   tidelog.service ─► systemd-analyze   compose.yaml ─► docker-compose config
//! ```

mod alerts;
mod dashboard;
mod machine;
mod manifests;
mod service;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::parts;
use crate::rig::program::{self, Output};

/// A file or folder of `deploy/`.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// A file or folder of the repository as text.
fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program of the venv that checks `deploy/`.
pub(crate) fn tool(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(parts().deploy.join("bin").join(name));
    command.args(args);
    program::run(command)
}

/// `promtool` in a directory.
fn promtool(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(parts().prometheus.join("usr/bin/promtool"));
    command.args(args).current_dir(directory);
    program::run(command)
}
