//! What a disk is to the block device.

use std::io;

use super::engine::Engine;
use crate::virtio::chain::Buffers;

/// What to do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fill all of the buffers from the disk.
    Read,
    /// Write all of the buffers to the disk; it may stay in a cache, unless it is to be durable.
    Write {
        /// On stable storage before it is done.
        durable: bool,
    },
    /// Make everything that was done before durable.
    Flush,
    /// The bytes are not needed any more: the disk may free what holds them.
    Discard,
    /// The bytes are zero from now on.
    WriteZeroes {
        /// The disk may free what holds them.
        unmap: bool,
    },
}

/// One piece of work for a disk, checked by the device: the range lies within the disk and consists of whole sectors,
/// and a read-only disk gets nothing that would change it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// What to do.
    pub action: Action,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How many bytes of the disk; for reads and writes that of the buffers.
    pub len: u64,
    /// Guest memory to fill or to write; empty for the other actions. The guest may change it at any time: a backend
    /// moves the bytes and decides nothing by them.
    pub buffers: &'a Buffers,
}

/// How far a piece of work has come when it is started.
#[derive(Debug)]
#[must_use]
pub enum Start {
    /// To its end.
    Done(io::Result<()>),
    /// It goes on; [`Engine::reap`] will say how it ended.
    InFlight,
}

/// A disk: what its bytes are and where they lie. How they are moved is the business of the [`Engine`].
pub trait Backend: Send {
    /// Length of the disk in bytes, a multiple of [`SECTOR_SIZE`](super::SECTOR_SIZE).
    fn len(&self) -> u64;

    /// The disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The disk refuses to be changed.
    fn read_only(&self) -> bool;

    /// The bytes a discard should be aligned to, so that it frees something. A power of two.
    fn discard_granularity(&self) -> u32 {
        4096
    }

    /// Gets the engine ready for this disk. Called before the first job, with nothing in flight.
    fn attach(&mut self, engine: &mut Engine) -> io::Result<()> {
        let _ = engine;
        Ok(())
    }

    /// Starts `job`, which the engine knows as `token` where it outlasts the call.
    fn start(&mut self, engine: &mut Engine, token: u16, job: &Job<'_>) -> Start;

    /// Writes back what the disk itself caches (the tables of an image format). Called when the guest goes.
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Looks again how long the disk is: somebody may have made it longer.
    fn refresh(&mut self) -> io::Result<()> {
        Ok(())
    }
}
