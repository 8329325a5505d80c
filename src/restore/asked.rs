//! What a restore is asked for.

use crate::stream::Lsn;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The end of what is archived when Postgres comes there.
    Latest,
    /// The end of what is archived now.
    Present,
    /// Every transaction that committed up to this time, in microseconds since 1970.
    Time(i64),
    /// Everything up to this position.
    Lsn(Lsn),
    /// Everything up to the last restore point of this name.
    Name(String),
    /// Everything up to the end of this transaction.
    Xid(u32),
}

/// What a restore was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where to.
    pub goal: Goal,
    /// Whether what lies just at the target stays out: transactions of that very time, the record that ends at that
    /// position, the transaction itself.
    pub exclusive: bool,
    /// The timeline to follow; none: the newest.
    pub timeline: Option<u32>,
    /// The backup to start from; none: the newest that leads there.
    pub backup: Option<String>,
}
