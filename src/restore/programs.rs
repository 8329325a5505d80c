//! PostgreSQL's own programs on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where packages have the programs of a version.
const PACKAGED: [&str; 2] = ["/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin"];

/// Looks for a program of a version: in `bin_dir`, or else where packages have it and on `PATH`.
///
/// # Errors
/// What was found in its place, in words.
pub fn find(program: &str, bin_dir: Option<&Path>, version: u32) -> Result<PathBuf, Vec<String>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let packaged = PACKAGED.iter().map(|place| PathBuf::from(place.replace("{}", &version.to_string())));
    let places: Vec<PathBuf> = match bin_dir {
        Some(named) => vec![named.to_owned()],
        None => packaged.chain(std::env::split_paths(&path)).collect(),
    };
    let mut others = Vec::new();
    for program in places.iter().map(|place| place.join(program)) {
        match version_of(&program) {
            Some(found) if found == version => return Ok(program),
            Some(found) => others.push(format!("{} is of PostgreSQL {found}", program.display())),
            None if program.exists() => others.push(format!("{} cannot be run", program.display())),
            None => {}
        }
    }
    Err(others)
}

/// The major version of a program; none if it cannot be run.
fn version_of(program: &Path) -> Option<u32> {
    let said = Command::new(program).arg("--version").env("LC_ALL", "C").output().ok()?;
    // `pg_combinebackup (PostgreSQL) 17.2`, `… 18beta1`
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let number = said.split("(PostgreSQL)").nth(1)?.trim();
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
