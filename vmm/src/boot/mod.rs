//! From files on the host to a guest that can execute its first instruction.
//!
//! The format of a kernel image is told by its content. An ELF image that has a PVH entry is started through it unless
//! the configuration says otherwise: PVH needs no page tables of ours, and Firecracker does the same. A bzImage is
//! started at its 64-bit entry. A file with a Multiboot header and neither of these is started by that.

pub mod bzimage;
pub mod cmdline;
pub mod elf;
mod error;
pub mod initrd;
mod memory_map;
pub mod multiboot;
pub mod paging;
pub mod pvh;
pub mod reset_vector;
pub mod zero_page;

pub use error::BootError;
pub use memory_map::{Kind, MemoryRange, memory_map};

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;

use crate::config::{BootConfig, BootProtocol};
use crate::jail::opened;
use crate::layout::HIGH_RAM;
use crate::memory::{self, GuestMemory};

/// Bytes at the start of a file that tell every format apart.
const HEAD_BYTES: usize = if bzimage::HEADER_END > multiboot::SEARCH_BYTES {
    bzimage::HEADER_END
} else {
    multiboot::SEARCH_BYTES
};

/// Where and how the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `EBX` = start info (PVH).
    Pvh {
        /// Physical address of the first instruction.
        rip: u64,
    },
    /// 32-bit protected mode without paging, `EBX` = Multiboot information.
    Multiboot {
        /// Physical address of the first instruction.
        rip: u64,
    },
    /// 64-bit mode with an identity mapping, `RSI` = zero page (Linux x86 boot protocol).
    Linux64 {
        /// Physical address of the first instruction.
        rip: u64,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// How to start it.
    pub entry: Entry,
    /// First byte of memory above it that is free.
    pub end: u64,
    /// The setup header of a bzImage.
    pub setup_header: Option<setup_header>,
    /// The highest address an initrd may end at (exclusive).
    pub initrd_limit: u64,
}

/// Opens what a later [`load`] of the same configuration looks for.
pub fn open_ahead(config: &BootConfig) -> Result<(), BootError> {
    for path in [Some(&config.kernel), config.initrd.as_ref()]
        .into_iter()
        .flatten()
    {
        opened::keep_file(path, false).map_err(|source| BootError::Open {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Loads kernel, initrd and command line, writes the structures that the kernel reads at its entry, and says where
/// that entry is. `rsdp` is the guest address of ACPI's root pointer.
pub fn load(
    memory: &GuestMemory,
    config: &BootConfig,
    cmdline: &str,
    rsdp: Option<u64>,
) -> Result<Entry, BootError> {
    let low_ram = memory::low_ram(memory);
    let kernel = load_kernel(memory, &config.kernel, config.protocol)?;
    let initrd = match &config.initrd {
        Some(path) => Some(initrd::load(
            memory,
            path,
            kernel.end,
            low_ram.min(kernel.initrd_limit),
        )?),
        None => None,
    };
    cmdline::write(memory, cmdline)?;
    reset_vector::write(memory)?;
    let map = memory_map(memory);
    match kernel.entry {
        Entry::Pvh { .. } => pvh::write(memory, &map, initrd, rsdp)?,
        Entry::Multiboot { .. } => multiboot::write(memory, &map, initrd)?,
        Entry::Linux64 { .. } => {
            zero_page::write(
                memory,
                &map,
                kernel.setup_header,
                initrd,
                cmdline.len(),
                rsdp,
            )?;
            paging::write(memory)?;
        }
    }
    Ok(kernel.entry)
}

fn load_kernel(
    memory: &GuestMemory,
    path: &Path,
    protocol: BootProtocol,
) -> Result<LoadedKernel, BootError> {
    let mut file = open(path)?;
    let size = file
        .metadata()
        .map_err(|source| BootError::read(path, source))?
        .len();
    // Enough of the file to tell every format apart, in one read.
    let mut head = Vec::with_capacity(HEAD_BYTES);
    (&mut file)
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|source| BootError::read(path, source))?;
    if let Some(header) = multiboot::find(&head)
        && wants_multiboot(path, &file, size, &head, protocol)?
    {
        return multiboot::load(memory, path, &mut file, size, header);
    }
    if protocol == BootProtocol::Multiboot {
        return Err(BootError::NoMultibootHeader { path: path.into() });
    }
    if elf::is_elf(&head) {
        elf::load(memory, path, &mut file, size, protocol)
    } else if bzimage::is_bzimage(&head) {
        bzimage::load(memory, path, &mut file, size, &head, protocol)
    } else {
        Err(BootError::UnknownFormat {
            path: path.into(),
            size,
            head: head.iter().take(4).copied().collect(),
        })
    }
}

/// Whether a kernel that has a Multiboot header is to be started by it: when it is asked for, or when it has none of the
/// better ways.
fn wants_multiboot(
    path: &Path,
    file: &File,
    size: u64,
    head: &[u8],
    protocol: BootProtocol,
) -> Result<bool, BootError> {
    match protocol {
        BootProtocol::Multiboot => Ok(true),
        BootProtocol::Pvh | BootProtocol::Linux64 => Ok(false),
        BootProtocol::Auto if bzimage::is_bzimage(head) => Ok(false),
        BootProtocol::Auto if elf::is_elf64(head) => {
            elf::has_pvh_entry(path, file, size).map(|has| !has)
        }
        BootProtocol::Auto => Ok(true),
    }
}

/// Checks that a kernel which wants `place` can have it: above what we write ourselves, below the end of low memory.
fn kernel_place(path: &Path, place: Range<u64>, ram: u64) -> Result<Range<u64>, BootError> {
    let Range { start, end } = place;
    if start < HIGH_RAM {
        return Err(BootError::KernelOverlapsBootStructures {
            path: path.into(),
            start,
            end,
            limit: HIGH_RAM,
        });
    }
    if end > ram {
        return Err(BootError::KernelOutsideMemory {
            path: path.into(),
            start,
            end,
            ram,
        });
    }
    Ok(place)
}

fn open(path: &Path) -> Result<File, BootError> {
    let file = opened::file(path, false).map_err(|source| BootError::Open {
        path: path.into(),
        source,
    })?;
    let kind = file
        .metadata()
        .map_err(|source| BootError::read(path, source))?
        .file_type();
    if !kind.is_file() {
        return Err(BootError::NotAFile { path: path.into() });
    }
    Ok(file)
}

/// Reads exactly `buffer` at `offset`; the caller has checked the file's size.
fn read_at(file: &File, path: &Path, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
    file.read_exact_at(buffer, offset)
        .map_err(|source| BootError::read(path, source))
}
