//! Writing a payload.

use thiserror::Error;

use super::{ENTRY_SIZE, MAX_SEGMENTS, Payload, PayloadError, SegmentKind};
use crate::compress::{CompressError, Method, compress};

/// Why a payload cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// A segment cannot be compressed.
    #[error("Segment {index} of the payload cannot be stored")]
    Compress {
        /// Its index.
        index: usize,
        /// Cause.
        #[source]
        source: CompressError,
    },
    /// More than the format can say.
    #[error(
        "The payload would have {len} bytes or {count} segments; the format takes 4 GiB and {MAX_SEGMENTS}"
    )]
    TooLarge {
        /// Bytes.
        len: usize,
        /// Segments.
        count: usize,
    },
    /// What was to be written could not be loaded.
    #[error("The payload could not be started")]
    Unsound(#[from] PayloadError),
}

/// A segment to write.
#[derive(Clone, Debug)]
pub struct NewSegment {
    /// Code, data or memory to be cleared.
    pub kind: SegmentKind,
    /// Physical address to load it to.
    pub load: u64,
    /// Its data.
    pub data: Vec<u8>,
    /// Bytes of memory beyond the data, to be cleared.
    pub more: u32,
    /// How to store it, if that makes it smaller.
    pub method: Method,
}

/// The bytes of a payload. It has been read back and can be loaded.
pub fn write(segments: &[NewSegment], entry: u64) -> Result<Vec<u8>, WriteError> {
    let mut table = Vec::with_capacity((segments.len() + 1) * ENTRY_SIZE);
    let mut body: Vec<u8> = Vec::new();
    let body_at = (segments.len() + 1) * ENTRY_SIZE;
    for (index, segment) in segments.iter().enumerate() {
        let too_large = || WriteError::TooLarge {
            len: body_at + body.len() + segment.data.len(),
            count: segments.len(),
        };
        let number = |value: usize| u32::try_from(value).map_err(|_| too_large());
        let packed = compress(segment.method, &segment.data)
            .map_err(|source| WriteError::Compress { index, source })?;
        let (method, stored) = if packed.len() < segment.data.len() {
            (segment.method, &packed)
        } else {
            (Method::None, &segment.data)
        };
        let mem_len = number(segment.data.len())?
            .checked_add(segment.more)
            .ok_or_else(too_large)?;
        for field in [
            segment.kind.number(),
            method.number(),
            number(body_at + body.len())?,
        ] {
            table.extend_from_slice(&field.to_be_bytes());
        }
        table.extend_from_slice(&segment.load.to_be_bytes());
        table.extend_from_slice(&number(stored.len())?.to_be_bytes());
        table.extend_from_slice(&mem_len.to_be_bytes());
        body.extend_from_slice(stored);
    }
    table.extend_from_slice(&SegmentKind::Entry.number().to_be_bytes());
    table.extend_from_slice(&[0; 8]);
    table.extend_from_slice(&entry.to_be_bytes());
    table.extend_from_slice(&[0; 8]);
    table.append(&mut body);
    Payload::parse(&table)?.check_overlap()?;
    Ok(table)
}
