//! Which generations of the archive are of the topic that the source has now.
//!
//! A topic that an unclean election cut keeps its id, and goes on in the next generation: both are of it. One that was deleted and
//! created again has another id, and nothing of the generations before is on the source.

use super::account::Own;
use crate::error::Result;
use crate::manifest::{self, Chain};
use crate::store::Store;
use crate::stream::TopicGeneration;

/// One generation.
pub(super) struct Part {
    pub(super) generation: u32,
    pub(super) chain: Chain,
}

/// The generations that are of one topic, the oldest first.
pub(super) struct Lineage {
    pub(super) parts: Vec<Part>,
}

/// How the archive's generations stand to the topic that the source has.
pub(super) enum Descent {
    /// They are of it.
    Same(Lineage),
    /// The newest one is of a topic before.
    MadeAgain,
    /// The source tells the id of an earlier generation: that broker lags behind the others.
    Lags,
}

/// Finds the generations of the topic with this id; `generations` are all of its name, the oldest first, and not empty.
///
/// # Errors
/// The store's, and those of chains that cannot be read.
pub(super) async fn descent(store: &Store, generations: &[TopicGeneration], id: Option<&str>) -> Result<Descent> {
    let mut parts = Vec::new();
    // Where one of the two has no id, they are taken for the same.
    let same = |archived: Option<&str>| archived.is_none() || id.is_none() || archived == id;
    let mut newest = generations.iter().rev();
    while let Some(generation) = newest.next() {
        let begin = manifest::begin_of(store, &generation.stream()).await?;
        if !same(begin.as_ref().and_then(|begin| begin.topic_id())) {
            if !parts.is_empty() {
                break;
            }
            return Ok(if is_known(store, newest, id).await? { Descent::Lags } else { Descent::MadeAgain });
        }
        if let Some(chain) = Chain::open(store, &generation.stream()).await? {
            parts.push(Part { generation: generation.number, chain });
        }
    }
    parts.reverse();
    Ok(if parts.is_empty() { Descent::MadeAgain } else { Descent::Same(Lineage { parts }) })
}

/// Whether one of `generations` has this id.
async fn is_known(
    store: &Store,
    generations: impl Iterator<Item = &TopicGeneration>,
    id: Option<&str>,
) -> Result<bool> {
    for generation in generations {
        let begin = manifest::begin_of(store, &generation.stream()).await?;
        if id.is_some() && begin.as_ref().and_then(|begin| begin.topic_id()) == id {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Lineage {
    /// Where part `index` stands with a partition; none if it says nothing of it. `low` is the source's first offset.
    pub(super) fn own(&self, index: usize, partition: i32, low: i64) -> Option<Own> {
        let chain = &self.parts.get(index)?.chain;
        let (position, begin) = (chain.position(partition), chain.begin_facts().start_of(partition));
        let follows = index > 0;
        let (start, end) = match (position, begin) {
            (Some(position), _) => (position.start, position.end),
            (None, Some(begin)) => (begin, begin),
            (None, None) if follows => return None,
            (None, None) => (low, low),
        };
        let next = self.parts.get(index + 1).map(|part| &part.chain);
        let takeover = next.and_then(|next| {
            let begin = next.begin_facts().start_of(partition);
            begin.or_else(|| next.position(partition).map(|position| position.start))
        });
        Some(Own { begin, start, end, takeover, follows })
    }
}
