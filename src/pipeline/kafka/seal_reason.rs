//! Why segments are sealed; counted, and told in the log.

/// Why a segment was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SealReason {
    Size,
    Records,
    Age,
    Revoked,
    Conflict,
    Paused,
    Stop,
}

impl SealReason {
    /// All of them, in the order of their declaration.
    pub(super) const ALL: [Self; 7] =
        [Self::Size, Self::Records, Self::Age, Self::Revoked, Self::Conflict, Self::Paused, Self::Stop];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Records => "records",
            Self::Age => "age",
            Self::Revoked => "revoked",
            Self::Conflict => "conflict",
            Self::Paused => "paused",
            Self::Stop => "stop",
        }
    }
}
