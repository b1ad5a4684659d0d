//! SELF, the "simple ELF" that coreboot starts as its payload: a table of segments, then their data.
//!
//! Each entry of the table has 28 bytes, big-endian: type, compression, offset of the data from the start of the file, load
//! address (64 bits), stored length, length in memory. The last entry is the entry point. coreboot (`selfboot.c`) unpacks
//! each segment to its address and clears what is left of its memory.

use core::ops::Range;

use thiserror::Error;

use crate::bytes::{array, be32, le32};
use crate::linux::SETUP_HEADER;

#[cfg(feature = "std")]
pub mod entry;
#[cfg(feature = "std")]
pub mod linux;
#[cfg(feature = "std")]
mod writer;

#[cfg(feature = "std")]
pub use writer::{NewSegment, WriteError, write};

/// What the code at the entry point of our payloads has in it, and no other's (`entry.s`).
const OURS: &[u8] = b"Daruma: coreboot";
/// "HdrS", and where it is in a bzImage and in a zero page (Linux, boot.rst).
const SETUP_HEADER_MAGIC: (usize, [u8; 4]) = (0x202, *b"HdrS");
/// Where no setup header of any version reaches.
const SETUP_HEADER_END: usize = 0x290;
/// Where the zero page says at which address the kernel's code is.
const CODE32_START: usize = 0x214;

/// Bytes of an entry of the table.
pub const ENTRY_SIZE: usize = 28;
/// More segments than this are not believed.
pub const MAX_SEGMENTS: usize = 64;

/// Why a file is no payload that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// The table ends without an entry point.
    #[error(
        "The payload's table of segments is cut off after {count} entries: it has no entry point"
    )]
    NoEntry {
        /// Entries before the end.
        count: usize,
    },
    /// A type that coreboot does not know.
    #[error(
        "Segment {index} of the payload has type {kind:#010x}, which is none: this is no SELF payload, or a damaged one"
    )]
    Kind {
        /// Index in the table.
        index: usize,
        /// The type found.
        kind: u32,
    },
    /// More segments than anyone writes.
    #[error("The payload has more than {MAX_SEGMENTS} segments")]
    TooMany,
    /// The data of a segment lie outside the file, or in the table itself.
    #[error(
        "Segment {index} of the payload has its data ({len:#x} bytes at {offset:#x}) outside of what follows the table ({table:#x} to {end:#x})"
    )]
    Data {
        /// Index in the table.
        index: usize,
        /// Offset of the data from the start of the file.
        offset: u32,
        /// Stored bytes.
        len: u32,
        /// Where the table ends.
        table: usize,
        /// Where the file ends.
        end: usize,
    },
    /// The memory of a segment ends past the last address.
    #[error(
        "Segment {index} of the payload ({len:#x} bytes at {load:#x}) reaches past the end of the addresses"
    )]
    Address {
        /// Index in the table.
        index: usize,
        /// Where it is loaded.
        load: u64,
        /// Its bytes in memory.
        len: u32,
    },
    /// It is stored as it is, and longer than its memory.
    #[error("Segment {index} of the payload has {len:#x} bytes for {mem_len:#x} bytes of memory")]
    TooLong {
        /// Index in the table.
        index: usize,
        /// Stored bytes.
        len: u32,
        /// Bytes of its memory.
        mem_len: u32,
    },
    /// Code without a byte: what a failed compressor leaves.
    #[error("Segment {index} of the payload is code without a byte: whatever made it has failed")]
    Empty {
        /// Index in the table.
        index: usize,
    },
    /// Two segments share memory.
    #[error("Segments {first} and {second} of the payload overlap in memory at {at:#x}")]
    Overlap {
        /// Index of one.
        first: usize,
        /// Index of the other.
        second: usize,
        /// First address that both have.
        at: u64,
    },
    /// The entry point is in no code.
    #[error("The payload's entry point {entry:#x} lies in none of its segments")]
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
}

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Code.
    Code,
    /// Data.
    Data,
    /// Memory to be cleared; nothing is stored.
    Bss,
    /// Text for people; not loaded.
    Parameters,
    /// The entry point: the load address is where to jump to.
    Entry,
}

