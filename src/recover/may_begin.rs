//! What the target has against a recovery, before anything is done.

use super::prepare::{Asked, Part, Prepared, connection};
use super::step::Step;
use super::{acls, in_place};
use crate::config::Config;
use crate::error::Result;

/// Refuses what would fail, or come out otherwise, later.
///
/// # Errors
/// What is in the way.
pub(super) async fn may_begin(config: &Config, asked: &Asked, prepared: &Prepared) -> Result<()> {
    let is_to_do = |step: Step| asked.wants(Part::Topics) && !prepared.journal.steps.contains_key(step.name());
    let brings_acls = asked.pipeline.kafka.as_ref().is_some_and(|kafka| kafka.acls);
    if brings_acls && is_to_do(Step::Acls) {
        acls::may_be_made(&connection(config, &asked.pipeline)?).await?;
    }
    if asked.in_place {
        in_place::may_be(config, &asked.pipeline)?;
        if is_to_do(Step::Topics) {
            in_place::nobody_writes(config, &prepared.connectors).await?;
        }
    }
    Ok(())
}
