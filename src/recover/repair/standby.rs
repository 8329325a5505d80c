//! The scratch standby: made out of the archive, read by the connector, removed again.
//!
//! ```text
//!   base backup ─► gate at the end of its file ─► open ─► slot is being made ─► gate at the marker's commit ─► slot is made
//! ```
//!
//! It reads a `postgresql.conf` of its own, and of the primary takes what decides how values look as text. Whom it lets in over TCP the
//! `pg_hba.conf` says that came with the data, if one did, and after that passwords, which came with it, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::leftovers::remove_data;
use super::lost::Anchor;
use super::way::DECODES;
use crate::config::Scratch;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::recover::connector::Connector;
use crate::recover::database::{Made, opened, quoted_name};
use crate::recover::server::{Open, Server as Started, Start};
use crate::recover::slots::{literal, one};
use crate::restore::gate::Gate;
use crate::segment::wal::Relations;
use crate::source::postgres::{Server, Sql};
use crate::stream::Lsn;

/// How long it may stand still while its slot is made.
const STANDS_STILL: Duration = Duration::from_secs(180);

const LOOK: Duration = Duration::from_millis(100);

/// What the server is told on its command line, before what the pipeline file says.
const SETTINGS: [(&str, &str); 23] = [
    ("wal_level", "logical"),
    ("hot_standby", "on"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("max_slot_wal_keep_size", "-1"),
    // What reads waits for the log, and never the other way round.
    ("max_standby_archive_delay", "-1"),
    ("wal_retrieve_retry_interval", "200ms"),
    ("wal_sender_timeout", "0"),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("primary_conninfo", ""),
    ("ssl", "off"),
    ("external_pid_file", ""),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("jit", "off"),
    ("huge_pages", "off"),
    ("shared_buffers", "128MB"),
    ("dynamic_shared_memory_type", "mmap"),
    ("lc_messages", "C"),
];

/// What it is told besides where tables are changed on it: it writes little but the changes, and nothing else works on it.
const CHANGED: [(&str, &str); 8] = [
    ("autovacuum", "off"),
    ("full_page_writes", "off"),
    ("checkpoint_timeout", "1d"),
    ("max_wal_size", "64GB"),
    ("max_logical_replication_workers", "0"),
    ("synchronous_standby_names", ""),
    ("default_transaction_read_only", "off"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// The first version that archives by a library.
const LIBRARY: u32 = 150_000;

/// The first version whose `pg_hba.conf` includes files.
const INCLUDES: u32 = 160_000;

/// What decides how a value looks as text.
const LOOKS: &str = "SELECT name, setting FROM pg_settings WHERE name IN ('DateStyle', 'IntervalStyle', 'TimeZone', 'bytea_output', \
    'extra_float_digits', 'lc_monetary', 'lc_numeric', 'lc_time', 'xmlbinary')";

/// The standby, running or not.
pub(in crate::recover) struct Standby<'a> {
    pub(in crate::recover) scratch: &'a Scratch,
    /// The folder of the journal.
    pub(in crate::recover) folder: &'a Path,
    /// The connector that reads from it.
    pub(in crate::recover) of: &'a Connector,
}

impl Standby<'_> {
    /// What a restore needs to know of it.
    pub(in crate::recover) fn made(&self) -> Made<'_> {
        let Scratch { into, bin_dir, port, user, settings, .. } = self.scratch;
        Made { into, bin_dir, port: *port, user, settings, folder: self.folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// How this process gets into a database of it.
    ///
    /// # Errors
    /// A name that no server can have.
    pub(in crate::recover) fn at(&self, database: &str) -> Result<Server> {
        Server::at_socket((&self.socket(), self.scratch.port), &self.scratch.user, database)
    }

    /// Moves its gate.
    ///
    /// # Errors
    /// A disk that is full.
    pub(in crate::recover) fn gate(&self, until: Lsn, harmless: &Relations) -> Result<()> {
        Gate { until, harmless: harmless.clone() }.write(&self.scratch.into)
    }

    /// Starts it, and waits until it can be read, or written to once it was promoted. It ends with this process.
    ///
    /// # Errors
    /// A server that does not open, with the end of its log.
    pub(super) async fn start(&self, limits: &[(String, u32)], primary: &Server, is_changed: bool) -> Result<Started> {
        let mut sql = primary.sql().await?;
        let rows = sql.query(LOOKS, "read how values look").await?;
        let given = rows.into_iter().filter_map(|row| Some((row.first()?.clone()?, row.get(1)?.clone()?)));
        let mut given: Vec<(String, String)> = given.collect();
        if is_changed {
            given.extend(CHANGED.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        self.open(self.how(limits, given, sql.version())?).await
    }

    /// The same of one that decodes, where it is told how values look.
    ///
    /// # Errors
    /// As those of [`Standby::start`].
    pub(in crate::recover) async fn start_with(
        &self,
        limits: &[(String, u32)],
        looks: Vec<(String, String)>,
    ) -> Result<Started> {
        self.open(self.how(limits, looks, DECODES)?).await
    }

    async fn open(&self, how: Start) -> Result<Started> {
        // The promotion takes the file away.
        let follows = self.scratch.into.join("standby.signal").exists();
        opened(&how, if follows { Open::Following } else { Open::ForWriting }, &self.scratch.user).await
    }

    fn how(&self, limits: &[(String, u32)], given: Vec<(String, String)>, version: u32) -> Result<Start> {
        let file = |name: &str, text: &str| {
            let file = self.folder.join(name);
            let failed = |source| Error::io(source, format!("cannot write {}", file.display()));
            fs::write(&file, text).map_err(failed).map(|()| file.display().to_string())
        };
        let (user, reader) = (quoted_name(&self.scratch.user), quoted_name(self.of.get("database.user", "postgres")));
        let own = self.scratch.into.join("pg_hba.conf");
        let own = match version {
            INCLUDES.. => format!("include_if_exists \"{}\"", own.display()),
            _ => fs::read_to_string(&own).unwrap_or_default(),
        };
        let hba = format!("local all {user} trust\nlocal replication {user} trust\n{own}\nhost all {reader} all md5\n");
        let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut settings = vec![
            (
                "config_file".to_owned(),
                file("postgresql.conf", "# Of a scratch standby: all settings are on the command line.\n")?,
            ),
            ("hba_file".to_owned(), file("pg_hba.conf", &hba)?),
            ("ident_file".to_owned(), file("pg_ident.conf", "")?),
        ];
        settings.extend(SETTINGS.map(text));
        settings.extend((version >= LIBRARY).then(|| text(("archive_library", ""))));
        settings.extend(given);
        settings.extend(limits.iter().map(|(name, value)| (name.clone(), value.to_string())));
        settings.extend(self.scratch.settings.iter().map(|(name, value)| (name.clone(), value.clone())));
        Ok(Start {
            bin_dir: self.scratch.bin_dir.clone(),
            data: self.scratch.into.clone(),
            socket: self.socket(),
            port: self.scratch.port,
            listen: self.scratch.listen.clone(),
            log: self.folder.join("server.log"),
            settings,
            outlives: false,
        })
    }

    /// Makes its slot while it stands at the first gate, and lets it go on to the one where it ends; gives where the slot decodes from.
    ///
    /// # Errors
    /// A slot that is not made, for the log ends before it can be.
    pub(in crate::recover) async fn make_slot(&self, anchor: &Anchor, until: Lsn, harmless: &Relations) -> Result<Lsn> {
        let server = self.at(self.of.database())?;
        let mut sql = server.sql().await?;
        let (name, plugin) = (self.of.slot().to_owned(), self.of.plugin().to_owned());
        let making = tokio::spawn(async move { server.decoding().await?.create_slot(&name, &plugin).await });
        let asked = format!(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = {} AND restart_lsn IS NOT NULL AND catalog_xmin IS NOT NULL",
            literal(self.of.slot())
        );
        while !making.is_finished() && one(&mut sql, &asked, "look for its slot").await?.is_none() {
            tokio::time::sleep(LOOK).await;
        }
        self.gate(until, harmless)?;
        let (mut stands, mut since) = (None, Instant::now());
        while !making.is_finished() {
            let now = replayed(&mut sql).await?;
            if now != stands {
                (stands, since) = (now, Instant::now());
            }
            if since.elapsed() > STANDS_STILL {
                making.abort();
                let message = format!(
                    "the slot of the scratch standby is not made: it stands at {}, and was to decode from {} on",
                    stands.unwrap_or_default(),
                    anchor.decodes_from
                );
                return Err(Error::new(Kind::Unsupported, message).hint("look at server.log beside its directory"));
            }
            tokio::time::sleep(LOOK).await;
        }
        making.await.or_err(Kind::Internal, || "making a slot was aborted".to_owned())?
    }

    /// Waits until it has replayed all up to its gate.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where it stands still before that.
    pub(super) async fn replays(&self, until: Lsn) -> Result<()> {
        let mut sql = self.at(self.of.database())?.sql().await?;
        let (mut stands, mut since) = (None, Instant::now());
        loop {
            let now = replayed(&mut sql).await?;
            if now.is_some_and(|now| now >= until) {
                return Ok(());
            }
            if now != stands {
                (stands, since) = (now, Instant::now());
            }
            if since.elapsed() > STANDS_STILL {
                let stands = stands.unwrap_or_default();
                let message = format!("the scratch server stands at {stands}, and was to replay up to {until}");
                return Err(Error::new(Kind::Unsupported, message).hint("look at server.log beside its directory"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Why its slot cannot be read from any more; none while it can.
    ///
    /// # Errors
    /// A server that does not answer.
    pub(in crate::recover) async fn slot_is_lost(&self) -> Result<Option<String>> {
        let mut sql = self.at(self.of.database())?.sql().await?;
        let asked = format!(
            "SELECT coalesce(max(wal_status), 'gone') FROM pg_replication_slots WHERE slot_name = {} AND NOT temporary",
            literal(self.of.slot())
        );
        let status = one(&mut sql, &asked, "look for its slot").await?.unwrap_or_default();
        if !["lost", "gone"].contains(&status.as_str()) {
            return Ok(None);
        }
        let stands = replayed(&mut sql).await?.unwrap_or_default();
        Ok(Some(format!("its slot is {status}, and it has replayed up to {stands}")))
    }

    /// Whether the connector reads, or has read, from its slot.
    ///
    /// # Errors
    /// A server that does not answer.
    pub(super) async fn is_read(&self, made_at: Lsn) -> Result<bool> {
        let mut sql = self.at(self.of.database())?.sql().await?;
        let asked = format!(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = {} AND (active OR confirmed_flush_lsn > '{made_at}')",
            literal(self.of.slot())
        );
        Ok(one(&mut sql, &asked, "ask whether its slot is read").await?.is_some())
    }

    /// How far it has replayed, and how far a reader got what it sends; none of what it does not tell.
    pub(super) async fn progress(&self) -> (Option<Lsn>, Option<Lsn>) {
        let asked = "SELECT pg_last_wal_replay_lsn(), (SELECT max(sent_lsn) FROM pg_stat_replication)";
        let told = async || self.at(self.of.database())?.sql().await?.query(asked, "ask how far it is").await;
        let rows = told().await.unwrap_or_default();
        let at = |column: usize| rows.first()?.get(column)?.as_ref()?.parse::<Lsn>().ok();
        (at(0), at(1))
    }

    /// Removes its data, and the directory where that may be.
    ///
    /// # Errors
    /// Something in it that cannot be removed.
    pub(super) fn remove(&self) -> Result<()> {
        remove_data(&self.scratch.into)
    }
}

async fn replayed(sql: &mut Sql) -> Result<Option<Lsn>> {
    let text = one(sql, "SELECT pg_last_wal_replay_lsn()", "ask how far it is").await?;
    Ok(text.and_then(|text| text.parse().ok()))
}
