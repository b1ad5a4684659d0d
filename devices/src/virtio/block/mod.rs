//! The block device (virtio 1.2 §5.2), in three parts: [`request`] reads what the driver wants,
//! [`backend`] says what a disk is to us, [`device`] runs one over the other.

pub mod backend;
pub mod device;
pub mod raw_file;
pub mod request;

pub use backend::Backend;
pub use device::Block;
pub use raw_file::RawFile;

/// Bytes of a sector, the unit of all addresses and lengths (virtio 1.2 §5.2.4), whatever the disk's.
pub const SECTOR_SIZE: u64 = 512;
