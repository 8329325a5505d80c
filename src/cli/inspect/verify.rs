//! `tidelog verify`: whether the archive still is what its checkpoints say.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::{Place, against};
use crate::cli::human;
use crate::cli::output::{print, print_json};
use crate::cli::progress::{Progress, Unit};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::manifest::coverage::Unknown;
use crate::manifest::found::MOST_NAMED;
use crate::manifest::writer_id;
use crate::manifest::{self, Repaired};
use crate::store::Store;
use crate::stream::{Lsn, StreamId};
use crate::time;
use crate::verify::{self, Damage, DamageKind, Report, Seen};

/// Checks every chain of checkpoints and every segment: numbers, links, sizes, hashes, and the files' own facts.
///
/// With --against-source, records that the source has and the archive lacks count, too. Exits with 3 if anything is not as it should be, with 1 if the store kept something from being checked. Objects that no
/// checkpoint names are counted and no error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog verify
  tidelog verify --deep --json | jq .errors
  tidelog verify --against-source")]
pub(crate) struct Args {
    /// Also decode every record, and compare counts, offsets and timestamps with the checkpoints
    #[arg(long)]
    deep: bool,
    /// Also compare with the live topics: ranges, counts and a sample of the records, or all of them with --deep. What one side
    /// lacks is told by name: missing, lost, expired, compacted, not archived yet, recorded gaps, damaged segments
    #[arg(long)]
    against_source: bool,
    /// First put right what can be: make missing pages again, put aside what stands above a hole in a chain, and let go of base
    /// backups of which nothing is there any more
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct RepairedRow {
    stream: String,
    /// The pages that were made again.
    pages: Vec<String>,
    /// Where the entries above a hole lie now.
    aside: Vec<String>,
    /// The base backups that count no longer.
    let_go: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listing<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repaired: Vec<RepairedRow>,
    streams: u64,
    segments: u64,
    records: u64,
    bytes: u64,
    errors: Vec<ErrorRow<'a>>,
    gaps: Vec<GapRow>,
    orphans: u64,
    backups: u64,
    /// Base backups that were begun and do not count, or were expired.
    leftovers: u64,
    leftover_bytes: u64,
    complete: Vec<CompleteRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<against::Listing<'a>>,
}

/// Up to when a topic is complete, or why that is not known.
#[derive(Debug, Serialize)]
struct CompleteRow {
    stream: String,
    complete_through: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

#[derive(Debug, Serialize)]
struct ErrorRow<'a> {
    stream: String,
    object: &'a str,
    kind: &'static str,
    detail: &'a str,
    ranges: Vec<RangeRow>,
}

#[derive(Debug, Serialize)]
struct RangeRow {
    partition: i32,
    start: Place,
    end: Place,
}

#[derive(Debug, Serialize)]
struct GapRow {
    stream: String,
    partition: i32,
    start: Place,
    end: Place,
    reason: &'static str,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Incomplete` if there is damage, after it was printed.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    let kafka = args.against_source.then(|| against::cluster(config)).transpose()?;
    let store = Store::open(&config.archive)?;
    let repaired = if args.repair { repair(&store).await? } else { Vec::new() };
    let seen = Arc::new(Seen::default());
    let report = {
        let shown = Arc::clone(&seen);
        let _bar = Progress::follow("verify", Unit::Bytes, move || (shown.done(), shown.total()));
        verify::verify(&store, args.deep, &seen).await?
    };
    let compared = match kafka {
        Some(kafka) => Some((kafka, against::compare(&store, kafka, args.deep, &report.errors).await)),
        None => None,
    };
    if args.json {
        let source = compared.as_ref().map(|(kafka, against)| against::listing(kafka, args.deep, against));
        print_json(&Listing { repaired, source, ..listing(&report) })?
    } else {
        let source = compared.as_ref().map(|(kafka, against)| against::text(kafka, args.deep, against));
        let source = source.unwrap_or_default();
        print(&format!("{}{}{source}", repairs(&repaired), text(&report, args.deep)))?
    }
    verdict(&report, compared.as_ref().map(|(_, against)| against))
}

/// Repairs every chain; what cannot be repaired is told by the look that follows.
async fn repair(store: &Store) -> Result<Vec<RepairedRow>> {
    let (mut rows, writer) = (Vec::new(), writer_id()?);
    for stream in manifest::streams(store).await? {
        match manifest::repair(store, &stream, (&writer, time::now())).await {
            Ok(done) if done.is_empty() => {}
            Ok(Repaired { pages, aside, let_go }) => {
                let [pages, aside] = [pages, aside].map(|keys| keys.iter().map(ToString::to_string).collect());
                rows.push(RepairedRow { stream: stream.to_string(), pages, aside, let_go });
            }
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::warn!(%stream, %error, hint = error.hint_text(), "this chain cannot be repaired");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

fn repairs(rows: &[RepairedRow]) -> String {
    let mut text = String::new();
    for RepairedRow { stream, pages, aside, let_go } in rows {
        for page in pages {
            text.extend(["repaired: ", page, " was made again from its entries\n"]);
        }
        for name in let_go {
            text.push_str(&format!(
                "repaired: {stream} has nothing of the base backup {name}, which counts no longer\n"
            ));
        }
        if let (Some(first), Some(last)) = (aside.first(), aside.last()) {
            let (entries, s) = (aside.len(), if aside.len() == 1 { "" } else { "s" });
            text.push_str(&format!(
                "repaired: {stream} had a hole; {entries} checkpoint{s} above it {} put aside and no longer count\n  from     \
                 {first}\n  to       {last}\n  next     tidelog run reads again from where the chain ends now; what the \
                 source has no more becomes a gap, and stays in the segments that these objects name\n",
                if entries == 1 { "was" } else { "were" }
            ));
        }
    }
    text
}

fn listing(report: &Report) -> Listing<'_> {
    let ranges = |damage: &Damage| {
        let place = |position| Place::of(&damage.stream, position);
        let row = |&(partition, start, end, _): &(i32, i64, i64, u64)| RangeRow {
            partition,
            start: place(start),
            end: place(end),
        };
        damage.ranges.iter().map(row).collect()
    };
    Listing {
        repaired: Vec::new(),
        streams: report.streams,
        segments: report.segments,
        records: report.records,
        bytes: report.bytes,
        errors: report
            .errors
            .iter()
            .map(|damage| ErrorRow {
                stream: damage.stream.to_string(),
                object: &damage.object,
                kind: damage.kind.name(),
                detail: &damage.detail,
                ranges: ranges(damage),
            })
            .collect(),
        gaps: report
            .gaps
            .iter()
            .map(|(stream, gap)| GapRow {
                stream: stream.to_string(),
                partition: gap.partition,
                start: Place::of(stream, gap.start),
                end: Place::of(stream, gap.end),
                reason: gap.reason.name(),
            })
            .collect(),
        orphans: report.orphans,
        backups: report.backups,
        leftovers: report.leftovers,
        leftover_bytes: report.leftover_bytes,
        source: None,
        complete: report
            .complete
            .iter()
            .map(|(generation, through)| CompleteRow {
                stream: generation.to_string(),
                complete_through: through.ok().map(time::utc),
                unknown: through.err().map(why_unknown),
            })
            .collect(),
    }
}

/// Why it is not known up to when a topic is complete.
fn why_unknown(unknown: Unknown) -> String {
    match unknown {
        Unknown::Partition(partition) => format!("nobody has claimed up to when partition {partition} is complete"),
        Unknown::Count => "no archiver has said how many partitions it has".to_owned(),
    }
}

/// Whether it is of a base backup, or of a timeline's history.
fn is_of_backups(damage: &Damage) -> bool {
    damage.object.starts_with("backups/") || damage.object.ends_with("history")
}

fn text(report: &Report, deep: bool) -> String {
    let mut text = String::new();
    // Of what can be any number of objects, for no entry names them.
    let (mut of_backups, mut others) = (0_usize, 0_u64);
    for damage in &report.errors {
        of_backups += usize::from(is_of_backups(damage));
        match is_of_backups(damage) && of_backups > MOST_NAMED {
            true => others += 1,
            false => text.push_str(&paragraph(damage)),
        }
    }
    if others > 0 {
        let more = human::many(others, "more error");
        text.push_str(&format!(
            "error: {more} of base backups and histories of timelines: `tidelog verify --json` names them\n"
        ));
    }
    let checked = if deep { "read and compared" } else { "hashed and compared" };
    let mut say = |line: String| text.extend([line.as_str(), "\n"]);
    say(format!(
        "{}, {} with {} in {} {checked}",
        human::many(report.streams, "stream"),
        human::many(report.segments, "segment"),
        human::many(report.records, "record"),
        human::bytes(report.bytes)
    ));
    if report.backups > 0 {
        say(format!("{}: every part is there", human::many(report.backups, "base backup")));
    }
    for (stream, gap) in &report.gaps {
        let lost = match stream {
            StreamId::Kafka(_) => format!("partition {}: offsets {}..{}", gap.partition, gap.start, gap.end),
            StreamId::Postgres { .. } | StreamId::State(_) => span_words(stream, gap.partition, gap.start, gap.end),
        };
        say(format!("known gap: {stream} {lost} are lost ({})", gap.reason.words()));
    }
    if report.leftovers > 0 {
        say(format!(
            "{} of parts alone with {} (under way, left by a process that was killed, or expired; `tidelog run` and `tidelog expire` \
             remove what nobody can need any more)",
            human::many(report.leftovers, "base backup"),
            human::bytes(report.leftover_bytes)
        ));
    }
    if report.orphans > 0 {
        say(format!(
            "{} that no checkpoint names (left by a writer that was stopped; harmless)",
            human::many(report.orphans, "object")
        ));
    }
    for (generation, through) in &report.complete {
        say(match through {
            Ok(through) => {
                format!("kafka/{}/{} is complete through {}", generation.cluster, generation.topic, time::utc(*through))
            }
            Err(unknown) => format!(
                "kafka/{}/{}: up to when it is complete is not known, records may be missing ({})",
                generation.cluster,
                generation.topic,
                why_unknown(*unknown)
            ),
        });
    }
    if report.errors.is_empty() {
        say("everything is as its checkpoints say".to_owned());
    }
    text
}

/// A range of a stream in words: offsets of a partition, or WAL of a timeline.
fn span_words(stream: &StreamId, partition: i32, start: i64, end: i64) -> String {
    match stream {
        StreamId::Kafka(_) => {
            let (first, last) = (human::exact(start.unsigned_abs()), human::exact((end - 1).unsigned_abs()));
            format!("partition {partition}: offsets {first}..{last}")
        }
        StreamId::Postgres { .. } => {
            format!("timeline {partition}: the bytes of WAL from {} to {}", Lsn::at(start), Lsn::at(end))
        }
        StreamId::State(_) => format!("version {start}"),
    }
}

fn paragraph(damage: &Damage) -> String {
    let name = match &damage.stream {
        StreamId::Kafka(generation) => format!("kafka/{}/{}", generation.cluster, generation.topic),
        StreamId::Postgres { .. } | StreamId::State(_) => damage.stream.to_string(),
    };
    let at = |partition: i32, start: i64, end: i64| span_words(&damage.stream, partition, start, end);
    let failed = if damage.kind == DamageKind::Unchecked { "could not be checked" } else { "cannot be read" };
    let what = match (damage.kind, damage.ranges.as_slice()) {
        (DamageKind::Unchecked, []) => format!("{}: its chain of checkpoints {failed}", damage.stream),
        (DamageKind::Missing | DamageKind::Unreadable, []) if damage.object.starts_with("backups/") => {
            format!("{}: a base backup {failed}", damage.stream)
        }
        (DamageKind::Missing | DamageKind::Unreadable, []) if damage.object.ends_with("history") => {
            format!("{}: the history of a timeline {failed}", damage.stream)
        }
        (DamageKind::Chain, _) | (_, []) => format!("{}: its chain of checkpoints is damaged", damage.stream),
        (_, [(partition, start, end, _)]) => {
            format!("{name} {} {failed}", at(*partition, *start, *end))
        }
        (_, several) => {
            let mut text = format!("{name}: these {failed}:");
            for (partition, start, end, _) in several {
                // Writing to a string does not fail.
                write!(text, "\n  {}", at(*partition, *start, *end)).unwrap_or_default();
            }
            text
        }
    };
    format!(
        "error: {what}\n  object   {}\n  because  {}\n  do       {}\n",
        one_line(&damage.object),
        one_line(&damage.detail),
        damage.kind.hint()
    )
}

fn verdict(report: &Report, against: Option<&against::Against>) -> Result<()> {
    let (lacks, failed) =
        against.map_or((Vec::new(), None), |against| against::lacks(against, !report.errors.is_empty()));
    if report.errors.is_empty() && lacks.is_empty() {
        return failed.map_or(Ok(()), Err);
    }
    let chain = report.errors.iter().filter(|damage| damage.kind == DamageKind::Chain).count() as u64;
    let mut found = Vec::new();
    let segments = report.damaged_segments();
    if segments > 0 {
        let (all, records) = (human::exact(report.segments), human::many(report.damaged_records(), "record"));
        found.push(format!("{} of {all}, {records} affected", human::many(segments, "damaged segment")));
    }
    if chain > 0 {
        found.push(human::many(chain, "damaged checkpoint"));
    }
    found.extend(lacks);
    // That nothing is known of an object is no damage.
    let kind = if found.is_empty() { Kind::Unavailable } else { Kind::Incomplete };
    let unchecked = report.unchecked();
    if unchecked > 0 {
        found.push(format!("{} could not be checked", human::many(unchecked, "object")));
    }
    found.extend(failed.map(|error| error.to_string()));
    Err(Error::new(kind, found.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::TopicGeneration;

    #[test]
    fn damage_reads_as_the_contract_shows_it() {
        let damage = Damage {
            stream: TopicGeneration::new("main", "orders", 0).stream(),
            object: "segments/a.parquet".to_owned(),
            kind: DamageKind::Changed,
            detail: "its sha256 is 9b, the checkpoint 00000000000000000412 says 77".to_owned(),
            ranges: vec![(3, 120_400, 122_000, 1_600)],
        };
        let said = paragraph(&damage);
        assert!(said.starts_with("error: kafka/main/orders partition 3: offsets 120,400..121,999 cannot be read\n  object   segments/a.parquet\n"), "{said}");
        let report = Report { segments: 2_410, errors: vec![damage], ..Report::default() };
        let error = verdict(&report, None).expect_err("damage");
        assert_eq!(error.to_string(), "1 damaged segment of 2,410, 1,600 records affected");
        assert_eq!(error.exit_code(), 3);
        assert!(verdict(&Report::default(), None).is_ok());
        let mut unchecked = report.errors[0].clone();
        unchecked.kind = DamageKind::Unchecked;
        assert!(paragraph(&unchecked).contains("offsets 120,400..121,999 could not be checked"));
        let report = Report { segments: 2_410, errors: vec![unchecked], ..Report::default() };
        let error = verdict(&report, None).expect_err("nothing is known");
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("1 object could not be checked", 1));
    }
}
