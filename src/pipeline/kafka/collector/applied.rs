//! The desired state that was applied last.

use crate::pipeline::desired::Desired;

/// The desired state that was applied last.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) desired: Desired,
    /// The group was left, and is joined again once everything is given back.
    pub(super) rejoin: bool,
}
