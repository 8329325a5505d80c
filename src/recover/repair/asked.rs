//! What a repair is asked for.

use std::path::PathBuf;

use crate::config::{Captured, Pipeline, Scratch};
use crate::error::{Error, Kind, Result};

/// What is asked for.
#[derive(Debug)]
pub struct Asked {
    /// The connector.
    pub connector: String,
    /// Where everything is.
    pub pipeline: Pipeline,
    /// Where the journal lies.
    pub folder: PathBuf,
    /// What could be a mistake is meant.
    pub yes: bool,
}

impl Asked {
    /// What the pipeline file says of the connector.
    pub(super) fn captured(&self) -> Option<&Captured> {
        self.pipeline.connectors.iter().find(|captured| captured.name == self.connector)
    }

    /// Where the standby is made.
    ///
    /// # Errors
    /// [`Kind::Config`] where the pipeline file does not say it.
    pub(super) fn scratch(&self) -> Result<&Scratch> {
        let scratch = self.pipeline.scratch.as_ref();
        scratch.ok_or_else(|| missing("[scratch]", "into and bin_dir: a standby is made there, and removed again"))
    }

    /// Where everything is, in words without a secret: what a repair that was begun cannot change any more.
    pub(super) fn targets(&self) -> String {
        let scratch = self.pipeline.scratch.as_ref().map(|scratch| format!("; scratch: {}", scratch.into.display()));
        self.pipeline.targets() + &scratch.unwrap_or_default()
    }
}

/// That a section is needed, and what stands in it.
pub(super) fn missing(section: &str, example: &str) -> Error {
    Error::new(Kind::Config, format!("the pipeline file has no {section}"))
        .hint(format!("add {section} with {example}"))
}
