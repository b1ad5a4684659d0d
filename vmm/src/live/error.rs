//! Why there is no snapshot, and why there will be no more.

use std::io;

use super::guard::GuardError;
use super::protocol::ProtocolError;
use crate::machine::PauseError;
use crate::snapshot::SnapshotError;
use crate::snapshot::dirty::DirtyError;

/// Why the channel is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("The store has closed the live channel")]
    Closed,
    #[error("The store has not taken {bytes} bytes from the live channel within {seconds} s")]
    Stalled { bytes: usize, seconds: u64 },
    #[error("The guest's run has ended")]
    Ended,
    #[error("The store said {what} when it was not asked to")]
    OutOfTurn { what: &'static str },
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("Cannot use the live channel")]
    Io(#[source] io::Error),
}

impl WireError {
    /// Whether nothing is wrong.
    pub fn is_end_of_run(&self) -> bool {
        matches!(self, Self::Ended)
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("The store has given it up: {reason}")]
    Lost { reason: String },
    #[error(
        "Its devices and disks cannot be told: the main thread has not answered within {seconds} s"
    )]
    NotDescribed { seconds: u64 },
    #[error("Its devices or their limits were changed meanwhile: try again")]
    Changed,
    #[error("The store has not frozen the disks within {milliseconds} ms")]
    NotFrozen { milliseconds: u128 },
    #[error(
        "The guest changes its memory faster than the store takes it, {pages} pages are left, and they cannot be \
         write-protected: {why}"
    )]
    TooMuch { pages: usize, why: String },
    #[error("Cannot read the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Pause(#[from] PauseError),
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Guard(#[from] GuardError),
}
