//! The drill `schema`: the subjects of a moment in a scratch registry, and archived records read with what that gives back.
//!
//! ```text
//!   state/schemas at the moment ─► bring, as `recover` does ─► scratch registry ─► read back: the same? ─► records decoded ─► removed
//! ```

use std::time::Duration;

use chrono::{DateTime, TimeDelta};

use super::asked::AskedSchema;
use super::decoded::{self, Known};
use super::report::{Part, Report, Schemas};
use super::subjects::{MadeSubjects, is_scratch};
use super::{left, moment};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::recover::archived;
use crate::recover::schemas::{Brought, bring};
use crate::source::rest::Registrar;
use crate::source::rest::subjects::Document;
use crate::store::Store;
use crate::time;

const NAME: &str = "schema";

/// Runs the drill, and keeps its result in the archive. What keeps it from being carried out stands in the report, and is given beside it.
///
/// # Errors
/// Before it has begun: a registry that is no scratch one, or does not answer. When it was told to stop.
pub async fn schema(
    (store, config): (&Store, &Config),
    asked: &AskedSchema,
    stop: impl Future<Output = Error>,
) -> Result<(Report<Schemas>, Option<Error>)> {
    is_scratch(&asked.registry, config)?;
    let registrar = Registrar::new(&asked.registry)?;
    let mut report = Report::begin(NAME, asked.seed, Schemas::default());
    report.about.registry = registrar.shown().to_owned();
    clear(store, &registrar, &mut report).await?;
    let before = registrar.holds().await?;
    let at = moment(store, config, asked).await?;
    report.about.at = DateTime::from_timestamp_millis(at);
    let (archived, added) = archived::subjects(store, config, &asked.registry, at).await?;
    if added > 0 {
        let note =
            format!("{added} versions were found only after that moment, and may have been registered just before it");
        report.about.notes.push(note);
    }
    let made = MadeSubjects::of(&archived, &registrar, before)?;
    report.about.notes.extend(left::write(store, NAME, Some(&made)).await?);
    let tried = tokio::select! {
        biased;
        stopped = stop => Err(stopped),
        tried = carry_out((store, config), asked, (&archived, at), &registrar, &mut report) => Ok(tried),
    };
    let removed = made.remove(&registrar).await;
    let tried = match tried {
        // What was asked of the registry last may still come to be: the next drill looks again.
        Err(stopped) => return removed.and(Err(stopped)),
        Ok(tried) => tried,
    };
    if removed.is_ok() {
        left::write(store, NAME, None::<MadeSubjects>).await?;
    }
    Ok(report.end(store, tried.and(removed).err()).await)
}

/// Removes what a drill that was killed has left.
async fn clear(store: &Store, registrar: &Registrar, report: &mut Report<Schemas>) -> Result<()> {
    let Some(made) = left::read::<MadeSubjects>(store, NAME).await? else { return Ok(()) };
    if made.url == registrar.shown() {
        return made.remove(registrar).await;
    }
    report.about.notes.push(format!("an earlier drill was killed, and what it made is still at {}", made.url));
    Ok(())
}

/// The moment: that which is asked for, or one since the registry is kept. What is newer than two looks at it may not be kept yet.
async fn moment(store: &Store, config: &Config, asked: &AskedSchema) -> Result<i64> {
    let now = time::now();
    if let Some(at) = asked.at {
        return Ok(at);
    }
    let first = archived::subjects_since(store, config, &asked.registry).await?;
    let every = config.state.as_ref().map_or(Duration::from_secs(30), |state| state.every);
    let looks = TimeDelta::from_std(every * 2).unwrap_or_default();
    let last = (now - looks).max(first);
    let moment = moment::of_spans(&[(first, last)], asked.seed);
    moment.map(|moment| moment.timestamp_millis()).ok_or_else(|| Error::new(Kind::Internal, "no moment"))
}

async fn carry_out(
    (store, config): (&Store, &Config),
    asked: &AskedSchema,
    (archived, at): (&Document, i64),
    registrar: &Registrar,
    report: &mut Report<Schemas>,
) -> Result<()> {
    report.about.subjects = archived.subjects.len();
    report.about.versions = archived.subjects.values().map(|subject| subject.versions.len()).sum();
    let Brought { ids, differences, .. } = bring(archived, registrar).await?;
    for difference in differences {
        report.found(Part::Registry, report.about.registry.clone(), difference);
    }
    report.about.other_ids = ids.len();
    if !ids.is_empty() {
        report.about.notes.push(format!(
            "the registry gives its own ids in place of {} archived ones: a recovery into such a one writes them into the records",
            ids.len()
        ));
    }
    let known = Known::of(&registrar.holds().await?, archived, &ids);
    decoded::read(store, config, &known, (at, asked.seed, asked.records), report).await
}
