//! What the library takes for granted about an image it writes to: that the refcount table has no holes and no block
//! twice. It would look for free clusters for ever otherwise, each time it needs one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

/// Offsets in the header.
const CLUSTER_BITS: u64 = 20;
const TABLE_OFFSET: u64 = 48;
const TABLE_CLUSTERS: u64 = 56;
/// Most bytes of the table: enough for images of petabytes.
const MAX_TABLE: u64 = 8 << 20;

/// Why the clusters in use cannot be known.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum RefcountError {
    #[error("Cannot read the refcount table")]
    Read(#[source] io::Error),
    #[error("Refcount table of {clusters} clusters of 2^{bits} bytes is too large")]
    TooLarge { clusters: u32, bits: u32 },
    #[error("Refcount table has no entry {index}, but later ones")]
    Hole { index: usize },
    #[error("Refcount table has no entries")]
    Empty,
    #[error("Refcount block at {offset:#x} is outside of the file, or used twice")]
    Block { offset: u64 },
}

fn field<const N: usize>(file: &File, offset: u64) -> Result<[u8; N], RefcountError> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset)
        .map_err(RefcountError::Read)?;
    Ok(bytes)
}

/// Checks the refcount table of the image in `file`, whose header and table the library finds well-formed.
pub(super) fn check(file: &File) -> Result<(), RefcountError> {
    let bits = u32::from_be_bytes(field(file, CLUSTER_BITS)?);
    let start = u64::from_be_bytes(field(file, TABLE_OFFSET)?);
    let clusters = u32::from_be_bytes(field(file, TABLE_CLUSTERS)?);
    let len = u64::from(clusters)
        .checked_shl(bits)
        .filter(|len| *len <= MAX_TABLE)
        .and_then(|len| usize::try_from(len).ok())
        .ok_or(RefcountError::TooLarge { clusters, bits })?;
    let mut table = vec![0; len];
    file.read_exact_at(&mut table, start)
        .map_err(RefcountError::Read)?;
    let file_len = file.metadata().map_err(RefcountError::Read)?.len();

    let entries: Vec<u64> = table
        .chunks_exact(8)
        .map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default()))
        .collect();
    let used = entries.iter().rposition(|entry| *entry != 0);
    let mut used = entries[..used.ok_or(RefcountError::Empty)? + 1].to_vec();
    if let Some(index) = used.iter().position(|entry| *entry == 0) {
        return Err(RefcountError::Hole { index });
    }
    used.sort_unstable();
    let twice = used.windows(2).find(|pair| pair[0] == pair[1]);
    let outside = used.iter().find(|offset| **offset >= file_len);
    match outside.or_else(|| twice.map(|pair| &pair[0])) {
        Some(&offset) => Err(RefcountError::Block { offset }),
        None => Ok(()),
    }
}