impl SegmentKind {
    const ALL: [Self; 5] = [
        Self::Code,
        Self::Data,
        Self::Bss,
        Self::Parameters,
        Self::Entry,
    ];

    /// The type as it is stored.
    pub fn number(self) -> u32 {
        u32::from_be_bytes(*match self {
            Self::Code => b"CODE",
            Self::Data => b"DATA",
            Self::Bss => b"BSS ",
            Self::Parameters => b"PARA",
            Self::Entry => b"ENTR",
        })
    }

    /// Whether it takes memory.
    pub fn is_loaded(self) -> bool {
        matches!(self, Self::Code | Self::Data | Self::Bss)
    }
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// What it is.
    pub kind: SegmentKind,
    /// coreboot's number of its compression: 0 none, 1 LZMA, 2 LZ4, 3 zstd.
    pub compression: u32,
    /// Physical address it is loaded to, or to enter.
    pub load: u64,
    /// Bytes of memory.
    pub mem_len: u32,
    /// The data as stored.
    pub data: &'a [u8],
}

impl Segment<'_> {
    /// The memory it takes; empty if it is not loaded.
    pub fn memory(&self) -> Range<u64> {
        let len = if self.kind.is_loaded() {
            u64::from(self.mem_len)
        } else {
            0
        };
        // `parse` has checked that this does not wrap.
        self.load..self.load.saturating_add(len)
    }
}

/// A payload whose table was checked.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    data: &'a [u8],
    count: usize,
    entry: u64,
}

impl<'a> Payload<'a> {
    /// Reads the table at the start of `data`, a whole file, and checks that all of it can be loaded.
    pub fn parse(data: &'a [u8]) -> Result<Self, PayloadError> {
        let (count, entry) = Self::table(data)?;
        let payload = Self { data, count, entry };
        let end = (count + 1) * ENTRY_SIZE;
        for index in 0..count {
            payload.check(index, end)?;
        }
        payload.check_entry()?;
        Ok(payload)
    }

    /// The number of segments before the entry point, and that.
    fn table(data: &[u8]) -> Result<(usize, u64), PayloadError> {
        for (index, entry) in data.chunks_exact(ENTRY_SIZE).enumerate() {
            if index > MAX_SEGMENTS {
                return Err(PayloadError::TooMany);
            }
            let number = be32(entry, 0).unwrap_or_default();
            let kind = SegmentKind::ALL
                .into_iter()
                .find(|kind| kind.number() == number)
                .ok_or(PayloadError::Kind {
                    index,
                    kind: number,
                })?;
            if kind == SegmentKind::Entry {
                return Ok((index, load_address(entry)));
            }
        }
        Err(PayloadError::NoEntry {
            count: data.len() / ENTRY_SIZE,
        })
    }

    fn check(&self, index: usize, table: usize) -> Result<(), PayloadError> {
        let fields = self.fields(index);
        let segment = self.segment(index);
        let (offset, len) = (fields.offset, fields.len);
        let stored = matches!(
            segment.kind,
            SegmentKind::Code | SegmentKind::Data | SegmentKind::Parameters
        );
        let start = offset as usize;
        let inside = start >= table
            && start
                .checked_add(len as usize)
                .is_some_and(|end| end <= self.data.len());
        if stored && len > 0 && !inside {
            return Err(PayloadError::Data {
                index,
                offset,
                len,
                table,
                end: self.data.len(),
            });
        }
        let mem_len = segment.mem_len;
        if segment.load.checked_add(u64::from(mem_len)).is_none() {
            return Err(PayloadError::Address {
                index,
                load: segment.load,
                len: mem_len,
            });
        }
        if !segment.kind.is_loaded() {
            return Ok(());
        }
        if stored && fields.compression == 0 && len > mem_len {
            return Err(PayloadError::TooLong {
                index,
                len,
                mem_len,
            });
        }
        let packed_to_nothing = fields.compression != 0 && mem_len > 0;
        if stored && len == 0 && (segment.kind == SegmentKind::Code || packed_to_nothing) {
            return Err(PayloadError::Empty { index });
        }
        Ok(())
    }

