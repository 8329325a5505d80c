//! `tidelog state-of-kafka`: the process that `tidelog run` starts to ask for the state of Kafka (see [`crate::source::kafka::state`]).

use crate::error::Result;
use crate::source::kafka::state::answer_questions;

/// Answers until the archiver has no more questions, or is gone.
pub(super) async fn run() -> Result<()> {
    answer_questions(&mut std::io::stdin().lock(), &mut super::output::standard().lock()).await
}
