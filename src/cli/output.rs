//! The one way to the standard output and the error stream. Much of what is printed was written by others: names of objects, messages
//! of servers, contents of the archive. So no unsafe character passes here, whoever it comes from; the log has its own guard
//! (`telemetry::log`), and records go through `replay::json`.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::escape;

/// Prints text on the standard output. A reader that has seen enough (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<()> {
    write(&escape::lines(text))
}

/// Prints a piece of a longer text; false if its reader has seen enough. What others have written must not stand in it, or be JSON.
pub(super) fn print_on(text: &str) -> Result<bool> {
    let mut out = standard();
    let written = out.write_all(escape::json(text).as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io(error, "cannot write to the standard output")),
        Ok(()) => Ok(true),
    }
}

/// Prints a result as one line of JSON.
pub(super) fn print_json<T: Serialize>(result: &T) -> Result<()> {
    let text = serde_json::to_string(result).or_err(Kind::Internal, || "cannot write the result as JSON".to_owned())?;
    write(&(escape::json(&text).into_owned() + "\n"))
}

fn write(text: &str) -> Result<()> {
    let mut out = standard();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io(error, "cannot write to the standard output"))
        }
        _ => Ok(()),
    }
}

/// The standard output itself, for what writes JSON of its own.
#[allow(clippy::disallowed_methods, reason = "this is the place")]
pub(super) fn standard() -> io::Stdout {
    io::stdout()
}

/// Tells one line on the error stream. That nobody reads it ends nothing.
pub(super) fn tell(line: &str) {
    drop(writeln!(io::stderr(), "{}", escape::one_line(line)));
}

/// Tells of an error, and below it of the way out; `indent` is where that begins.
pub(super) fn report(what: &str, error: &Error, indent: &str) {
    // Mistakes in a configuration stand on lines of their own.
    let text = format!("error: {what}{error}");
    let text = if error.kind() == Kind::Config { escape::lines(&text) } else { escape::one_line(&text) };
    drop(writeln!(io::stderr(), "{text}"));
    if let Some(hint) = error.hint_text() {
        tell(&format!("{indent}{hint}"));
    }
}
