//! PE32+, the format of UEFI programs: what is needed to add sections to one.
//!
//! Microsoft, "PE Format"; UEFI Specification, "UEFI Images". Everything in the file is little-endian.

#[cfg(feature = "std")]
mod writer;

use thiserror::Error;

#[cfg(feature = "std")]
pub use self::writer::{NewSection, places, with_sections};
use crate::bytes::{array, le16, le32};

/// Bytes of an entry of the section table.
const SECTION_HEADER: usize = 40;
/// Bytes of a section's name; shorter ones are filled with NULs.
pub const NAME: usize = 8;
/// Bytes of the COFF header with its signature.
const COFF: usize = 24;
const MACHINE_X86_64: u16 = 0x8664;
const PE32_PLUS: u16 = 0x020b;
/// Which entry of the data directories leads to signatures.
const CERTIFICATES: usize = 4;
/// A table of more sections than this is none.
const MAX_SECTIONS: u16 = 96;

// Offsets in the COFF header.
const MACHINE: usize = 4;
const SECTION_COUNT: usize = 6;
const OPTIONAL_SIZE: usize = 20;

// Offsets in the optional header.
#[cfg(feature = "std")]
const SIZE_OF_DATA: usize = 8;
const ENTRY: usize = 16;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
#[cfg(feature = "std")]
const CHECKSUM: usize = 64;
const DIRECTORY_COUNT: usize = 108;
const DIRECTORIES: usize = 112;

/// Why a file is no UEFI program for x86-64, or cannot become the one that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeError {
    /// A signature is missing.
    #[error("Not a UEFI program: {what} is missing at offset {at:#x}")]
    NotPe {
        /// The signature.
        what: &'static str,
        /// Its offset.
        at: usize,
    },
    /// The file ends within its headers, or before a section does.
    #[error("The UEFI program is cut off: {what} ends at {end:#x}, the file at {len:#x}")]
    Truncated {
        /// What is not whole.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Bytes of the file.
        len: usize,
    },
    /// For another processor.
    #[error("The UEFI program is for machine type {machine:#06x}, not for x86-64 (0x8664)")]
    Machine {
        /// Its COFF machine type.
        machine: u16,
    },
    /// A field that cannot be as it is.
    #[error("The UEFI program's {what} is {value:#x}, which cannot be")]
    Field {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// It is signed: changing it breaks that.
    #[error("The UEFI program is signed; take one without a signature, and sign the result")]
    Signed,
    /// A section of the name is there already.
    #[cfg(feature = "std")]
    #[error("The UEFI program has a section {name} already")]
    Duplicate {
        /// The section's name.
        name: String,
    },
    /// A name that is none.
    #[cfg(feature = "std")]
    #[error("{name:?} cannot name a section: 1 to 8 bytes of ASCII are needed")]
    Name {
        /// The name.
        name: String,
    },
    /// The headers are full.
    #[error("The UEFI program's headers have room for {room} more sections, {wanted} are needed")]
    NoRoom {
        /// Sections that the headers could take.
        room: usize,
        /// Sections to be added.
        wanted: usize,
    },
    /// More than 32 bits of it.
    #[error("The UEFI program would have {len:#x} bytes, more than the format can say")]
    TooLarge {
        /// Its bytes.
        len: u64,
    },
}

/// A UEFI program whose headers were checked.
#[derive(Clone, Copy, Debug)]
pub struct Pe<'a> {
    file: &'a [u8],
    /// Offset of the COFF header.
    #[cfg(feature = "std")]
    coff: usize,
    /// Offset of the section table.
    table: usize,
    sections: usize,
    /// Multiples of it are where sections may begin in memory.
    section_alignment: u32,
    /// Multiples of it are where sections may begin in the file.
    file_alignment: u32,
    size_of_headers: u32,
    /// Bytes of memory from the first byte of the headers to the end of the last section.
    pub size_of_image: u32,
    /// Where it is entered, counted from the start of its memory.
    pub entry: u32,
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    name: [u8; NAME],
    /// Where it is in memory, counted from the start.
    pub address: u32,
    /// Its bytes in memory; what the file has not is zero.
    pub memory_size: u32,
    /// What the file has of it, without what only fills the file's blocks.
    pub data: &'a [u8],
    /// Where it is in the file.
    file_at: usize,
}

impl Section<'_> {
    /// Its name; empty if that is no text.
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|byte| *byte == 0);
        core::str::from_utf8(&self.name[..end.unwrap_or(NAME)]).unwrap_or_default()
    }
}

