//! Reading records: one alone, or many that lie together.

use std::io;

use super::{Location, RECORD, Segments};
use crate::PAGE;

/// Bytes of one segment, read together.
pub struct Window {
    segment: u32,
    start: u32,
    bytes: Vec<u8>,
    filled: usize,
}

impl Window {
    /// Reads records one by one.
    pub fn single() -> Self {
        Self::of(RECORD + PAGE)
    }

    /// Reads ahead: for records that were written one after the other.
    pub fn wide() -> Self {
        Self::of(256 << 10)
    }

    fn of(size: usize) -> Self {
        Self {
            segment: 0,
            start: 0,
            bytes: vec![0; size],
            filled: 0,
        }
    }

    /// The bytes from `location` on: a whole record, unless the segment ends before that.
    pub(super) fn get(&mut self, segments: &Segments, location: Location) -> io::Result<&[u8]> {
        if let Some(at) = self.holds(location) {
            return Ok(&self.bytes[at..self.filled]);
        }
        self.filled = 0;
        let file = segments.file(location.segment)?;
        let filled = file.read_at(u64::from(location.offset), &mut self.bytes)?;
        self.segment = location.segment;
        self.start = location.offset;
        self.filled = filled;
        Ok(&self.bytes[..filled])
    }

    /// Where in the window a record is, if all of it is.
    fn holds(&self, location: Location) -> Option<usize> {
        let same = self.filled > 0 && location.segment == self.segment;
        let at = location.offset.checked_sub(self.start).filter(|_| same)?;
        let at = usize::try_from(at).ok()?;
        let header = self.bytes[..self.filled].get(at..)?.get(..RECORD)?;
        let len = u32::from_le_bytes([header[32], header[33], header[34], header[35]]);
        let end = at + RECORD + usize::try_from(len).ok()?.min(PAGE);
        (end <= self.filled).then_some(at)
    }
}
