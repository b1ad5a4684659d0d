//! One piece of work, as an engine carries it to its end.

use std::io::{self, ErrorKind};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::vectors::Vectors;
use crate::memory::GuestMemory;
use crate::virtio::block::backend::{Action, Job};

/// What is left to do of a job. Meant to be used again and again.
pub(in crate::virtio::block) struct Work {
    pub(in crate::virtio::block) action: Action,
    /// Where on the disk the rest starts, in bytes.
    pub(in crate::virtio::block) offset: u64,
    /// Bytes of the disk in all.
    pub(in crate::virtio::block) len: u64,
    /// What is left of the buffers.
    pub(in crate::virtio::block) vectors: Vectors,
    /// What to mark dirty once it is filled; empty where nobody tracks that.
    fills: Vec<(GuestAddress, u32)>,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            action: Action::Flush,
            offset: 0,
            len: 0,
            vectors: Vectors::default(),
            fills: Vec::new(),
        }
    }
}

impl Work {
    /// Becomes `job`, whose buffers lie in `memory`; `tracked` says whether somebody wants to know what it fills.
    pub(super) fn load(
        &mut self,
        job: &Job<'_>,
        memory: &GuestMemory,
        tracked: bool,
    ) -> io::Result<()> {
        self.action = job.action;
        self.offset = job.offset;
        self.len = job.len;
        self.fills.clear();
        if tracked && job.action == Action::Read {
            self.fills.extend_from_slice(job.buffers.ranges());
        }
        self.vectors.load(memory, job.buffers)
    }

    /// Takes off what a system call has moved. An error where it can move no more, although there is more to move.
    pub(super) fn advance(&mut self, moved: usize) -> io::Result<()> {
        if moved == 0 {
            return Err(match self.action {
                // The image was cut short under us.
                Action::Read => ErrorKind::UnexpectedEof,
                _ => ErrorKind::WriteZero,
            }
            .into());
        }
        self.vectors.advance(moved);
        self.offset = self.offset.saturating_add(moved as u64);
        Ok(())
    }

    /// Marks what was filled behind the bitmap's back; after an error, perhaps only some of it was.
    pub(super) fn mark_dirty(&self, memory: &GuestMemory) {
        for &(address, len) in &self.fills {
            for slice in GuestMemoryBackend::get_slices(memory, address, len as usize).flatten() {
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
    }
}
