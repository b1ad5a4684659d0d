//! Multiboot kernels (Multiboot Specification version 0.6.96): small operating systems and unikernels.
//!
//! A kernel says in a header in its first 8 KiB what it needs. It is loaded by the addresses in that header, or else by
//! its ELF program headers, and started in 32-bit protected mode without paging. Nothing the header says is acted upon
//! before it is checked.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::initrd::Initrd;
use super::{BootError, Entry, Kind, LoadedKernel, MemoryRange, read_at};
use crate::layout::{
    CMDLINE, GAP_START, HIGH_RAM, KIB, LOW_RAM_END, MULTIBOOT_INFO, MULTIBOOT_LOADER_NAME,
    MULTIBOOT_MEMORY_MAP, MULTIBOOT_MODULES,
};
use crate::memory::{self, GuestMemory};

/// The header is in this many bytes at the start of the file (§3.1).
pub const SEARCH_BYTES: usize = 8192;
/// What a kernel finds in `EAX` (§3.2).
pub const ENTRY_MAGIC: u32 = 0x2bad_b002;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// Modules start at pages: ours do anyway.
const FLAG_ALIGN: u32 = 1 << 0;
/// The kernel needs the memory map.
const FLAG_MEMORY: u32 = 1 << 1;
/// The header has addresses to load the file by.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// A loader that does not know one of these flags must refuse the kernel.
const FLAGS_REQUIRED: u32 = 0xffff;

/// What the information structure holds (§3.3): memory, command line, modules, memory map, name of the loader.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

const LOADER_NAME: &[u8] = b"Daruma\0";
/// Bytes of one entry of the memory map behind its own size.
const MAP_ENTRY_BYTES: u32 = 20;

/// Most program headers; bounds the work on a hostile file.
const MAX_SEGMENTS: u16 = 64;
const SEGMENT_LOAD: u32 = 1;

/// The header of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset in the file.
    offset: u64,
    flags: u32,
    addresses: Option<Addresses>,
}

/// Where the file goes, by the header's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// A part of the file and where it goes; memory behind its end up to `memory.end` stays zero.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    file: Range<u64>,
    memory: Range<u64>,
}

/// Looks for the header in the first bytes of a file.
pub fn find(head: &[u8]) -> Option<Header> {
    let head = &head[..head.len().min(SEARCH_BYTES)];
    (0..head.len()).step_by(4).find_map(|offset| {
        let [magic, flags, checksum] = words(head.get(offset..offset + 12)?)?;
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let addresses = head.get(offset + 12..offset + 32).and_then(words);
        let addresses = addresses.map(|[header, load, load_end, bss_end, entry]| Addresses {
            header,
            load,
            load_end,
            bss_end,
            entry,
        });
        Some(Header {
            offset: offset as u64,
            flags,
            addresses: addresses.filter(|_| flags & FLAG_ADDRESSES != 0),
        })
    })
}

/// Loads the kernel of `size` bytes that has `header`.
pub fn load(
    memory: &GuestMemory,
    path: &Path,
    file: &mut File,
    size: u64,
    header: Header,
) -> Result<LoadedKernel, BootError> {
    let unknown = header.flags & FLAGS_REQUIRED & !(FLAG_ALIGN | FLAG_MEMORY);
    if unknown != 0 {
        return Err(BootError::malformed(
            path,
            format!(
                "its Multiboot header requires what this machine has not (flags {unknown:#x}; 0x4 is a video mode)"
            ),
        ));
    }
    let (parts, entry) = if header.flags & FLAG_ADDRESSES != 0 {
        by_addresses(path, size, header)?
    } else {
        by_segments(path, file, size)?
    };
    let ram = memory::low_ram(memory);
    let mut end = HIGH_RAM;
    for (index, part) in parts.iter().enumerate() {
        let place = super::kernel_place(path, part.memory.clone(), ram)?;
        end = end.max(place.end);
        let overlap = |other: &&Part| {
            other.memory.start < part.memory.end && part.memory.start < other.memory.end
        };
        if let Some(other) = parts[..index].iter().find(overlap) {
            return Err(BootError::malformed(
                path,
                format!(
                    "its segments {:#x?} and {:#x?} overlap",
                    other.memory, part.memory
                ),
            ));
        }
    }
    if !parts.iter().any(|part| part.memory.contains(&entry)) {
        return Err(BootError::malformed(
            path,
            format!("its entry point {entry:#x} is not in what is loaded"),
        ));
    }
    for part in &parts {
        copy(memory, path, file, part)?;
    }
    Ok(LoadedKernel {
        entry: Entry::Multiboot { rip: entry },
        end,
        setup_header: None,
        initrd_limit: GAP_START,
    })
}

