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
    /// Bytes that the next read takes: one record's, and twice as many each time that the next record is wanted.
    reach: usize,
}

/// The longest record.
const LONGEST: usize = RECORD + PAGE;

impl Window {
    /// Reads records one by one.
    pub fn single() -> Self {
        Self::of(LONGEST)
    }

    /// Reads ahead while records are wanted that were written one after the other.
    pub fn wide() -> Self {
        Self::of(256 << 10)
    }

    fn of(size: usize) -> Self {
        Self {
            segment: 0,
            start: 0,
            bytes: vec![0; size],
            filled: 0,
            reach: LONGEST,
        }
    }

    /// The bytes from `location` on: a whole record, unless the segment ends before that.
    pub(super) fn get(&mut self, segments: &Segments, location: Location) -> io::Result<&[u8]> {
        if let Some(at) = self.holds(location) {
            return Ok(&self.bytes[at..self.filled]);
        }
        // What lies about in many snapshots must not be read with all that lies behind it.
        self.reach = if self.continues(location) {
            (2 * self.reach).min(self.bytes.len())
        } else {
            LONGEST
        };
        self.filled = 0;
        let file = segments.file(location.segment)?;
        let room = &mut self.bytes[..self.reach];
        let filled = file.read_at(u64::from(location.offset), room)?;
        self.segment = location.segment;
        self.start = location.offset;
        self.filled = filled;
        Ok(&self.bytes[..filled])
    }

    /// Whether a record is not in the window, but next behind it.
    fn continues(&self, location: Location) -> bool {
        let behind = location.offset.checked_sub(self.start);
        let behind = behind.and_then(|behind| usize::try_from(behind).ok());
        self.filled > 0
            && location.segment == self.segment
            && behind.is_some_and(|behind| behind > 0 && behind <= self.filled + LONGEST)
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
