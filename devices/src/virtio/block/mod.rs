//! The block device (virtio 1.2 §5.2). Who does what with a request:
//!
//! ```text
//!   queue ──► request: what does the driver want?     refused ──────────────┐
//!               │ checked                                                   ▼
//!               ▼                                                        device: status byte, used ring,
//!             backend: raw_file, qcow2: which bytes of which file? ─done──► one interrupt for the batch
//!               │      nbd: of which server's?                              ▲
//!               ▼                                                           │
//!             engine: at once where nothing waits, else by io_uring ──reap──┘
//!                     or by a server's connection
//! ```

pub mod backend;
mod config;
pub mod control;
pub mod device;
pub mod engine;
pub mod nbd;
pub mod qcow2;
pub mod raw_file;
pub mod request;

pub use backend::Backend;
pub use control::BlockControl;
pub use device::{Block, Options};
pub use engine::Engine;
pub use nbd::Nbd;
pub use qcow2::Qcow2File;
pub use raw_file::RawFile;

/// Bytes of a sector, the unit of all addresses and lengths (virtio 1.2 §5.2.4), whatever the disk's.
pub const SECTOR_SIZE: u64 = 512;
