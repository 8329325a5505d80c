//! Replication slots: what each keeps, and how long until it loses it.
//!
//! A slot that falls behind either keeps WAL until the disk is full, or, with `max_slot_wal_keep_size`, loses its place
//! and with it whatever it stands for: a Debezium connector needs a new snapshot then. Both are seen coming from how much
//! WAL the server writes.

use std::collections::VecDeque;
use std::time::Duration;

use super::sql::Sql;
use crate::error::Result;
use crate::stream::Lsn;

/// All slots of a server, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Where the server's log ends.
    pub current: Lsn,
    /// In the order of their names.
    pub slots: Vec<Slot>,
}

/// A replication slot (`pg_replication_slots`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: SlotKind,
    /// Whether a client streams from it right now.
    pub active: bool,
    /// Whether what it needs is still there; none for a slot that has reserved nothing yet.
    pub wal_status: Option<WalStatus>,
    /// The oldest WAL that it needs; none once it is lost.
    pub restart: Option<Lsn>,
    /// How much WAL the server keeps for it.
    pub retained_bytes: Option<u64>,
    /// How much more WAL may be written until it can be lost; negative once it can be. None without a limit
    /// (`max_slot_wal_keep_size = -1`), and once it is lost.
    pub safe_bytes: Option<i64>,
    /// Since when nobody uses it, in ms since 1970 (17 and newer).
    pub inactive_since_ms: Option<i64>,
    /// Why it was lost (17 and newer).
    pub invalidation_reason: Option<String>,
}

/// What a slot is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotKind {
    /// Raw WAL: standbys, `pg_receivewal`, tidelog.
    Physical,
    /// Decoded changes of one database: Debezium, subscriptions.
    Logical {
        /// What decodes.
        plugin: String,
        /// Of which database.
        database: String,
    },
}

/// Whether the WAL that a slot needs is there (`wal_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond `max_wal_size`, kept for the slot.
    Extended,
    /// Beyond `max_slot_wal_keep_size`: it is lost at the next checkpoint.
    Unreserved,
    /// Gone.
    Lost,
}

impl WalStatus {
    /// PostgreSQL's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Extended => "extended",
            Self::Unreserved => "unreserved",
            Self::Lost => "lost",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Reserved, Self::Extended, Self::Unreserved, Self::Lost].into_iter().find(|status| status.name() == name)
    }
}

impl Slot {
    /// Returns whether the slot can never go on.
    pub fn is_lost(&self) -> bool {
        self.wal_status == Some(WalStatus::Lost) || self.invalidation_reason.is_some()
    }
}

impl Sql {
    /// All slots of the server.
    pub async fn slots(&mut self) -> Result<Slots> {
        let rows = self.query(&query(self.version()), "read pg_replication_slots").await?;
        read(&rows).ok_or_else(|| self.connection.unexpected("read pg_replication_slots"))
    }
}

/// The first row tells where the log ends; a server without slots has that one alone.
fn query(version: u32) -> String {
    // inactive_since and invalidation_reason came with 17.
    let newer = match version {
        170_000.. => "(extract(epoch FROM s.inactive_since) * 1000)::bigint, s.invalidation_reason",
        _ => "NULL, NULL",
    };
    format!(
        "WITH log AS (SELECT CASE WHEN pg_is_in_recovery() \
           THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END AS at) \
         SELECT log.at, s.slot_name, s.slot_type, s.plugin, s.database, s.active, s.wal_status, s.restart_lsn, \
           pg_wal_lsn_diff(log.at, s.restart_lsn)::bigint, s.safe_wal_size, {newer} \
         FROM log LEFT JOIN pg_replication_slots s ON true ORDER BY s.slot_name"
    )
}

fn read(rows: &[Vec<Option<String>>]) -> Option<Slots> {
    let current = rows.first()?.first()?.as_deref()?.parse().ok()?;
    let slots = rows.iter().filter(|row| row.get(1).is_some_and(Option::is_some)).map(|row| slot(row));
    Some(Slots { current, slots: slots.collect::<Option<_>>()? })
}

fn slot(row: &[Option<String>]) -> Option<Slot> {
    let text = |index: usize| row.get(index).and_then(Option::as_deref);
    let kind = match text(2)? {
        "physical" => SlotKind::Physical,
        _ => SlotKind::Logical {
            plugin: text(3).unwrap_or_default().to_owned(),
            database: text(4).unwrap_or_default().to_owned(),
        },
    };
    // A standby's slot may need WAL that has not come yet: nothing is kept for it.
    let retained = text(8).and_then(|bytes| bytes.parse::<i64>().ok());
    Some(Slot {
        name: text(1)?.to_owned(),
        kind,
        active: text(5) == Some("t"),
        wal_status: text(6).and_then(WalStatus::of),
        restart: text(7).and_then(|lsn| lsn.parse().ok()),
        retained_bytes: retained.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        safe_bytes: text(9).and_then(|bytes| bytes.parse().ok()),
        inactive_since_ms: text(10).and_then(|ms| ms.parse().ok()),
        invalidation_reason: text(11).map(str::to_owned),
    })
}

/// How fast a server writes WAL, over a window that moves along.
#[derive(Debug)]
pub struct Rate {
    window: Duration,
    seen: VecDeque<(Duration, Lsn)>,
}

impl Rate {
    /// Over the last `window`.
    pub fn new(window: Duration) -> Self {
        Self { window, seen: VecDeque::new() }
    }

