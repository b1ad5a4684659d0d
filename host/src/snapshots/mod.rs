//! Snapshots of guests, and what they write to their disks: a process of its own that has the machine's store.
//!
//! ```text
//!   supervisor ──► process ─ socket, JSON lines ─► service ──► store (a folder on a disk, or in memory)
//!                                                     │
//!         one VMM per guest ─── disks by NBD ─────────┤
//!                           ─── live channel ─────────┤  memory and state of a running guest, taken
//!                           ─── page faults ──────────┘  memory of a guest that goes on from a snapshot
//! ```
//!
//! A process, because a damaged store or a full disk must not touch the supervisor, and hashing must not hold it up. When
//! it falls, guests whose disks it had fall with it, and all stand up again.

mod process;
mod protocol;
mod service;
pub mod text;
mod thinning;

pub(crate) use process::Process;
pub use protocol::StoreCommand;
pub(crate) use protocol::{
    Begin, DiskSource, Done, Found, GREETING, Load, Lost, Opened, Origin, What,
};
pub use thinning::Thinning;

/// Name under which the executable is the store's service.
pub const STORE_NAME: &str = "daruma-store";
/// Label of snapshots of guests that had said that they were ready.
pub const READY: &str = "ready";
/// Label of snapshots of guests in which there was an agent.
pub const AGENT: &str = "agent";
/// Label of snapshots that nobody asked for, which are thinned.
pub const CHECKPOINT: &str = "checkpoint";
/// Label of snapshots after which the guest was ended, to go on from them when the machine starts again.
pub const SUSPENDED: &str = "suspended";
/// Label of the newest snapshot of a guest that ended in order since.
pub const LEFT: &str = "left";
/// Label of snapshots of a fallen guest's disks, with what it fell of: they are looked at, not gone back to.
pub const FALLEN: &str = "fallen";
/// Label with a user's words.
pub const NOTE: &str = "note";

pub use service::main;
