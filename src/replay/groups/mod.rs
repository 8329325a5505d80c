//! Consumer groups where they were: archived positions, translated by the replay's own map, set on the target.
//!
//! ```text
//! state/groups as of T ─► next record that the replay sends (the archive) ─► its offset in the target (the map) ─► the group
//! ```
//! What is next is said by the archive alone, so a plan says the same as what is done: [`next`]. Only the offset in the target has to
//! be known from the sending: [`mod@translate`].

mod archived;
mod next;
mod planned;
mod replayed;
mod set;
mod translate;

pub use archived::{Archived, as_of};
pub use next::Answer;
pub use planned::{GroupShown, Groups, GroupsShown};
pub(super) use planned::{Of, plan};
pub use replayed::{Replayed, history, whole_history};
pub use set::{GroupResult, State, live_groups, put};
pub use translate::{Moved, translate};
