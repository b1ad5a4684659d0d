//! Writing records: collected, written behind what is committed, and made durable once.

use std::sync::Arc;

use super::{FIRST, Kind, Location, name};
use crate::PAGE;
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::hash::Digest;
use crate::medium::MediumFile;

/// Bytes that are collected before they are written.
const BUFFER: usize = 1 << 20;

/// The end of a segment, and who writes there.
#[derive(Debug)]
pub struct Appender {
    segment: u32,
    file: Arc<dyn MediumFile>,
    /// Offset of the first byte of `buffer`.
    offset: u32,
    buffer: Vec<u8>,
}

impl Appender {
    /// Goes on behind `committed` bytes of a segment.
    pub fn after(segment: u32, file: Arc<dyn MediumFile>, committed: u32) -> Self {
        Self {
            segment,
            file,
            offset: committed.max(FIRST).next_multiple_of(FIRST),
            buffer: Vec::new(),
        }
    }

    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// Bytes of the segment so far.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the buffer has a bound of about 1 MiB"
    )]
    pub fn end(&self) -> u32 {
        self.offset + self.buffer.len() as u32
    }

    pub fn full(&self, limit: u32) -> bool {
        self.end() >= limit
    }

    /// Appends a record.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a payload has at most a page"
    )]
    pub fn append(
        &mut self,
        digest: &Digest,
        kind: Kind,
        codec: Codec,
        payload: &[u8],
    ) -> Result<Location> {
        debug_assert!(payload.len() <= PAGE, "a payload fits a page");
        let location = Location {
            segment: self.segment,
            offset: self.end(),
        };
        self.buffer.extend_from_slice(&digest.0);
        self.buffer
            .extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.buffer
            .extend_from_slice(&[codec as u8, kind as u8, 0, 0]);
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(location)
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            (self.file.write_at(u64::from(self.offset), &self.buffer))
                .map_err(Error::io(format!("append to {}", name(self.segment))))?;
            self.offset = self.end();
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes the rest and makes all durable. Returns the segment's length.
    pub fn finish(&mut self) -> Result<u32> {
        self.flush()?;
        (self.file.sync()).map_err(Error::io(format!("make {} durable", name(self.segment))))?;
        Ok(self.offset)
    }
}
