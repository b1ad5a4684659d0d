//! What can be wrong with a kernel, an initrd or their places.

use std::io;
use std::path::{Path, PathBuf};

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum BootError {
    #[error("Cannot open {path}", path = .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a regular file", path = .path.display())]
    NotAFile { path: PathBuf },
    #[error("Cannot read {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} ({size} bytes, starts with {head:02x?}) is neither an ELF image nor a bzImage",
        path = .path.display()
    )]
    UnknownFormat {
        path: PathBuf,
        size: u64,
        head: Vec<u8>,
    },
    #[error("{path} is truncated: {what} ends at byte {needed}, the file has {size}", path = .path.display())]
    Truncated {
        path: PathBuf,
        what: &'static str,
        needed: u64,
        size: u64,
    },
    #[error("{path} is not a bootable kernel: {why}", path = .path.display())]
    Malformed { path: PathBuf, why: String },
    #[error(
        "{path} has no 64-bit entry point (XLF_KERNEL_64 is not set): only 64-bit kernels can be booted",
        path = .path.display()
    )]
    No64BitEntry { path: PathBuf },
    #[error("{path} has no PVH entry point, which boot_protocol \"pvh\" asks for", path = .path.display())]
    NoPvhEntry { path: PathBuf },
    #[error(
        "{path} has no Multiboot header in its first 8 KiB, which boot_protocol \"multiboot\" asks for",
        path = .path.display()
    )]
    NoMultibootHeader { path: PathBuf },
    #[error(
        "{path} needs guest memory from {start:#x} to {end:#x}, the guest has {ram:#x} bytes below 4 GiB: give it more memory",
        path = .path.display()
    )]
    KernelOutsideMemory {
        path: PathBuf,
        start: u64,
        end: u64,
        ram: u64,
    },
    #[error(
        "The segment {start:#x} to {end:#x} of {path} overlaps the boot structures below {limit:#x}",
        path = .path.display()
    )]
    KernelOverlapsBootStructures {
        path: PathBuf,
        start: u64,
        end: u64,
        limit: u64,
    },
    #[error("Cannot load the kernel {path}", path = .path.display())]
    Loader {
        path: PathBuf,
        #[source]
        source: linux_loader::loader::Error,
    },
    #[error(
        "The initrd {path} is {size} bytes, {free} are free between the kernel's end {kernel_end:#x} and {limit:#x}: give the guest more memory or a smaller initrd",
        path = .path.display()
    )]
    InitrdTooLarge {
        path: PathBuf,
        size: u64,
        free: u64,
        kernel_end: u64,
        limit: u64,
    },
    #[error("The initrd {path} is empty", path = .path.display())]
    InitrdEmpty { path: PathBuf },
    #[error(
        "The kernel command line is {length} bytes with what the VMM adds, permitted are {max}"
    )]
    CmdlineTooLong { length: usize, max: usize },
    #[error("Cannot write {what} at {address:#x} in guest memory")]
    WriteMemory {
        what: &'static str,
        address: u64,
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    #[error("Cannot copy {path} into guest memory", path = .path.display())]
    Copy {
        path: PathBuf,
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

impl BootError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.into(),
            source,
        }
    }

    pub(super) fn malformed(path: &Path, why: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.into(),
            why: why.into(),
        }
    }
}