    fn check_entry(&self) -> Result<(), PayloadError> {
        if self
            .segments()
            .any(|segment| segment.memory().contains(&self.entry))
        {
            Ok(())
        } else {
            Err(PayloadError::EntryOutside { entry: self.entry })
        }
    }

    /// Checks that no two segments share memory. Payloads by cbfstool do, where zeros are overwritten by the next: that
    /// the order of loading makes something of it is no reason to write such a payload.
    pub fn check_overlap(&self) -> Result<(), PayloadError> {
        // At most MAX_SEGMENTS squared.
        for (first, one) in self.segments().enumerate() {
            let memory = one.memory();
            for (second, other) in self.segments().enumerate().skip(first + 1) {
                let at = memory.start.max(other.memory().start);
                if at < memory.end.min(other.memory().end) {
                    return Err(PayloadError::Overlap { first, second, at });
                }
            }
        }
        Ok(())
    }

    fn fields(&self, index: usize) -> Fields {
        let bytes = self.data.get(index * ENTRY_SIZE..).unwrap_or_default();
        let field = |at| be32(bytes, at).unwrap_or_default();
        Fields {
            number: field(0),
            compression: field(4),
            offset: field(8),
            load: load_address(bytes),
            len: field(20),
            mem_len: field(24),
        }
    }

    fn segment(&self, index: usize) -> Segment<'a> {
        let fields = self.fields(index);
        let kind = SegmentKind::ALL
            .into_iter()
            .find(|kind| kind.number() == fields.number)
            .unwrap_or(SegmentKind::Parameters);
        let start = fields.offset as usize;
        let data = match kind {
            SegmentKind::Bss | SegmentKind::Entry => None,
            _ => start
                .checked_add(fields.len as usize)
                .and_then(|end| self.data.get(start..end)),
        };
        Segment {
            kind,
            compression: fields.compression,
            load: fields.load,
            mem_len: fields.mem_len,
            data: data.unwrap_or_default(),
        }
    }

    /// All segments but the entry point, in the order of the table.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let payload = *self;
        (0..self.count).map(move |index| payload.segment(index))
    }

    /// Physical address at which it is entered.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The setup header and the code of the Linux that it starts, if it is a payload of ours with both as they are:
    /// boards may have another Linux as another payload.
    pub fn linux(&self) -> Option<(&'a [u8], &'a [u8])> {
        let plain = |segment: &Segment<'a>| segment.compression == 0;
        let entry = self
            .segments()
            .find(|segment| plain(segment) && segment.load == self.entry)?;
        if !entry.data.windows(OURS.len()).any(|part| part == OURS) {
            return None;
        }
        let page = self
            .segments()
            .filter(plain)
            .map(|segment| segment.data)
            .find(|data| array(data, SETUP_HEADER_MAGIC.0) == Some(SETUP_HEADER_MAGIC.1))?;
        let code_at = u64::from(le32(page, CODE32_START)?);
        let code = self
            .segments()
            .find(|segment| plain(segment) && segment.load == code_at)?;
        Some((page.get(SETUP_HEADER..SETUP_HEADER_END)?, code.data))
    }

    /// The end of the memory that it takes: there must be so much.
    pub fn memory_end(&self) -> u64 {
        self.segments()
            .map(|segment| segment.memory().end)
            .max()
            .unwrap_or(0)
    }
}

struct Fields {
    number: u32,
    compression: u32,
    offset: u32,
    load: u64,
    len: u32,
    mem_len: u32,
}

fn load_address(entry: &[u8]) -> u64 {
    let half = |at| u64::from(be32(entry, at).unwrap_or_default());
    half(12) << 32 | half(16)
}

#[cfg(test)]
mod tests;
