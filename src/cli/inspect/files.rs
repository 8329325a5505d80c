//! `tidelog files`: the committed segment objects, for engines that read them directly.
use serde::Serialize;
use url::Url;

use super::{ErrorRow, Place, all_read, chosen, errors, times};
use crate::cli::output::{print, print_json};
use crate::config::Config;
use crate::error::Result;
use crate::manifest::{self, Chain, Selection};
use crate::store::Store;
use crate::stream::{SegmentRef, StreamId};
use crate::time;

/// Prints the committed objects of a range, one a line.
///
/// Exactly these objects hold the archive's records; what else lies in its folders is unfinished or left over. An object
/// is printed if it can hold a record of the range, and may hold others too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog files orders --from -1d
  tidelog files '^cdc\\.' --json | jq -r '.files[].url'
  duckdb -c \"select count(*) from read_parquet(['$(tidelog files orders | paste -sd, | sed \"s/,/','/g\")'])\"")]
pub(crate) struct Args {
    /// Topics, ^ and a regex, or streams as `tidelog ls` prints them
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    /// Only objects that can hold records at or after this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Only objects that can hold records before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Print JSON, with sizes and ranges
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    files: Vec<File>,
    /// What cannot be read; absent if all can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorRow>,
}

#[derive(Debug, Serialize)]
struct File {
    url: String,
    stream: String,
    format: &'static str,
    records: u64,
    bytes: u64,
    stored_bytes: u64,
    sha256: String,
    min_time: Option<String>,
    max_time: Option<String>,
    partitions: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Range {
    partition: i32,
    start: Place,
    end: Place,
    records: u64,
}

/// Runs the command.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    let timestamps = times(args.from.as_deref(), args.to.as_deref(), time::now())?;
    let store = Store::open(&config.archive)?;
    let (mut files, mut damaged) = (Vec::new(), Vec::new());
    let selection = Selection { timestamps, partitions: None };
    for stream in chosen(manifest::streams(&store).await?, &args.streams)? {
        match manifest::isolated(&store, segments(&store, &stream, &selection).await).await? {
            Ok(segments) => {
                files.extend(segments.iter().map(|segment| file(&config.archive.url, &stream, segment)));
            }
            Err(error) => damaged.push((stream, error)),
        }
    }
    if args.json {
        print_json(&Listing { files, errors: errors(&damaged) })?;
    } else {
        print(&files.iter().map(|file| file.url.clone() + "\n").collect::<String>())?;
    }
    all_read(&damaged)
}

async fn segments(store: &Store, stream: &StreamId, selection: &Selection) -> Result<Vec<SegmentRef>> {
    let Some(chain) = Chain::open(store, stream).await? else { return Ok(Vec::new()) };
    Ok(chain.select(selection).await?.segments)
}

fn file(archive: &Url, stream: &StreamId, segment: &SegmentRef) -> File {
    let range = |at: &crate::stream::PartitionRange| Range {
        partition: at.partition,
        start: Place::of(stream, at.start),
        end: Place::of(stream, at.end),
        records: at.records,
    };
    File {
        url: address(archive, &segment.object),
        stream: stream.to_string(),
        format: segment.format.name(),
        records: segment.records(),
        bytes: segment.raw_bytes,
        stored_bytes: segment.bytes,
        sha256: segment.sha256.clone(),
        min_time: segment.min_timestamp().map(time::rfc3339),
        max_time: segment.max_timestamp().map(time::rfc3339),
        partitions: segment.partitions.iter().map(range).collect(),
    }
}

/// Returns where an engine finds the object: a path on a local archive, else its URL.
fn address(archive: &Url, object: &str) -> String {
    match archive.to_file_path() {
        Ok(root) if archive.scheme() == "file" => root.join(object).display().to_string(),
        _ => format!("{}/{object}", archive.as_str().trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_an_address_that_engines_understand() {
        let address = |archive: &str| address(&Url::parse(archive).expect("a URL"), "segments/topic=a/b.parquet");
        assert_eq!(
            address("file:///var/lib/tidelog/my%20archive"),
            "/var/lib/tidelog/my archive/segments/topic=a/b.parquet"
        );
        assert_eq!(address("s3://bucket/prefix/"), "s3://bucket/prefix/segments/topic=a/b.parquet");
        assert_eq!(address("s3://bucket"), "s3://bucket/segments/topic=a/b.parquet");
    }
}
