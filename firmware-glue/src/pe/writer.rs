//! Adding sections to a UEFI program.

use super::{
    CHECKSUM, COFF, ENTRY, NAME, Pe, PeError, SECTION_COUNT, SECTION_HEADER, SIZE_OF_DATA,
    SIZE_OF_IMAGE,
};
use crate::bytes::le32;

/// Sections begin at pages in memory, whatever the program's own alignment: firmware protects whole pages.
const PAGE: u32 = 4096;

const INITIALIZED_DATA: u32 = 0x40;
const CODE: u32 = 0x20;
const EXECUTE: u32 = 0x2000_0000;
const READ: u32 = 0x4000_0000;

/// A section to be added. Nothing writes to it in memory.
#[derive(Clone, Copy, Debug)]
pub struct NewSection<'a> {
    /// Its name: at most 8 bytes.
    pub name: &'a str,
    /// What it holds.
    pub data: &'a [u8],
    /// Whether it is run.
    pub code: bool,
}

/// The addresses, counted from the start of the program's memory, at which sections of these sizes will be.
pub fn places(pe: &Pe<'_>, sizes: &[usize]) -> Result<Vec<u32>, PeError> {
    let step = pe.section_alignment.max(PAGE);
    let mut end = u64::from(pe.size_of_image);
    let mut places = Vec::new();
    for size in sizes {
        let place = low32(end.next_multiple_of(step.into()))?;
        places.push(place);
        end = u64::from(place) + *size as u64;
    }
    low32(end)?;
    Ok(places)
}

/// `pe` with `sections` behind those that it has; the first that is code, if any, is entered at its first byte in place
/// of what was entered before.
pub fn with_sections(pe: &Pe<'_>, sections: &[NewSection<'_>]) -> Result<Vec<u8>, PeError> {
    check_names(pe, sections)?;
    let (room, wanted) = (room(pe), sections.len());
    if wanted > room {
        return Err(PeError::NoRoom { room, wanted });
    }
    let sizes: Vec<usize> = sections.iter().map(|new| new.data.len()).collect();
    let addresses = places(pe, &sizes)?;
    let mut file = pe.file.to_vec();
    let mut memory_end = pe.size_of_image;
    let mut data_size = 0;
    for (index, new) in sections.iter().enumerate() {
        let at = fill_block(&mut file, pe.file_alignment)?;
        file.extend_from_slice(new.data);
        let end = fill_block(&mut file, pe.file_alignment)?;
        let flags = if new.code {
            CODE | EXECUTE | READ
        } else {
            INITIALIZED_DATA | READ
        };
        data_size += end - at;
        let mut header = [0; SECTION_HEADER];
        header[..new.name.len()].copy_from_slice(new.name.as_bytes());
        let size = low32(new.data.len() as u64)?;
        memory_end = addresses[index] + size;
        for (field, value) in [
            (8, size),
            (12, addresses[index]),
            (16, end - at),
            (20, at),
            (36, flags),
        ] {
            header[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
        let place = pe.table + (pe.sections + index) * SECTION_HEADER;
        file[place..place + SECTION_HEADER].copy_from_slice(&header);
    }

    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let count = u16::try_from(pe.sections + sections.len()).unwrap_or(u16::MAX);
    put(pe.coff + SECTION_COUNT, &count.to_le_bytes());
    let optional = pe.coff + COFF;
    let size_of_image = u64::from(memory_end).next_multiple_of(pe.section_alignment.into());
    let size_of_image = low32(size_of_image)?;
    put(optional + SIZE_OF_IMAGE, &size_of_image.to_le_bytes());
    // UEFI does not look at it; a wrong one would be worse than none.
    put(optional + CHECKSUM, &[0; 4]);
    let before = le32(pe.file, optional + SIZE_OF_DATA).unwrap_or_default();
    let size_of_data = before.saturating_add(data_size);
    put(optional + SIZE_OF_DATA, &size_of_data.to_le_bytes());
    if let Some(index) = sections.iter().position(|new| new.code) {
        put(optional + ENTRY, &addresses[index].to_le_bytes());
    }
    Ok(file)
}

fn check_names(pe: &Pe<'_>, sections: &[NewSection<'_>]) -> Result<(), PeError> {
    for (index, new) in sections.iter().enumerate() {
        let name = new.name;
        if name.is_empty() || name.len() > NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PeError::Name { name: name.into() });
        }
        if pe.find(name).is_some() || sections[..index].iter().any(|other| other.name == name) {
            return Err(PeError::Duplicate { name: name.into() });
        }
    }
    Ok(())
}

/// Sections that the headers could take more: up to where the first section begins, or something else that is not filling.
/// A bzImage has its setup header there, and is filled with ones before it.
fn room(pe: &Pe<'_>) -> usize {
    let table_end = pe.table + pe.sections * SECTION_HEADER;
    let first = pe
        .sections()
        .filter(|section| !section.data.is_empty())
        .map(|section| section.file_at)
        .min()
        .unwrap_or(usize::MAX);
    let end = first.min(pe.size_of_headers as usize).max(table_end);
    let free = pe.file[table_end..end]
        .iter()
        .take_while(|byte| matches!(byte, 0 | 0xff))
        .count();
    free / SECTION_HEADER
}

/// Fills the last block of the file; says where the next one begins.
fn fill_block(file: &mut Vec<u8>, block: u32) -> Result<u32, PeError> {
    file.resize(file.len().next_multiple_of(block as usize), 0);
    low32(file.len() as u64)
}

fn low32(len: u64) -> Result<u32, PeError> {
    u32::try_from(len).map_err(|_| PeError::TooLarge { len })
}
