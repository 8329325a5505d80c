//! What a server answers instead of a result, in the program's own terms.
//!
//! The SQLSTATE decides (PostgreSQL documentation, appendix A); the text is for people, and in the server's language.

use std::fmt;

use crate::error::{Error, Kind};

/// An error or a notice as a server sends it (chapter "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, …, never translated.
    pub severity: String,
    /// Five characters.
    pub sqlstate: String,
    /// What went wrong.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.sqlstate)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServerError {}

impl ServerError {
    /// The failure as an [`Error`]; `doing` says what could not be done.
    pub(super) fn into_error(self, doing: impl fmt::Display) -> Error {
        let (kind, hint) = kind_of(&self);
        let hint = hint.map(str::to_owned).or_else(|| self.hint.clone());
        let error = Error::new(kind, doing.to_string());
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
        .source(self)
    }
}

/// Returns what sort of failure it is, and what the reader can do about it where we know better than the server.
fn kind_of(error: &ServerError) -> (Kind, Option<&'static str>) {
    match error.sqlstate.as_str() {
        // invalid_password
        "28P01" => (
            Kind::Denied,
            Some("check user and password: postgres.url, PGPASSWORD or the password file (~/.pgpass, PGPASSFILE)"),
        ),
        // invalid_authorization_specification
        "28000" => (
            Kind::Denied,
            Some(
                "the user must exist, have LOGIN and REPLICATION, and pg_hba.conf must let it in (a line whose database is `replication`)",
            ),
        ),
        // insufficient_privilege
        "42501" => (Kind::Denied, Some("give the user the right: ALTER ROLE … REPLICATION")),
        // too_many_connections: all of max_wal_senders or max_connections are taken
        "53300" => (Kind::Unavailable, Some("raise max_wal_senders (or max_connections), or end a connection")),
        // configuration_limit_exceeded: all replication slots are in use
        "53400" => {
            (Kind::Full, Some("raise max_replication_slots and restart the server, or drop a slot that nobody needs"))
        }
        // disk_full
        "53100" => (Kind::Full, None),
        // undefined_file: a WAL file that was removed; undefined_object: a slot; invalid_catalog_name
        "58P01" | "42704" | "3D000" => (Kind::NotFound, None),
        // object_not_in_prerequisite_state: wal_level is too low, or a slot lost what it kept
        "55000" => (Kind::Unsupported, None),
        // feature_not_supported
        "0A000" => (Kind::Unsupported, None),
        // syntax_error: a command that this version of the server does not know
        "42601" => (Kind::Unsupported, Some("PostgreSQL 13 to 18 is needed")),
        // protocol_violation, data_corrupted, index_corrupted
        "08P01" => (Kind::Internal, None),
        "XX001" | "XX002" => (Kind::Corrupt, None),
        // duplicate_object
        "42710" => (Kind::Config, None),
        // Connection exceptions, operator intervention (shutdown, crash, starting up), an object that is in use, and
        // what the server may get over by itself.
        _ => (Kind::Unavailable, None),
    }
}

/// The server's error beneath `error`, if a server sent one.
pub fn server_error(error: &Error) -> Option<&ServerError> {
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(found) = source.downcast_ref::<ServerError>() {
            return Some(found);
        }
        next = source.source();
    }
    None
}

/// Returns whether the server says that it has removed the WAL that was asked for: no later try will get it, only another copy
/// of it. `undefined_file` is what a missing WAL file is told by (xlogreader's `WALReadRaiseError`).
pub fn is_removed_wal(error: &Error) -> bool {
    has_state(error, "58P01")
}

/// Returns whether the server refuses because something is not in the state that it must be in
/// (`object_not_in_prerequisite_state`): a slot that was invalidated (slot.c, `ReplicationSlotAcquire`), or a `wal_level`
/// that is too low. Only the catalog tells which; the message is in the server's language.
pub fn is_wrong_state(error: &Error) -> bool {
    has_state(error, "55000")
}

/// Returns whether the server refuses what it was asked, and goes on to: not for the moment (connection exceptions, insufficient resources,
/// operator intervention), nor with its connection.
pub fn is_refusal(error: &Error) -> bool {
    let passes = |server: &ServerError| ["08", "53", "57"].iter().any(|class| server.sqlstate.starts_with(class));
    server_error(error).is_some_and(|server| server.severity == "ERROR" && !passes(server))
}

/// Returns whether the server takes no connection now (`cannot_connect_now`): one that still streams its log is shutting down.
pub fn takes_no_connection(error: &Error) -> bool {
    has_state(error, "57P03")
}

fn has_state(error: &Error, sqlstate: &str) -> bool {
    server_error(error).is_some_and(|server| server.sqlstate == sqlstate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, message: &str) -> ServerError {
        ServerError {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: message.into(),
            ..ServerError::default()
        }
    }

    #[test]
    fn a_server_error_keeps_its_state_and_gets_a_way_out() {
        let error =
            server("28P01", "password authentication failed for user \"a\"").into_error("cannot connect to h:1");
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(error.to_string(), "cannot connect to h:1: password authentication failed for user \"a\" (28P01)");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("PGPASSWORD")));
        let wrapped = Error::new(Kind::Denied, "outer").source(error);
        assert_eq!(server_error(&wrapped).map(|found| found.sqlstate.as_str()), Some("28P01"));
        assert!(server_error(&Error::new(Kind::Denied, "none")).is_none());
    }

    #[test]
    fn what_the_server_advises_is_told_where_we_know_nothing_better() {
        let mut from_server = server("55000", "WAL is missing");
        from_server.hint = Some("do this".into());
        assert_eq!(from_server.into_error("x").hint_text(), Some("do this"));
    }

    #[test]
    fn removed_wal_and_a_wrong_state_are_told_by_their_states_in_any_language() {
        let is = |judge: fn(&Error) -> bool, state, message| judge(&server(state, message).into_error("cannot stream"));
        assert!(is(is_removed_wal, "58P01", "das angeforderte WAL-Segment 0001 wurde schon entfernt"));
        for message in ["can no longer access replication slot \"a\"", "auf Replikations-Slot »a« kann nicht …", ""]
        {
            assert!(is(is_wrong_state, "55000", message) && !is(is_removed_wal, "55000", message), "{message}");
        }
        assert!(!is(is_removed_wal, "57P01", "slot") && !is(is_wrong_state, "57P01", "slot"));
        assert!(is(takes_no_connection, "57P03", "das Datenbanksystem fährt herunter"));
        assert!(!is(takes_no_connection, "57P01", "terminating connection"));
    }

    #[test]
    fn a_refusal_is_told_from_what_may_pass() {
        let is = |state: &str| is_refusal(&server(state, "falscher Zustand").into_error("x"));
        // summarize_wal, missing summaries, another history; a manifest that the server cannot read.
        assert!(is("55000") && is("XX000") && is("22023"));
        assert!(["53100", "57P01", "57014", "08006"].iter().all(|state| !is(state)));
        let fatal = ServerError { severity: "FATAL".into(), ..server("XX000", "x") };
        assert!(!is_refusal(&fatal.into_error("x")) && !is_refusal(&Error::new(Kind::Unavailable, "x")));
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for state in ["57P01", "57P03", "08006", "53300", "53400", "55006", "99999"] {
            assert!(server(state, "x").into_error("x").is_transient(), "{state}");
        }
    }
}
