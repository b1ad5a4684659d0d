//! What a guest printed, the newest part of it.

use std::collections::VecDeque;

/// Bytes kept per guest and for the host.
pub const RING_BYTES: usize = 64 * 1024;

/// The newest [`RING_BYTES`] of an endless stream. Positions count from the stream's first byte, so that a reader
/// knows what it has seen whatever was dropped since.
#[derive(Debug, Default)]
pub struct Ring {
    kept: VecDeque<u8>,
    end: u64,
}

impl Ring {
    /// Appends; the oldest bytes make room.
    pub fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let fitting = &bytes[bytes.len().saturating_sub(RING_BYTES)..];
        let excess = (self.kept.len() + fitting.len()).saturating_sub(RING_BYTES);
        self.kept.drain(..excess);
        self.kept.extend(fitting);
    }

    /// Position after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What is kept from position `from` on.
    #[must_use]
    pub fn since(&self, from: u64) -> Vec<u8> {
        let start = self.end - self.kept.len() as u64;
        let skip = usize::try_from(from.saturating_sub(start)).unwrap_or(usize::MAX);
        self.kept.iter().skip(skip).copied().collect()
    }

    /// The last lines, at most `tail` bytes of them.
    #[must_use]
    pub fn last(&self, tail: usize) -> Vec<u8> {
        let is_all = self.end <= tail as u64;
        self.since(if is_all {
            0
        } else {
            self.resume(self.end, tail)
        })
    }

    /// Where a reader that has seen everything up to `seen` starts to show: at what it missed, and at the least at
    /// the start of a line within the last `tail` bytes, so that a prompt waiting there is seen again.
    #[must_use]
    pub fn resume(&self, seen: u64, tail: usize) -> u64 {
        let from = self
            .end
            .saturating_sub(tail as u64)
            .max(self.end - self.kept.len() as u64);
        if seen <= from {
            return seen;
        }
        let recent = self.since(from);
        let before_seen = usize::try_from(seen - from)
            .unwrap_or(recent.len())
            .min(recent.len());
        let line = recent[..before_seen].iter().position(|byte| *byte == b'\n');
        line.map_or(from, |at| from + at as u64 + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_newest_bytes_stay() {
        let mut ring = Ring::default();
        ring.push(b"old");
        ring.push(&vec![b'x'; RING_BYTES - 1]);
        assert_eq!(ring.since(0).len(), RING_BYTES);
        assert_eq!(ring.since(0)[..2], *b"dx");
        ring.push(&vec![b'y'; 3 * RING_BYTES]);
        assert!(ring.since(0).iter().all(|byte| *byte == b'y'));
        assert_eq!(ring.end(), 3 + 4 * RING_BYTES as u64 - 1);
    }

    #[test]
    fn reader_gets_what_it_missed() {
        let mut ring = Ring::default();
        ring.push(b"one\n");
        let seen = ring.end();
        ring.push(b"two\n");
        assert_eq!(ring.since(seen), b"two\n");
        assert_eq!(ring.resume(0, 3), 0);
    }

    #[test]
    fn reader_that_saw_all_gets_the_last_lines_whole() {
        let mut ring = Ring::default();
        ring.push(b"boot\nwelcome\nlogin: ");
        let from = ring.resume(ring.end(), 18);
        assert_eq!(ring.since(from), b"welcome\nlogin: ");
    }

    #[test]
    fn the_last_lines_are_whole() {
        let mut ring = Ring::default();
        ring.push(b"one\ntwo\nthree");
        assert_eq!(ring.last(100), b"one\ntwo\nthree");
        assert_eq!(ring.last(13), b"one\ntwo\nthree");
        assert_eq!(ring.last(9), b"three");
        assert_eq!(ring.last(3), b"ree");
    }

    proptest! {
        #[test]
        fn resume_never_skips_what_was_missed(
            pieces in prop::collection::vec((0usize..40_000, "[a-c\n]{0,20}"), 0..5),
            seen in 0u64..150_000, tail in 0usize..3000,
        ) {
            let mut ring = Ring::default();
            for (length, pattern) in &pieces {
                let piece: Vec<u8> = pattern.bytes().cycle().take(*length).collect();
                ring.push(&piece);
            }
            let seen = seen.min(ring.end());
            let from = ring.resume(seen, tail);
            prop_assert!(from <= seen);
            prop_assert!(ring.since(from).len() <= RING_BYTES);
        }
    }
}
