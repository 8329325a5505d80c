//! The steps of a recovery.

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Postgres,
    Raise,
    Slots,
    Open,
    Registry,
    Acls,
    Topics,
    Connectors,
    Marker,
    Fold,
}

impl Step {
    pub(super) const ALL: [Self; 10] = [
        Self::Postgres,
        Self::Raise,
        Self::Slots,
        Self::Open,
        Self::Registry,
        Self::Acls,
        Self::Topics,
        Self::Connectors,
        Self::Marker,
        Self::Fold,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Raise => "raise",
            Self::Slots => "slots",
            Self::Open => "open",
            Self::Registry => "registry",
            Self::Acls => "acls",
            Self::Topics => "topics",
            Self::Connectors => "connectors",
            Self::Marker => "marker",
            Self::Fold => "fold",
        }
    }
}
