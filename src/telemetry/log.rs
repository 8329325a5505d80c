//! Logs: text for people, JSON for machines, always on standard error.
//!
//! `TIDELOG_LOG` sets what is logged, by tracing's filter syntax (`debug`, `tidelog::pipeline=debug,warn`).
//!
//! Messages of servers, names of objects and topics get into it, so every value is escaped: a line of the log is one event, and a
//! terminal shows it and does nothing else. tracing-subscriber by itself lets line feeds and marks of direction through.

use std::fmt::{Debug, Result as Written};
use std::io::{self, IsTerminal, Write};

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::error::{Error, Kind, Result, ResultExt};
use crate::escape;

/// The environment variable that sets what is logged.
const FILTER: &str = "TIDELOG_LOG";

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging at `level` and above, unless `TIDELOG_LOG` says otherwise. Without a format it is text on a terminal
/// and JSON elsewhere.
///
/// # Errors
/// A filter that cannot be read, named with its variable.
pub fn start(format: Option<LogFormat>, level: &str) -> Result<()> {
    let directives = std::env::var(FILTER).unwrap_or_else(|_| format!("{level},librdkafka=warn"));
    let filter = EnvFilter::try_new(&directives).map_err(|source| {
        Error::new(Kind::Config, format!("the environment variable {FILTER} is not a log filter: {directives:?}"))
            .source(source)
            .hint("write a level (error, warn, info, debug, trace) or module=level, divided by commas")
    })?;
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let started = tracing::subscriber::set_global_default(subscriber(format, terminal, filter, io::stderr));
    started.or_err(Kind::Internal, || "logging cannot be started".into())
}

/// Returns what writes events of the format to `out`.
fn subscriber<W>(format: LogFormat, is_terminal: bool, filter: EnvFilter, out: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // It would tell of a line that cannot be written where it cannot be written, and panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let fields = debug_fn(field).delimited(" ");
            Box::new(builder.fmt_fields(fields).with_ansi(is_terminal).with_target(false).with_writer(out).finish())
        }
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_writer(EscapedJson(out)).finish()),
    }
}

/// Writes one field of an event as text.
fn field(out: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> Written {
    let text = format!("{value:?}");
    let text = escape::one_line(&text);
    match field.name() {
        "message" => out.write_str(&text),
        name if out.has_ansi_escapes() => write!(out, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{text}"),
        name => write!(out, "{name}={text}"),
    }
}

/// Passes lines of JSON on, one a call, with what JSON allows and a terminal should not get escaped.
struct EscapedJson<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for EscapedJson<W> {
    type Writer = EscapedJson<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapedJson(self.0.make_writer())
    }
}

impl<W: Write> Write for EscapedJson<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escape::json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("the lines").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, is_terminal: bool) -> String {
        let kept = Kept::default();
        let out = kept.clone();
        let subscriber = subscriber(format, is_terminal, EnvFilter::new("info"), move || out.clone());
        tracing::subscriber::with_default(subscriber, || {
            let hostile = "x\u{1b}[2J\n2026-01-01 INFO all is well\u{202e}\u{9b}\u{7f}\u{2068}";
            let error = Error::new(Kind::Corrupt, "outside").source(hostile);
            tracing::warn!(name = hostile, key = %hostile, %error, debug = ?hostile, "the server says: {hostile}");
        });
        let bytes = kept.0.lock().expect("the lines").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn an_event_is_one_line_and_moves_nothing_on_a_terminal() {
        let text = logged(LogFormat::Text, false);
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.trim_end_matches('\n').contains(escape::is_unsafe), "{text:?}");
        assert!(text.contains("the server says: x\\u{1b}[2J\\n2026") && text.contains(" key=x\\u{1b}"), "{text}");
        // Colours are ours.
        let coloured = logged(LogFormat::Text, true);
        let plain = ["\u{1b}[0m", "\u{1b}[2m", "\u{1b}[3m", "\u{1b}[33m"]
            .iter()
            .fold(coloured.clone(), |text, sgr| text.replace(sgr, ""));
        assert!(coloured != plain && !plain.trim_end_matches('\n').contains(escape::is_unsafe), "{coloured:?}");
    }

    #[test]
    fn a_line_of_json_stays_json_with_the_same_value() {
        let text = logged(LogFormat::Json, false);
        assert!(!text.trim_end_matches('\n').contains(escape::is_unsafe), "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["name"], "x\u{1b}[2J\n2026-01-01 INFO all is well\u{202e}\u{9b}\u{7f}\u{2068}");
    }
}
