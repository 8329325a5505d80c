//! Which moments each part of a pipeline reaches, for the error of one that some part does not.

use chrono::{DateTime, Utc};

use super::archived;
use crate::config::{Config, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::manifest::Chain;
use crate::manifest::recoverable::{self, Window};
use crate::replay::{Query, Selection, readable, sources};
use crate::restore::Log;
use crate::store::Store;
use crate::stream::StreamId;
use crate::time;

/// A part, and from when to when it is archived, as far as that is limited.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reach {
    part: &'static str,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
}

/// Adds to the error of a moment that cannot be reached what each part reaches, and the nearest moment that all of them do.
pub(super) async fn told(error: Error, store: &Store, config: &Config, pipeline: &Pipeline, to: &str) -> Error {
    if !matches!(error.kind(), Kind::NotFound | Kind::Incomplete) {
        return error;
    }
    // What cannot be read is no reason to say less of what was asked.
    let Ok(parts) = parts(store, config, pipeline).await else { return error };
    let wanted = time::parse_micros(to, time::now(), false).ok().and_then(DateTime::from_timestamp_micros);
    match words(&parts, wanted) {
        Some(words) => {
            let words = error.hint_text().map_or_else(|| words.clone(), |hint| format!("{words}; {hint}"));
            error.hint(words)
        }
        None => error,
    }
}

async fn parts(store: &Store, config: &Config, pipeline: &Pipeline) -> Result<Vec<Reach>> {
    let mut parts = Vec::new();
    let log = Log::open(store, None).await?;
    let stream = StreamId::Postgres { system_id: log.system().system_id };
    if let Some(chain) = Chain::open(store, &stream).await? {
        let facts = recoverable::facts(store, &chain, &log.backups().await?.sound).await?;
        let windows: Vec<Window> = recoverable::windows(store, &chain, &facts).await?;
        // Behind the last gap, for what lies before it has an end of its own.
        if let Some(last) = windows.last() {
            parts.push(Reach { part: "Postgres", from: Some(last.from), to: Some(last.to) });
        }
    }
    if pipeline.kafka.is_some() {
        let cluster = config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
        let query: Query = Selection { topics: vec!["^".to_owned()], ..Selection::default() }.query(None)?;
        let (found, _) = readable(sources(store, cluster, &query).await?);
        let through = found.iter().flat_map(|source| source.complete.partitions.values()).min();
        parts.push(Reach { part: "topics", from: None, to: through.copied() });
    }
    if pipeline.has_connectors() {
        let from = archived::connectors_since(store, config, pipeline).await?;
        parts.push(Reach { part: "connectors", from, to: None });
    }
    Ok(parts)
}

fn words(parts: &[Reach], wanted: Option<DateTime<Utc>>) -> Option<String> {
    let shown = |at: DateTime<Utc>| time::utc(at);
    let part = |reach: &Reach| match (reach.from, reach.to) {
        (Some(from), Some(to)) => Some(format!("{} from {} to {}", reach.part, shown(from), shown(to))),
        (Some(from), None) => Some(format!("{} from {}", reach.part, shown(from))),
        (None, Some(to)) => Some(format!("{} to {}", reach.part, shown(to))),
        (None, None) => None,
    };
    let known: Vec<String> = parts.iter().filter_map(part).collect();
    let from = parts.iter().filter_map(|reach| reach.from).max();
    let to = parts.iter().filter_map(|reach| reach.to).min();
    let nearest = match (from, to) {
        (Some(from), Some(to)) if from > to => {
            return Some(format!("no moment is reached by every part: {}", known.join(", ")));
        }
        (Some(from), _) if wanted.is_some_and(|wanted| wanted < from) => from,
        (_, Some(to)) => to,
        (from, None) => from?,
    };
    Some(format!("the nearest moment that every part reaches is {}: {}", shown(nearest), known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_moment_is_one_that_every_part_reaches() {
        let at = |second: i64| DateTime::from_timestamp(second, 0);
        let parts = |topics: i64, connectors: i64| {
            vec![
                Reach { part: "Postgres", from: at(100), to: at(200) },
                Reach { part: "topics", from: None, to: at(topics) },
                Reach { part: "connectors", from: at(connectors), to: None },
            ]
        };
        let says = |parts: &[Reach], wanted: i64| words(parts, at(wanted)).expect("words");
        let all = "Postgres from 1970-01-01T00:01:40.000Z to 1970-01-01T00:03:20.000Z, topics to 1970-01-01T00:03:00.000Z, \
                   connectors from 1970-01-01T00:02:00.000Z";
        let nearest =
            |at: &str| format!("the nearest moment that every part reaches is 1970-01-01T00:{at}.000Z: {all}");
        assert_eq!(says(&parts(180, 120), 500), nearest("03:00"));
        assert_eq!(says(&parts(180, 120), 1), nearest("02:00"));
        assert!(says(&parts(110, 120), 1).starts_with("no moment is reached by every part: Postgres"));
        assert_eq!(words(&[Reach { part: "topics", from: None, to: None }], at(1)), None);
    }
}
