//! What a disk says about how it is booted: its own boot entry, kernel and initial RAM disks.
//!
//! A boot loader would read the same files on a real machine. They are looked for in this order, in every ext2, ext3
//! and ext4 file system of the disk: `loader/entries/*.conf` (the Boot Loader Specification), `extlinux/extlinux.conf`,
//! `grub/grub.cfg`, each in `/boot` and in `/` (a boot partition of its own), then `/vmlinuz` with `/initrd.img`.
//!
//! Everything on the disk is hostile: texts, files, lists and depths are bounded, and links never leave their file system.

mod bls;
mod disk;
mod entry;
mod error;
mod extlinux;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grub;
mod partitions;
mod version;
mod volume;

pub use disk::{Disk, Loaded};
pub use error::BootError;
pub use volume::Bytes;

/// Most bytes of a kernel that is taken from a disk.
pub const MAX_KERNEL: u64 = 128 << 20;
/// Most bytes of a disk's initial RAM disks together.
pub const MAX_INITRD: u64 = 512 << 20;
/// Linux' COMMAND_LINE_SIZE on x86 is 2048 with the closing NUL.
pub const MAX_CMDLINE: usize = 2047;
