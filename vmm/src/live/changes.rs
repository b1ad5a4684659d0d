//! What has changed since the last snapshot that was kept, and what of it is still to be sent.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::error::CaptureError;
use super::frames::{Frames, Zeroes};
use super::protocol::PAGE;
use crate::snapshot::dirty::{Dirty, DirtyError, Taker, Turn};
use crate::snapshot::{SnapshotError, Subject};

/// Words of 64 pages that are looked at together: 2 MiB, as much as a huge page.
pub(super) const BLOCK_WORDS: usize = 8;
/// Bytes of a block.
pub(super) const BLOCK: u64 = (BLOCK_WORDS * 64 * PAGE) as u64;

/// Blocks are found by the number of their region, and by their own in it.
pub(super) type Place = (usize, usize);

/// A turn at the log of changes. If it is not [settled](Self::settle), what has changed still has.
pub(super) struct Changes {
    subject: Arc<Subject>,
    turn: Turn,
    /// All that has changed, by region.
    all: Vec<Vec<u64>>,
    /// What of it was not copied yet, or has changed again.
    left: Vec<Vec<u64>>,
    /// The instant of the snapshot has passed.
    passed: bool,
    settled: bool,
}

impl Changes {
    /// Begins a turn.
    pub fn begin(subject: &Arc<Subject>) -> Result<Self, CaptureError> {
        let turn = subject
            .dirty
            .begin(Taker::Store, &subject.vm, &subject.memory)
            .map_err(SnapshotError::from)?;
        let none = |region: &devices::memory::GuestRegion| vec![0; words(region)];
        let all: Vec<_> = subject.memory.iter().map(none).collect();
        Ok(Self {
            subject: subject.clone(),
            turn,
            left: all.clone(),
            all,
            passed: false,
            settled: false,
        })
    }

    /// Whether what has changed is known.
    pub fn is_based(&self) -> bool {
        self.turn.is_based()
    }

    /// Everything is to be sent.
    pub fn want_all(&mut self) {
        for (words, region) in self.left.iter_mut().zip(self.subject.memory.iter()) {
            let pages = pages(region);
            for (index, word) in words.iter_mut().enumerate() {
                let here = pages.saturating_sub(index * 64).min(64);
                *word = if here == 64 {
                    u64::MAX
                } else {
                    (1 << here) - 1
                };
            }
        }
    }

    /// Adds what has changed since the last look. Returns how many pages are left now.
    pub fn look(&mut self) -> Result<usize, CaptureError> {
        let Subject {
            dirty, vm, memory, ..
        } = &*self.subject;
        let seen = dirty.look(&self.turn, vm, memory)?;
        for (index, pages) in seen.iter().enumerate() {
            let seen = pages.as_deref().unwrap_or_default();
            for into in [&mut self.all, &mut self.left] {
                let into = into.get_mut(index).map(Vec::as_mut_slice);
                for (into, seen) in into.unwrap_or_default().iter_mut().zip(seen) {
                    *into |= seen;
                }
            }
        }
        let words = self.left.iter().flatten();
        Ok(words.map(|word| word.count_ones() as usize).sum())
    }

    /// The blocks with pages that are left.
    pub fn places(&self) -> Vec<Place> {
        let regions = self.left.iter().enumerate();
        let places = regions.flat_map(|(region, words)| {
            let blocks = words.chunks(BLOCK_WORDS).enumerate();
            let blocks = blocks.filter(|(_, words)| words.iter().any(|word| *word != 0));
            blocks.map(move |(block, _)| (region, block))
        });
        places.collect()
    }

    /// Adds all pages that are left to `frames`, as [`copy`](Self::copy) does of a block.
    pub fn copy_all(&mut self, frames: &mut Frames) -> Result<(), CaptureError> {
        let Subject {
            dirty, vm, memory, ..
        } = &*self.subject;
        let mut start = 0;
        for (index, (region, left)) in memory.iter().zip(&mut self.left).enumerate() {
            dirty.clear(&self.turn, vm, memory, (index, 0, left))?;
            frames.add((region, start), 0, left, Zeroes::Send)?;
            left.fill(0);
            start += region.len();
        }
        Ok(())
    }

    /// Adds the pages that are left of the block at `place` to `frames`. From then on, they are not left, and what the
    /// guest changes of them it has changed again.
    pub fn copy(
        &mut self,
        (index, block): Place,
        frames: &mut Frames,
        zeroes: Zeroes,
    ) -> Result<(), CaptureError> {
        let first = block * BLOCK_WORDS;
        let Some(left) = self.left.get_mut(index) else {
            return Ok(());
        };
        let end = left.len().min(first + BLOCK_WORDS);
        let Some(left) = left.get_mut(first..end) else {
            return Ok(());
        };
        let Subject {
            dirty, vm, memory, ..
        } = &*self.subject;
        match dirty.clear(&self.turn, vm, memory, (index, first, left)) {
            // It was protected all the time: whoever has the log now knows of all that comes.
            Err(DirtyError::Superseded) if self.passed => {}
            cleared => cleared?,
        }
        let mut start = 0;
        for (number, region) in memory.iter().enumerate() {
            if number == index {
                frames.add((region, start), first * 64, left, zeroes)?;
                left.fill(0);
                return Ok(());
            }
            start += region.len();
        }
        Ok(())
    }

    /// The instant of the snapshot is now. What is left is write-protected until it is copied.
    pub fn pass(&mut self) {
        self.passed = true;
    }

    /// The snapshot is kept: changes count from it.
    pub fn settle(mut self) {
        self.settled = true;
        self.subject.dirty.settle(&self.turn);
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if !self.settled {
            let all = std::mem::take(&mut self.all).into_iter().map(Some);
            Dirty::put_back(&self.subject.memory, &all.collect::<Vec<_>>());
        }
    }
}

fn pages(region: &devices::memory::GuestRegion) -> usize {
    usize::try_from(region.len()).unwrap_or(usize::MAX) / PAGE
}

fn words(region: &devices::memory::GuestRegion) -> usize {
    pages(region).div_ceil(64)
}