/// The file as one piece (§3.1.3).
fn by_addresses(path: &Path, size: u64, header: Header) -> Result<(Vec<Part>, u64), BootError> {
    let wrong = |why: &str| BootError::malformed(path, format!("its Multiboot header {why}"));
    let addresses = header
        .addresses
        .ok_or_else(|| wrong("ends before its addresses"))?;
    let [at, load, load_end, bss_end] = [
        addresses.header,
        addresses.load,
        addresses.load_end,
        addresses.bss_end,
    ]
    .map(u64::from);
    let start = at
        .checked_sub(load)
        .and_then(|before| header.offset.checked_sub(before))
        .ok_or_else(|| wrong("wants to be loaded from before the file's start"))?;
    let length = match load_end {
        0 => size.saturating_sub(start),
        end => end
            .checked_sub(load)
            .ok_or_else(|| wrong("ends before it starts"))?,
    };
    let end = start.saturating_add(length);
    if length == 0 || end > size {
        return Err(BootError::Truncated {
            path: path.into(),
            what: "what the Multiboot header loads",
            needed: end.max(start + 1),
            size,
        });
    }
    let memory_end = match bss_end {
        0 => load + length,
        end if end >= load + length => end,
        _ => return Err(wrong("has its zeroed memory inside of the kernel")),
    };
    let part = Part {
        file: start..end,
        memory: load..memory_end,
    };
    Ok((vec![part], addresses.entry.into()))
}

/// The loadable segments of an ELF file, 32 or 64 bits.
fn by_segments(path: &Path, file: &File, size: u64) -> Result<(Vec<Part>, u64), BootError> {
    const HEADER_BYTES: usize = 64;
    let malformed = |why: &str| BootError::malformed(path, why);
    let mut header = [0; HEADER_BYTES];
    if size < HEADER_BYTES as u64 {
        return Err(malformed(
            "it has a Multiboot header without addresses, and is no ELF image",
        ));
    }
    read_at(file, path, 0, &mut header)?;
    let wide = match header[..6] {
        [0x7f, b'E', b'L', b'F', 1, 1] => false,
        [0x7f, b'E', b'L', b'F', 2, 1] => true,
        _ => {
            return Err(malformed(
                "it has a Multiboot header without addresses, and is no ELF image",
            ));
        }
    };
    let (entry, table, entry_size, count, entry_bytes) = if wide {
        (
            number(&header, 24, 8),
            number(&header, 32, 8),
            number(&header, 54, 2),
            number(&header, 56, 2),
            56,
        )
    } else {
        (
            number(&header, 24, 4),
            number(&header, 28, 4),
            number(&header, 42, 2),
            number(&header, 44, 2),
            32,
        )
    };
    if entry_size != entry_bytes as u64 || count == 0 || count > MAX_SEGMENTS.into() {
        return Err(malformed(
            "its program headers have another size or number than is possible",
        ));
    }
    let count = usize::try_from(count).unwrap_or(0);
    let mut bytes = vec![0; count * entry_bytes];
    let end = table.saturating_add(bytes.len() as u64);
    if end > size {
        return Err(BootError::Truncated {
            path: path.into(),
            what: "the program header table",
            needed: end,
            size,
        });
    }
    read_at(file, path, table, &mut bytes)?;
    let mut parts = Vec::new();
    let mut physical_entry = entry;
    for raw in bytes.chunks_exact(entry_bytes) {
        let [offset, linked, address, file_size, memory_size] = if wide {
            [8, 16, 24, 32, 40].map(|at| number(raw, at, 8))
        } else {
            [4, 8, 12, 16, 20].map(|at| number(raw, at, 4))
        };
        if number(raw, 0, 4) != u64::from(SEGMENT_LOAD) || memory_size == 0 {
            continue;
        }
        let end = offset.saturating_add(file_size);
        if end > size {
            return Err(BootError::Truncated {
                path: path.into(),
                what: "a segment",
                needed: end,
                size,
            });
        }
        if file_size > memory_size {
            return Err(malformed("a segment is larger in the file than in memory"));
        }
        // A kernel linked to a virtual address names its entry there; it starts without paging.
        if let Some(inside) = entry.checked_sub(linked)
            && inside < memory_size
        {
            physical_entry = address.saturating_add(inside);
        }
        parts.push(Part {
            file: offset..end,
            memory: address..address.saturating_add(memory_size),
        });
    }
    Ok((parts, physical_entry))
}

