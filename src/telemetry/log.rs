//! Logs: text for people, JSON for machines, always on standard error.
//!
//! `TIDELOG_LOG` sets what is logged, by tracing's filter syntax (`debug`, `tidelog::pipeline=debug,warn`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Kind, Result, ResultExt};

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
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.or_err(Kind::Internal, || "logging cannot be started".into())
}