    /// The log ended at `current` at the time `at`, on any clock that does not go backwards.
    pub fn observe(&mut self, at: Duration, current: Lsn) {
        // A log that ends before where it ended is another server's: what was seen says nothing about it.
        if self.seen.back().is_some_and(|(_, last)| current < *last) {
            self.seen.clear();
        }
        self.seen.push_back((at, current));
        // The oldest one that still spans the window stays.
        while self.seen.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= self.window) {
            self.seen.pop_front();
        }
    }

    /// None before two looks at the log.
    pub fn bytes_per_second(&self) -> Option<f64> {
        let ((first, start), (last, end)) = (self.seen.front()?, self.seen.back()?);
        let seconds = last.saturating_sub(*first).as_secs_f64();
        (seconds > 0.0).then(|| (*end - *start) as f64 / seconds)
    }

    /// In how many seconds the server may take from `slot` what it needs, if it goes on like this and the slot stands
    /// still: zero if it has done so or may do so at any moment. None where nothing limits the slot, or nothing is
    /// written.
    pub fn seconds_to_loss(&self, slot: &Slot) -> Option<f64> {
        if slot.is_lost() || slot.wal_status == Some(WalStatus::Unreserved) {
            return Some(0.0);
        }
        let safe = slot.safe_bytes?.max(0) as f64;
        let rate = self.bytes_per_second()?;
        if safe == 0.0 {
            return Some(0.0);
        }
        (rate > 0.0).then(|| safe / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[&str]) -> Vec<Option<String>> {
        columns.iter().map(|column| (*column != "-").then(|| (*column).to_owned())).collect()
    }

    fn with_safe(safe_bytes: Option<i64>) -> Slot {
        let columns = row(&["0/9", "s", "physical", "-", "-", "f", "extended", "0/1", "8", "-", "-", "-"]);
        Slot { safe_bytes, ..slot(&columns).expect("a slot") }
    }

    #[test]
    fn slots_are_read_with_what_is_null() {
        let rows = [
            row(&["0/9", "dbz", "logical", "pgoutput", "shop", "t", "extended", "0/1", "8", "-3", "1700", "-"]),
            row(&["0/9", "gone", "physical", "-", "-", "f", "lost", "-", "-", "-", "-", "wal_removed"]),
            row(&["0/9", "new", "physical", "-", "-", "f", "-", "-", "-", "-", "-", "-"]),
        ];
        let found = read(&rows).expect("slots");
        assert_eq!(found.current, Lsn(9));
        let [logical, lost, new] = &found.slots[..] else { panic!("three slots: {found:?}") };
        assert_eq!(logical.kind, SlotKind::Logical { plugin: "pgoutput".into(), database: "shop".into() });
        assert_eq!((logical.active, logical.restart, logical.retained_bytes), (true, Some(Lsn(1)), Some(8)));
        assert_eq!((logical.safe_bytes, logical.inactive_since_ms), (Some(-3), Some(1700)));
        assert!(lost.is_lost() && !logical.is_lost() && !new.is_lost());
        assert_eq!((new.wal_status, new.restart), (None, None));
        let none = read(&[row(&["0/9", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"])]);
        assert_eq!(none, Some(Slots { current: Lsn(9), slots: vec![] }));
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn the_rate_is_that_of_the_window() {
        let mut rate = Rate::new(Duration::from_secs(10));
        assert_eq!(rate.bytes_per_second(), None);
        rate.observe(Duration::from_secs(0), Lsn(0));
        assert_eq!(rate.bytes_per_second(), None, "one look tells nothing");
        rate.observe(Duration::from_secs(5), Lsn(5_000));
        assert_eq!(rate.bytes_per_second(), Some(1_000.0));
        rate.observe(Duration::from_secs(15), Lsn(5_000));
        assert_eq!(rate.bytes_per_second(), Some(0.0), "what is older than the window does not count");
        rate.observe(Duration::from_secs(20), Lsn(1));
        assert_eq!(rate.bytes_per_second(), None, "a log that went back is another one");
    }

    #[test]
    fn the_time_to_loss_is_what_is_safe_by_the_rate() {
        let mut rate = Rate::new(Duration::from_secs(60));
        assert_eq!(rate.seconds_to_loss(&with_safe(Some(10_000))), None, "no rate is known yet");
        rate.observe(Duration::ZERO, Lsn(0));
        rate.observe(Duration::from_secs(10), Lsn(10_000));
        assert_eq!(rate.seconds_to_loss(&with_safe(Some(60_000))), Some(60.0));
        assert_eq!(rate.seconds_to_loss(&with_safe(Some(-5))), Some(0.0));
        assert_eq!(rate.seconds_to_loss(&with_safe(None)), None, "nothing limits it");
        let unreserved = Slot { wal_status: Some(WalStatus::Unreserved), ..with_safe(Some(9)) };
        assert_eq!(rate.seconds_to_loss(&unreserved), Some(0.0));
        let lost = Slot { wal_status: Some(WalStatus::Lost), ..with_safe(None) };
        assert_eq!(rate.seconds_to_loss(&lost), Some(0.0));
        let mut still = Rate::new(Duration::from_secs(60));
        still.observe(Duration::ZERO, Lsn(7));
        still.observe(Duration::from_secs(10), Lsn(7));
        assert_eq!(still.seconds_to_loss(&with_safe(Some(9))), None, "nothing is written");
    }

    #[test]
    fn only_newer_servers_are_asked_for_what_is_new() {
        assert!(query(170_000).contains("invalidation_reason") && !query(160_009).contains("invalidation_reason"));
    }
}