fn copy(memory: &GuestMemory, path: &Path, file: &mut File, part: &Part) -> Result<(), BootError> {
    file.seek(SeekFrom::Start(part.file.start))
        .map_err(|source| BootError::read(path, source))?;
    let length = usize::try_from(part.file.end - part.file.start).unwrap_or(usize::MAX);
    memory
        .read_exact_volatile_from(GuestAddress(part.memory.start), file, length)
        .map_err(|source| BootError::Copy {
            path: path.into(),
            source,
        })
}

/// Writes the information structure (§3.3) and what it points to. The command line is there already.
pub fn write(
    memory: &GuestMemory,
    map: &[MemoryRange],
    initrd: Option<Initrd>,
) -> Result<(), BootError> {
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    let mut info = [0u32; 30];
    let upper = map
        .iter()
        .find(|range| range.kind == Kind::Ram && range.start == HIGH_RAM);
    info[1] = low(LOW_RAM_END / KIB);
    info[2] = low(upper.map_or(0, |range| range.size) / KIB);
    info[4] = low(CMDLINE);
    if let Some(initrd) = initrd {
        flags |= INFO_MODULES;
        info[5] = 1;
        info[6] = low(MULTIBOOT_MODULES);
        // Start, end, and a text of its own: the end of the loader's name is the empty one.
        let empty = MULTIBOOT_LOADER_NAME + LOADER_NAME.len() as u64 - 1;
        let module = [initrd.address, initrd.address + initrd.size, empty, 0].map(low);
        put(
            memory,
            "the Multiboot module",
            MULTIBOOT_MODULES,
            &bytes(&module),
        )?;
    }
    let mut entries = Vec::new();
    for range in map {
        entries.extend(MAP_ENTRY_BYTES.to_le_bytes());
        entries.extend(range.start.to_le_bytes());
        entries.extend(range.size.to_le_bytes());
        entries.extend((range.kind as u32).to_le_bytes());
    }
    info[11] = low(entries.len() as u64);
    info[12] = low(MULTIBOOT_MEMORY_MAP);
    info[16] = low(MULTIBOOT_LOADER_NAME);
    info[0] = flags;
    put(
        memory,
        "the Multiboot memory map",
        MULTIBOOT_MEMORY_MAP,
        &entries,
    )?;
    put(
        memory,
        "the loader's name",
        MULTIBOOT_LOADER_NAME,
        LOADER_NAME,
    )?;
    put(
        memory,
        "the Multiboot information",
        MULTIBOOT_INFO,
        &bytes(&info),
    )
}

fn put(
    memory: &GuestMemory,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| BootError::WriteMemory {
            what,
            address,
            source,
        })
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    for (word, raw) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*raw);
    }
    (bytes.len() >= 4 * N).then_some(words)
}

/// The number of `width` bytes at `offset`.
fn number(bytes: &[u8], offset: usize, width: usize) -> u64 {
    let mut value = [0; 8];
    value[..width].copy_from_slice(&bytes[offset..offset + width]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
#[path = "multiboot_tests.rs"]
mod tests;
