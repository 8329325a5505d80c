//! An archive that is made up, and what its maintenance costs.

pub(crate) mod made_up;
mod years;
