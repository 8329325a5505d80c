//! One error type for the whole program: what kind of failure it is, what was being done, what the reader can do
//! next, and what lay beneath.
//!
//! The kind decides two things, each in one place: whether a retry can help ([`Error::is_transient`]) and the exit
//! code of the command line ([`Error::exit_code`]).

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use crate::escape;

/// The result of anything that can fail in tidelog.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration or the command line is wrong.
    Config,
    /// A named thing does not exist.
    NotFound,
    /// Bytes are not what their checksum, their format or their checkpoint says.
    Corrupt,
    /// A server or the store does not answer now; the same call may succeed later.
    Unavailable,
    /// A server or the store refuses: credentials or rights are missing.
    Denied,
    /// A disk or a quota is full.
    Full,
    /// The other side cannot do what is needed.
    Unsupported,
    /// Another writer moved a partition that this one thought it owned.
    Fenced,
    /// The user stopped the work.
    Interrupted,
    /// The work ended, and its result is incomplete or shows damage.
    Incomplete,
    /// A rule of the program itself was broken.
    Internal,
}

impl Kind {
    /// The kind's name as metrics and status documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::NotFound => "not_found",
            Self::Corrupt => "corrupt",
            Self::Unavailable => "unavailable",
            Self::Denied => "denied",
            Self::Full => "full",
            Self::Unsupported => "unsupported",
            Self::Fenced => "fenced",
            Self::Interrupted => "interrupted",
            Self::Incomplete => "incomplete",
            Self::Internal => "internal",
        }
    }
}

/// The most bytes of a message, and of each text beneath it, that are kept: room for a few of the longest keys. Names in them
/// may come from others.
const MOST_BYTES: usize = 6 << 10;

/// A failure, with what was being done and what to do about it.
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure of `kind`; `message` says what could not be done, in lower case and without a full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: String::new(), hint: None, source: None }.saying(message.into())
    }

    /// All that is wrong with a configuration stands in one message, and is its reader's own.
    fn saying(mut self, message: String) -> Self {
        let most = if self.kind == Kind::Config { usize::MAX } else { MOST_BYTES };
        self.message = escape::shortened(Cow::Owned(message), most).into_owned();
        self
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what lay beneath.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        let message = format!("{doing}: {}", self.message);
        self.saying(message)
    }

    /// Returns what sort of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns what the reader can do about it, if that is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns whether the same call may succeed later. The only place that decides what is retried.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Full)
    }

    /// The exit code of a command that ends with this error (0 done, 1 failed, 2 usage or configuration, 3 finished
    /// but damaged or incomplete).
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Config => 2,
            Kind::Corrupt | Kind::Incomplete => 3,
            Kind::NotFound
            | Kind::Unavailable
            | Kind::Denied
            | Kind::Full
            | Kind::Unsupported
            | Kind::Fenced
            | Kind::Interrupted
            | Kind::Internal => 1,
        }
    }
}

impl fmt::Display for Error {
    /// The message and everything beneath it, outermost first, on one line. A layer that only repeats the text of the
    /// layer above it is left out; what comes from outside lies beneath, and is escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut shown = self.message.clone();
        let mut next = self.source.as_deref().map(|source| source as &dyn StdError);
        while let Some(source) = next {
            let text = source.to_string();
            let text = escape::shortened(escape::one_line(&text), MOST_BYTES);
            if !shown.contains(&*text) {
                write!(f, ": {text}")?;
                shown.push_str(&text);
            }
            next = source.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Turns a foreign error into an [`Error`] at the place where the operation is known.
pub trait ResultExt<T> {
    /// Wraps the error as `kind`, with what was being done.
    fn or_err(self, kind: Kind, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> ResultExt<T> for std::result::Result<T, E> {
    fn or_err(self, kind: Kind, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(kind, doing()).source(source))
    }
}

impl Error {
    /// An error of the operating system on a local file: a full disk and missing rights are told apart.
    pub fn io(source: std::io::Error, doing: impl Into<String>) -> Self {
        use std::io::ErrorKind;
        let kind = match source.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::Denied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Kind::Full,
            _ => Kind::Unavailable,
        };
        let error = Self::new(kind, doing).source(source);
        if kind == Kind::Full { error.hint("make room on that disk, or raise its quota") } else { error }
    }
}
