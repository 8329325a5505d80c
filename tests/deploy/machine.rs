//! What runs on one machine: the systemd unit, the image's recipe, and the laptop's compose file.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use serde_json::Value;

use super::{deploy, read, tool};
use crate::rig::process::temporary_directory;
use crate::rig::program::{self, Home};

fn systemd(args: &[&str]) -> program::Output {
    let mut command = Command::new("systemd-analyze");
    command.args(args);
    program::run(command)
}

#[test]
fn the_unit_is_one_that_systemd_takes_and_that_gives_away_little() {
    let unit = read("deploy/systemd/tidelog.service");
    let arguments = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/tidelog ")).expect("ExecStart");
    // verify wants the program to be there
    let directory = temporary_directory("systemd");
    let path = directory.path().join("tidelog.service");
    std::fs::write(&path, unit.replace("/usr/bin/tidelog", env!("CARGO_BIN_EXE_tidelog")))
        .expect("a file can be written");
    let path = path.display().to_string();
    let said = systemd(&["verify", "--man=no", &path]).expect(0);
    assert_eq!(said.stderr, "", "systemd has something to say");
    systemd(&["security", "--offline=true", "--threshold=15", &path]).expect(0);

    // What it starts is a command line that the program takes: it gets as far as looking for the file.
    let home = Home::new();
    let missing = arguments.replace("/etc/tidelog/tidelog.toml", "missing.toml");
    let said = home.run(&missing.split(' ').collect::<Vec<_>>()).expect(2);
    assert!(said.stderr.contains("missing.toml"), "{}", said.stderr);

    let root = temporary_directory("sysusers");
    std::fs::create_dir(root.path().join("etc")).expect("a directory can be made");
    let mut sysusers = Command::new("systemd-sysusers");
    sysusers.arg(format!("--root={}", root.path().display())).arg(deploy("systemd/tidelog.sysusers"));
    program::run(sysusers).expect(0);
    let users = std::fs::read_to_string(root.path().join("etc/passwd")).expect("users");
    assert!(users.contains("\ntidelog:") || users.starts_with("tidelog:"), "{users}");
}

#[test]
fn the_dockerfile_has_no_fault_that_hadolint_knows() {
    let said = tool("hadolint", &["--no-color", &deploy("Dockerfile").display().to_string()]).expect(0);
    assert_eq!(said.stdout, "");
    // What it copies into the build is what its ignore file lets through.
    let ignored = read("deploy/Dockerfile.dockerignore");
    let dockerfile = read("deploy/Dockerfile");
    let copied =
        dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    for line in copied {
        let paths: Vec<&str> = line.split(' ').collect();
        for path in &paths[..paths.len() - 1] {
            assert!(ignored.contains(&format!("!{path}\n")), "{path} is copied and ignored");
            assert!(deploy("..").join(path).exists(), "{path} is copied and does not exist");
        }
    }
}

#[test]
fn the_image_holds_all_that_the_program_loads() {
    let root = temporary_directory("rootfs");
    let root = root.path().join("root");
    let mut rootfs = Command::new(deploy("rootfs.sh"));
    rootfs.arg(env!("CARGO_BIN_EXE_tidelog")).arg(&root).env("SOURCE_DATE_EPOCH", "1700000000");
    program::run(rootfs).expect(0);
    let inside = |args: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg("--userspec=65532:65532").arg(&root).args(args);
        program::run(command)
    };
    let version = inside(&["/usr/bin/tidelog", "--version"]).expect(0);
    assert_eq!(version.stdout.trim(), concat!("tidelog ", env!("CARGO_PKG_VERSION")));
    assert_eq!(inside(&["/bin/sh", "-c", "true"]).status, Some(127), "there is no shell");
    // Its user may write where volumes are mounted, and nowhere else.
    for (folder, owner) in [("var/lib/tidelog/archive", 65532), ("var/lib/tidelog/spool", 65532), ("usr/bin", 0)] {
        let data = std::fs::metadata(root.join(folder)).expect("the folder is there");
        assert_eq!((data.uid(), data.mtime()), (owner, 1_700_000_000), "{folder}");
    }
    let authorities = std::fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).expect("a file");
    assert!(authorities.contains("BEGIN CERTIFICATE"), "no certificate authorities");
}

#[test]
fn the_laptop_has_what_it_starts() {
    let file = deploy("compose.yaml").display().to_string();
    let said = tool("docker-compose", &["-f", &file, "config", "--format", "json"]).expect(0);
    assert_eq!(said.stderr, "", "docker-compose has something to say");
    let services = said.json()["services"].clone();
    for service in ["postgres", "kafka", "connect", "connector", "tidelog"] {
        assert!(services[service].is_object(), "{service} is missing");
        for volume in services[service]["volumes"].as_array().unwrap_or(&Vec::new()) {
            let source = volume["source"].as_str().expect("a source");
            assert!(volume["type"] == "volume" || std::path::Path::new(source).exists(), "{source} does not exist");
        }
    }
    let build = &services["tidelog"]["build"];
    let (context, dockerfile) =
        (build["context"].as_str().expect("a path"), build["dockerfile"].as_str().expect("a path"));
    assert!(std::path::Path::new(context).join(dockerfile).is_file(), "{build}");

    // Its configuration is valid, listens where the port is published, and finds the broker by the service's name.
    let home = Home::with_config(&read("deploy/compose/tidelog.toml"));
    home.run(&["check", "-c", "tidelog.toml"]).expect(0);
    let config: toml::Table = read("deploy/compose/tidelog.toml").parse().expect("TOML");
    assert_eq!(config["http"]["listen"].as_str(), Some("0.0.0.0:9095"));
    assert_eq!(services["tidelog"]["ports"][0]["target"], 9095);
    assert_eq!(config["kafka"]["bootstrap_servers"].as_str(), Some("kafka:9092"));
    let connector: Value = serde_json::from_str(&read("deploy/compose/shop.json")).expect("JSON");
    assert_eq!(connector["topic.prefix"], "cdc", "tidelog archives ^cdc\\.");
}