impl<'a> Pe<'a> {
    /// Reads and checks the headers of `file`.
    pub fn parse(file: &'a [u8]) -> Result<Self, PeError> {
        let missing = |what, at| PeError::NotPe { what, at };
        if file.get(..2) != Some(b"MZ") {
            return Err(missing("\"MZ\"", 0));
        }
        let truncated = |what, end: usize| PeError::Truncated {
            what,
            end: end as u64,
            len: file.len(),
        };
        let coff = le32(file, 0x3c).ok_or_else(|| truncated("the first header", 0x40))? as usize;
        if array(file, coff) != Some(*b"PE\0\0") {
            return Err(missing("\"PE\"", coff));
        }
        let no_coff = || truncated("the COFF header", coff + COFF);
        let word = |at: usize| le16(file, coff + at).ok_or_else(no_coff);
        let machine = word(MACHINE)?;
        let sections = word(SECTION_COUNT)?;
        let optional_size = usize::from(word(OPTIONAL_SIZE)?);
        if machine != MACHINE_X86_64 {
            return Err(PeError::Machine { machine });
        }
        let optional = coff + COFF;
        let table = optional + optional_size;
        let header = file
            .get(optional..table)
            .ok_or_else(|| truncated("the optional header", table))?;
        if le16(header, 0) != Some(PE32_PLUS) {
            return Err(missing("PE32+'s magic 0x20b", optional));
        }
        let field = |what, value: u64| PeError::Field { what, value };
        let long = |at| le32(header, at).ok_or_else(|| field("header size", header.len() as u64));
        let directories = long(DIRECTORY_COUNT)? as usize;
        let available = header.len().saturating_sub(DIRECTORIES) / 8;
        if directories > available {
            return Err(field("number of directories", directories as u64));
        }
        if sections == 0 || sections > MAX_SECTIONS {
            return Err(field("number of sections", sections.into()));
        }
        let sections = usize::from(sections);
        let end = table + sections * SECTION_HEADER;
        if end > file.len() {
            return Err(truncated("the section table", end));
        }
        let pe = Self {
            file,
            #[cfg(feature = "std")]
            coff,
            table,
            sections,
            section_alignment: long(SECTION_ALIGNMENT)?,
            file_alignment: long(FILE_ALIGNMENT)?,
            size_of_headers: long(SIZE_OF_HEADERS)?,
            size_of_image: long(SIZE_OF_IMAGE)?,
            entry: long(ENTRY)?,
        };
        for (what, value) in [
            ("section alignment", pe.section_alignment),
            ("file alignment", pe.file_alignment),
        ] {
            if !value.is_power_of_two() {
                return Err(field(what, value.into()));
            }
        }
        if pe.size_of_headers as usize > file.len() || end > pe.size_of_headers as usize {
            return Err(field("size of headers", pe.size_of_headers.into()));
        }
        if directories > CERTIFICATES && long(DIRECTORIES + 8 * CERTIFICATES + 4)? != 0 {
            return Err(PeError::Signed);
        }
        for index in 0..sections {
            pe.section(index)?;
        }
        Ok(pe)
    }

    /// The sections, as their table has them.
    pub fn sections(&self) -> impl Iterator<Item = Section<'a>> + '_ {
        // They were checked.
        (0..self.sections).filter_map(|index| self.section(index).ok())
    }

    fn section(&self, index: usize) -> Result<Section<'a>, PeError> {
        let header = &self.file[self.table + index * SECTION_HEADER..][..SECTION_HEADER];
        let long = |at| le32(header, at).unwrap_or_default();
        let (memory_size, address) = (long(8), long(12));
        let (raw_size, raw_at) = (long(16), long(20));
        let raw_end = u64::from(raw_at) + u64::from(raw_size);
        let memory_end = u64::from(address) + u64::from(memory_size);
        if memory_end > u64::from(self.size_of_image) {
            let what = "section's end in memory";
            let value = memory_end;
            return Err(PeError::Field { what, value });
        }
        let start = raw_at as usize;
        let raw = self
            .file
            .get(start..)
            .and_then(|rest| rest.get(..raw_size as usize));
        let raw = raw.ok_or(PeError::Truncated {
            what: "a section",
            end: raw_end,
            len: self.file.len(),
        })?;
        let used = raw_size.min(memory_size) as usize;
        Ok(Section {
            name: array(header, 0).unwrap_or_default(),
            address,
            memory_size,
            data: &raw[..used],
            file_at: start,
        })
    }

    /// The section `name`.
    pub fn find(&self, name: &str) -> Option<Section<'a>> {
        self.sections().find(|section| section.name() == name)
    }
}

#[cfg(test)]
pub(crate) mod tests;
