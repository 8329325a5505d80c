//! What is compressed in the manifest, and how far it may go.

use std::io::Read as _;

use object_store::path::Path;

use crate::error::{Kind, Result, ResultExt as _};
use crate::store::bounds;

/// Decompresses an object, as far as one of its kind and size may go.
pub(super) fn unpack(object: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let damaged = || format!("{object} cannot be decompressed");
    let (most, mut json) = (bounds::unpacked(object, bytes.len()), Vec::new());
    let decoder = zstd::Decoder::with_buffer(bytes).or_err(Kind::Corrupt, damaged)?;
    decoder.take(most + 1).read_to_end(&mut json).or_err(Kind::Corrupt, damaged)?;
    if json.len() as u64 > most {
        return Err(bounds::unpacks_to_too_much(object.as_ref(), most));
    }
    Ok(json)
}
