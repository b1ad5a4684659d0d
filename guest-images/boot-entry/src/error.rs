//! Why a disk does not say how it is booted.

use std::io;

use ext4_view::Ext4Error;
use thiserror::Error;

/// Why no kernel could be taken from a disk.
#[derive(Debug, Error)]
pub enum BootError {
    /// The image itself cannot be read.
    #[error("Cannot read the disk at byte {offset}")]
    Read {
        /// Where in the disk.
        offset: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The partition table contradicts itself.
    #[error("The disk's partition table is damaged: {reason}")]
    Table {
        /// What is wrong.
        reason: String,
    },
    /// Nothing on the disk that could be read.
    #[error(
        "The disk has no file system that a boot entry could be read from: ext2, ext3 and ext4 are supported, found {found}"
    )]
    NoVolume {
        /// What is there instead.
        found: String,
    },
    /// File systems, but no entry in them.
    #[error(
        "The disk has no boot entry: no loader/entries/*.conf, extlinux/extlinux.conf or grub/grub.cfg with a kernel in \
         /boot or / and no /vmlinuz (looked in {looked_in}{})", said(.remarks)
    )]
    NoEntry {
        /// Places of the file systems that were read.
        looked_in: String,
        /// What was found and could not be used.
        remarks: Vec<String>,
    },
    /// A file that the entry names.
    #[error("Boot entry {origin} names {path}, which cannot be read")]
    File {
        /// Where the entry stands.
        origin: String,
        /// The path as resolved.
        path: String,
        /// Cause.
        #[source]
        source: Ext4Error,
    },
    /// A file that the entry names is no regular file.
    #[error("Boot entry {origin} names {path}, which is not a regular file")]
    NotAFile {
        /// Where the entry stands.
        origin: String,
        /// The path as resolved.
        path: String,
    },
    /// Too large to be what it claims to be.
    #[error("Boot entry {origin} names {path} of {size} bytes; {limit} are the limit")]
    TooLarge {
        /// Where the entry stands.
        origin: String,
        /// The path as resolved.
        path: String,
        /// Its size.
        size: u64,
        /// The most that is taken.
        limit: u64,
    },
    /// More options than a kernel takes.
    #[error("Boot entry {origin} has a kernel command line of {size} bytes; {limit} are the limit")]
    CmdlineTooLong {
        /// Where the entry stands.
        origin: String,
        /// Its size.
        size: usize,
        /// The most a kernel takes.
        limit: usize,
    },
    /// Options that no command line can hold.
    #[error("Boot entry {origin} has a control character in its kernel command line")]
    CmdlineCharacter {
        /// Where the entry stands.
        origin: String,
    },
    /// A file could not be read to its end.
    #[error("Cannot read {path} of the disk")]
    Content {
        /// The path as resolved.
        path: String,
        /// Cause.
        #[source]
        source: Ext4Error,
    },
    /// Where the bytes go to does not take them.
    #[error("Cannot hand over {path} of the disk")]
    Write {
        /// The path as resolved.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file changed its size under us, or its blocks contradict its size.
    #[error("{path} of the disk ends after {found} of {expected} bytes")]
    Short {
        /// The path as resolved.
        path: String,
        /// Bytes that were there.
        found: u64,
        /// Bytes that its inode promises.
        expected: u64,
    },
}

fn said(remarks: &[String]) -> String {
    remarks.iter().map(|remark| format!("; {remark}")).collect()
}
