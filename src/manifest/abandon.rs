//! A timeline that was archived by mistake is taken out of the way, by an entry of the chain.
//!
//! From that entry on it leads nowhere: the path, `ls`, retention and the archiver see the archive without it, and the same
//! number may be archived again, of another server. Its objects stay for the retention time. A timeline from which another
//! archived one comes is not abandoned before that one is: what leads to a moment must not be taken away below it.

use chrono::{DateTime, Utc};
use object_store::path::Path;

use super::chain::Tried;
use super::found::{self, Brief, Found};
use super::{Chain, Selection, recoverable};
use crate::error::{Error, Kind, Result};
use crate::store::{Store, layout};
use crate::stream::{Abandon, Body, Retired, StreamId};
use crate::time;

impl Chain {
    /// The history of a timeline, in the generation of it that is archived now; none of a chain of records.
    pub fn history_key(&self, timeline: u32) -> Option<Path> {
        let StreamId::Postgres { system_id } = self.stream() else { return None };
        Some(layout::history(*system_id, timeline, self.generation(timeline.cast_signed())))
    }

    /// Returns whether a base backup went with a timeline that was abandoned.
    pub fn is_abandoned(&self, backup: &str) -> bool {
        self.abandoned().iter().any(|abandon| abandon.backups.iter().any(|name| name == backup))
    }

    /// Abandons a timeline, with these base backups. Of two at the same time one does it, and both are told.
    ///
    /// # Errors
    /// Those of the store. The same call tells after an error whether it was done, as long as `generation` is the one that was
    /// meant.
    pub async fn abandon(
        &mut self,
        (partition, generation): (i32, u32),
        backups: &[String],
        writer: &str,
        now: DateTime<Utc>,
    ) -> Result<Abandon> {
        loop {
            let ended = |abandon: &&Abandon| (abandon.partition, abandon.generation) == (partition, generation);
            if let Some(ended) = self.abandoned().iter().find(ended) {
                return Ok(ended.clone());
            }
            let position = self.position(partition).map_or(0..0, |at| at.start..at.end);
            let partitions = Some([(partition, position.clone())].into());
            let segments = self.select(&Selection { timestamps: None, partitions }).await?.segments;
            let body = Body::Abandon(Abandon {
                partition,
                generation,
                start: position.start,
                end: position.end,
                backups: backups.to_vec(),
                retired: Retired::of(&segments),
                decided: now,
            });
            self.progress.accepts(&body).map_err(|violation| {
                Error::new(Kind::Internal, format!("timeline {partition} cannot be abandoned")).source(violation)
            })?;
            if let Tried::WentBack = self.try_create(body, (writer, now)).await? {
                return Err(Error::new(Kind::Unavailable, "the archive went back in time meanwhile")
                    .hint("look at `tidelog ls`, and try again"));
            }
        }
    }
}

/// Abandons a timeline of a system, with the base backups that end or begin on it. What was archived of it since it was abandoned goes
/// only if that is meant (`again`): the archiver goes on within seconds, and who gives the command twice means the generation before.
///
/// # Errors
/// [`Kind::NotFound`] where nothing of it is archived, [`Kind::Config`] while another archived timeline comes from it, and for one that
/// was abandoned before.
pub async fn abandon(
    store: &Store,
    chain: &mut Chain,
    (timeline, again): (u32, bool),
    writer: &str,
) -> Result<Abandon> {
    let StreamId::Postgres { system_id } = *chain.stream() else {
        return Err(Error::new(Kind::Config, format!("{} has no timelines", chain.stream())));
    };
    let Found { sound, unreadable, beyond, .. } = found::backups(store, system_id, chain.backups()).await?;
    if beyond > 0 {
        // Those, too, would have to be named.
        return Err(found::too_many(beyond));
    }
    let facts = recoverable::facts(store, chain, &sound).await?;
    if !facts.archived.contains_key(&timeline) {
        return Err(nothing_of(chain, timeline));
    }
    if !again && let Some(before) = last_end(chain, timeline) {
        let message =
            format!("timeline {timeline} was abandoned on {}, and is archived again since", time::utc(before));
        return Err(Error::new(Kind::Config, message).hint(format!(
            "nothing more has to be done; if what is archived of it now is of the wrong server, too: `tidelog timeline abandon {timeline} --again`"
        )));
    }
    let comes_from = |(_, history): &(&u32, &Vec<_>)| {
        history.iter().any(|switch: &crate::segment::wal::Switch| switch.timeline == timeline)
    };
    let mut children = facts.histories.iter().filter(comes_from).map(|(child, _)| *child);
    if let Some(child) = children.find(|child| facts.archived.contains_key(child)) {
        let message = format!("timeline {timeline} cannot be abandoned: timeline {child} of the archive comes from it");
        return Err(Error::new(Kind::Config, message).hint(format!(
            "if timeline {child} is of the wrong server, too, abandon it first: `tidelog timeline abandon {child}`"
        )));
    }
    let on_it = |backup: &&Brief| [backup.taken.timeline, backup.taken.end_timeline].contains(&timeline);
    // Nobody knows of one that cannot be read whether it is of this server: it must not count for another.
    let names = sound.iter().filter(on_it).map(|backup| backup.name().to_owned());
    let unread = unreadable.into_iter().map(|one| one.name).filter(|name| layout::is_backup_name(name));
    let names: Vec<String> = names.chain(unread).filter(|name| !chain.is_abandoned(name)).collect();
    let partition = timeline.cast_signed();
    let generation = chain.generation(partition);
    let abandoned = chain.abandon((partition, generation), &names, writer, time::now()).await?;
    // What was claimed to be complete was so of the server that is gone; archivers claim again what they know.
    for object in store.list(&layout::coverages(chain.stream())).await? {
        store.delete(&object.location).await?;
    }
    Ok(abandoned)
}

/// Returns when a timeline was abandoned last.
fn last_end(chain: &Chain, timeline: u32) -> Option<DateTime<Utc>> {
    let ended = chain.abandoned().iter().rfind(|abandon| abandon.partition == timeline.cast_signed());
    ended.map(|abandon| abandon.decided)
}

fn nothing_of(chain: &Chain, timeline: u32) -> Error {
    let said =
        last_end(chain, timeline).map_or(String::new(), |end| format!("; it was abandoned on {}", time::utc(end)));
    Error::new(Kind::NotFound, format!("the archive holds nothing of timeline {timeline}{said}"))
        .hint("`tidelog ls --json` names the timelines as partitions")
}
