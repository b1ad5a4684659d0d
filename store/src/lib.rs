//! The store: snapshots of memory, disks and devices as one, and the layers of disks.
//!
//! Everything is made of pages of 4 KiB, whatever they were: memory and disks share one space of chunks, addressed by
//! BLAKE3. A snapshot is a set of named objects, each the root of a Merkle tree ([`tree`]) over such pages, so that the
//! depth of a history costs nothing. Chunks are appended to segment files ([`segment`]); an index ([`index`]) says where
//! they are and how often they are referenced. What makes a snapshot visible is one transaction of the index, after all
//! its data is durable.
//!
//! ```text
//! store ──► disk (layers) ──► snapshot (write, read, delete), image, collect, verify, transfer
//!              └─► tree ──► index, segment ──► medium (a directory, or a simulated one that loses power)
//! ```
//!
//! # References
//! A chunk counts one reference for each place (of a page or a node, in an object, in a snapshot) at which a snapshot
//! differs from its parent and has this chunk. So a snapshot costs what changed, not what it shows, and deleting one
//! costs what differs between it, its parent and its children, which then have the same parent.

mod codec;
mod collect;
mod disk;
mod error;
mod hash;
mod image;
mod index;
pub mod medium;
mod record;
mod segment;
mod snapshot;
mod store;
mod transfer;
mod tree;
mod verify;

pub use codec::Compression;
pub use collect::{Collected, Thoroughness};
pub use disk::{Base, BlockDevice, Disk, DiskInfo, Frozen};
pub use error::{Error, Fault, Result};
pub use hash::Digest;
pub use image::{Image, ImageInfo, image_list};
pub use snapshot::{
    Changed, Info, Object, ObjectId, ObjectInfo, Snapshot, Spec, WORKING_SET, Writer,
};
pub use store::{Options, Status, Store};
pub use verify::{Progress, Verified};

/// Bytes of a page, which is also a block of a disk.
pub const PAGE: usize = 4096;
/// Newest version of the format that this program reads. It writes 1 as long as no image is adopted, so that an older
/// program can go back to such a store.
pub const FORMAT: u32 = 2;
