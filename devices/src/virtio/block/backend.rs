//! What a disk is to the block device.

use std::io;

use crate::memory::GuestSlice;

/// A disk image, or whatever plays one.
///
/// The device has checked a request before it comes here: ranges lie within [`len`](Self::len) and
/// consist of whole sectors, and a read-only disk gets neither writes nor discards. The slices are
/// guest memory, which the guest may change at any time: a backend moves the bytes and decides nothing
/// by them.
pub trait Backend: Send {
    /// Length of the disk in bytes, a multiple of [`SECTOR_SIZE`](super::SECTOR_SIZE).
    fn len(&self) -> u64;

    /// The disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The disk refuses to be written.
    fn read_only(&self) -> bool;

    /// Fills all of `buffers` from the disk, starting at byte `offset`.
    fn read_at(&mut self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()>;

    /// Writes all of `buffers` to the disk, starting at byte `offset`. May stay in a cache.
    fn write_at(&mut self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()>;

    /// Returns once everything written before is on stable storage.
    fn flush(&mut self) -> io::Result<()>;
}
