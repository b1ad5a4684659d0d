//! ELF kernels: everything a header says is checked before `linux-loader` acts on it.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;

use super::{BootError, Entry, LoadedKernel, read_at};
use crate::config::BootProtocol;
use crate::memory::{self, GuestMemory};

/// `e_ident` of a 64-bit little-endian file.
const MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
/// `EM_X86_64`.
const MACHINE_X86_64: u16 = 62;
/// `ET_EXEC`: fixed addresses, as kernels have.
const TYPE_EXECUTABLE: u16 = 2;
/// Bytes of an ELF64 header.
const HEADER_BYTES: usize = 64;
/// Bytes of an ELF64 program header.
const SEGMENT_BYTES: usize = 56;
/// Most program headers: Linux has five. Bounds the work on a hostile file.
const MAX_SEGMENTS: u16 = 64;
/// Most bytes of a note segment. Linux has well under a kilobyte.
const MAX_NOTE_BYTES: u64 = 1 << 20;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// Owner of the PVH note.
const XEN_NAME: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const XEN_PHYS32_ENTRY: u32 = 18;

/// Whether a file that starts with `head` says it is ELF, of any kind.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(&MAGIC[..4])
}

/// Whether it says it is ELF of 64 bits.
pub fn is_elf64(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Whether the image of `size` bytes has a PVH entry.
pub fn has_pvh_entry(path: &Path, file: &File, size: u64) -> Result<bool, BootError> {
    let mut header = [0; HEADER_BYTES];
    if size < HEADER_BYTES as u64 {
        return Err(truncated(path, "the ELF header", HEADER_BYTES as u64, size));
    }
    read_at(file, path, 0, &mut header)?;
    for segment in read_segments(path, file, size, &header)? {
        if segment.kind == SEGMENT_NOTE && find_pvh(path, file, &segment)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// What is known of an image after its headers were checked.
#[derive(Debug)]
struct Checked {
    entry: u64,
    pvh_entry: Option<u64>,
    memory: Range<u64>,
}

/// Loads an ELF kernel of `size` bytes and chooses its entry.
pub fn load(
    memory: &GuestMemory,
    path: &Path,
    file: &mut File,
    size: u64,
    protocol: BootProtocol,
) -> Result<LoadedKernel, BootError> {
    let checked = check(path, file, size, memory::low_ram(memory))?;
    let entry = match (protocol, checked.pvh_entry) {
        (BootProtocol::Pvh, None) => return Err(BootError::NoPvhEntry { path: path.into() }),
        (BootProtocol::Pvh | BootProtocol::Auto, Some(rip)) => Entry::Pvh { rip },
        (BootProtocol::Linux64 | BootProtocol::Multiboot, _) | (BootProtocol::Auto, None) => {
            Entry::Linux64 { rip: checked.entry }
        }
    };
    Elf::load(memory, None, file, None).map_err(|source| BootError::Loader {
        path: path.into(),
        source,
    })?;
    Ok(LoadedKernel {
        entry,
        end: checked.memory.end,
        setup_header: None,
        initrd_limit: u64::MAX,
    })
}

fn check(path: &Path, file: &File, size: u64, ram: u64) -> Result<Checked, BootError> {
    let mut header = [0; HEADER_BYTES];
    if size < HEADER_BYTES as u64 {
        return Err(truncated(path, "the ELF header", HEADER_BYTES as u64, size));
    }
    read_at(file, path, 0, &mut header)?;
    if header[..6] != MAGIC || u16_at(&header, 18) != MACHINE_X86_64 {
        return Err(BootError::malformed(path, "it is not an x86-64 ELF image"));
    }
    if u16_at(&header, 16) != TYPE_EXECUTABLE {
        return Err(BootError::malformed(
            path,
            "it is not an executable with fixed addresses",
        ));
    }
    let segments = read_segments(path, file, size, &header)?;

    let mut loaded: Vec<Range<u64>> = Vec::new();
    let mut pvh_entry = None;
    for segment in &segments {
        match segment.kind {
            SEGMENT_LOAD if segment.memory_size > 0 => {
                loaded.push(check_segment(path, segment, ram)?);
            }
            SEGMENT_NOTE if pvh_entry.is_none() => pvh_entry = find_pvh(path, file, segment)?,
            _ => {}
        }
    }
    loaded.sort_by_key(|range| range.start);
    if let Some(pair) = loaded.windows(2).find(|pair| pair[0].end > pair[1].start) {
        return Err(BootError::malformed(
            path,
            format!("the segments {:#x?} and {:#x?} overlap", pair[0], pair[1]),
        ));
    }
    let (Some(first), Some(last)) = (loaded.first(), loaded.last()) else {
        return Err(BootError::malformed(path, "it has nothing to load"));
    };
    let checked = Checked {
        entry: u64_at(&header, 24),
        pvh_entry,
        memory: first.start..last.end,
    };
    for entry in [Some(checked.entry), pvh_entry].into_iter().flatten() {
        if !loaded.iter().any(|range| range.contains(&entry)) {
            return Err(BootError::malformed(
                path,
                format!("its entry point {entry:#x} is not in a loaded segment"),
            ));
        }
    }
    Ok(checked)
}

/// Reads the program headers; every range of the file they name is inside the file.
fn read_segments(
    path: &Path,
    file: &File,
    size: u64,
    header: &[u8; HEADER_BYTES],
) -> Result<Vec<Segment>, BootError> {
    let table = u64_at(header, 32);
    let count = u16_at(header, 56);
    if usize::from(u16_at(header, 54)) != SEGMENT_BYTES || count == 0 || count > MAX_SEGMENTS {
        return Err(BootError::malformed(
            path,
            format!(
                "it has {count} program headers of {} bytes, permitted are 1 to {MAX_SEGMENTS} of {SEGMENT_BYTES}",
                u16_at(header, 54)
            ),
        ));
    }
    if table < HEADER_BYTES as u64 {
        return Err(BootError::malformed(
            path,
            "its program headers overlap the ELF header",
        ));
    }
    let mut bytes = vec![0; usize::from(count) * SEGMENT_BYTES];
    let end = table.saturating_add(bytes.len() as u64);
    if end > size {
        return Err(truncated(path, "the program header table", end, size));
    }
    read_at(file, path, table, &mut bytes)?;
    let mut segments = Vec::with_capacity(usize::from(count));
    for raw in bytes.chunks_exact(SEGMENT_BYTES) {
        let segment = Segment {
            kind: u32_at(raw, 0),
            offset: u64_at(raw, 8),
            address: u64_at(raw, 24),
            file_size: u64_at(raw, 32),
            memory_size: u64_at(raw, 40),
        };
        let end = segment.offset.saturating_add(segment.file_size);
        if matches!(segment.kind, SEGMENT_LOAD | SEGMENT_NOTE) && end > size {
            return Err(truncated(path, "a segment", end, size));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn check_segment(path: &Path, segment: &Segment, ram: u64) -> Result<Range<u64>, BootError> {
    if segment.file_size > segment.memory_size {
        return Err(BootError::malformed(
            path,
            format!(
                "the segment at {:#x} has {} bytes in the file and {} in memory",
                segment.address, segment.file_size, segment.memory_size
            ),
        ));
    }
    let start = segment.address;
    let end = start.saturating_add(segment.memory_size);
    super::kernel_place(path, start..end, ram)
}

/// Looks for the PVH entry in a note segment.
fn find_pvh(path: &Path, file: &File, segment: &Segment) -> Result<Option<u64>, BootError> {
    if segment.file_size > MAX_NOTE_BYTES {
        return Err(BootError::malformed(
            path,
            format!(
                "a note segment of {} bytes, permitted are {MAX_NOTE_BYTES}",
                segment.file_size
            ),
        ));
    }
    let length = usize::try_from(segment.file_size).unwrap_or(0);
    let mut notes = vec![0; length];
    read_at(file, path, segment.offset, &mut notes)?;
    parse_pvh_note(&notes).map_err(|why| BootError::malformed(path, why))
}

fn parse_pvh_note(mut notes: &[u8]) -> Result<Option<u64>, &'static str> {
    /// Sizes of name and description, type.
    const NOTE_HEADER: usize = 12;
    const BROKEN: &str = "a note runs past the end of its segment";
    while !notes.is_empty() {
        let (header, rest) = notes.split_at_checked(NOTE_HEADER).ok_or(BROKEN)?;
        let name_size = usize::try_from(u32_at(header, 0)).map_err(|_| BROKEN)?;
        let desc_size = usize::try_from(u32_at(header, 4)).map_err(|_| BROKEN)?;
        let name = rest.get(..name_size).ok_or(BROKEN)?;
        let desc_start = name_size.next_multiple_of(4);
        let desc = rest
            .get(desc_start..)
            .and_then(|rest| rest.get(..desc_size))
            .ok_or(BROKEN)?;
        if name == XEN_NAME && u32_at(header, 8) == XEN_PHYS32_ENTRY {
            let entry = desc
                .first_chunk::<4>()
                .ok_or("its PVH note has no address")?;
            return Ok(Some(u32::from_le_bytes(*entry).into()));
        }
        // The padding after the last note may be missing.
        let next = desc_start + desc_size.next_multiple_of(4);
        notes = rest.get(next..).unwrap_or(&[]);
    }
    Ok(None)
}

fn truncated(path: &Path, what: &'static str, needed: u64, size: u64) -> BootError {
    BootError::Truncated {
        path: path.into(),
        what,
        needed,
        size,
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[offset..offset + N]);
    value
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
