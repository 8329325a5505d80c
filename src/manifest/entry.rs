//! One entry of a chain as bytes: JSON that names its format, its stream, its number and the entry before.

use bytes::Bytes;
use object_store::path::Path;
use serde::Deserialize;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Store, layout};
use crate::stream::{CHAIN_FORMAT, Checkpoint, Merge, StreamId, sha256};

/// An entry that was read.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its object.
    pub(super) object: Path,
    /// The sha256 of its bytes, which the next entry names.
    pub(super) sha256: String,
    /// What it says.
    pub(super) checkpoint: Checkpoint,
}

/// An entry's bytes.
pub(super) fn encode(checkpoint: &Checkpoint) -> Result<Bytes> {
    let bytes = serde_json::to_vec(checkpoint);
    bytes.map(Bytes::from).or_err(Kind::Internal, || format!("cannot write entry {} as JSON", checkpoint.number))
}

/// Reads the bytes of entry `number`. It must say itself that it is that entry of that stream.
pub(super) fn decode(stream: &StreamId, number: u64, object: Path, bytes: &[u8]) -> Result<Entry> {
    check_format(&object, bytes, CHAIN_FORMAT)?;
    let checkpoint = Checkpoint::parse(bytes).map_err(|error| not_readable(&object).source(error))?;
    if checkpoint.stream != stream.to_string() || checkpoint.number != number {
        let message = format!("{object} says that it is entry {} of {}", checkpoint.number, checkpoint.stream);
        return Err(Error::new(Kind::Corrupt, message).hint("the object was moved or copied by hand: put it back"));
    }
    let named = checkpoint.body.merge().into_iter().flat_map(Merge::objects);
    names_its_own(
        stream,
        &object,
        checkpoint.body.segments().iter().map(|segment| segment.object.as_str()).chain(named),
    )?;
    Ok(Entry { sha256: sha256(bytes), object, checkpoint })
}

/// Refuses objects that are none of the stream's: they are read, printed and expired in its name.
pub(super) fn names_its_own<'a>(
    stream: &StreamId,
    object: &Path,
    mut named: impl Iterator<Item = &'a str>,
) -> Result<()> {
    named.try_for_each(|key| layout::segment_of(stream, key).map(drop)).map_err(|error| error.context(object))
}

/// Refuses a format that is newer than what this program knows, before anything else of the bytes is believed.
pub(super) fn check_format(object: &Path, bytes: &[u8], newest: u32) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(bytes).map_err(|error| not_readable(object).source(error))?;
    match version.format {
        0 => Err(not_readable(object).source("there is no format 0")),
        known if known <= newest => Ok(()),
        newer => Err(Error::new(
            Kind::Unsupported,
            format!("{object} is written in format {newer}, and this program reads up to format {newest}"),
        )
        .hint("a newer tidelog wrote to this archive: update this one")),
    }
}

fn not_readable(object: &Path) -> Error {
    Error::new(Kind::Corrupt, format!("{object} cannot be read"))
        .hint("restore the object from a copy of the archive; `tidelog verify` lists all damage")
}

/// Entry `number`; none if it does not exist.
pub(super) async fn read(store: &Store, stream: &StreamId, number: u64) -> Result<Option<Entry>> {
    let object = layout::entry(stream, number);
    let bytes = store.get(&object).await?;
    bytes.map(|bytes| decode(stream, number, object, &bytes)).transpose()
}

/// Returns whether entry `number` is there with the bytes that have this sha256.
pub(super) async fn is_there(store: &Store, stream: &StreamId, number: u64, hash: &str) -> Result<bool> {
    let bytes = store.get(&layout::entry(stream, number)).await?;
    Ok(bytes.is_some_and(|bytes| sha256(&bytes) == hash))
}

/// The error for an entry that is not there although a later one is.
pub(super) fn missing(stream: &StreamId, number: u64) -> Error {
    let message = format!("{} is missing, although later entries of its chain exist", layout::entry(stream, number));
    Error::new(Kind::Corrupt, message).hint(WAY_OUT)
}

/// The same where it is known which later one is there: what it and those behind it hold is above the hole.
pub(super) fn missing_before(stream: &StreamId, number: u64, later: u64) -> Error {
    let object = layout::entry(stream, number);
    let message = format!(
        "{object} is missing, although later entries of its chain exist, the first of them with the number {later}"
    );
    Error::new(Kind::Corrupt, message).hint(WAY_OUT)
}

/// The same for all of a wide hole.
pub(super) fn missing_all(stream: &StreamId, (first, last): (u64, u64)) -> Error {
    let (from, to) = (layout::entry(stream, first), layout::entry(stream, last));
    let message = format!("{from} to {to} are missing, although later entries of their chain exist");
    Error::new(Kind::Corrupt, message).hint(WAY_OUT)
}

const WAY_OUT: &str = "restore the missing entries from a copy or an older version of the bucket; or let `tidelog verify \
                       --repair` put aside what stands above them, so that the archiver reads it again; nothing is \
                       written to this stream until then";
